"""One schedule over several load generators, which may be on other nodes with other clocks.

A phase is split by rows: row i goes to part i mod K. So the parts' arrivals together are the declared process, to
the row. A closed loop's concurrency is split into shares. All parts begin at one agreed time, told to each on its own
clock.

Latencies are differences of times that one part read from one clock, so no error of a clock enters them. The error of
an offset moves a part's whole load against that of the others. It is bounded (`clock_offset`), shown, and must be
small against the latency limits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.fleet.clock_offset import Exchange, OffsetTrack, read_offset
from pytest_gpucap.fleet.joined_parts import (
    Carried,
    carried_phase,
    joined_check,
    joined_journal,
    merged_histogram,
    named,
    or_zero,
    total,
)
from pytest_gpucap.fleet.split_phase import nothing, shares_of, split
from pytest_gpucap.fleet.timed_runner import TimedRunner
from pytest_gpucap.load.protocol import (
    ClosedLoop,
    ErrorText,
    Journal,
    LoadError,
    LoadPhase,
    LoadRunner,
    OpenLoop,
    PhaseSpan,
    Progress,
    SelfCheck,
    Status,
)
from pytest_gpucap.load.runner import PROGRESS_S
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource

LEAD_S: Final = 0.03
"""From the order to begin until a phase starts, beside the time that orders take to arrive."""
ROW_S: Final = 2e-7
"""And this for each row of a part, which fills its table of requests in that time."""
TRIPS: Final = 4
"""Round trips that an order may take to arrive: the first one of a connection at rest is slow."""
LATE_START_S: Final = 0.010
"""A part that begins an open loop later than agreed by more than this is late, as one that sends so late."""
CLOCKS_AT_ONCE: Final = 8
"""The servers wait while clocks are read. Exchanges beside each other take it in turns with this process, so that more
at once would make the round trips longer."""
CLOCK_SHARE: Final = 0.05
"""Of the smallest latency limit: by more than this no part's load may be shifted against the others'. Latencies are
right all the same, but queues of the servers are those of another arrival process."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One load generator.

    Attributes:
        node: where it runs, for people.
        runner: in real time a `TimedRunner`.
        exchange: exchanges timestamps with its clock; None: it reads the clock of this machine.
    """

    node: str
    runner: LoadRunner
    exchange: Callable[[], Exchange] | None = None


class _LatestClock:
    """The clock of parts in virtual time: what the first of them shows. They stand at the same time between phases."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def now(self) -> float:
        """Virtual seconds."""
        return max(part.runner.clock.now() for part in self._parts)


class _OurClock:
    """This machine's monotonic clock."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()


class SplitRunner:
    """A `LoadRunner` that carries one schedule with several load generators.

    One thread for each part waits for it. A part that fails, falls silent, is late or falls behind makes the phase
    INVALID, and the problem names its node.

    Args:
        parts: at least one; all drive the same server or fleet, with the same seed and nonce.
        smallest_limit_s: the smallest latency limit of the requirement; see `CLOCK_SHARE`. None: no such limit.
        virtual: the parts run in virtual time: progress is asked of all of them at the same virtual time.

    Raises:
        ValueError: without a part, with two of one name, or for a part in real time that is no `TimedRunner`.
    """

    def __init__(self, parts: Sequence[Part], *, smallest_limit_s: float | None = None, virtual: bool = False) -> None:
        if not parts or len({part.node for part in parts}) < len(parts):
            raise ValueError("give at least one part, each on a node of another name")
        if not virtual and (plain := [part.node for part in parts if not isinstance(part.runner, TimedRunner)]):
            raise ValueError(f"these parts cannot begin at an agreed time: {', '.join(plain)}")
        self.parts = tuple(parts)
        self.clock = _LatestClock(parts) if virtual else _OurClock()
        self.simulated = any(part.runner.simulated for part in parts)
        self._limit_s, self._virtual = smallest_limit_s, virtual
        self._tracks = [OffsetTrack() for _ in parts]
        """Of parts that read another clock; empty for the others."""
        self._trip_s = 0.0
        self._threads = ThreadPoolExecutor(len(parts), "gpucap-part")
        self._carried: list[Carried] = []
        self._journals: list[Journal | None] = [None] * len(parts)
        self._known = [0] * len(parts)
        """Rows of each part's journal that belong to a phase."""
        self._dead: set[int] = set()
        self._last_end_s = -math.inf
        self._skew_s, self._skewed = 0.0, ""
        self._latest = ""
        self._latest_s = -1.0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one phase ----------------------------------------------------------------------------------------------------

    def prepare(self, phase: LoadPhase | None = None) -> None:
        """Get every part ready; all at once.

        Raises:
            LoadError: if one cannot; it names the part.
        """
        pieces = [None] * len(self.parts) if phase is None else split(phase, len(self.parts))
        futures = [
            self._threads.submit(part.runner.prepare, piece)
            for part, piece in zip(self.parts, pieces, strict=True)
            if isinstance(part.runner, TimedRunner)
        ]
        self._results(futures)

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`.

        Raises:
            LoadError: if a part cannot produce its load; it names the part.
        """
        if self._closed:
            raise LoadError("this load runner has been closed")
        if self._dead:
            raise LoadError(f"the load generator on {self.parts[min(self._dead)].node} has ended")
        pieces = split(phase, len(self.parts), self._missing(phase))
        if self._virtual:
            start_s = self._align()
        else:
            self._results(
                [
                    self._threads.submit(part.runner.prepare, piece)
                    for part, piece in zip(self.parts, pieces, strict=True)
                    if isinstance(part.runner, TimedRunner)
                ]
            )
            self._read_offsets()
            most_rows = max(piece.prompt_tokens.size for piece in pieces)
            lead_s = LEAD_S + TRIPS * self._trip_s + ROW_S * most_rows
            start_s = max(self._last_end_s, self.clock.now() + lead_s)
        offsets_s = np.array([track.at(start_s).offset_s if track else 0.0 for track in self._live_tracks()])
        try:
            spans, stopped = self._carry(pieces, start_s, offsets_s, should_stop)
            if not self._virtual:
                self._read_offsets()
        except LoadError:
            self._keep_failed(offsets_s)
            raise
        end_s = max(float(span.end_s - offset) for span, offset in zip(spans, offsets_s, strict=True))
        if not stopped and not self._virtual:
            end_s = max(end_s, start_s + phase.duration_s)
        self._last_end_s = end_s
        first_row = sum(each.order.size for each in self._carried)
        self._fetch()
        self._keep([slice(span.first_row, span.end_row) for span in spans], offsets_s)
        check = self._check(phase, spans, start_s, end_s, offsets_s)
        gaps = merged_histogram([span.gaps for span in spans])
        end_row = first_row + self._carried[-1].order.size
        return PhaseSpan(phase, start_s, end_s, first_row, end_row, stopped, check, gaps)

    def _missing(self, phase: LoadPhase) -> list[int] | None:
        """Slots of each part that the phase before has left free; None where that does not matter."""
        if not isinstance(phase, ClosedLoop) or not phase.hot or not self._carried:
            return None
        self._fetch()
        shares = shares_of(phase.concurrency, len(self.parts))
        return [
            max(0, share - (0 if journal is None else int((journal.status == Status.IN_FLIGHT).sum())))
            for share, journal in zip(shares, self._journals, strict=True)
        ]

    def _align(self) -> float:
        """Let the parts in virtual time that have waited less for their last requests catch up; when all stand."""
        start_s = self.clock.now()
        for part in self.parts:
            behind_s = start_s - part.runner.clock.now()
            if behind_s > 0:
                part.runner.run(nothing(behind_s))
        return start_s

    def _live_tracks(self) -> list[OffsetTrack | None]:
        return [
            track if part.exchange is not None else None for part, track in zip(self.parts, self._tracks, strict=True)
        ]

    def _read_offsets(self) -> None:
        """Read all clocks of other nodes, `CLOCKS_AT_ONCE` beside each other."""
        others = [(number, part.exchange) for number, part in enumerate(self.parts) if part.exchange is not None]
        for first in range(0, len(others), CLOCKS_AT_ONCE):
            some = others[first : first + CLOCKS_AT_ONCE]
            futures = [(number, self._threads.submit(read_offset, exchange)) for number, exchange in some]
            wait([future for _, future in futures])
            for number, future in futures:
                with self._naming(number):
                    reading = future.result()
                self._tracks[number].add(reading)
                self._trip_s = max(self._trip_s, 2 * reading.bound_s)

    def _read_on(self, number: int) -> bool:
        """Read one clock while a phase runs, so that drift cannot hide for long; whether its part still answers."""
        exchange = self.parts[number].exchange
        assert exchange is not None  # noqa: S101 - one of those with a clock of their own
        try:
            self._tracks[number].add(read_offset(exchange))
        except LoadError:  # which its own thread hears, too
            return False
        return True

    def _carry(
        self,
        pieces: Sequence[LoadPhase],
        start_s: float,
        offsets_s: Floats,
        should_stop: Callable[[Progress], bool] | None,
    ) -> tuple[list[PhaseSpan], bool]:
        """Run a piece on every part; the spans, each on its part's clock, and whether `should_stop` ended them."""
        board: list[Progress | None] = [None] * len(self.parts)
        if self._virtual:
            return self._carry_in_step(pieces, board, should_stop)

        def note(part: int) -> Callable[[Progress], bool]:
            def seen(progress: Progress) -> bool:
                board[part] = progress
                return False

            return seen

        futures = []
        for number, (part, piece) in enumerate(zip(self.parts, pieces, strict=True)):
            assert isinstance(part.runner, TimedRunner)  # noqa: S101 - checked when this was made
            part.runner.start_at(start_s + float(offsets_s[number]))
            futures.append(self._threads.submit(part.runner.run, piece, note(number)))
        stopped = failed = False
        others = itertools.cycle([number for number, part in enumerate(self.parts) if part.exchange is not None])
        pending: set[Future[PhaseSpan]] = set(futures)
        while pending:
            done, pending = wait(pending, PROGRESS_S, FIRST_COMPLETED)
            failed = failed or any(each.exception() is not None for each in done)
            if not failed and not done and (other := next(others, None)) is not None:
                failed = not self._read_on(other)
            if failed:
                # What the other parts go on to send would be no phase of anything.
                self._end_all(self.clock.now(), offsets_s)
                break
            told = [each for each in board if each is not None]
            if should_stop is None or stopped or len(told) < len(board) or self.clock.now() < start_s:
                continue
            if should_stop(total(told)):
                stopped = True
                # All parts look at what they were told every PROGRESS_S, and end at this very time.
                self._end_all(self.clock.now() + PROGRESS_S + LEAD_S + TRIPS * self._trip_s, offsets_s)
        spans = self._results(futures)
        return spans, stopped and any(span.stopped for span in spans)

    def _end_all(self, end_s: float, offsets_s: Floats) -> None:
        for part, offset_s in zip(self.parts, offsets_s, strict=True):
            if isinstance(part.runner, TimedRunner):
                with contextlib.suppress(LoadError):  # of a part that has ended already
                    part.runner.end_at(end_s + float(offset_s))

    def _carry_in_step(
        self,
        pieces: Sequence[LoadPhase],
        board: list[Progress | None],
        should_stop: Callable[[Progress], bool] | None,
    ) -> tuple[list[PhaseSpan], bool]:
        """As `_carry`, in virtual time: `should_stop` is asked once all parts have come to the same time."""
        decided = [False]

        def decide() -> None:
            decided[0] = should_stop is not None and should_stop(total([each for each in board if each is not None]))

        gate = threading.Barrier(len(self.parts), decide)

        def ask(part: int) -> Callable[[Progress], bool]:
            def seen(progress: Progress) -> bool:
                board[part] = progress
                try:
                    gate.wait()
                except threading.BrokenBarrierError:  # another part has failed
                    return True
                return decided[0]

            return seen

        def carry(part: int) -> PhaseSpan:
            try:
                return self.parts[part].runner.run(pieces[part], None if should_stop is None else ask(part))
            except BaseException:
                gate.abort()
                raise

        spans = self._results([self._threads.submit(carry, part) for part in range(len(self.parts))])
        return spans, decided[0]

    def _results(self, futures: Sequence[Future[T]]) -> list[T]:
        """What all of them give.

        Raises:
            LoadError: of the first part that failed, when none runs any more.
        """
        wait(futures)
        for number, future in enumerate(futures):
            with self._naming(number):
                future.result()
        return [future.result() for future in futures]

    @contextlib.contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Put a part's name before what it says of a failure."""
        try:
            yield
        except LoadError as error:
            node = self.parts[number].node
            if getattr(self.parts[number].runner, "ended", False):
                self._dead.add(number)
            raise type(error)(f"the load generator on {node}: {error}") from error

    # -- what it knows ------------------------------------------------------------------------------------------------

    def _check(
        self, phase: LoadPhase, spans: Sequence[PhaseSpan], start_s: float, end_s: float, offsets_s: Floats
    ) -> SelfCheck:
        """The parts' checks as one: the worst figure of any part, and every part's problems with its name."""
        checks = [span.check for span in spans]
        problems: list[Problem] = []
        lateness = [or_zero(check.send_lateness_p99_s) for check in checks]
        worst_first = sorted(range(len(spans)), key=lambda part: -lateness[part])
        for number in worst_first:
            node = self.parts[number].node
            problems += [named(each, node) for each in checks[number].problems]
            late_s = float(spans[number].start_s - offsets_s[number] - start_s)
            if isinstance(phase, OpenLoop) and not self._virtual and late_s > LATE_START_S:
                text = f"the load generator on {node} began {late_s * 1e3:.3g} ms later than the others"
                problems.append(Problem(ProblemSource.LOAD_GENERATOR, ProblemKind.LATE, text))
        if lateness[worst_first[0]] > self._latest_s:
            self._latest_s, self._latest = lateness[worst_first[0]], self.parts[worst_first[0]].node
        problems += self._clock_problems(start_s, end_s, offsets_s)
        return joined_check(phase, checks, problems)

    def _clock_problems(self, start_s: float, end_s: float, offsets_s: Floats) -> list[Problem]:
        """Clocks that are not known well enough against the latency limits, or that were set."""
        found = []
        for part, track, offset_s in zip(self.parts, self._live_tracks(), offsets_s, strict=True):
            if track is None:
                continue
            if strayed_s := track.strayed(start_s):
                text = (
                    f"the clock of the load generator on {part.node} moved {strayed_s * 1e3:.3g} ms further than "
                    "clocks drift: it, or this machine's, was set or slewed; stop what sets it and run again"
                )
                found.append(Problem(ProblemSource.HOST, ProblemKind.CLOCK_SET, text))
            skew_s = track.skew_s(float(offset_s), start_s, end_s)
            if skew_s > self._skew_s:
                self._skew_s, self._skewed = skew_s, part.node
            if self._limit_s is not None and skew_s > CLOCK_SHARE * self._limit_s:
                text = (
                    f"the clock of the load generator on {part.node} is known to {skew_s * 1e3:.3g} ms only, more than "
                    f"{CLOCK_SHARE:.0%} of the smallest latency limit ({self._limit_s * 1e3:.3g} ms): its requests may "
                    "be shifted against the others' by as much; use a faster network between the nodes"
                )
                found.append(Problem(ProblemSource.LOAD_GENERATOR, ProblemKind.OTHER, text))
        return found

    def _keep(self, rows: list[slice], offsets_s: Floats) -> None:
        """Remember which rows of each part's journal make up a phase, and their order by due time."""
        for part, some in enumerate(rows):
            self._known[part] = max(self._known[part], some.stop)
        self._carried.append(carried_phase(rows, self._journals, offsets_s))

    def _keep_failed(self, offsets_s: Floats) -> None:
        """Remember what the parts of a failed phase know of it: its failed requests may say why."""
        with contextlib.suppress(LoadError):
            self._fetch()
        sizes = [0 if journal is None else journal.status.size for journal in self._journals]
        self._keep([slice(known, size) for known, size in zip(self._known, sizes, strict=True)], offsets_s)

    def _fetch(self) -> None:
        """The parts' journals; of a part that has ended, what was last known of it."""
        live = [number for number in range(len(self.parts)) if number not in self._dead]
        futures = {number: self._threads.submit(self.parts[number].runner.journal) for number in live}
        wait(futures.values())
        for number, future in futures.items():
            try:
                self._journals[number] = future.result()
            except LoadError:
                if not getattr(self.parts[number].runner, "ended", False):
                    raise
                self._dead.add(number)

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """See `LoadRunner.settle`; a part that has ended has nothing in flight."""

        def one(number: int) -> bool:
            try:
                return self.parts[number].runner.settle(timeout_s, cancel=cancel)
            except LoadError:
                if getattr(self.parts[number].runner, "ended", False):
                    self._dead.add(number)
                    return True
                raise

        if self._closed:
            return True
        live = [number for number in range(len(self.parts)) if number not in self._dead]
        settled = [future.result() for future in [self._threads.submit(one, number) for number in live]]
        if self._virtual:
            self._align()
        return all(settled)

    def journal(self) -> Journal:
        """See `LoadRunner.journal`; its times are on the clock of this machine."""
        if not self._closed:
            self._fetch()
        # Before the first phase no clock may have been read.
        read = self._live_tracks() if self._carried else [None] * len(self.parts)
        offsets_s = [0.0 if track is None else track.latest.offset_s for track in read]
        return joined_journal(self._carried, self._journals, offsets_s, self._dead)

    def error_texts(self) -> list[ErrorText]:
        """See `LoadRunner.error_texts`."""
        counts: dict[tuple[Status, int, str], int] = {}
        for number, part in enumerate(self.parts):
            if number in self._dead:
                continue
            for error in part.runner.error_texts():
                key = error.status, error.code, error.text
                counts[key] = counts.get(key, 0) + error.count
        return [ErrorText(*key, count) for key, count in counts.items()]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the parts say of the server, how well their clocks are known, and which part was the latest."""
        found: dict[str, None] = {}
        for number, part in enumerate(self.parts):
            if number not in self._dead:
                found |= dict.fromkeys(getattr(part.runner, "remarks", ()))
        if len(self.parts) > 1:
            nodes = ", ".join(part.node for part in self.parts)
            found[f"{len(self.parts)} load generators carried one schedule: {nodes}"] = None
        if self._latest_s > 0:
            found[f"the latest of them was {self._latest}: send lateness p99 {self._latest_s * 1e3:.3g} ms"] = None
        if self._skewed:
            found[
                f"the clocks of the load generators are known to {self._skew_s * 1e3:.3g} ms (the worst: "
                f"{self._skewed}); latencies are differences on one clock, so this error does not enter them"
            ] = None
        return tuple(found)

    def close(self) -> None:
        """See `LoadRunner.close`."""
        if self._closed:
            return
        self._closed = True
        # After an interrupt a phase may still run, and its threads wait for its end.
        self._end_all(-math.inf, np.zeros(len(self.parts)))
        futures = [self._threads.submit(part.runner.close) for part in self.parts]
        wait(futures)
        self._threads.shutdown()
        for future in futures:
            future.result()
