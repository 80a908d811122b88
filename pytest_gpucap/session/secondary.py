"""Measures what secondary limits are about: the start, the KV cache, and the server's counters in its windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pytest

from pytest_gpucap.decisions.secondary import judged, stated, unmeasured, with_secondary, worst
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.kv_cache import told_kv_tokens
from pytest_gpucap.engines.protocol import MetricNames, Server
from pytest_gpucap.engines.vllm import METRICS
from pytest_gpucap.errors import MeasurementInvalid
from pytest_gpucap.load.trace import longest_request
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.measure.constants import STEADY_BLOCK_S
from pytest_gpucap.options.table import Options
from pytest_gpucap.report.formatting import significant
from pytest_gpucap.report.terminal import SIMULATED
from pytest_gpucap.results.build import Context
from pytest_gpucap.results.measured import Measurement, Outcome, Sample, Verdict, judged_samples
from pytest_gpucap.results.telemetry import TelemetrySummary
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.secondary import SecondaryFigure, SecondaryName, StartFigures
from pytest_gpucap.session.expected import verdict_failure
from pytest_gpucap.session.secondary_checks import price_per_hour, random_weights
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.telemetry.probes import read_metrics
from pytest_gpucap.telemetry.sampler import SERVER_FIELDS, Telemetry
from pytest_gpucap.telemetry.summary import server_summary
from pytest_gpucap.telemetry.time_series import TimeSeries, counter_growth

if TYPE_CHECKING:
    from pytest_gpucap.arrays import Floats
    from pytest_gpucap.load.protocol import LoadRunner

_COUNTERS: Final[Mapping[SecondaryName, tuple[str, str]]] = {
    SecondaryName.ACCEPTANCE: ("accepted_tokens", "draft_tokens"),
    SecondaryName.PREFIX_HIT_RATE: ("prefix_hits", "prefix_queries"),
    SecondaryName.PREEMPTIONS: ("preemptions", ""),
    SecondaryName.JOULES_PER_1K_TOKENS: ("", "output_tokens"),
}
"""What is read of the server's counters, over and under the line; what is empty comes from elsewhere."""

Summary = Callable[[float, float], TelemetrySummary]
"""What devices and server showed from one time to another."""


class Block(NamedTuple):
    """A part of a measuring window, and the requests that were due in it, about."""

    start_s: float
    end_s: float
    requests: float


def blocks(samples: Sequence[Sample]) -> list[Block]:
    """The steady window in blocks, or those at an equal rate; where there is none, the other open loops in slices."""
    found = []
    wanted = [each for each in samples if each.window.phase in {Phase.STEADY, Phase.EQUAL_RATE}]
    for each in wanted or judged_samples(samples):
        count = max(1, round((each.end_s - each.start_s) / STEADY_BLOCK_S))
        edges = np.linspace(each.start_s, each.end_s, count + 1).tolist()
        found += [Block(start_s, end_s, each.requests / count) for start_s, end_s in pairwise(edges)]
    return found


class SecondaryWatch:
    """What one start of a server shows of the limits that a test declares beside the rate.

    Args:
        declared: the test's.
        target: what is measured, with its server ready.
        summary: of its devices and its server; None: nobody watches them.
        options: the session's.
    """

    def __init__(
        self, declared: Declaration, target: SystemUnderTest, summary: Summary | None, options: Options
    ) -> None:
        self._declared, self._target, self._summary, self._options = declared, target, summary, options
        self._read = {
            SecondaryName.STARTUP: self._startup,
            SecondaryName.KV_TOKENS: self._kv_tokens,
            SecondaryName.USD_PER_1M_TOKENS: self._price,
        }

    def figures(self, samples: Sequence[Sample]) -> StartFigures:
        """What was seen of each limited metric. Call it while the target still runs.

        Args:
            samples: the measuring windows; without any, only what is known of a server that has no load yet.
        """
        names = [limit.name for limit in self._declared.secondary]
        summary = self._summary
        seen = [] if summary is None else [(block, summary(block.start_s, block.end_s)) for block in blocks(samples)]
        return {name: self._read[name]() if name in self._read else self._quotient(name, seen) for name in names}

    def check(self) -> None:
        """Check that every limit can be measured, before any load is sent.

        Raises:
            MeasurementInvalid: one line on the first that cannot.
        """
        names = [limit.name for limit in self._declared.secondary]
        for name in names:
            why = self._read[name]().why if name in self._read else self._uncounted(name)
            if why:
                raise MeasurementInvalid(f"{self._declared.name} was not measured: {name}: {why}")

    def _startup(self) -> SecondaryFigure:
        if getattr(self._target.endpoint, "reused", False):
            return SecondaryFigure(why="the server was reused (--gpucap-reuse), so this run saw no start")
        seconds: float | None = getattr(self._target.endpoint, "startup_s", None)
        return SecondaryFigure(seconds, why="" if seconds is not None else "the server does not tell how long it took")

    def _kv_tokens(self) -> SecondaryFigure:
        server = self._target.endpoint
        known = server.capabilities()
        tokens = known.kv_tokens if known.kv_tokens is not None else told_kv_tokens(server)
        if tokens is None:
            return SecondaryFigure(why="the server does not tell the size of its KV cache")
        each = tokens / known.replicas
        length = known.max_model_len
        whose = f"max_model_len={length:,}" if length is not None else "the longest request"
        length = length or sum(longest_request(self._declared.workload))
        many = significant(each / length)
        return SecondaryFigure(each, beside=f"{many} requests of {length:,} tokens at once ({whose})")

    def _price(self) -> SecondaryFigure:
        gpu_class = self._target.gpu_class
        name = self._target.endpoint.facts().get("gpu_class") if gpu_class is None else gpu_class.name
        if not isinstance(name, str):
            return SecondaryFigure(why="the GPU class is not known, so its price is not either: give --gpu-class")
        price, why = price_per_hour(name, self._options)
        if price is None:
            return SecondaryFigure(why=why)
        return SecondaryFigure(float(price * self._declared.gpus_per_replica))

    def _uncounted(self, name: SecondaryName) -> str:
        """Why a quotient will not be known; empty if it may be."""
        target, lease = self._target, self._target.lease
        if self._summary is None:
            return "nobody can read the server's counters"
        if name is SecondaryName.JOULES_PER_1K_TOKENS:
            watched = target.telemetry
            elsewhere = [each.device for each in watched.devices] if isinstance(watched, Telemetry) else []
            if lease is not None and not lease.devices:
                return "the class cpu has no energy counter that is read"
            if any(device.mig_profile for device in (lease.devices if lease is not None else elsewhere)):
                return "a MIG slice's share of its GPU's energy is not known"
        if getattr(target.runner, "readings", None) is not None:
            return ""  # a simulated server, whose profile was looked at when the test was collected
        if name is SecondaryName.ACCEPTANCE and (why := _random(target.endpoint, self._declared)):
            return why
        return next(filter(None, (_lacks(target.endpoint, each) for each in _COUNTERS[name] if each)), "")

    def _quotient(self, name: SecondaryName, seen: Sequence[tuple[Block, TelemetrySummary]]) -> SecondaryFigure:
        over, under = _COUNTERS[name]
        parts = []
        for block, summary in seen:
            above = getattr(summary.server, over) if over else summary.energy_j
            below = getattr(summary.server, under) if under else block.requests
            if above is not None and below is not None:
                parts.append((above, below))
        if parts:
            return SecondaryFigure(parts=tuple(parts))
        missing = "no device told its energy" if not over else f"the server's counter of {over} was not read"
        return SecondaryFigure(why=f"{missing} in any measuring window")


@contextmanager
def watched(
    declared: Declaration, target: SystemUnderTest, runner: LoadRunner, options: Options
) -> Iterator[SecondaryWatch]:
    """What watches the secondary limits of a test while it is measured.

    Raises:
        MeasurementInvalid: one line, if one of them cannot be measured here.
    """
    with ExitStack() as open_now:
        watch = SecondaryWatch(
            declared, target, summary_of(target, runner, open_now, counters=counted(declared)), options
        )
        watch.check()
        yield watch


def counted(declared: Declaration) -> bool:
    """Whether one of its limits is about the server's counters."""
    return any(limit.name in _COUNTERS for limit in declared.secondary)


def summary_of(target: SystemUnderTest, runner: LoadRunner, open_now: ExitStack, *, counters: bool) -> Summary | None:
    """How devices and server are watched.

    With `counters`, a page of metrics that nobody reads yet is read from now on.
    """
    readings: Callable[[], dict[str, Floats]] | None = getattr(runner, "readings", None)
    if readings is not None:
        return lambda start_s, end_s: _virtual(readings(), start_s, end_s)
    telemetry = target.telemetry
    if telemetry is not None and (not isinstance(telemetry, Telemetry) or telemetry.sees_server):
        return telemetry.summary
    if not counters:
        return None
    server = target.endpoint
    reader = open_now.enter_context(Telemetry((), tuple, lambda: server.request("/metrics"), names=_names(server)))
    return reader.summary


def _virtual(readings: dict[str, Floats], start_s: float, end_s: float) -> TelemetrySummary:
    """The same of a simulated server, from its counters in virtual time."""
    series = TimeSeries(SERVER_FIELDS)
    unknown = np.full(readings["time_s"].size, np.nan)
    rows = np.stack([readings.get(name, unknown) for name in SERVER_FIELDS], axis=1)
    for time_s, row in zip(readings["time_s"].tolist(), rows.tolist(), strict=True):
        series.append(time_s, row)
    grown = counter_growth(readings["time_s"], readings["energy_j"], start_s, end_s)
    energy_j = None if grown is None else grown[0] / grown[1] * (end_s - start_s)
    return TelemetrySummary(start_s, end_s, server=server_summary(series, start_s, end_s), energy_j=energy_j)


def _names(server: Server) -> MetricNames:
    """Names of the server's figures. One behind a URL may be a vLLM; its page tells."""
    names = server.capabilities().metrics
    return METRICS if names == MetricNames() and not server.capabilities().started else names


def _lacks(server: Server, counter: str) -> str:
    """Why a counter of the server cannot be read; empty if it can."""
    names = _names(server)
    called: tuple[str, ...] = getattr(names, counter)
    if not called:
        return f"this engine has no metric of {counter}"
    try:
        page = server.request("/metrics")
    except EndpointError as error:
        return f"the server's metrics cannot be read: {error}"
    return f"the server has no metric {called[0]}" if np.isnan(getattr(read_metrics(page, names), counter)) else ""


def _random(server: Server, declared: Declaration) -> str:
    """Why the server's acceptance would say nothing, by what it tells of its weights."""
    config = getattr(server, "config", {}).get("load_config", {})
    known = server.capabilities()
    dummy = known.started and not known.simulated and random_weights(declared.model, known.arguments)
    if dummy or config.get("load_format") == "dummy":
        return "the server's weights are random (load_format=dummy), so what they accept says nothing"
    return ""


def judged_verdict(verdict: Verdict, context: Context, declared: Declaration) -> Verdict:
    """The verdict with the secondary limits of a test judged."""
    measurement = verdict.measurement
    return with_secondary(verdict, [judged(each, context.figures, measurement) for each in declared.secondary])


def judged_measurement(measurement: Measurement, context: Context, declared: Declaration) -> Measurement:
    """The same for a measurement without a verdict. A limit that was not measured is a problem of it."""
    results = tuple(judged(each, context.figures, measurement) for each in declared.secondary)
    problems = tuple(unmeasured(each) for each in results if each.outcome is Outcome.INVALID)
    if measurement.problems:
        problems = ()  # which say why already
    return replace(measurement, secondary=results, problems=(*measurement.problems, *problems))


def refuse_broken(measurement: Measurement, evidence: str, inconclusive: str) -> None:
    """Fail a test that measures without a verdict for a limit beside the rate that is broken or undecided.

    Args:
        measurement: with its limits judged.
        evidence: what else was found, for the failure's text.
        inconclusive: what ``--gpucap-inconclusive`` says: ``fail``, ``skip`` or ``pass``.

    Raises:
        pytest.fail.Exception: the first line gives the limit with both figures.
    """
    found = worst(measurement.secondary)
    if found is None:
        return
    line = f"{found.outcome}: {measurement.requirement.name}: {stated(found)}"
    decided = found.outcome is Outcome.FAIL
    if decided or inconclusive == "fail":
        simulated = [SIMULATED] if measurement.simulated else []
        raise verdict_failure("\n".join([line, *simulated, "", evidence]), decided=decided)
    if inconclusive == "skip":
        pytest.skip(line)
