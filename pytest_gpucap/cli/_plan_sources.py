"""What `plan` is told by files: results and baselines, prices, a model's config."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.gpu.classes import GpuClass, UnknownGpuClass, find_class
from pytest_gpucap.history.store import Run
from pytest_gpucap.planning.fleet import Provenance
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.requirement import (
    ArrivalKind,
    Arrivals,
    LatencyLimit,
    Length,
    RequirementError,
    Slo,
    Workload,
    positive,
)
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.record import as_record
from pytest_gpucap.vllm_arguments import VllmArguments, recorded

DEFAULT_RESULT: Final = Path(".gpucap/result.json")
BOUNDING: Final = (
    "dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "prefill_context_parallel_size", "decode_context_parallel_size", "max_num_seqs", "max_model_len",
    "gpu_memory_utilization", "speculative_config",
)  # fmt: skip
"""Server arguments that decide what a rate is a rate of, besides the model."""


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """A rate that somebody measured with this plugin.

    Attributes:
        name: of the requirement or test.
        place: the file it stands in.
        declared: whether nobody saw the GPU class: what is behind a URL is taken as declared.
        arguments: those of `BOUNDING` that were given.
        samples: load and throughput of its windows.
    """

    name: str
    place: str
    provenance: Provenance
    gpu_class: str
    model: str
    workload: Workload
    slo: Slo
    rate: Interval
    gpus_per_replica: int
    qps: Fraction | None
    headroom: Fraction
    declared: bool = False
    arguments: VllmArguments = field(default_factory=VllmArguments)
    samples: tuple[Sample, ...] = ()

    def same_subject(self, other: MeasuredRate) -> bool:
        """Whether both are rates of the same model, server arguments, workload and limits."""
        mine = (self.model, self.arguments, self.workload, frozenset(self.slo.limits))
        return mine == (other.model, other.arguments, other.workload, frozenset(other.slo.limits))


def findings(runs: Iterable[Run], provenance: Provenance) -> tuple[list[MeasuredRate], list[str]]:
    """The usable rates of runs, in their order, and why the others were left out."""
    found: list[MeasuredRate] = []
    left_out: list[str] = []
    for run in runs:
        for record in map(as_record, run.results):
            reason = _unusable(record)
            if reason:
                left_out.append(f"{record.get('name', '?')} in {shown(run.path)}: {reason}")
            else:
                found.append(_finding(record, shown(run.path), provenance))
    return found, left_out


def best_of_each_class(found: Sequence[MeasuredRate], preferred: MeasuredRate | None = None) -> list[MeasuredRate]:
    """One finding a GPU class: the preferred one, or measured before baseline and the narrowest interval."""
    best: dict[str, MeasuredRate] = {}
    for finding in sorted(
        found,
        key=lambda each: (
            each is not preferred,
            list(Provenance).index(each.provenance),
            each.rate.high / max(each.rate.low, 1e-9),
        ),
    ):
        best.setdefault(finding.gpu_class, finding)
    return list(best.values())


def _unusable(record: Mapping[str, Any]) -> str:
    if record.get("simulated"):
        return "SIMULATED, which is no measurement"
    if record.get("kind") == "sample":
        return "a single window has no sustainable rate"
    if not record.get("sustainable_rate") or record["sustainable_rate"].get("low") is None:
        return "no sustainable rate was found"
    if not record["environment"].get("gpu_class"):
        return "the GPU class was not known"
    return ""


def _finding(record: Mapping[str, Any], place: str, provenance: Provenance) -> MeasuredRate:
    declared, rate = record["requirement"], record["sustainable_rate"]
    shape = record["workload"]
    return MeasuredRate(
        name=str(record["name"]),
        place=place,
        provenance=provenance,
        gpu_class=str(record["environment"]["gpu_class"]),
        model=str(record["environment"].get("model")),
        workload=Workload(
            input_tokens=Length.parse(shape["input_tokens"], "input_tokens"),
            output_tokens=Length.parse(shape["output_tokens"], "output_tokens"),
            shared_prefix_tokens=int(shape["shared_prefix_tokens"]),
            arrivals=Arrivals(
                ArrivalKind(shape["arrivals"]),
                shape["burstiness"],
                None if shape["trace"] is None else Path(shape["trace"]),
            ),
        ),
        slo=Slo(tuple(LatencyLimit.parse(name, value) for name, value in record["slo"]["limits"].items())),
        rate=Interval(rate["value"], rate["low"], rate["high"], rate["confidence"]),
        gpus_per_replica=int(declared["gpus_per_replica"]),
        qps=positive(declared["qps"], "qps") if record["kind"] == "check" else None,
        headroom=positive(declared["headroom"], "headroom"),
        declared=record["environment"].get("url") is not None,
        arguments=_arguments(record["environment"]),
        samples=tuple(_sample(each) for each in record["samples"] if each["output_tokens_per_s"] is not None),
    )


_LOAD: Final = (
    "kind", "label", "start_s", "end_s", "offered_rps", "concurrency", "requests", "output_tokens_per_s",
    "in_flight_mean", "in_flight_end",
)  # fmt: skip


def _sample(record: Mapping[str, Any]) -> Sample:
    """Load and throughput of a window; its latencies are of no use here."""
    completed = math.nan if record["completed_rps"] is None else record["completed_rps"]
    return Sample(**{name: record[name] for name in _LOAD}, completed_rps=completed)


def _arguments(environment: Mapping[str, Any]) -> VllmArguments:
    """The server's arguments that bound its speed."""
    return VllmArguments(recorded(environment.get("server_args") or {})).only(BOUNDING)


@dataclass(frozen=True, slots=True)
class Prices:
    """What one GPU costs an hour, by class."""

    currency: str = ""
    per_hour: Mapping[str, Fraction] = field(default_factory=dict)


def read_prices(path: Path, own: Sequence[GpuClass] = ()) -> Prices:
    """Prices from a TOML file: ``currency = "USD"``, and a table ``[per_hour]`` with ``a10g = 1.006`` and so on.

    Raises:
        CommandError: if the file cannot be read, names an unknown class, or a price is no number above zero.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise CommandError(f"--prices {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(f"--prices {path}: {error}") from None
    table = content.get("per_hour")
    if not isinstance(table, dict) or set(content) - {"currency", "per_hour"}:
        raise CommandError(f'--prices {path}: write currency = "USD" and a table [per_hour] with CLASS = PRICE')
    prices = {}
    for name, price in table.items():
        try:
            prices[find_class(name, own).name] = positive(price, f"the price of {name}")
        except (UnknownGpuClass, RequirementError) as error:
            raise CommandError(f"--prices {path}: {error}") from None
    return Prices(str(content.get("currency", "")), prices)
