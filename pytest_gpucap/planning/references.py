"""Published rates, and whether physics allows them. ``references.toml`` holds the figures and their sources."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.planning.evidence import Evidence, Provenance
from pytest_gpucap.planning.service import Service
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.limits import Limit, Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.roofline.served import hardware_of


@dataclass(frozen=True, slots=True)
class Reference:
    """One published figure.

    Attributes:
        model: its name.
        config: the fields of the model's ``config.json``.
        tensor: GPUs per replica, all of them tensor parallel.
        build: as the source calls it.
        batch: requests in flight; None if the batch was as large as memory allowed.
        rate_rps: requests per second per replica.
        latency_s: of one request; None if it was not published.
        memory_gb: as published; None if it was not published.
    """

    source: str
    url: str
    model: str
    config: Mapping[str, Any]
    gpu_class: str
    tensor: int
    build: str
    quantization: str | None
    kv_cache_dtype: str | None
    engine: str
    workload: Workload
    batch: int | None
    rate_rps: float
    latency_s: float | None
    memory_gb: float | None


@dataclass(frozen=True, slots=True)
class Plausibility:
    """A reference against its physical limit.

    Attributes:
        limit: at the batch of the reference; None if the model does not fit the memory.
        share: of the limit. Above 1, no server can have reached the published figure.
        floor_s: least time of one whole request at this batch.
        finding: the share in words.
        latency: where the share is above 1, the published latency beside the least one; empty if none was published.
    """

    limit: Limit | None
    share: float
    floor_s: float
    finding: str
    latency: str = ""

    @property
    def text(self) -> str:
        """Finding and latency in one line."""
        return "; ".join(filter(None, (self.finding, self.latency)))

    @property
    def plausible(self) -> bool:
        """Whether physics allows the published figure."""
        return self.share <= 1


@cache
def references() -> tuple[Reference, ...]:
    """All references, in the order of the file."""
    content = tomllib.loads(files(__package__).joinpath("references.toml").read_text(encoding="utf-8"))
    return tuple(_reference(entry, content["models"]) for entry in content["reference"])


def _reference(entry: Mapping[str, Any], models: Mapping[str, Any]) -> Reference:
    latency_ms, output = entry.get("latency_ms"), int(entry["output_tokens"])
    rate = entry["rate_rps"] if "rate_rps" in entry else entry["output_tokens_per_s"] / output
    return Reference(
        source=entry["source"],
        url=entry.get("url", ""),
        model=entry["model"],
        config=models[entry["model"]],
        gpu_class=entry["gpu_class"],
        tensor=int(entry.get("tensor", 1)),
        build=entry["build"],
        quantization=entry.get("quantization"),
        kv_cache_dtype=entry.get("kv_cache_dtype"),
        engine=entry["engine"],
        workload=Workload(input_tokens=Length.fixed(int(entry["input_tokens"])), output_tokens=Length.fixed(output)),
        batch=entry.get("batch"),
        rate_rps=float(rate),
        latency_s=None if latency_ms is None else latency_ms / 1000,
        memory_gb=entry.get("memory_gb"),
    )


def roofline_for(reference: Reference, hardware: Hardware) -> Roofline:
    """The physical limits of a reference on the GPUs that it names. `hardware` is that of one GPU."""
    precision = precision_of(
        reference.config, quantization=reference.quantization, kv_cache_dtype=reference.kv_cache_dtype
    )
    shared = replace(hardware, tensor=reference.tensor)
    return Roofline(model_of(reference.config), precision, shared, reference.workload, Deployment())


def plausibility_of(reference: Reference, hardware: Hardware) -> Plausibility:
    """Compare the rate and the latency of a reference with the physical limit at its batch.

    With one request at a time, the least latency of a request bounds the rate: the prefill, and for each further token
    one pass over the weights.
    """
    roofline = roofline_for(reference, hardware)
    limit = roofline.best() if reference.batch is None else roofline.at(reference.batch)
    if limit is None:
        return Plausibility(None, float("inf"), roofline.e2e_s(), f"implausible: does not fit {hardware.name}")
    floor_s = roofline.e2e_s(limit.batch)
    most = 1 / floor_s if reference.batch == 1 else limit.rate_rps
    share = max(reference.rate_rps / most, 0.0 if reference.latency_s is None else floor_s / reference.latency_s)
    if share <= 1:
        return Plausibility(limit, share, floor_s, f"{share:.0%} of the {limit.bound} limit")
    latency_s = reference.latency_s
    latency = "" if latency_s is None else f"{latency_s:.3g} s a request, at least {floor_s:.3g} s needed"
    return Plausibility(limit, share, floor_s, f"implausible: {share:.1f} times the {limit.bound} limit", latency)


class SetAside(msgspec.Struct, frozen=True):
    """A published rate that the plan does not use, because it is above the physical limit.

    Attributes:
        source: with build and engine.
        rate_rps: requests per second per replica, as published.
        share: of the physical limit; above 1.
        text: the finding in one line.
    """

    gpu_class: str
    source: str
    rate_rps: float
    share: float
    text: str


def published_rates(service: Service, classes: Sequence[GpuClass]) -> tuple[dict[str, list[Evidence]], list[SetAside]]:
    """The published rates of this service: same model, precision, lengths and GPUs per replica.

    Returns:
        The plausible ones by GPU class; and the others. Both are in the order of the references.
    """
    usable: dict[str, list[Evidence]] = {}
    set_aside: list[SetAside] = []
    for reference in references():
        gpu_class = next((each for each in classes if each.name == reference.gpu_class), None)
        hardware = None if gpu_class is None else hardware_of(gpu_class)
        if gpu_class is None or hardware is None or not _is_of(reference, service, gpu_class, hardware):
            continue
        found = plausibility_of(reference, hardware)
        source = f"{reference.source} ({reference.build}, {reference.engine})"
        if found.plausible:
            limits = ", without these latency limits" if service.slo.limits else ""
            evidence = Evidence(Provenance.PUBLISHED, reference.rate_rps, None, None, source + limits)
            usable.setdefault(gpu_class.name, []).append(evidence)
        else:
            set_aside.append(SetAside(gpu_class.name, source, reference.rate_rps, found.share, found.text))
    return usable, set_aside


def _is_of(reference: Reference, service: Service, gpu_class: GpuClass, hardware: Hardware) -> bool:
    """Whether model, workload, bits and GPUs per replica are equal. The names of 16-bit types do not matter."""
    mine = service.roofline(gpu_class)
    given = service.arguments
    sizes = (given.tensor_parallel_size, given.gpus_per_replica)
    if mine is None or sizes != (reference.tensor, reference.tensor):
        return False
    theirs = roofline_for(reference, hardware)
    bits = [(each.precision.weight_bits, each.precision.kv_bits, each.model, each.workload) for each in (mine, theirs)]
    return bits[0] == bits[1]
