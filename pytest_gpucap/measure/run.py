"""One measurement under way: carries phases, keeps account of time, samples and problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from pytest_gpucap.estimate.samples import sample_of
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import (
    ERRORS,
    ErrorText,
    Journal,
    LoadError,
    LoadPhase,
    LoadRunner,
    PhaseSpan,
    Progress,
    PromptCountError,
    Status,
)
from pytest_gpucap.load.sessions import under_way
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure import liveness
from pytest_gpucap.measure.prefix_room import PrefixRoom, remembered
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.failures import MOST_KEPT, FailedRequests, Failure, FailureKind
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.problems import OF_THE_HOST, Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import WindowId


def no_load(error: LoadError) -> Problem:
    """The load could not be produced."""
    if isinstance(error, PromptCountError):
        return Problem(ProblemSource.SERVER, ProblemKind.PROMPT_TOKENS, str(error))
    return Problem(ProblemSource.LOAD_GENERATOR, ProblemKind.NO_LOAD, str(error))


class OutOfTime(Exception):  # noqa: N818 - an event of the procedure, not an error of the program
    """The GPU-time limit leaves no room for another phase."""


class CalledOff(Exception):  # noqa: N818 - an event of the procedure, not an error of the program
    """Most requests of a phase failed. What it shows is no figure of a server at work, so nothing is fitted to it."""


class Suspended(Exception):  # noqa: N818 - an event of the procedure, not an error of the program
    """The load generator did not run for a part of a hold, for the first time in this measurement."""


@dataclass(frozen=True, slots=True)
class Window:
    """A phase as it went, from when it counts.

    Attributes:
        span: of the phase.
        start_s: from when it counts.
        samples: of what counts.
        rate_rps: that an open loop was meant to have. Its arrivals are random, so their number is another.
    """

    span: PhaseSpan
    start_s: float
    samples: tuple[Sample, ...]
    rate_rps: float | None = None

    @property
    def end_s(self) -> float:
        """When it ended."""
        return self.span.end_s


def overload_at(concurrency: float) -> int:
    """Requests in flight with which an open loop is called off where `concurrency` of them are critical."""
    return int(c.OVERLOAD * concurrency) + c.OVERLOAD_MARGIN


class MeasuringRun:
    """The state of one measurement."""

    def __init__(self, runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> None:
        self.runner = runner
        self.requirement = requirement
        self.settings = settings
        self.observer = observer
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []
        self.spent: dict[str, float] = {}
        self.room = PrefixRoom()
        """Of the server's prefix cache, for what sessions said."""
        self.journal: Journal = runner.journal()
        self.judged_from = 0
        """The journal's first row whose errors count: that of the phase that was called off, otherwise all rows."""
        self.given_up: list[Window] = []
        """Holds that do not count, because they were far beyond what the server sustains."""
        self.emptied_s: list[float] = []
        """When what was in flight was cancelled: requests on both sides of such a time share no queue."""
        self._began_s = self._idle_since_s = runner.clock.now()
        self._ended = ""
        """Why the server can no longer answer, once it is known."""
        self._look_s = 0.0
        self._may_repeat = True
        """No phase was lost to a suspension yet."""
        self._stream = 0
        self._next_prompt = 0

    @property
    def spent_s(self) -> float:
        """Seconds of server time so far."""
        return self.runner.clock.now() - self._began_s

    @property
    def in_flight(self) -> int:
        """Requests in flight at the end of the last phase."""
        return int((self.journal.status == Status.IN_FLIGHT).sum())

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.settings.max_time_s - self.spent_s

    def hold(
        self, window: WindowId, concurrency: int, duration_s: float, *, discard_s: float = 0.0, hot: bool = True
    ) -> Window:
        """A closed loop at `concurrency`; the first `discard_s` do not count.

        With `hot`, the rows that fill slots not yet in flight start mid-life, and only those. One hold of a measurement
        is carried again if the load generator was suspended in it: a virtual machine that is moved stands still once.

        Raises:
            OutOfTime: if no time is left.
            CalledOff: if most of its requests failed.
            LoadError: if the load cannot be produced.
        """
        total_s = self._fitting(duration_s + discard_s)
        mean_output = max(1.0, self.requirement.workload.output_tokens.mean)
        most_rps = concurrency / (mean_output * c.TOKEN_FLOOR_S)
        if mean_output < c.FEW_TOKENS:
            most_rps = min(most_rps, c.MOST_RPS)
        missing = max(1, concurrency - self.in_flight) if hot else concurrency
        phase = schedule.closed_loop(
            self.requirement.workload,
            missing,
            total_s,
            most_rps,
            self.settings.seed,
            self._stream,
            hot=hot and self.in_flight < concurrency,
            first_prompt=self._next_prompt,
            before=under_way(self.journal),
        )
        phase = replace(phase, concurrency=concurrency)
        try:
            held = self._carry(window, "hold", phase, min(discard_s, 0.75 * total_s), overload=None)
        except Suspended:
            return self.hold(window, concurrency, duration_s, discard_s=discard_s, hot=hot)
        if hot and held.end_s - held.start_s < c.LEAST_LEFT * (total_s - discard_s) and not self.problems:
            # The prompts of its start took most of it.
            return self.hold(window, concurrency, duration_s, hot=False)
        return held

    def open_loop(
        self, window: WindowId, rate_rps: float, duration_s: float, *, overload: int | None, discard_s: float = 0.0
    ) -> Window:
        """An open loop at `rate_rps`, ended early when more than `overload` requests are in flight.

        Raises:
            OutOfTime: if no time is left.
            CalledOff: if most of its requests failed.
            LoadError: if the load cannot be produced.
        """
        total_s = self._fitting(duration_s + discard_s)
        phase = schedule.open_loop(
            self.requirement.workload,
            rate_rps,
            total_s,
            self.settings.seed,
            self._stream,
            self._next_prompt,
            under_way(self.journal),
        )
        carried = self._carry(window, "open loop", phase, min(discard_s, 0.5 * total_s), overload=overload)
        return replace(carried, rate_rps=rate_rps)

    def _all_begun_s(self, span: PhaseSpan) -> float:
        """When the last of a hot start's requests had its first token, at most at three quarters of the phase.

        Before, so many prompts are prefilled at once as no steady state ever has.
        """
        rows = slice(span.first_row, span.end_row)
        latest_s = span.start_s + c.LATEST_BEGIN_SHARE * (span.end_s - span.start_s)
        begun_s = self.journal.first_s[rows][self.journal.hot[rows]]
        if not begun_s.size:
            return span.start_s
        return latest_s if np.isnan(begun_s).any() else min(latest_s, float(begun_s.max()))

    def settle(self) -> None:
        """End what is in flight: nothing more is measured. What hangs is told first."""
        self._wait_for_stalled()
        self._wait_for_a_sign()
        self.runner.settle(c.SETTLE_S, cancel=True)
        now = self.runner.clock.now()
        if self._has_ended(c.LAST_LOOK_S):
            self._blame_devices(self._idle_since_s)
        self.emptied_s.append(now)
        self._spend("settling", now - self._idle_since_s)
        self._idle_since_s = now
        self.journal = self._read_journal()

    def _read_journal(self) -> Journal:
        """The journal so far; of sessions, with what the server's cache had of each prompt."""
        journal = self.runner.journal()
        if journal.sessions is None:
            return journal
        workload, now_s = self.requirement.workload, self.runner.clock.now()
        found, self.room = remembered(journal, workload, self.settings, self._began_s, now_s)
        return found

    def _not_begun(self, phase: LoadPhase, first_row: int) -> int:
        """Sessions of a file that a phase has left for later."""
        columns = self.runner.journal().sessions
        if phase.turns is None or columns is None:
            return 0
        return phase.turns.not_begun(columns.session[first_row:])

    def _fitting(self, duration_s: float) -> float:
        if self.left_s < min(duration_s, c.LEAST_PHASE_S):
            raise OutOfTime
        return min(duration_s, self.left_s)

    def _carry(
        self, window: WindowId, kind: str, phase: LoadPhase, discard_s: float, *, overload: int | None
    ) -> Window:
        rate = getattr(phase, "rate_rps", None)
        concurrency = getattr(phase, "concurrency", None)
        label = window.text
        self.observer.phase(
            label, rate_rps=rate, concurrency=concurrency, duration_s=phase.duration_s, spent_s=self.spent_s
        )
        latency, latency_s, limit_s = self._nearest_limit()
        failing = False

        def should_stop(progress: Progress) -> bool:
            nonlocal failing
            self.observer.progress(
                label,
                in_flight=progress.in_flight,
                completed=progress.completed,
                latency=latency,
                latency_s=latency_s,
                limit_s=limit_s,
                spent_s=self.spent_s,
                left_s=self.left_s,
            )
            failing = self._fails(progress.failed, progress.completed + progress.failed)
            return self._has_ended() or failing or (overload is not None and progress.in_flight > overload)

        self._stream += 1
        self._next_prompt += phase.prompts
        before, began_s = self.journal.status.size, self.runner.clock.now()
        try:
            span = self.runner.run(phase, should_stop)
        except LoadError as error:
            if self._server_kept_it(kind, before, began_s):
                raise CalledOff from error
            raise
        self._next_prompt -= 0 if span.taken is None else phase.prompt_tokens.size - span.taken
        self._next_prompt -= self._not_begun(phase, before)
        # The server waits while the procedure thinks, and is paid for all the same.
        self._spend("between phases", span.start_s - self._idle_since_s)
        self._idle_since_s = span.end_s
        self.journal = self._read_journal()
        if self._may_repeat and any(p.kind is ProblemKind.SUSPENDED for p in span.check.problems):
            self._may_repeat = False
            self._spend("lost to a suspension", span.end_s - span.start_s)
            raise Suspended
        start_s = min(span.end_s, span.start_s + discard_s)
        if discard_s > 0:
            start_s = max(start_s, self._all_begun_s(span))
            self._spend("warm-up", start_s - span.start_s)
        self._spend(kind, span.end_s - start_s)
        failing = self._phase_failed(before) or failing
        if self._has_ended(c.DYING_S if failing else 0.0) or self._is_silent(span):
            self._blame_devices(span.start_s)
            raise CalledOff
        # A load generator that is busy with refusals is not what is wrong.
        problems = () if failing else tuple(span.check.problems)
        if self.settings.trust is not None:
            problems += tuple(self.settings.trust(span.start_s, span.end_s))
        told = {p.kind for p in self.problems} & OF_THE_HOST
        self.problems.extend(p for p in problems if p not in self.problems and p.kind not in told)
        width = (span.end_s - start_s) / c.SLICES
        samples = [
            sample_of(
                self.journal,
                span,
                window.part(i + 1, c.SLICES),
                self.requirement.slo,
                start_s + i * width,
                start_s + (i + 1) * width,
                tuple(p for p in problems if p not in span.check.problems),
                self.requirement.workload,
            )
            for i in range(c.SLICES if width > 0 else 0)
        ]
        self.samples.extend(samples)
        if failing:
            raise CalledOff
        return Window(span, start_s, tuple(samples))

    def _server_kept_it(self, kind: str, first_row: int, began_s: float) -> bool:
        """Whether the server is why the load of a phase could not be produced: it ended, or refused most of it."""
        # Refused requests end at once, so a flood of them may be what kept the load from being produced.
        now_s = self.runner.clock.now()
        self._spend(kind, now_s - self._idle_since_s)
        self._idle_since_s = now_s
        self.journal = self._read_journal()
        failed = self._phase_failed(first_row)
        if self._has_ended(c.DYING_S) or failed:
            self._blame_devices(began_s)
            return True
        return False

    def _has_ended(self, patience_s: float = 0.0) -> bool:
        """Whether the server can no longer answer, which is a problem; looks once a second at most, unless patient."""
        now_s = self.runner.clock.now()
        if self._ended or self.settings.ended is None or (now_s < self._look_s and not patience_s):
            return bool(self._ended)
        self._look_s = now_s + c.LOOK_S
        self._ended = self.settings.ended(patience_s)
        if self._ended:
            self.problems.insert(0, Problem(ProblemSource.SERVER, ProblemKind.ENDED, self._ended))
        return bool(self._ended)

    def _blame_devices(self, since_s: float) -> None:
        """Add what was wrong with the devices since then: that may be why the server answers no more."""
        if self.settings.trust is None:
            return
        found = self.settings.trust(since_s, self.runner.clock.now())
        self.problems.extend(p for p in found if p.source is ProblemSource.GPU and p not in self.problems)

    def _is_silent(self, span: PhaseSpan) -> bool:
        """Whether the server has stopped answering, which is a problem.

        If nothing came in a whole phase although requests were in flight, the server is waited for.
        """
        last_sign_s, rows = liveness.last_sign_s(self.journal), liveness.in_flight(self.journal)
        if last_sign_s >= span.start_s or not rows.any():
            return False
        since_s = max(last_sign_s, float(self.journal.due_s[rows].min()))
        self.runner.settle(max(liveness.patience_s(self.requirement.slo) - (span.end_s - since_s), 0.0))
        now_s = self.runner.clock.now()
        self._spend("waiting", now_s - self._idle_since_s)
        self._idle_since_s = now_s
        self.journal = self._read_journal()
        if liveness.last_sign_s(self.journal) >= span.start_s or self._has_ended(c.DYING_S):
            return bool(self._ended)
        self._no_token_came(now_s - since_s, int(rows.sum()))
        return True

    def _wait_for_stalled(self) -> None:
        """Whether requests hang while others are answered, which is a problem. Those that may hang are waited for."""
        self.journal = self._read_journal()
        now_s = self.runner.clock.now()
        rows = liveness.stalled(self.journal, now_s)
        if self._ended or not rows.any():
            return
        patience_s = liveness.patience_s(self.requirement.slo)
        youngest_s = float(np.sort(self.journal.due_s[rows])[liveness.LEAST_STALLED - 1])
        self.runner.settle(max(patience_s - (now_s - youngest_s) + c.LOOK_S, 0.0))
        self.journal = self._read_journal()
        hangs = int(liveness.stalled(self.journal, self.runner.clock.now(), patience_s).sum())
        if hangs and not self._has_ended(c.DYING_S):
            self._hang(
                f"the server stopped answering {hangs} of {self.journal.status.size} requests: they hang for over "
                f"{patience_s:.0f} s, and requests that were sent later were answered"
            )

    def _wait_for_a_sign(self) -> None:
        """Whether the server has stopped answering by now, which is a problem. Only overdue requests are waited for."""
        began_s = self.runner.clock.now()
        waiting = int(liveness.overdue(self.journal, began_s).sum())
        if self.problems or not waiting:
            return
        until_s = began_s + liveness.patience_s(self.requirement.slo)
        while (now_s := self.runner.clock.now()) < until_s:
            self.runner.settle(min(c.LOOK_S, until_s - now_s))
            self.journal = self._read_journal()
            if liveness.last_sign_s(self.journal) > began_s or not liveness.in_flight(self.journal).any():
                return
        if not self._has_ended(c.DYING_S):
            self._no_token_came(until_s - began_s, waiting)

    def _no_token_came(self, seconds: float, requests: int) -> None:
        self._hang(
            f"the server stopped answering: no token came for {seconds:.0f} s while {requests} requests were in flight"
        )

    def _hang(self, text: str) -> None:
        if all(problem.kind is not ProblemKind.SILENT for problem in self.problems):
            self.problems.insert(0, Problem(ProblemSource.SERVER, ProblemKind.SILENT, text))

    def _nearest_limit(self) -> tuple[str, float, float]:
        """Name, latest percentile and limit of the latency nearest to its limit; of goodput, both as shares."""
        best = ("", math.nan, math.nan)
        nearest = -1.0
        samples = self.samples[-c.SLICES :]
        goodput = self.requirement.slo.goodput
        shares = [share for sample in samples if goodput and (share := sample.goodput) is not None]
        if goodput is not None:
            share, asked = shares[-1] if shares else math.nan, float(goodput.quantile)
            best, nearest = (goodput.name, share, asked), (1.0 - share) / (1.0 - asked) if shares else -1.0
        for limit in self.requirement.slo.percentiles:
            for sample in reversed(samples):
                found = sample.latencies.get(limit.metric.value)
                if found is not None:
                    level = min((q for q in (0.5, 0.9, 0.95, 0.99)), key=lambda q: abs(q - float(limit.quantile)))
                    value = {0.5: found.p50_s, 0.9: found.p90_s, 0.95: found.p95_s, 0.99: found.p99_s}[level]
                    if value / limit.limit_s > nearest:
                        nearest, best = value / limit.limit_s, (limit.name, value, limit.limit_s)
                    break
            else:
                if nearest < 0:
                    best = (limit.name, math.nan, limit.limit_s)
        return best

    def _spend(self, kind: str, seconds: float) -> None:
        if seconds > 0:
            self.spent[kind] = self.spent.get(kind, 0.0) + seconds

    def _phase_failed(self, first_row: int) -> bool:
        """Whether the phase whose first row this is failed; if so, its errors are judged alone."""
        failed = self._fails(*self.errors(first_row))
        if failed:
            self.judged_from = first_row
        return failed

    def _fails(self, failed: int, ended: int) -> bool:
        """Whether so many requests of a phase failed that it makes no sense to go on with it."""
        most = max(c.MOST_ERRORS_SEEN, float(self.requirement.slo.max_error_rate))
        return ended >= c.LEAST_ENDED and failed > most * ended

    def errors(self, first_row: int | None = None) -> tuple[int, int]:
        """Failed and ended requests of the rows from `first_row` on; None: of those that are judged."""
        status = self.journal.status[self.judged_from if first_row is None else first_row :]
        failed = int(sum((status == s).sum() for s in ERRORS))
        return failed, failed + int((status == 0).sum())

    def failed_requests(self) -> FailedRequests | None:
        """What failed of the rows that are judged, and what was said of it; None where nothing did."""
        status = self.journal.status[self.judged_from :]
        counts = {each: int(count) for each in ERRORS if (count := (status == each).sum())}
        if not counts:
            return None
        failed = sum(counts.values())
        told = self.runner.error_texts()
        kinds = [part for each, count in counts.items() for part in _told(each, count, told)]
        kinds.sort(key=lambda each: (-each.count, each.kind, each.http_status or 0))
        return FailedRequests(failed, failed + int((status == Status.OK).sum()), tuple(kinds[:MOST_KEPT]))


def _told(status: Status, count: int, told: Sequence[ErrorText]) -> list[Failure]:
    """The failures of one kind by their HTTP status, with the most frequent text of each.

    The journal's `count` is what counts: texts also come from requests that are not in it, and some are not kept.
    """
    kind = FailureKind[status.name]
    of_kind = sorted((each for each in told if each.status is status), key=lambda each: -each.count)
    by_code: dict[int, list[ErrorText]] = {}
    for each in of_kind:
        by_code.setdefault(each.code, []).append(each)
    found, left = [], count
    for code, texts in sorted(by_code.items(), key=lambda pair: -sum(each.count for each in pair[1])):
        here = min(left, sum(each.count for each in texts))
        text = next((each.text for each in texts if each.text), "")
        if here:
            found.append(Failure(kind, here, code or None, text))
        left -= here
    if left and found:
        found[0] = msgspec.structs.replace(found[0], count=found[0].count + left)
    return found or [Failure(kind, count)]
