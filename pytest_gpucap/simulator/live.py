"""The simulated engine in real time: the same steps as in virtual time, with a token stream for every request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator.prefix_cache import PrefixCache, blocks_of
from pytest_gpucap.simulator.profile import EngineModel

NOISE_BLOCK = 1 << 16
ROWS = 4096
"""Requests waiting or running at once; more are refused."""
IDLE_S = 0.01
LATE_S = 0.25
"""If a step is later than this, the process cannot keep up, and the engine's clock waits for it."""

Deliver = Callable[[bool], None]
"""Called for each token, with True for the last."""


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """No room for another request."""


@dataclass(slots=True)
class Totals:
    """What /metrics counts."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    ttft: list[float] = field(default_factory=lambda: [0.0, 0.0])
    e2e: list[float] = field(default_factory=lambda: [0.0, 0.0])
    late_steps: int = 0


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A request's tokens of one step: its row, its receiver, how many, and whether they have the first or the last."""

    row: int
    deliver: Deliver
    count: int
    first: bool
    last: bool


class LiveEngine:
    """Runs steps of one simulated engine on the event loop's clock.

    Args:
        model: the model of the engine's steps.
        seed: of noise, drift and stalls.
    """

    def __init__(self, model: EngineModel, seed: int = 0) -> None:
        self.model = model
        self.totals = Totals()
        self._params = model.params
        self._rng = np.random.default_rng([0x11FE, seed])
        self._noise = self._rng.standard_normal(NOISE_BLOCK)
        self._real = np.zeros(engine.REALS)
        self._whole = np.zeros(engine.WHOLES, np.int64)
        self._whole[engine.NEXT_FINISH] = engine.NEVER
        self._real[engine.DRIFT] = model.drift_sd * self._rng.standard_normal()
        self._real[engine.TIME] = self._real[engine.DRIFT_AT] = self._real[engine.STARTED] = time.monotonic()
        self._lists = np.zeros((engine.LISTS, 4 * ROWS), np.int64)
        self._queue, self._front, self._run, _ = self._lists
        self._table = np.zeros((engine.TABLE, ROWS), np.int64)
        self._prompt, self._output, self._cached, self._target, self._done, self._finish_at, self._pace = self._table[
            :7
        ]
        self._times = np.zeros((engine.TIMES, ROWS))
        self._gaps = np.zeros(engine.GAP_BINS, np.int64)
        self._free = list(range(ROWS - 1, -1, -1))
        self._deliver: dict[int, Deliver] = {}
        self._began: dict[int, float] = {}
        self._made_of: dict[int, int] = {}
        """Tokens of each request so far."""
        self._cache = PrefixCache(model.kv_tokens)
        self._blocks: dict[int, list[int]] = {}
        """Full blocks of the prompt of each request that the prefix cache may have or keep."""
        self._holding: set[int] = set()
        """Rows whose prompt is computed, so that others may find it."""
        self._cancelled: set[int] = set()
        self._ending: set[int] = set()
        """Rows that the engine has finished but the front end has not."""
        self._made: deque[tuple[float, list[_Tokens]]] = deque()
        """Steps whose tokens the front end still has to deliver, and when it will be done."""
        self._work = asyncio.Event()

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return int(self._whole[engine.RUNNING])

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        w = self._whole
        return int(w[engine.FRONT] + w[engine.TAIL] - w[engine.HEAD])

    @property
    def kv_use(self) -> float:
        """Share of the KV cache in use."""
        return float(self._whole[engine.KV] / self.model.kv_tokens)

    @property
    def counted(self) -> dict[str, int]:
        """Counters of tokens: of the prefix cache, and of speculation where it speculates."""
        w = self._whole
        found = {"prefix_queries": w[engine.PREFIX_QUERIES], "prefix_hits": w[engine.PREFIX_HITS]}
        if self.model.spec_tokens:
            found |= {"draft_tokens": w[engine.DRAFT_TOKENS], "accepted_tokens": w[engine.ACCEPTED_TOKENS]}
        return {name: int(count) for name, count in found.items()}

    @property
    def preemptions(self) -> int:
        """Requests that have lost their KV cache so far."""
        return int(self._whole[engine.PREEMPTIONS])

    def compile(self) -> None:
        """Take a step without requests: the first step compiles for seconds, once after an installation."""
        self._step()

    def submit(self, prompt_tokens: int, output_tokens: int, deliver: Deliver, content: Sequence[Hashable] = ()) -> int:
        """Queue a request and call `deliver` for each of its tokens. Returns its row, for `cancel` and `found`.

        Args:
            prompt_tokens: of the request.
            output_tokens: that it gets.
            deliver: see above.
            content: the prompt's tokens, for a request that the prefix cache may have; empty: it has none of it.

        Raises:
            Refused: when too many are in flight.
        """
        if not self._free:
            raise Refused
        row = self._free.pop()
        self._prompt[row], self._output[row], self._target[row] = prompt_tokens, output_tokens, prompt_tokens
        self._cached[row] = self._done[row] = 0
        self._finish_at[row] = engine.NEVER
        self._pace[row] = self.model.paces(self._rng, 1)[0]
        self._made_of[row] = 0
        self._blocks[row] = blocks_of(content)
        self._table[engine.FOUND, row] = 0
        self._table[[engine.SHARED, engine.MARK], row] = self._cache.found(
            self._blocks[row], prompt_tokens, int(self._whole[engine.WRITTEN])
        )
        self._deliver[row] = deliver
        self._began[row] = time.monotonic()
        w = self._whole
        if w[engine.HEAD] == w[engine.TAIL]:
            w[engine.HEAD] = w[engine.TAIL] = 0
        elif w[engine.TAIL] == self._queue.size:
            held = w[engine.TAIL] - w[engine.HEAD]
            self._queue[:held] = self._queue[w[engine.HEAD] : w[engine.TAIL]].copy()
            w[engine.HEAD], w[engine.TAIL] = 0, held
        self._queue[w[engine.TAIL]] = row
        w[engine.TAIL] += 1
        self.totals.prompt_tokens += prompt_tokens
        self._work.set()
        return row

    def found(self, row: int) -> int:
        """Tokens of a request's prompt that the prefix cache had; ask at its last token at the latest."""
        return int(self._table[engine.FOUND, row])

    def reset_prefix_cache(self) -> None:
        """Forget all prompts that no request holds."""
        self._cache.reset()

    def cancel(self, row: int) -> None:
        """Cancel a request whose client has gone. It leaves the batch before the next step."""
        if row in self._deliver:
            self._cancelled.add(row)
            self._work.set()

    async def serve(self) -> None:
        """Run until cancelled."""
        while True:
            if not self._deliver:
                self._work.clear()
                await self._work.wait()
            self._drop_cancelled()
            now = time.monotonic()
            if self._real[engine.TIME] < now - LATE_S or self.running == 0:
                if self.running:
                    self.totals.late_steps += 1
                # Idle or far behind: the engine's clock jumps to the wall clock.
                self._real[engine.TIME] = max(self._real[engine.TIME], now)
                self._real[engine.DRIFT_AT] = max(self._real[engine.DRIFT_AT], now - 100.0)
            if not self._deliver:
                continue
            decoding = self._decoding()
            made = self._step()
            if made < 0:
                await asyncio.sleep(IDLE_S)
                continue
            ends_s, shown_s = float(self._real[engine.TIME]), float(self._real[engine.SHOWN])
            self._made.append((shown_s, self._events(decoding)))
            if shown_s > ends_s:
                asyncio.get_running_loop().call_later(shown_s - time.monotonic(), self._hand_out, shown_s)
            await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
            self._hand_out(ends_s)

    def _decoding(self) -> list[int]:
        """Rows that will get a token in the next step, unless they are preempted."""
        rows: list[int] = self._run[: self._whole[engine.RUNNING]].tolist()
        return rows

    def _step(self) -> int:
        if self._whole[engine.NOISE_AT] + 2048 > self._noise.size:
            self._noise = self._rng.standard_normal(NOISE_BLOCK)
            self._whole[engine.NOISE_AT] = 0
        self._tokens_before = self._generated()
        self._whole[engine.SHOWN_TAIL] = 0  # this class keeps its own list
        made = engine.step(
            self._params, self._real, self._whole, self._noise, self._lists, self._table, self._times, self._gaps
        )
        # As in vLLM, a preempted request keeps no block: others may find its prompt until that is evicted.
        for row in self._holding.intersection(self._front[: self._whole[engine.FRONT]].tolist()):
            self._let_go(row)
        return made

    def _generated(self) -> dict[int, bool]:
        """Which running rows decode now."""
        rows = self._run[: self._whole[engine.RUNNING]]
        return dict(zip(rows.tolist(), (self._finish_at[rows] != engine.NEVER).tolist(), strict=True))

    def _hand_out(self, until_s: float) -> None:
        """Deliver the tokens of every step that the front end has finished by `until_s`."""
        now = time.monotonic()
        while self._made and self._made[0][0] <= until_s:
            for event in self._made.popleft()[1]:
                # A row whose client left may belong to another request now.
                if self._deliver.get(event.row) is event.deliver:
                    if event.first:
                        self._count_first(event.row, now)
                    for left in range(event.count - 1, -1, -1):
                        self._give(event.row, last=event.last and left == 0)
                    if event.last:
                        self._finish(event.row, now)

    def _events(self, before: list[int]) -> list[_Tokens]:
        """The tokens of the step that just ended."""
        at = int(self._whole[engine.DECODE_STEP])
        found: list[_Tokens] = []
        running = self._run[: self._whole[engine.RUNNING]]
        still: dict[int, bool] = dict(
            zip(running.tolist(), (self._finish_at[running] != engine.NEVER).tolist(), strict=True)
        )
        waiting = set(self._front[: self._whole[engine.FRONT]].tolist())
        candidates = dict.fromkeys(before) | dict.fromkeys(still)
        # A request of one token is admitted and done within the step, so it is in none of the lists.
        if len(candidates) < len(self._deliver):
            queued = set(self._queue[self._whole[engine.HEAD] : self._whole[engine.TAIL]].tolist())
            candidates |= dict.fromkeys(r for r in self._deliver if r not in queued and r not in waiting)
        for row in candidates:
            if row in self._ending or row in waiting or (row in still and not still[row]):
                continue  # done before, preempted, or its prefill goes on
            first = not self._tokens_before.get(row, False) and self._done[row] <= 1
            made = int(self._output[row]) if row not in still else engine.tokens_at(self._table, row, at)
            found.append(_Tokens(row, self._deliver[row], made - self._made_of[row], first, row not in still))
            if row not in self._holding:  # its prompt has just been computed, or computed again
                self._cache.hold(self._blocks[row])
                self._holding.add(row)
            self._made_of[row] = made
            if row not in still:
                self._ending.add(row)
        return found

    def _count_first(self, row: int, now: float) -> None:
        self.totals.ttft[0] += now - self._began[row]
        self.totals.ttft[1] += 1

    def _give(self, row: int, *, last: bool) -> None:
        self.totals.generated_tokens += 1
        if row not in self._cancelled:
            self._deliver[row](last)

    def _finish(self, row: int, now: float) -> None:
        self.totals.finished += 1
        self.totals.e2e[0] += now - self._began[row]
        self.totals.e2e[1] += 1
        self._release(row)

    def _release(self, row: int) -> None:
        if row in self._holding:
            self._let_go(row)
        del self._blocks[row], self._deliver[row], self._began[row], self._made_of[row]
        self._cancelled.discard(row)
        self._ending.discard(row)
        self._free.append(row)

    def _let_go(self, row: int) -> None:
        """Release the blocks that a request holds."""
        self._holding.remove(row)
        w = self._whole
        free = self.model.kv_tokens - int(w[engine.KV])
        self._cache.release(self._blocks[row], int(self._prompt[row]), int(w[engine.WRITTEN]), free)

    def _drop_cancelled(self) -> None:
        """Take cancelled requests out of the batch and the queues."""
        if not self._cancelled:
            return
        w = self._whole
        run = self._run[: w[engine.RUNNING]].tolist()
        kept = []
        for row in run:
            if row not in self._cancelled:
                kept.append(row)
            elif self._finish_at[row] != engine.NEVER:
                w[engine.DECODES] -= 1
                left = self._finish_at[row] - w[engine.DECODE_STEP]
                w[engine.KV] -= self._prompt[row] + self._output[row] - left
            else:
                w[engine.PREFILLING] -= 1
                w[engine.KV] -= self._cached[row]
        self._run[: len(kept)] = kept
        w[engine.RUNNING] = len(kept)
        queue = [r for r in self._queue[w[engine.HEAD] : w[engine.TAIL]].tolist() if r not in self._cancelled]
        self._queue[: len(queue)] = queue
        w[engine.HEAD], w[engine.TAIL] = 0, len(queue)
        front = [r for r in self._front[: w[engine.FRONT]].tolist() if r not in self._cancelled]
        self._front[: len(front)] = front
        w[engine.FRONT] = len(front)
        for row in list(self._cancelled):
            self.totals.aborted += 1
            self._release(row)
