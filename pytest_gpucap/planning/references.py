"""Published throughput figures, and whether physics allows them. The figures stand in ``references.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.limits import Limit, Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of


@dataclass(frozen=True, slots=True)
class Reference:
    """One published figure.

    Attributes:
        model: its name, with `config` the fields of its ``config.json``.
        tensor: GPUs of one replica.
        build: as the source calls it.
        batch: None: as large as memory allowed.
        rate_rps: requests a second of one replica.
        latency_s: of one request, where that was published; None where not.
        memory_gb: as published; None where not.
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
    """A reference against its limit.

    Attributes:
        limit: at its batch; None where it does not even fit the memory.
        share: of the limit; above 1 no server can have reached it.
        floor_s: least time of one whole request at its batch.
        text: in one line.
    """

    limit: Limit | None
    share: float
    floor_s: float
    text: str

    @property
    def plausible(self) -> bool:
        """Whether physics allows it."""
        return self.share <= 1


@cache
def references() -> tuple[Reference, ...]:
    """Every reference, in the order of the file."""
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
    """The limits of a reference on the GPUs it names (`hardware` of one GPU)."""
    precision = precision_of(
        reference.config, quantization=reference.quantization, kv_cache_dtype=reference.kv_cache_dtype
    )
    shared = replace(hardware, tensor=reference.tensor)
    return Roofline(model_of(reference.config), precision, shared, reference.workload, Deployment())


def judge(reference: Reference, hardware: Hardware) -> Plausibility:
    """Whether a reference is physically possible: its rate and its latency against the limit at its batch.

    One request at a time is bounded by its own latency: prefill and one reading of the weights a token.
    """
    roofline = roofline_for(reference, hardware)
    limit = roofline.best() if reference.batch is None else roofline.at(reference.batch)
    if limit is None:
        return Plausibility(None, float("inf"), roofline.e2e_s(), f"implausible: does not fit {hardware.name}")
    floor_s = roofline.e2e_s(limit.batch)
    most = 1 / floor_s if reference.batch == 1 else limit.rate_rps
    share = max(reference.rate_rps / most, 0.0 if reference.latency_s is None else floor_s / reference.latency_s)
    if share > 1:
        text = f"implausible: {share:.1f} times the {limit.bound} limit"
        if reference.latency_s is not None:
            text += f"; {reference.latency_s:.3g} s a request, at least {floor_s:.3g} s needed"
    else:
        text = f"{share:.0%} of the {limit.bound} limit"
    return Plausibility(limit, share, floor_s, text)
