"""A point: the load that a tool offered, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from pytest_gpucap.requirement import ApiKind, ArrivalKind
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Latency


class Tool(StrEnum):
    """The tools whose results are read."""

    VLLM = "vllm bench serve"
    AIPERF = "AIPerf"
    GUIDELLM = "GuideLLM"
    INFERENCE_PERF = "inference-perf"
    SGLANG = "SGLang bench_serving"


@dataclass(frozen=True, slots=True)
class Load:
    """What a tool offered.

    Attributes:
        rate_rps: requests a second that were to arrive; None where the next request waited for an answer.
        concurrency: requests that were in flight at most; None: any number.
        at_once: requests that were sent together, where there was neither a rate nor such a limit.
        arrivals: when requests were due.
        burstiness: standard deviation of the gaps between arrivals over their mean.
    """

    rate_rps: float | None = None
    concurrency: int | None = None
    at_once: int | None = None
    arrivals: ArrivalKind = ArrivalKind.POISSON
    burstiness: float = 1.0

    @property
    def text(self) -> str:
        """For people: ``20 req/s``, ``20 req/s and at most 8 in flight``, ``8 in flight``, ``40 at once``."""
        if self.rate_rps is None:
            return f"{self.at_once} at once" if self.concurrency is None else f"{self.concurrency} in flight"
        limited = "" if self.concurrency is None else f" and at most {self.concurrency} in flight"
        return f"{self.rate_rps:.6g} req/s{limited}"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a request and of its answer.

    Attributes:
        input_tokens, output_tokens: as asked for, or the mean of what was seen.
        observed: the mean of what was seen.
    """

    input_tokens: float
    output_tokens: float
    observed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of a tool at one load.

    Attributes:
        tool, version: of the tool; the version is None where its file does not tell.
        started: when the run began; None where the file does not tell.
        model, url: of the server; None where the file does not tell.
        duration_s: of the run.
        completed, failed: requests.
        completed_rps, output_tokens_per_s: what the server delivered.
        in_flight: requests in flight, on average; None where it is not known.
        latencies: by metric name (``ttft``, ``tpot``, ``itl``, ``e2e``).
        parameters, labels: see `ImportedFrom`.
        command: that started the tool.
        server: name and version of the server; None where the file does not tell.
        spoilt: why the run is no measurement; empty where it is one.
    """

    tool: Tool
    load: Load
    lengths: Lengths
    duration_s: float
    completed: int
    failed: int = 0
    completed_rps: float
    output_tokens_per_s: float
    in_flight: float | None = None
    latencies: Mapping[str, Latency]
    version: str | None = None
    started: datetime | None = None
    model: str | None = None
    url: str | None = None
    endpoint: ApiKind = ApiKind.COMPLETIONS
    parameters: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    server: str | None = None
    spoilt: str = ""

    @property
    def in_flight_mean(self) -> float:
        """Requests in flight: as the file says, or by Little's law; NaN where neither is known."""
        if self.in_flight is not None:
            return self.in_flight
        latency = self.latencies.get("e2e")
        return math.nan if latency is None else self.completed_rps * latency.mean_s


MS: Final = 1e-3
"""Seconds in a millisecond."""


def latency(count: int, mean: float | None, percentiles: Mapping[int, float | None], unit_s: float) -> Latency | None:
    """A latency from what a file says of it; None where it says nothing.

    Where nothing was measured, such as the first token of an answer that was not streamed, tools write 0 for every
    figure. A limit must not be kept by such a 0, so a latency that is 0 throughout is unknown.

    Args:
        count: number of values.
        mean: of the values.
        percentiles: by percent; those that the file lacks are unknown.
        unit_s: seconds in the file's unit.
    """
    if not count or not any((mean, *percentiles.values())):
        return None
    known = [percentiles.get(percent) for percent in KEPT_PERCENTILES]
    mean_s, *kept = (math.nan if value is None else value * unit_s for value in (mean, *known))
    return Latency(count, mean_s, *kept)


def latency_of(values: Sequence[float]) -> Latency | None:
    """A latency from its values in seconds; None where there is none. Between two values, percentiles lie on a line."""
    if not values:
        return None
    ordered = sorted(values)
    return Latency(
        len(ordered), math.fsum(ordered) / len(ordered), *(_percentile(ordered, p) for p in KEPT_PERCENTILES)
    )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
