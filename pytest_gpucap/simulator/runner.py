"""The simulated server in virtual time: a load runner whose hours take seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load.adapters import AdapterDraw
from pytest_gpucap.load.protocol import (
    ClosedLoop,
    ErrorText,
    Histogram,
    Journal,
    LoadError,
    LoadPhase,
    OpenLoop,
    PhaseSpan,
    Progress,
    SelfCheck,
    SessionColumns,
    Status,
    Turns,
)
from pytest_gpucap.simulator import engine, turns
from pytest_gpucap.simulator.profile import EngineModel

BIN_S = 0.1
"""Width of the journal's token bins."""
POLL_S = 0.25
"""How often `should_stop` is asked, in virtual seconds."""
NOISE_BLOCK = 1 << 17
AHEAD_S = 120.0
"""Tokens that the engine has made and the front end not yet shown lie at most this far ahead, in the token bins."""

# The columns of a request, and the lists of requests, in the engine's order.
_TABLE = ("prompt", "output", "cached", "target", "done", "finish_at", "pace", "shared", "mark", "planned", "found")
_TIMES = ("due", "first", "last", "end")
_LISTS = ("queue", "front", "run", "shown")
_FLAGS = ("hot", "failed", "cancelled")
_SESSIONS = ("session", "cached", "left")

COUNTERS = {
    "preemptions": engine.PREEMPTIONS,
    "prefix_queries": engine.PREFIX_QUERIES,
    "prefix_hits": engine.PREFIX_HITS,
    "draft_tokens": engine.DRAFT_TOKENS,
    "accepted_tokens": engine.ACCEPTED_TOKENS,
}
"""What a real server's page of metrics counts, and where the engine does."""


class VirtualClock:
    """Seconds since the simulated server was started."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.time_s


class SimRunner:
    """A `LoadRunner` on a simulated server that was started when this object was made.

    Args:
        model: the engine.
        seed: of its noise, drift and stalls; the requests come from the phases.
        error_rate: share of the requests that fail at once with HTTP 500, for tests of error limits.
        adapters: of the adapters that requests name, which cost nothing here; None: there are none.
    """

    simulated = True

    def __init__(
        self, model: EngineModel, seed: int = 0, error_rate: float = 0.0, adapters: AdapterDraw | None = None
    ) -> None:
        self.clock = VirtualClock()
        self.model = model
        self._params = model.params
        self._rng = np.random.default_rng([0x51, seed])
        self._error_rate = error_rate
        self._draw, self._drawn = adapters, [np.zeros(0, np.int64)]
        # A generator of their own, so that other draws are the same with and without speculation.
        self._pace_rng = np.random.default_rng([0x5BEC, seed])
        self._noise: Floats = self._rng.standard_normal(NOISE_BLOCK)
        self._real = np.zeros(engine.REALS)
        self._whole = np.zeros(engine.WHOLES, np.int64)
        self._whole[engine.NEXT_FINISH] = engine.NEVER
        self._real[engine.DRIFT] = model.drift_sd * self._rng.standard_normal()
        self._rows = 0
        self._table = np.zeros((engine.TABLE, 0), np.int64)
        self._times = np.zeros((engine.TIMES, 0))
        self._lists = np.zeros((engine.LISTS, 0), np.int64)
        self._flags = np.zeros((len(_FLAGS), 0), np.bool_)
        # Any: columns of several types under one roof, each a row of one of the arrays above.
        self._columns: dict[str, Any] = {}
        self._tokens = np.zeros(1024, np.int64)
        self._sessions: Ints = np.zeros((len(_SESSIONS), 0), np.int64)
        self._in_sessions = False
        self._plan: tuple[Ints, Floats, Ints] | None = None
        """Of the phase under way, if it has sessions: its plan, the times in it, and how far it is (`turns`)."""
        self._followed = 0
        self._readings: list[tuple[float, ...]] = []
        self._grow(4096)

    def _grow(self, rows: int) -> None:
        """Make every column at least `rows` long."""
        size = self._table.shape[1]
        if size >= rows:
            return
        missing = ((0, 0), (0, max(rows, 2 * size) - size))
        self._table = np.pad(self._table, missing)
        self._table[engine.FINISH_AT, size:] = engine.NEVER
        self._times = np.pad(self._times, missing, constant_values=np.nan)
        self._lists = np.pad(self._lists, missing)
        self._flags = np.pad(self._flags, missing)
        self._sessions = np.pad(self._sessions, missing)
        arrays = ((_TABLE, self._table), (_TIMES, self._times), (_LISTS, self._lists), (_FLAGS, self._flags))
        self._columns = {name: column for names, array in arrays for name, column in zip(names, array, strict=True)}

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`.

        Raises:
            LoadError: if a closed loop runs out of rows, or a request can never fit the KV cache.
        """
        start_s = self.clock.time_s
        end_s = start_s + phase.duration_s
        n = phase.prompt_tokens.size
        if n and int((phase.prompt_tokens.astype(np.int64) + phase.output_tokens).max()) > self.model.kv_tokens:
            raise LoadError(f"a request of this phase is longer than the KV cache of {self.model.kv_tokens} tokens")
        first_row, end_row = self._rows, self._rows + n
        self._grow(end_row + 1)
        concurrency, hot = (0, 0) if isinstance(phase, OpenLoop) else (phase.concurrency, phase.hot)
        paces = self.model.paces(self._pace_rng, n)
        if phase.turns is None:
            self._begin_rows(phase, paces, hot)
        else:
            self._begin_sessions(phase, phase.turns, paces)
        self._rows = end_row
        self._whole[engine.NEXT_ROW] = first_row
        self._make_room(end_s)
        gaps = np.zeros(engine.GAP_BINS, np.int64)
        stopped = False
        until_s = start_s
        self._read(start_s)
        try:
            while until_s < end_s and not stopped:
                until_s = end_s if should_stop is None else min(end_s, until_s + POLL_S)
                self._advance(gaps, end_row, concurrency, until_s)
                self._read(until_s)
                if should_stop is not None:
                    stopped = should_stop(self._progress(until_s, first_row))
        finally:
            used = int(self._whole[engine.NEXT_ROW])
            if phase.turns is not None:
                self._end_sessions(phase.turns, first_row, used, hot)
            self._drop_rows(used)
            if self._draw is not None:
                self._drawn.append(self._draw.of_all(phase.first_prompt, used - first_row))
        self.clock.time_s = until_s
        achieved = (used - first_row) / max(until_s - start_s, 1e-9)
        check = SelfCheck(
            intended_rps=phase.rate_rps if isinstance(phase, OpenLoop) else float("nan"), achieved_rps=achieved
        )
        gap_histogram = Histogram(engine.GAP_LOWEST_S, engine.GAP_GROWTH, gaps)
        taken = used - first_row if phase.turns is None else None
        return PhaseSpan(phase, start_s, until_s, first_row, used, stopped, check, gap_histogram, taken)

    def _begin_rows(self, phase: LoadPhase, paces: Ints, hot: int) -> None:
        """Make a row of every request of a phase."""
        columns, first_row, end_row = self._columns, self._rows, self._rows + phase.prompt_tokens.size
        rows = slice(first_row, end_row)
        columns["prompt"][rows] = phase.prompt_tokens
        columns["output"][rows] = phase.output_tokens
        columns["target"][rows] = phase.prompt_tokens
        columns["pace"][rows] = paces
        if isinstance(phase, OpenLoop):
            columns["due"][rows] = self.clock.time_s + phase.due_s
        columns["hot"][first_row : first_row + hot] = True
        if self._error_rate > 0:
            self._fail_some(first_row, end_row, phase)

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """See `LoadRunner.settle`."""
        if cancel:
            self._cancel()
            return True
        gaps = np.zeros(engine.GAP_BINS, np.int64)
        deadline = self.clock.time_s + timeout_s
        while self.clock.time_s < deadline and self.in_flight > 0:
            self.clock.time_s = min(deadline, self.clock.time_s + POLL_S)
            self._make_room(self.clock.time_s)
            self._advance(gaps, self._rows, 0, self.clock.time_s)
        return self.in_flight == 0

    def _make_room(self, until_s: float) -> None:
        """Token bins up to a time, and for what the front end still holds then."""
        missing = int((until_s + AHEAD_S) / BIN_S) + 1 - self._tokens.size
        if missing > 0:
            self._tokens = np.concatenate([self._tokens, np.zeros(max(missing, 2048), np.int64)])

    def _shown(self, name: str) -> Floats:
        """A column of times, without those that the front end has yet to show."""
        times: Floats = self._columns[name][: self._rows].astype(np.float64)
        times[times > self.clock.time_s] = np.nan
        return times

    def journal(self) -> Journal:
        """See `LoadRunner.journal`."""
        rows = slice(0, self._rows)
        c = self._columns
        ended = self._shown("end")
        status = np.full(self._rows, Status.IN_FLIGHT, np.uint8)
        status[~np.isnan(ended)] = Status.OK
        status[c["failed"][rows].astype(bool)] = Status.HTTP_5XX
        status[c["cancelled"][rows].astype(bool)] = Status.CANCELLED
        answered = status == Status.OK
        prompt, output = c["prompt"][rows].astype(np.int32), c["output"][rows].astype(np.int32)
        due: Floats = c["due"][rows].astype(np.float64)
        return Journal(
            due_s=due,
            sent_s=due.copy(),
            first_s=self._shown("first"),
            last_s=self._shown("last"),
            end_s=ended,
            prompt_tokens=prompt,
            output_tokens=output,
            counted_prompt_tokens=np.where(answered, prompt, 0).astype(np.int32),
            counted_output_tokens=np.where(answered, output, 0).astype(np.int32),
            status=status,
            hot=c["hot"][rows].astype(np.bool_),
            bin_s=BIN_S,
            bins_start_s=0.0,
            tokens=self._tokens[: int(self.clock.time_s / BIN_S) + 1].copy(),
            adapter=None if self._draw is None else np.concatenate(self._drawn),
            sessions=self._session_columns(),
        )

    def _session_columns(self) -> SessionColumns | None:
        if not self._in_sessions:
            return None
        session, cached, left = self._sessions[:, : self._rows]
        return SessionColumns(session.copy(), cached.astype(np.int32), left.astype(np.int32))

    def error_texts(self) -> list[ErrorText]:
        """See `LoadRunner.error_texts`."""
        return []

    def close(self) -> None:
        """See `LoadRunner.close`."""
        self._cancel()

    @property
    def in_flight(self) -> int:
        """Requests waiting, running, or done but not yet shown."""
        w = self._whole
        shown = w[engine.SHOWN_TAIL] - w[engine.SHOWN_HEAD]
        return int(w[engine.RUNNING] + w[engine.FRONT] + w[engine.TAIL] - w[engine.HEAD] + shown)

    @property
    def preemptions(self) -> int:
        """Requests that lost their KV so far."""
        return int(self._whole[engine.PREEMPTIONS])

    def readings(self) -> dict[str, Floats]:
        """The server's counters, read at least four times a second while it was driven; shape (readings,) each.

        ``time_s`` on the runner's clock, ``output_tokens``, what `COUNTERS` names, and ``energy_j``, which is NaN for a
        device without a counter. The drafts of a server that does not speculate are NaN: a real one has no such metric.
        """
        columns = np.array(self._readings, dtype=np.float64).reshape(-1, len(COUNTERS) + 2).T
        names = ("time_s", *COUNTERS, "energy_j")
        found: dict[str, Floats] = dict(zip(names, columns, strict=True))
        made = np.concatenate([[0], np.cumsum(self._tokens)])
        found["output_tokens"] = np.interp(found["time_s"], BIN_S * np.arange(made.size), made)
        if not self.model.spec_tokens:
            found |= {name: np.full(found["time_s"].size, np.nan) for name in ("draft_tokens", "accepted_tokens")}
        return found

    def _read(self, now_s: float) -> None:
        self._readings.append((now_s, *self._counters(), self._energy_j(now_s)))

    def _counters(self) -> list[float]:
        """In the order of `COUNTERS`."""
        return [float(self._whole[place]) for place in COUNTERS.values()]

    def _energy_j(self, now_s: float) -> float:
        return energy_j(self.model, now_s, float(self._real[engine.BUSY]))

    def _begin_sessions(self, phase: LoadPhase, planned: Turns, paces: Ints) -> None:
        """Make the plan of a phase with sessions. Rows come into being when they are due."""
        if self._error_rate > 0:
            raise LoadError("a simulated server that fails requests has no sessions")
        self._in_sessions = True
        # Answers to earlier phases have no next turn in this one.
        self._columns["planned"][: self._rows] = 0
        marks = np.full(planned.session.size, engine.CACHED_FOR_EVER)
        order = np.argsort(self._sessions[0, : self._rows], kind="stable")
        known = self._sessions[0, order]
        at = np.searchsorted(known, planned.session, side="right") - 1
        carried = (planned.after < 0) & (at >= 0)
        carried[carried] = known[at[carried]] == planned.session[carried]
        # The last row of its session. What is in flight holds its KV.
        last = order[at[carried]]
        in_flight = ~(self._columns["end"][last].astype(np.float64) <= self.clock.time_s)
        marks[carried] = np.where(in_flight, engine.CACHED_FOR_EVER, self._columns["mark"][last])
        held_by = np.zeros(planned.session.size, np.int64)
        held_by[carried] = np.where(in_flight, last + 1, 0)
        plan, times = turns.plan_of(phase, planned, self.clock.time_s, paces, marks, held_by)
        state = np.zeros(turns.STATES, np.int64)
        state[turns.FOLLOWED] = self._followed
        self._plan = plan, times, state

    def _end_sessions(self, planned: Turns, first_row: int, used: int, hot: int) -> None:
        """Note which turns the rows of a phase were."""
        rows = slice(first_row, used)
        places = self._columns["planned"][rows] - 1
        self._sessions[:, rows] = np.stack([planned.session, planned.cached, planned.left])[:, places]
        self._columns["hot"][rows] = places < hot
        assert self._plan is not None  # noqa: S101 - made when the phase began
        self._followed = int(self._plan[2][turns.FOLLOWED])
        self._plan = None

    def _advance(self, gaps: Ints, end_row: int, concurrency: int, until_s: float) -> None:
        common = (
            self._params, self._real, self._whole, self._noise, self._lists, self._table, self._times, gaps,
            self._tokens, BIN_S,
        )  # fmt: skip
        while True:
            if self._plan is not None:
                result = turns.advance(*common, *self._plan, concurrency, until_s)
            else:
                result = engine.advance(*common, end_row, concurrency, until_s)
            if result == 0:
                return
            if result == 2:  # noqa: PLR2004 - documented by advance
                raise LoadError("the closed loop ran out of rows before its time was over")
            self._noise[:] = self._rng.standard_normal(NOISE_BLOCK)
            self._whole[engine.NOISE_AT] = 0

    def _progress(self, now_s: float, first_row: int) -> Progress:
        ended = self._columns["end"][first_row : int(self._whole[engine.NEXT_ROW])]
        failed = int(self._columns["failed"][first_row : int(self._whole[engine.NEXT_ROW])].sum())
        return Progress(self.in_flight, int((ended.astype(np.float64) <= now_s).sum()) - failed, failed)

    def _drop_rows(self, used: int) -> None:
        """Forget rows that never became due, so that the next phase writes over them."""
        rows = slice(used, self._rows)
        for name, fill in (("due", np.nan), ("first", np.nan), ("last", np.nan), ("end", np.nan), ("hot", False),
                           ("failed", False), ("done", 0), ("cached", 0), ("finish_at", engine.NEVER)):  # fmt: skip
            self._columns[name][rows] = fill
        self._rows = used

    def _fail_some(self, first_row: int, end_row: int, phase: LoadPhase) -> None:
        """Requests that fail: they end at once and cost the engine one token of prompt and one of output."""
        bad = first_row + np.flatnonzero(self._rng.random(end_row - first_row) < self._error_rate)
        if isinstance(phase, ClosedLoop):
            bad = bad[bad >= first_row + phase.hot]
        for name in ("prompt", "output", "target"):
            self._columns[name][bad] = 1
        self._columns["failed"][bad] = True

    def _cancel(self) -> None:
        w, c = self._whole, self._columns
        open_rows = np.concatenate(
            [
                c["run"][: w[engine.RUNNING]],
                c["front"][: w[engine.FRONT]],
                c["queue"][w[engine.HEAD] : w[engine.TAIL]],
                c["shown"][w[engine.SHOWN_HEAD] : w[engine.SHOWN_TAIL]],
            ]
        ).astype(np.int64)
        # What the front end holds is never shown.
        self._real[engine.SHOWN] = self.clock.time_s
        self._tokens[int(self.clock.time_s / BIN_S) + 1 :] = 0
        for column in ("first", "last"):
            times = c[column]
            times[open_rows[times[open_rows] > self.clock.time_s]] = np.nan
        w[engine.SHOWN_HEAD] = w[engine.SHOWN_TAIL]
        c["end"][open_rows] = self.clock.time_s
        c["cancelled"][open_rows] = True
        c["finish_at"][open_rows] = engine.NEVER
        for name in (engine.RUNNING, engine.FRONT, engine.DECODES, engine.KV, engine.PREFILLING):
            w[name] = 0
        w[engine.HEAD] = w[engine.TAIL]
        w[engine.NEXT_FINISH] = engine.NEVER


def energy_j(model: EngineModel, now_s: float, busy_s: float) -> float:
    """What a device has taken since its start; NaN without a counter."""
    if not (model.idle_w or model.busy_w):
        return np.nan
    return model.idle_w * now_s + model.busy_w * busy_s
