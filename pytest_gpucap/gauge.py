"""The ``gpucap`` fixture's object: the measuring procedure pointed at the test's server, and its results recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_gpucap.capacity.results import Curve, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.environment import environment
from pytest_gpucap.gpu.diagnosis import Bottleneck, Known, diagnose
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.gpu.telemetry import Telemetry
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.markers import Declaration
from pytest_gpucap.measure import procedure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options import Options
from pytest_gpucap.placement import Placement
from pytest_gpucap.report import text
from pytest_gpucap.report.live import Live
from pytest_gpucap.report.record import (
    Context,
    Record,
    curve_record,
    measurement_record,
    sample_record,
    verdict_record,
)
from pytest_gpucap.requirement import Number, Requirement, duration_s, positive, whole
from pytest_gpucap.rig import Rig, Target


class MeasurementInvalid(Exception):  # noqa: N818 - the verdict's own word
    """The measurement cannot be trusted; says which check broke and never a word on capacity."""


class GpuCap:
    """What a test asks: ``check()`` for the verdict, ``measure()``, ``sweep()`` and ``sample()`` for figures.

    The server starts at the first call, and is shared with the other tests that declare the same one.
    """

    def __init__(
        self,
        declared: Declaration,
        placement: Placement,
        rig: Rig,
        options: Options,
        *,
        test: str,
        live: Live,
        keep: Callable[[Record], None],
    ) -> None:
        self._declared = declared
        self._placement = placement
        self._rig = rig
        self._options = options
        self._test = test
        self._live = live
        self._keep = keep

    def check(self) -> Verdict:
        """Decide whether the declared budget holds; the failure text is the report.

        Returns:
            The verdict: PASS, or INCONCLUSIVE under ``--gpucap-inconclusive=pass``.

        Raises:
            pytest.fail.Exception: on FAIL, and on INCONCLUSIVE unless the options say otherwise.
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        requirement = self._declared.requirement
        if requirement is None:
            pytest.fail(
                f"{self._declared.place}: check() needs a rate: gpucap(qps=...) or --target-qps",
                pytrace=False,
            )
        with self._measuring() as (runner, settings, target):
            verdict = procedure.check(runner, requirement, settings, self._live)
            record = verdict_record(verdict, self._context(target, verdict.measurement.samples))
        self._keep(record)
        report = text.failure(record)
        if verdict.outcome is Outcome.INVALID:
            raise MeasurementInvalid(report)
        undecided = verdict.outcome is Outcome.INCONCLUSIVE
        if verdict.outcome is Outcome.FAIL or (undecided and self._options.inconclusive == "fail"):
            pytest.fail(report, pytrace=False)
        if undecided and self._options.inconclusive == "skip":
            pytest.skip(report)
        return verdict

    def measure(self) -> Measurement:
        """Measure the sustainable rate of one replica under the test's workload and limits.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        with self._measuring() as (runner, settings, target):
            measurement = procedure.measure(runner, self._requirement(), settings, self._live)
            self._keep(measurement_record(measurement, self._context(target, measurement.samples)))
        return _trusted(measurement)

    def sweep(self) -> Curve:
        """Measure latency against rate, up to saturation.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        with self._measuring() as (runner, settings, target):
            curve = procedure.sweep(runner, self._requirement(), settings, self._live)
            self._keep(curve_record(curve, self._context(target, curve.points)))
        _trusted(curve.measurement)
        return curve

    def sample(self, *, rate: Number | None = None, concurrency: int | None = None, duration: Number = "30s") -> Sample:
        """Drive the server for one window at a rate (open loop) or a concurrency (closed loop).

        Args:
            rate: requests a second.
            concurrency: requests in flight; one of the two must be given.
            duration: such as "30s".

        Raises:
            RequirementError: if neither or both are given, or a value cannot be meant.
        """
        if (rate is None) == (concurrency is None):
            raise ValueError("sample() takes either rate= or concurrency=")
        rate_rps = None if rate is None else float(positive(rate, "rate"))
        held = None if concurrency is None else whole(concurrency, "concurrency")
        length_s = duration_s(duration, "duration")
        requirement = self._requirement()
        with self._measuring() as (runner, settings, target):
            sample = procedure.sample(
                runner, requirement, settings, self._live, rate_rps=rate_rps, concurrency=held, duration_s=length_s
            )
            context = self._context(target, (sample,))
            self._keep(
                sample_record(sample, requirement, context, simulated=runner.simulated, seed=self._declared.seed)
            )
        return sample

    def _requirement(self) -> Requirement:
        """The declared requirement, or one with the test's workload and limits that no verdict is made from."""
        declared = self._declared
        return declared.requirement or Requirement(
            declared.name,
            qps=Fraction(1),
            gpus=declared.gpus_per_replica,
            gpus_per_replica=declared.gpus_per_replica,
            workload=declared.workload,
            slo=declared.slo,
        )

    @contextmanager
    def _measuring(self) -> Iterator[tuple[LoadRunner, Settings, Target]]:
        """A runner at the test's server; closed, with nothing left in flight, whatever happens."""
        settings = Settings(max_time_s=self._declared.max_time_s, seed=self._declared.seed)
        if self._placement.profile is not None:
            from pytest_gpucap.simulator.runner import SimRunner

            engine = self._placement.profile.engine
            target = self._rig.target(self._placement, self._live)
            runner: LoadRunner = SimRunner(engine, seed=self._declared.seed)
            settings = replace(settings, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
        else:
            from pytest_gpucap.load.runner import HttpLoadRunner

            try:
                target = self._rig.server(self._placement, self._live)
            except LeaseError as error:
                raise MeasurementInvalid(f"{self._declared.name} was not measured: {error}") from error
            server = target.server
            assert server is not None  # noqa: S101 - what `Rig.server` is for
            server.reset_caches()
            runner = HttpLoadRunner(
                server.base_url,
                server.model,
                str(server.api_key),
                self._declared.workload,
                self._declared.seed,
                workers=self._options.workers,
            )
            settings = replace(
                settings,
                max_num_seqs=server.max_num_seqs,
                kv_tokens=server.kv_tokens,
                trust=None if target.telemetry is None else target.telemetry.problems,
            )
        try:
            yield runner, settings, target
        finally:
            runner.close()
            self._live.done()

    def _context(self, target: Target, samples: Sequence[Sample]) -> Context:
        startup_s, target.startup_s = target.startup_s, 0.0  # spent once, whichever test shares the server
        watched = bottleneck = None
        if samples and target.telemetry is not None:
            watched = target.telemetry.summary(samples[0].start_s, samples[-1].end_s)
            bottleneck = self._diagnosis(target, target.telemetry, samples)
        return Context(
            test=self._test,
            environment=environment(target),
            telemetry=watched,
            bottleneck=bottleneck,
            startup_s=startup_s,
        )

    @staticmethod
    def _diagnosis(target: Target, telemetry: Telemetry, samples: Sequence[Sample]) -> Bottleneck:
        # What limits a server shows where it is driven hardest.
        hardest = max(samples, key=lambda sample: sample.in_flight_mean)
        own = [problem for problem in hardest.problems if "load generator" in problem]
        known = Known(
            max_num_seqs=None if target.server is None else target.server.max_num_seqs,
            in_flight=hardest.in_flight_mean,
            client_problems=own,
            gpu_class=target.gpu_class,
            cores=os.cpu_count(),
            loopback=True,  # telemetry watches servers of our own only, and those listen on loopback
        )
        return diagnose(telemetry.summary(hardest.start_s, hardest.end_s), known)


def _trusted(measurement: Measurement) -> Measurement:
    if measurement.problems:
        raise MeasurementInvalid(f"{measurement.requirement.name} was not measured: {'; '.join(measurement.problems)}")
    return measurement
