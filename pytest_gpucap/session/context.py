"""What surrounds a measurement in its result: environment, telemetry, physical limit, and what limited it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from pytest_gpucap.engines.errors import ServerError
from pytest_gpucap.errors import GpuCapError, NotMeasured
from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.report.formatting import seconds
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.build import Context, unmeasured_result
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import MoreTime, Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import PhysicalLimit, Result, ResultKind
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from pytest_gpucap.roofline.limits import NoLimit, Roofline
from pytest_gpucap.roofline.plausibility import LEAST_WINDOW_S, share_of
from pytest_gpucap.roofline.served import roofline_of
from pytest_gpucap.session.boundary import first_line
from pytest_gpucap.session.environment import environment_of, host_and_plugin
from pytest_gpucap.session.gateway import gateway_of, refused_there
from pytest_gpucap.session.harness import requirement_of
from pytest_gpucap.session.scaling import fleet_of, router_limit
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.telemetry.bottleneck import KnownLimits, find_bottleneck
from pytest_gpucap.telemetry.over_time import binned_series
from pytest_gpucap.telemetry.sampler import Telemetry

_EVERY_READING = sys.maxsize
_AROUND_S = 2.0


def context_of(
    target: SystemUnderTest, samples: Sequence[Sample], roofline: Roofline | NoLimit, declared: Declaration, test: str
) -> Context:
    """What surrounds the samples just measured on a target. Call it while the target still runs."""
    # Counted once, for the first test that uses the server.
    startup_s, target.startup_s = target.startup_s, 0.0
    start_phases_s, target.start_phases_s = target.start_phases_s, {}
    watched = bottleneck = over_time = None
    if samples and target.telemetry is not None:
        start_s, end_s = min(each.start_s for each in samples), max(each.end_s for each in samples)
        watched = target.telemetry.summary(start_s, end_s)
        # A little more than the span: a counter's value at the ends needs the readings around them.
        readings = target.telemetry.series(start_s - _AROUND_S, end_s + _AROUND_S, points=_EVERY_READING)
        over_time = binned_series(readings, start_s, end_s)
        if (
            isinstance(target.telemetry, FleetTelemetry) or target.telemetry.sees_server
        ):  # else only the host was watched
            bottleneck = _diagnosis(target, target.telemetry, samples, roofline)
    bottleneck = refused_there(target) or bottleneck  # it may have refused all, so that there is no sample
    limit = _limit(samples, roofline, bottleneck)
    return Context(
        test=test,
        line=declared.place.line,
        environment=environment_of(target, declared.workload),
        telemetry=watched,
        bottleneck=bottleneck,
        startup_s=startup_s,
        start_phases_s=start_phases_s,
        series=over_time,
        limit=None if isinstance(limit, NoLimit) else limit,
        no_limit=limit.reason if isinstance(limit, NoLimit) else None,
        fleet=fleet_of(target, samples, watched),
    )


def unmeasured(
    declared: Declaration,
    requirement: Requirement,
    test: str,
    kind: str,
    error: GpuCapError,
    *,
    simulated: bool = False,
) -> Result:
    """The result of a test whose measurement an error ended before it had one; `simulated`: of a simulated server."""
    reason = first_line(error).removeprefix(f"{declared.name} was not measured: ")
    cause = error.__cause__ or error
    source = next((source for known, source in _SOURCES if isinstance(cause, known)), ProblemSource.MEASUREMENT)
    environment = Environment(model=declared.model, gpu_class=declared.gpu_class, **host_and_plugin())
    for_time = isinstance(error, NotMeasured)
    return unmeasured_result(
        requirement,
        Context(test=test, line=declared.place.line, environment=environment),
        ResultKind(kind),
        Problem(source, ProblemKind.NO_TIME if for_time else ProblemKind.NOT_MEASURED, reason),
        budgeted=declared.requirement is not None,
        seed=declared.seed,
        simulated=simulated,
        more_time=time_needed(error.needs_s) if isinstance(error, NotMeasured) else None,
    )


def unmeasured_test(declared: Declaration, test: str, error: NotMeasured, *, simulated: bool) -> Result:
    """The result of a test that never began: of the check of its requirement, or of a measurement without one."""
    kind = ResultKind.MEASURE if declared.requirement is None else ResultKind.CHECK
    return unmeasured(declared, requirement_of(declared), test, kind, error, simulated=simulated)


def time_needed(needs_s: float | None) -> MoreTime:
    """The time that a test needs which got none."""
    if needs_s is None:
        return MoreTime(None, "how much it needs is not known")
    return MoreTime(needs_s, f"it needs about {seconds(needs_s)}, starts included")


_SOURCES: Final = ((ServerError, ProblemSource.SERVER), ((LeaseError, OSError, MemoryError), ProblemSource.HOST))
"""Whose fault an error is."""


def limits_of(target: SystemUnderTest, declared: Declaration) -> Roofline | NoLimit:
    """The physical limits of what a test measures, or why they are not known."""
    return roofline_of(
        target.endpoint, target.gpu_class, declared.workload, model=declared.model, arguments=declared.vllm_args
    )


def _limit(
    samples: Sequence[Sample], roofline: Roofline | NoLimit, bottleneck: Bottleneck | None
) -> PhysicalLimit | NoLimit:
    if isinstance(roofline, NoLimit):
        return roofline
    share = share_of(samples, roofline)
    if share is None:
        return NoLimit(f"no window of at least {LEAST_WINDOW_S:g} s had requests in flight")
    told = bottleneck is not None and bottleneck.kind not in {BottleneckKind.NONE, BottleneckKind.UNKNOWN}
    return share.physical_limit(bottleneck.kind.value if bottleneck and told else None)


def _diagnosis(
    target: SystemUnderTest,
    telemetry: Telemetry | FleetTelemetry,
    samples: Sequence[Sample],
    roofline: Roofline | NoLimit,
) -> Bottleneck:
    # The bottleneck shows where the load is highest.
    hardest = max(samples, key=lambda sample: sample.in_flight_mean)
    own = [problem.text for problem in hardest.problems if problem.source is ProblemSource.LOAD_GENERATOR]
    limits = None if isinstance(roofline, NoLimit) else roofline
    server = target.endpoint.capabilities()
    watched = telemetry.summary(hardest.start_s, hardest.end_s)
    if (router := router_limit(target.endpoint, watched)) is not None:
        return router
    elsewhere = isinstance(telemetry, FleetTelemetry)
    known = KnownLimits(
        parameters=None if limits is None else limits.model.active,
        weight_bytes=None if limits is None else limits.weights_read_bytes(1) / limits.hardware.gpus_per_engine,
        max_num_seqs=server.max_num_seqs,
        in_flight=hardest.in_flight_mean,
        client_problems=own,
        gpu_class=target.gpu_class,
        cores=(watched.host.cores if watched.host is not None else None) if elsewhere else os.cpu_count(),
        loopback=server.loopback,
        gateway=gateway_of(target),
        arguments=server.arguments if server.started and _is_vllm(target) else None,
        version=target.endpoint.version,
    )
    return find_bottleneck(watched, known)


def _is_vllm(target: SystemUnderTest) -> bool:
    """Whether the server takes vLLM's flags."""
    return getattr(target.endpoint, "software", "") == "vLLM"
