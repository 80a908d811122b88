"""The ``gpucap`` fixture's object: runs the measuring procedure on the test's server and records the results.

A test file may import `GpuCap` for its annotations. So the methods that measure import what only measuring needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_gpucap.errors import GpuCapError, MeasurementInvalid, NoSustainableRate, NotMeasured, PairInvalid
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Number, Requirement, RequirementError, duration_s, positive, whole
from pytest_gpucap.session.boundary import one_line
from pytest_gpucap.session.expected import not_measured, verdict_failure

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.markers.declaration import Declaration
    from pytest_gpucap.results.build import Context
    from pytest_gpucap.results.measured import Accuracy, Curve, Measurement, Sample, Verdict
    from pytest_gpucap.results.problems import Problem
    from pytest_gpucap.results.result import Result
    from pytest_gpucap.roofline.limits import NoLimit, Roofline
    from pytest_gpucap.secondary import StartFigures
    from pytest_gpucap.session.base_and_head import BaseAndHead
    from pytest_gpucap.session.base_checkout import NotCompared
    from pytest_gpucap.session.baselines import Comparing
    from pytest_gpucap.session.harness import Harness
    from pytest_gpucap.session.kept import KeptResult, KeptResults
    from pytest_gpucap.session.prefix_hits import WatchedHits
    from pytest_gpucap.session.server_manager import SystemUnderTest

    Figures = Callable[[Sequence[Sample]], tuple[StartFigures, ...]]


def _nobody(_result: Result) -> None:
    """Hears a result so far and does nothing."""


class GpuCap:
    """What a test asks: ``check()`` for the verdict, ``measure()``, ``sweep()`` and ``sample()`` for figures.

    The server starts at the first call, and is shared with the other tests that declare the same one.
    """

    def __init__(
        self,
        harness: Harness,
        options: Options,
        *,
        test: str,
        results: KeptResults,
        comparing: Comparing,
        pairing: BaseAndHead | NotCompared | None = None,
        columns: int,
    ) -> None:
        self._harness = harness
        self._live = harness.live
        self._options = options
        self._test = test
        self._results = results
        self._comparing = comparing
        self._pairing = pairing
        self._columns = columns

    @property
    def _declared(self) -> Declaration:
        """What the test declares; lengths of prompts are those that the server has counted, once it has."""
        return self._harness.declared

    def check(self) -> Verdict:
        """Decide whether the declared budget holds; the failure text is the report.

        Returns:
            The verdict: PASS, or INCONCLUSIVE under ``--gpucap-inconclusive=pass``.

        Raises:
            pytest.fail.Exception: on FAIL, and on INCONCLUSIVE unless the options say otherwise.
            MeasurementInvalid: if the measurement cannot be trusted.
        """
        with self._one_result("check"):
            requirement = self._declared.requirement
            if requirement is None:
                pytest.fail(
                    f"{self._declared.place}: check() needs a rate: gpucap(qps=...) or --target-qps",
                    pytrace=False,
                )
            return self._check(requirement)

    def _check(self, requirement: Requirement) -> Verdict:
        """See `check`."""
        from pytest_gpucap.report import terminal
        from pytest_gpucap.results.measured import Outcome

        verdict, result = self._checked(requirement, heard=self._results.keep_part)
        kept = self._results.keep_whole(result)
        if verdict.outcome is Outcome.INVALID:
            raise MeasurementInvalid(terminal.failure(result, self._columns))
        undecided = verdict.outcome is Outcome.INCONCLUSIVE
        passes = verdict.outcome is Outcome.PASS or (undecided and self._options.inconclusive == "pass")
        if self._pairing is not None:
            try:
                self._pairing.compare(requirement, kept)
            except (PairInvalid, NotMeasured) as error:
                if passes:
                    raise
                self._live.say(str(error))  # the verdict that follows must not be lost
        elif passes:
            self._compare_check(requirement, kept)
        else:  # the test fails already, so a regression needs no confirmation
            self._comparing.compare(kept)
        report = terminal.failure(kept.result, self._columns)
        if verdict.outcome is Outcome.FAIL or (undecided and self._options.inconclusive == "fail"):
            raise verdict_failure(report, decided=not undecided)
        if undecided and self._options.inconclusive == "skip":
            pytest.skip(report)
        self._comparing.refuse_regression(kept.result, self._columns)
        return verdict

    def measure(self) -> Measurement:
        """Measure the sustainable rate of one replica under the test's workload and limits.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
            NoSustainableRate: if it found no rate.
        """
        with self._one_result("measure"):
            measurement, result = self._measured(heard=self._results.keep_part)
            kept = self._results.keep_whole(result)
            _trusted(measurement)
            self._compared(kept)
            if measurement.secondary:
                from pytest_gpucap.report import terminal
                from pytest_gpucap.session.secondary import refuse_broken

                evidence = terminal.details(kept.result, self._columns)
                refuse_broken(measurement, evidence, self._options.inconclusive)
            return measurement

    def sweep(self) -> Curve:
        """Measure latency against rate, up to saturation.

        Raises:
            MeasurementInvalid: if the measurement cannot be trusted.
            NoSustainableRate: if it found no rate.
        """
        with self._one_result("sweep"):
            curve, result = self._swept()
            kept = self._results.keep(result)
            _trusted(curve.measurement)
            self._compared(kept)
            return curve

    def sample(self, *, rate: Number | None = None, concurrency: int | None = None, duration: Number = "30s") -> Sample:
        """Drive the server for one window at a rate (open loop) or a concurrency (closed loop).

        Args:
            rate: requests a second.
            concurrency: requests in flight; one of the two must be given.
            duration: such as "30s".

        Raises:
            RequirementError: if neither or both are given, or a value is invalid.
            MeasurementInvalid: if the load cannot be produced, or most requests failed.
        """
        with self._one_result("sample"):
            if (rate is None) == (concurrency is None):
                raise RequirementError("sample() takes either rate= or concurrency=")
            rate_rps = None if rate is None else float(positive(rate, "rate"))
            held = None if concurrency is None else whole(concurrency, "concurrency")
            length_s = duration_s(duration, "duration")
            return self._sampled(rate_rps, held, length_s)

    def _sampled(self, rate_rps: float | None, held: int | None, length_s: float) -> Sample:
        """See `sample`."""
        from pytest_gpucap.measure import procedure
        from pytest_gpucap.results.build import sample_result
        from pytest_gpucap.roofline.plausibility import checked_sample

        with self._harness.driven() as (runner, settings, target):
            requirement = self._harness.requirement
            began_s = runner.clock.now()
            with self._hits(target, runner) as cache:
                sample = procedure.sample(
                    runner, requirement, settings, self._live, rate_rps=rate_rps, concurrency=held, duration_s=length_s
                )
                hits = cache.of_samples((sample,))
            roofline = self._roofline(target)
            sample = checked_sample(sample, roofline)
            context = hits.told(self._context(target, (sample,), roofline))
            context = self._unjudged(context, "sample")
            self._results.keep(
                sample_result(
                    sample,
                    requirement,
                    context,
                    simulated=runner.simulated,
                    seed=self._declared.seed,
                    spent_s=runner.clock.now() - began_s,
                )
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
        with self._one_result():
            return self._graded()

    def _graded(self) -> Accuracy:
        """See `accuracy`."""
        from pytest_gpucap.accuracy.measurement import measure_accuracy

        declared = self._declared
        with self._harness.driven():
            found = measure_accuracy(
                self._harness.server(),
                declared.workload,
                min_accuracy=declared.slo.min_accuracy,
                max_error_rate=declared.slo.max_error_rate,
                seed=declared.seed,
                time_s=min(declared.max_time_s, self._harness.left_s),
            )
        if found.share is None:
            raise MeasurementInvalid(f"{declared.name}: the answers could not be judged: {found.problem}")
        return found

    def _checked(
        self, requirement: Requirement, start: int = 0, heard: Callable[[Result], object] = _nobody
    ) -> tuple[Verdict, Result]:
        """The check on all starts that the session wants; `heard` is told the result so far."""
        from pytest_gpucap.results.build import check_result

        if self._options.repeat == 1:
            verdict, context = self._checked_once(requirement, start)
            verdict = self._beside_rate(verdict, context)
            return verdict, check_result(verdict, context)
        from pytest_gpucap.decisions.pooling import pooled_verdict
        from pytest_gpucap.measure.constants import MOST_VIOLATIONS
        from pytest_gpucap.session.repeats import Repeats

        count = self._options.repeat
        repeats = Repeats(
            self._harness,
            count,
            once=lambda number: self._checked_once(requirement, number, asks=False),
            pool=lambda verdicts: pooled_verdict(verdicts, count, MOST_VIOLATIONS),
            result=check_result,
            heard=heard,
        )
        verdict, context = repeats.run(start)
        verdict = self._answered(verdict)  # once: answers do not depend on the start
        verdict = self._beside_rate(verdict, context)
        return verdict, check_result(verdict, context)

    def _checked_once(self, requirement: Requirement, start: int, *, asks: bool = True) -> tuple[Verdict, Context]:
        """The check on one start; `asks`: the workload's questions too."""
        from pytest_gpucap.measure import procedure
        from pytest_gpucap.roofline.plausibility import checked_verdict

        while True:
            with self._harness.driven(start) as (runner, settings, target):
                now = replace(requirement, workload=self._declared.workload, lost=self._harness.lost)
                with self._watched(target, runner) as figures, self._hits(target, runner) as cache:
                    verdict = procedure.check(runner, now, replace(settings, hit_rate=cache.between), self._live)
                    seen, hits = figures(verdict.measurement.samples), cache.of_samples(verdict.measurement.samples)
                roofline = self._roofline(target)
                verdict = checked_verdict(verdict, roofline)
                verdict = self._answered(verdict) if asks else verdict
                context = self._context(target, verdict.measurement.samples, roofline)
                context = hits.told(replace(context, figures=seen))
            if not self._lost_some(verdict.measurement.problems):
                context, measurement = self._scaled(context, verdict.measurement)
                return replace(verdict, measurement=measurement), context

    def _answered(self, verdict: Verdict) -> Verdict:
        """The verdict with the answers judged, where the requirement says how many must be right."""
        if verdict.measurement.requirement.slo.min_accuracy is None:
            return verdict
        from pytest_gpucap.accuracy.accuracy_verdict import with_accuracy

        self._live.say("asking the workload's questions")
        most_s = self._options.repeat * self._declared.max_time_s
        left_s = self._harness.left_s + sum(verdict.measurement.spent_s.values())
        return with_accuracy(verdict, self._harness.server(), max_time_s=min(most_s, left_s))

    def _beside_rate(self, verdict: Verdict, context: Context) -> Verdict:
        """The verdict with the limits judged that are not about the rate."""
        if not self._declared.secondary:
            return verdict
        from pytest_gpucap.session.secondary import judged_verdict

        return judged_verdict(verdict, context, self._declared)

    @contextmanager
    def _watched(self, target: SystemUnderTest, runner: LoadRunner) -> Iterator[Figures]:
        """Watch what limits beside the rate are about; gives what turns the windows into this start's figures."""
        if not self._declared.secondary:
            yield lambda _samples: ()
            return
        from pytest_gpucap.session.secondary import watched

        with watched(self._declared, target, runner, self._options) as watch:
            yield lambda samples: (watch.figures(samples),)

    def _hits(self, target: SystemUnderTest, runner: LoadRunner) -> AbstractContextManager[WatchedHits]:
        """Watch how much of the prompts the server has in its cache."""
        from pytest_gpucap.session.prefix_hits import watched_hits

        return watched_hits(self._declared, target, runner)

    def _measured(self, start: int = 0, heard: Callable[[Result], object] = _nobody) -> tuple[Measurement, Result]:
        """The measurement on all starts that the session wants; `heard` is told the result so far."""
        from pytest_gpucap.results.build import measure_result

        if self._options.repeat == 1:
            measurement, context = self._measured_once(start)
            measurement = self._limited(measurement, context)
            return measurement, measure_result(measurement, context)
        from pytest_gpucap.decisions.pooling import pooled_measurement
        from pytest_gpucap.session.repeats import Repeats

        count = self._options.repeat
        repeats = Repeats(
            self._harness,
            count,
            once=self._measured_once,
            pool=lambda starts: pooled_measurement(starts, count),
            result=measure_result,
            heard=heard,
        )
        measurement, context = repeats.run(start)
        measurement = self._limited(measurement, context)
        return measurement, measure_result(measurement, context)

    def _measured_once(self, start: int) -> tuple[Measurement, Context]:
        """The measurement on one start."""
        from pytest_gpucap.measure import procedure

        while True:
            with self._harness.driven(start) as (runner, settings, target):
                now = replace(self._harness.requirement, lost=self._harness.lost)
                with self._watched(target, runner) as figures, self._hits(target, runner) as cache:
                    measurement = procedure.measure(runner, now, replace(settings, hit_rate=cache.between), self._live)
                    seen, hits = figures(measurement.samples), cache.of_samples(measurement.samples)
                roofline = self._roofline(target)
                measurement = self._bounded(measurement, roofline)
                context = self._context(target, measurement.samples, roofline)
                context = hits.told(replace(context, figures=seen))
            if not self._lost_some(measurement.problems):
                context, measurement = self._scaled(context, measurement)
                return measurement, context

    def _limited(self, measurement: Measurement, context: Context) -> Measurement:
        """The measurement with the limits judged that are not about the rate."""
        if not self._declared.secondary:
            return measurement
        from pytest_gpucap.session.secondary import judged_measurement

        return judged_measurement(measurement, context, self._declared)

    def _lost_some(self, problems: Sequence[Problem]) -> bool:
        """Whether replicas were lost, and the measurement begins again without them because the test counts that."""
        from pytest_gpucap.results.problems import OF_THE_END

        if not any(problem.kind in OF_THE_END for problem in problems) or not self._harness.go_on_without_lost():
            return False
        self._live.say("a replica was lost: measuring again without it")
        return True

    def _scaled(self, context: Context, measurement: Measurement) -> tuple[Context, Measurement]:
        """The measurement of a fleet with its efficiency; any other as it is."""
        if context.fleet is None:
            return context, measurement
        from pytest_gpucap.session.scaling import with_efficiency

        return with_efficiency(context, measurement, self._harness)

    def _swept(self) -> tuple[Curve, Result]:
        """One run of the sweep."""
        from pytest_gpucap.measure import procedure
        from pytest_gpucap.results.build import sweep_result

        with self._harness.driven() as (runner, settings, target):
            with self._hits(target, runner) as cache:
                told = replace(settings, hit_rate=cache.between)
                curve = procedure.sweep(runner, self._harness.requirement, told, self._live)
                hits = cache.of_samples(curve.measurement.samples)
            roofline = self._roofline(target)
            curve = replace(curve, measurement=self._bounded(curve.measurement, roofline))
            context = hits.told(self._context(target, curve.measurement.samples, roofline))
            context = self._unjudged(context, "sweep")
            return curve, sweep_result(curve, context)

    def _unjudged(self, context: Context, method: str) -> Context:
        """The context, with a remark on limits that this method does not judge."""
        if not self._declared.secondary:
            return context
        from msgspec import structs

        names = ", ".join(limit.name for limit in self._declared.secondary)
        remark = f"{method}() does not judge {names}: check() and measure() do"
        environment = context.environment
        return replace(context, environment=structs.replace(environment, remarks=(*environment.remarks, remark)))

    @contextmanager
    def _one_result(self, kind: str | None = None) -> Iterator[None]:
        """Whatever goes wrong: one line for the test, and a result if a measurement of `kind` has kept none itself."""
        with self._results.measuring(), self._one_ending(kind):
            yield

    @contextmanager
    def _one_ending(self, kind: str | None) -> Iterator[None]:
        """See `_one_result`."""
        before = self._results.count
        try:
            with one_line(f"{self._declared.name} was not measured"):
                yield
        except RequirementError:
            raise
        except GpuCapError as error:
            if kind is not None and self._results.part is not None:
                from pytest_gpucap.session.repeats import broken_off

                part = self._results.part.result
                unmeasured = self._unmeasured(part.kind, error)
                self._results.keep_whole(broken_off(part, unmeasured, self._options.repeat))
            elif kind is not None and self._results.count == before:
                self._results.keep(self._unmeasured(kind, error))
            from pytest_gpucap.results.problems import OF_THE_END

            problems = [problem for result in self._results.results for problem in result.problems]
            if self._harness.has_ended() or any(problem.kind in OF_THE_END for problem in problems):
                words = self._harness.last_words()
                self._harness.give_up()
                raise MeasurementInvalid("\n\n".join(filter(None, [str(error), words]))) from None
            if isinstance(error, NotMeasured):
                raise not_measured(error, self._options) from None
            raise

    def _unmeasured(self, kind: str, error: GpuCapError) -> Result:
        from pytest_gpucap.session.context import unmeasured

        simulated = self._harness.placement.profile is not None
        return unmeasured(self._declared, self._harness.requirement, self._test, kind, error, simulated=simulated)

    def _compare_check(self, requirement: Requirement, kept: KeptResult) -> None:
        """Compare a check that passes. If its rate is not precise enough, it is measured first."""
        if not self._comparing.wants_more_than(kept.result):
            self._comparing.compare(kept, self._again(lambda: self._checked_sharply(requirement, self._options.repeat)))
            return
        _, sharper = self._measured(heard=self._results.keep_part)
        self._results.keep_whole(sharper)
        self._comparing.compare(kept, self._again(lambda: self._measured(self._options.repeat)[1]), sharper)

    def _checked_sharply(self, requirement: Requirement, start: int) -> Result:
        """One run of the check, or of the measurement if the check's rate is not precise enough."""
        _, checked = self._checked(requirement, start)
        if checked.problems or not self._comparing.wants_more_than(checked):
            return checked
        from msgspec import structs

        _, sharper = self._measured(start)
        return structs.replace(sharper, spent_s={**sharper.spent_s, "check": checked.total_spent_s})

    def _compared(self, kept: KeptResult) -> None:
        """Compare with the session's baseline or base. A confirmed regression fails the test."""
        if self._pairing is not None:
            self._pairing.compare(self._harness.requirement, kept)
            self._comparing.refuse_regression(kept.result, self._columns)
            return
        self._comparing.compare(kept, self._again(lambda: self._measured(self._options.repeat)[1]))
        self._comparing.refuse_regression(kept.result, self._columns)

    def _again(self, once: Callable[[], Result]) -> Callable[[str], Result]:
        """Measures once more, on a fresh server if the plugin starts it. Its argument is the reason."""

        def again(why: str) -> Result:
            engine = self._harness.placement.engine
            fresh = " from a fresh start" if engine is not None and engine.restarts else ""
            self._live.say(f"{why}: measuring again{fresh}")
            self._harness.start_afresh()
            result = once()
            if result.problems or result.sustainable_rate is None:
                reason = "; ".join(map(str, result.problems)) or "it found no sustainable rate"
                raise MeasurementInvalid(f"{self._declared.name}: {why}, and a second measurement failed: {reason}")
            return result

        return again

    def _roofline(self, target: SystemUnderTest) -> Roofline | NoLimit:
        from pytest_gpucap.session.context import limits_of

        return limits_of(target, self._declared)

    def _bounded(self, measurement: Measurement, roofline: Roofline | NoLimit) -> Measurement:
        """The measurement, checked against the physical limit and marked with whether a budget was declared."""
        from pytest_gpucap.roofline.plausibility import checked

        return replace(checked(measurement, roofline), budgeted=self._declared.requirement is not None)

    def _context(self, target: SystemUnderTest, samples: Sequence[Sample], roofline: Roofline | NoLimit) -> Context:
        from pytest_gpucap.session.context import context_of

        context = context_of(target, samples, roofline, self._declared, self._test)
        if (folder := self._options.keep_requests) is None:
            return context
        from pytest_gpucap.session.kept_requests import keep_requests

        return replace(context, requests=(keep_requests(folder, target, samples, self._declared),))


def _trusted(measurement: Measurement) -> Measurement:
    """The measurement, if it can be trusted and found a rate."""
    if measurement.problems:
        why = "; ".join(problem.text for problem in measurement.problems)
        raise MeasurementInvalid(f"{measurement.requirement.name} was not measured: {why}")
    if measurement.sustainable_rate is None:
        raise NoSustainableRate(f"{measurement.requirement.name} has no sustainable rate: {measurement.reason}")
    return measurement
