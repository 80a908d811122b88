"""Rates that this plugin measured, from the records of result files and baselines."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.planning.evidence import Evidence, Provenance
from pytest_gpucap.planning.service import BOUNDING, Service
from pytest_gpucap.requirement import ArrivalKind, Arrivals, LatencyLimit, Length, Slo, Workload, positive
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.record import Record


class UnknownMeasurement(ValueError):  # noqa: N818 - reads as what is wrong
    """No measurement has the name that was asked for. The message lists the names that there are."""


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """The sustainable rate of one replica, as one result states it.

    Attributes:
        name: of the requirement or the test.
        place: the file that holds the result.
        rate: requests per second, with its interval.
        qps: the target rate that the test declared; None if it declared none.
        headroom: the factor on the target rate that the test declared.
        declared: the GPU class is taken from the declaration, because the server was behind a URL.
        samples: load and throughput of the measuring windows.
    """

    name: str
    place: str
    provenance: Provenance
    gpu_class: str
    service: Service
    rate: Interval
    qps: Fraction | None
    headroom: Fraction
    declared: bool = False
    samples: tuple[Sample, ...] = ()

    @property
    def evidence(self) -> Evidence:
        """The rate as evidence for its own GPU class."""
        declared = ", GPU class as declared" if self.declared else ""
        text = f"{self.name} in {self.place}{declared}"
        return Evidence(self.provenance, self.rate.value, self.rate.low, self.rate.high, text)


def measured_rates(
    records: Iterable[Record], place: str, provenance: Provenance
) -> tuple[list[MeasuredRate], list[str]]:
    """The usable rates among the results of one file, in their order.

    Returns:
        The rates; and one line for each result that was left out, with the reason.
    """
    usable: list[MeasuredRate] = []
    left_out: list[str] = []
    for record in records:
        reason = _unusable(record)
        if reason:
            left_out.append(f"{record.get('name', '?')} in {place}: {reason}")
        else:
            usable.append(_measured_rate(record, place, provenance))
    return usable, left_out


def choose(rates: Sequence[MeasuredRate], name: str | None = None, model: str | None = None) -> MeasuredRate | None:
    """The last of the rates with this name; without a name, the last one of this model.

    Returns:
        None if no name was given and no rate is of this model.

    Raises:
        UnknownMeasurement: if no rate has the name.
    """
    if name is None:
        return next((rate for rate in reversed(rates) if model in {None, rate.service.model}), None)
    for rate in reversed(rates):
        if rate.name == name:
            return rate
    known = ", ".join(dict.fromkeys(rate.name for rate in rates)) or "none with a sustainable rate"
    raise UnknownMeasurement(f"{name}: there is no such measurement; there are: {known}")


def best_of_each_class(rates: Sequence[MeasuredRate], preferred: MeasuredRate | None = None) -> list[MeasuredRate]:
    """One rate per GPU class: `preferred` if it is of that class, else by provenance, else the narrowest interval."""
    best: dict[str, MeasuredRate] = {}
    for rate in sorted(
        rates,
        key=lambda each: (
            each is not preferred,
            list(Provenance).index(each.provenance),
            each.rate.high / max(each.rate.low, 1e-9),
        ),
    ):
        best.setdefault(rate.gpu_class, rate)
    return list(best.values())


# Reading one record of a result file


def _unusable(record: Record) -> str:
    """Why a record gives no rate to plan with; empty if it does."""
    if record.get("simulated"):
        return "SIMULATED, which is no measurement"
    if record.get("kind") == "sample":
        return "a single window has no sustainable rate"
    if not record.get("sustainable_rate") or record["sustainable_rate"].get("low") is None:
        return "no sustainable rate was found"
    if not record["environment"].get("gpu_class"):
        return "the GPU class was not known"
    return ""


def _measured_rate(record: Record, place: str, provenance: Provenance) -> MeasuredRate:
    """The rate in a usable record."""
    requirement, environment, rate = record["requirement"], record["environment"], record["sustainable_rate"]
    return MeasuredRate(
        name=str(record["name"]),
        place=place,
        provenance=provenance,
        gpu_class=str(environment["gpu_class"]),
        service=Service(
            model=str(environment.get("model")),
            arguments=_arguments(environment),
            workload=_workload(record["workload"]),
            slo=Slo(tuple(LatencyLimit.parse(name, value) for name, value in record["slo"]["limits"].items())),
        ),
        rate=Interval(rate["value"], rate["low"], rate["high"], rate["confidence"]),
        qps=positive(requirement["qps"], "qps") if record["kind"] == "check" else None,
        headroom=positive(requirement["headroom"], "headroom"),
        declared=environment.get("url") is not None,
        samples=tuple(_sample(each) for each in record["samples"] if each["output_tokens_per_s"] is not None),
    )


def _workload(record: Record) -> Workload:
    """The parts of a workload that two services must have in common."""
    return Workload(
        input_tokens=Length.parse(record["input_tokens"], "input_tokens"),
        output_tokens=Length.parse(record["output_tokens"], "output_tokens"),
        shared_prefix_tokens=int(record["shared_prefix_tokens"]),
        arrivals=Arrivals(
            ArrivalKind(record["arrivals"]),
            record["burstiness"],
            None if record["trace"] is None else Path(record["trace"]),
        ),
    )


_LOAD: Final = (
    "kind", "label", "start_s", "end_s", "offered_rps", "concurrency", "requests", "output_tokens_per_s",
    "in_flight_mean", "in_flight_end",
)  # fmt: skip


def _sample(record: Record) -> Sample:
    """Load and throughput of a window. Planning does not use its latencies."""
    completed = math.nan if record["completed_rps"] is None else record["completed_rps"]
    return Sample(**{name: record[name] for name in _LOAD}, completed_rps=completed)


def _arguments(environment: Mapping[str, Any]) -> dict[str, str]:
    """The server arguments of `BOUNDING`. Old files do not list arguments; there the command line is read."""
    given = environment.get("server_args")
    if not isinstance(given, Mapping):
        words = shlex.split(str(environment.get("command", "")))
        pairs = zip(words, [*words[1:], ""], strict=True)
        given = {word[2:].replace("-", "_"): value for word, value in pairs if word.startswith("--")}
    named = {str(name).replace("-", "_"): value for name, value in given.items()}
    return {name: str(named[name]) for name in BOUNDING if named.get(name) is not None}
