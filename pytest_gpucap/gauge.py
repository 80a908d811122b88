"""The ``gpucap`` fixture's object: the measuring procedure pointed at the test's server, and its results recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.baselines import Comparing
from pytest_gpucap.capacity.limits import Roofline
from pytest_gpucap.capacity.results import Accuracy, Curve, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.capacity.share import checked, checked_verdict, share_of
from pytest_gpucap.environment import environment
from pytest_gpucap.gpu.diagnosis import Bottleneck, Kind, Known, diagnose
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.gpu.telemetry import Telemetry
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.markers import Declaration
from pytest_gpucap.measure import procedure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options import Options
from pytest_gpucap.pairs import Pairing, PairInvalid
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
from pytest_gpucap.report.series import series
from pytest_gpucap.requirement import Number, Requirement, RequirementError, duration_s, positive, whole
from pytest_gpucap.rig import Rig, Target
from pytest_gpucap.roofline import roofline_of
from pytest_gpucap.screen import glance

_EVERY_READING = sys.maxsize
_AROUND_S = 2.0


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
        comparing: Comparing,
        pairing: Pairing | None = None,
    ) -> None:
        self._declared = declared
        self._placement = placement
        self._rig = rig
        self._options = options
        self._test = test
        self._live = live
        self._keep = keep
        self._comparing = comparing
        self._pairing = pairing

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
        verdict, record = self._checked(requirement)
        self._keep(record)
        if verdict.outcome is Outcome.INVALID:
            raise MeasurementInvalid(text.failure(record))
        undecided = verdict.outcome is Outcome.INCONCLUSIVE
        passes = verdict.outcome is Outcome.PASS or (undecided and self._options.inconclusive == "pass")
        if self._pairing is not None:
            try:
                record["comparison"] = self._pairing.comparison(requirement, record)
            except PairInvalid as error:
                if passes:
                    raise
                self._live.say(str(error))  # the verdict that follows must not be lost for it
        elif passes:
            self._compare_check(requirement, record)
        else:  # a test that fails already needs no confirmation of why else it would
            self._comparing.compare(record)
        report = text.failure(record)
        if verdict.outcome is Outcome.FAIL or (undecided and self._options.inconclusive == "fail"):
            pytest.fail(report, pytrace=False)
        if undecided and self._options.inconclusive == "skip":
            pytest.skip(report)
        self._comparing.refuse_regression(record)
        return verdict

    def measure(self) -> Measurement:
        """Measure the sustainable rate of one replica under the test's workload and limits.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        measurement, record = self._measured()
        self._keep(record)
        _trusted(measurement)
        self._compared(record)
        return measurement

    def sweep(self) -> Curve:
        """Measure latency against rate, up to saturation.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        with self._measuring() as (runner, settings, target):
            curve = procedure.sweep(runner, self._requirement(), settings, self._live)
            if (roofline := self._roofline(target)) is not None:
                curve = replace(curve, measurement=checked(curve.measurement, roofline))
            budgeted = self._declared.requirement is not None
            curve = replace(curve, measurement=replace(curve.measurement, budgeted=budgeted))
            record = curve_record(curve, self._context(target, curve.measurement.samples))
        self._keep(record)
        _trusted(curve.measurement)
        self._compared(record)
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

    def accuracy(self) -> Accuracy:
        """Ask the workload's questions in five samples and count right answers; no load, no verdict.

        Raises:
            RequirementError: if the test declares no questions.
            MeasurementInvalid: if no answer came.
        """
        declared = self._declared
        if declared.workload.questions is None:
            raise RequirementError(f'{declared.place}: accuracy() needs gpucap(questions=FILE), or "arithmetic"')
        from pytest_gpucap.accuracy import measure_accuracy

        with self._measuring():
            server = self._rig.server(self._placement, self._live).server
            assert server is not None  # noqa: S101 - what `Rig.server` is for
            found = measure_accuracy(
                server,
                declared.workload,
                min_accuracy=declared.slo.min_accuracy,
                max_error_rate=declared.slo.max_error_rate,
                seed=declared.seed,
                time_s=declared.max_time_s,
            )
        if found.share is None:
            raise MeasurementInvalid(f"{declared.name}: the answers could not be judged: {found.problem}")
        return found

    def _checked(self, requirement: Requirement, start: int = 0) -> tuple[Verdict, Record]:
        """One run of the check."""
        with self._measuring(start) as (runner, settings, target):
            verdict = procedure.check(runner, requirement, settings, self._live)
            if (roofline := self._roofline(target)) is not None:
                verdict = checked_verdict(verdict, roofline)
            verdict = self._answered(verdict)
            return verdict, verdict_record(verdict, self._context(target, verdict.measurement.samples))

    def _answered(self, verdict: Verdict) -> Verdict:
        """The verdict with the answers judged, where the requirement says how many must be right."""
        if verdict.measurement.requirement.slo.min_accuracy is None:
            return verdict
        from pytest_gpucap.accuracy import with_answers

        self._live.say("asking the workload's questions")
        server = self._rig.server(self._placement, self._live).server
        assert server is not None  # noqa: S101 - what `Rig.server` is for
        return with_answers(verdict, server, max_time_s=self._declared.max_time_s)

    def _measured(self, start: int = 0) -> tuple[Measurement, Record]:
        """One run of the measurement."""
        with self._measuring(start) as (runner, settings, target):
            measurement = procedure.measure(runner, self._requirement(), settings, self._live)
            if (roofline := self._roofline(target)) is not None:
                measurement = checked(measurement, roofline)
            measurement = replace(measurement, budgeted=self._declared.requirement is not None)
            return measurement, measurement_record(measurement, self._context(target, measurement.samples))

    def _compare_check(self, requirement: Requirement, record: Record) -> None:
        """Compare a check that passes; one that is far above its requirement is measured first, to know its rate."""
        if not self._comparing.wants_more_than(record):
            self._comparing.compare(record, self._again(lambda: self._checked_sharply(requirement, start=1)))
            return
        _, sharper = self._measured()
        self._keep(sharper)
        self._comparing.compare(record, self._again(lambda: self._measured(start=1)[1]), sharper)

    def _checked_sharply(self, requirement: Requirement, start: int) -> Record:
        """One run of the check, or of the measurement where the check did not learn the rate well enough."""
        _, record = self._checked(requirement, start)
        if record["problems"] or not self._comparing.wants_more_than(record):
            return record
        _, sharper = self._measured(start)
        sharper["spent_s"]["check"] = sum(filter(None, record["spent_s"].values()))
        return sharper

    def _compared(self, record: Record) -> None:
        """Compare with the session's baseline, or its base; a confirmed regression fails the test."""
        if self._pairing is not None:
            record["comparison"] = self._pairing.comparison(self._requirement(), record)
            self._comparing.refuse_regression(record)
            return
        self._comparing.compare(record, self._again(lambda: self._measured(start=1)[1]))
        self._comparing.refuse_regression(record)

    def _again(self, once: Callable[[], Record]) -> Callable[[str], Record]:
        """Measures once more from a fresh start of the server, where it is ours to start; told why."""

        def again(why: str) -> Record:
            fresh = "" if self._placement.url else " from a fresh start"
            self._live.say(f"{why}: measuring again{fresh}")
            self._rig.keep_only(None)
            record = once()
            if record["problems"] or record["sustainable_rate"] is None:
                reason = "; ".join(record["problems"]) or "it found no sustainable rate"
                raise MeasurementInvalid(f"{self._declared.name}: {why}, and a second measurement failed: {reason}")
            return record

        return again

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
    def _measuring(self, start: int = 0) -> Iterator[tuple[LoadRunner, Settings, Target]]:
        """A runner at the test's server; closed, with nothing left in flight, whatever happens.

        `start` counts the starts of the server that this test measures from: each has arrivals and prompts of its own.
        """
        seed = self._declared.seed + start
        settings = Settings(max_time_s=self._declared.max_time_s, seed=seed)
        if self._placement.profile is not None:
            from pytest_gpucap.simulator.runner import SimRunner

            engine = self._placement.profile.engine
            target = self._rig.target(self._placement, self._live)
            runner: LoadRunner = SimRunner(engine, seed=seed)
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
                seed,
                workers=self._options.workers,
                simulated=server.simulated,
            )
            settings = replace(
                settings,
                max_num_seqs=server.max_num_seqs,
                kv_tokens=server.kv_tokens,
                trust=None if target.telemetry is None else target.telemetry.problems,
            )
            if (telemetry := target.telemetry) is not None:
                self._live.gpu = lambda: glance(telemetry)
        try:
            yield runner, settings, target
        finally:
            runner.close()
            self._live.done()

    def _context(self, target: Target, samples: Sequence[Sample]) -> Context:
        startup_s, target.startup_s = target.startup_s, 0.0  # spent once, whichever test shares the server
        watched = bottleneck = over_time = None
        if samples and target.telemetry is not None:
            start_s, end_s = min(each.start_s for each in samples), max(each.end_s for each in samples)
            watched = target.telemetry.summary(start_s, end_s)
            # A little more than the span: what a counter did at its ends is known from the readings around them.
            readings = target.telemetry.series(start_s - _AROUND_S, end_s + _AROUND_S, points=_EVERY_READING)
            over_time = series(readings, start_s, end_s)
            bottleneck = self._diagnosis(target, target.telemetry, samples)
        return Context(
            test=self._test,
            line=int(self._declared.place.rpartition(":")[2]),
            environment=environment(target),
            telemetry=watched,
            bottleneck=bottleneck,
            startup_s=startup_s,
            series=over_time,
            limit=self._limit(target, samples, bottleneck),
        )

    def _roofline(self, target: Target) -> Roofline | None:
        return roofline_of(target, self._declared.workload)

    def _limit(self, target: Target, samples: Sequence[Sample], bottleneck: Bottleneck | None) -> dict[str, Any] | None:
        roofline = self._roofline(target)
        share = None if roofline is None else share_of(samples, roofline)
        told = bottleneck is not None and bottleneck.kind not in {Kind.NONE, Kind.UNKNOWN}
        return None if share is None else share.record(bottleneck.kind.value if bottleneck and told else None)

    def _diagnosis(self, target: Target, telemetry: Telemetry, samples: Sequence[Sample]) -> Bottleneck:
        # What limits a server shows where it is driven hardest.
        hardest = max(samples, key=lambda sample: sample.in_flight_mean)
        own = [problem for problem in hardest.problems if "load generator" in problem]
        roofline = self._roofline(target)
        known = Known(
            parameters=None if roofline is None else roofline.model.active,
            weight_bytes=None if roofline is None else roofline.weights_read_bytes(1) / roofline.hardware.gpus,
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
