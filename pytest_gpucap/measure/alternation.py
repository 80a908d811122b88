"""Two servers on the same devices, measured in alternation: one of them is driven while the other idles.

Both are held at the same number of requests in flight and are sent the same requests. Blocks go base, head, head, base,
base, head, head, ... Each block begins with a hot start on an empty server and counts once it is steady. The two blocks
of a pair differ by what the servers differ by, whatever the machine does over minutes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.decisions.paired import Pair
from pytest_gpucap.estimate.bins import bins_of
from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import estimate, fitted, typical_step_s
from pytest_gpucap.measure.pace import missing_pace
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId

BLOCK_S = 5.0
"""Counted seconds of a block: short compared to a drift of minutes, long compared to what a start and a stop cost."""
LEAST_LEAD_S = 1.5
"""Discarded at the start of a block at least: all its requests are prefilled at once."""
MOST_LEAD_S = 15.0
"""Discarded at most. Longer prefills would make a pair take longer than a drift of minutes."""
LEAD_MARGIN = 1.3
"""The discarded time is this multiple of what the prefill of the warm-up took: the blocks' prompts may be longer."""
BINS = 12
"""Bins of a block, over which its throughput is a trimmed mean. Without trimming, a stop of the engine of 0.3 s in one
block of a pair would be a difference of 6%."""
TRIMMED = 0.15
"""Share of the bins that is trimmed at each end: one of 12, so that a stop that reaches into two bins still counts in
part."""
LEAST_STEPS = 8
"""Engine steps in a bin from which on its edges, which cut steps in two, do not matter. With fewer, nothing is
trimmed."""
MOST_ELASTICITY = 4.0
"""Largest factor between a loss of pace and a loss of rate: a flatter curve would be noise."""


@dataclass(frozen=True, slots=True)
class _Block:
    """One block in bins, shape (n,): generated and prefilled tokens per second."""

    tokens: Floats
    prompts: Floats
    fine: bool
    """Bins are long enough for their edges not to matter."""

    def work(self, decode_s: float, prefill_s: float) -> float:
        """Engine seconds per second, given those of a generated and of a prompt token; stops of the engine left out."""
        done = self.tokens * decode_s + self.prompts * prefill_s
        if not self.fine:
            return float(done.mean())
        from scipy.stats import trim_mean  # a heavy import that most sessions never need

        return float(trim_mean(done, TRIMMED))


class Alternation:
    """The blocks so far.

    Attributes:
        concurrency: requests held in flight.
        head_rate: the head's sustainable rate, as its blocks say; None before `elasticity`.
        runs: by name, ``base`` and ``head``.
    """

    def __init__(self, base: MeasuringRun, head: MeasuringRun, concurrency: int) -> None:
        self.concurrency = concurrency
        self.head_rate: Interval | None = None
        self.runs = {"base": base, "head": head}
        self._windows: dict[str, list[Window]] = {"base": [], "head": []}
        self._blocks: dict[str, list[_Block]] = {"base": [], "head": []}
        self._lead_s = LEAST_LEAD_S

    def warm_up(self) -> None:
        """Load both before anything counts, and hold them at fewer in flight, which gives the curve its slope."""
        low = max(1, round(c.LOW_SHARE * self.concurrency))
        for name, run in self.runs.items():
            window = run.hold(WindowId(Phase.WARM_UP, server=name), low, c.LOW_HOLD_S, discard_s=c.WARM_UP_S)
            self._windows[name].append(window)
            self._lead_s = max(self._lead_s, min(MOST_LEAD_S, LEAD_MARGIN * _prefill_s(run, window) / c.LOW_SHARE))
            self.empty(name)

    def pair(self) -> None:
        """One block of each, in the order whose turn it is."""
        number = len(self._blocks["base"]) + 1
        for name in ("base", "head") if number % 2 else ("head", "base"):
            run = self.runs[name]
            which = WindowId(Phase.ALTERNATION, number, server=name)
            window = run.hold(which, self.concurrency, BLOCK_S, discard_s=self._lead_s)
            block = _block(run, window)
            if not block.tokens.any():
                run.problems.append(self._no_tokens(run))
                return
            self._windows[name].append(window)
            self._blocks[name].append(block)
            self.empty(name)

    def _no_tokens(self, run: MeasuringRun) -> Problem:
        """Why a block has no token after the first of an answer."""
        if no_pace := missing_pace(run.journal, run.requirement.workload):
            text = f"paces cannot be compared: {no_pace.value}"
            return Problem(ProblemSource.SERVER, ProblemKind.NO_PACE, text)
        text = f"the server generated no token with {self.concurrency} requests in flight"
        return Problem(ProblemSource.SERVER, ProblemKind.NO_TOKENS, text)

    def pairs(self) -> list[Pair]:
        """All complete pairs in the order measured; an even number, so that the orders are balanced.

        What a block delivered is counted in engine seconds of the base. A block that happens to contain the prefill of
        more prompts generates fewer tokens, but is not slower.
        """
        decode_s, prefill_s = 1.0, 0.0
        with suppress(SpeedError):
            speed = fitted(self.runs["base"].journal, self._windows["base"])
            running = max(1.0, speed.most)
            decode_s, prefill_s = float(speed.at(np.array([running]))[0]) / running, speed.prefill_s
        delivered = {
            name: [math.log(block.work(decode_s, prefill_s)) for block in blocks]
            for name, blocks in self._blocks.items()
        }
        pairs = [
            Pair(base, head, base_first=number % 2 == 0)
            for number, (base, head) in enumerate(zip(delivered["base"], delivered["head"], strict=False))
        ]
        return pairs[: len(pairs) // 2 * 2]

    def elasticity(self) -> float:
        """Relative loss of rate per relative loss of pace: the mean over both servers' curves."""
        found = []
        for name, run in self.runs.items():
            try:
                known = estimate(run, self._windows[name], float(run.requirement.driven_rate), extremes=False)
            except SpeedError:
                continue
            found.append(min(MOST_ELASTICITY, 1.0 + 1.0 / known.slope) if known.slope > 0 else 1.0)
            if name == "head":
                self.head_rate = known.rate
        return sum(found) / len(found) if found else 1.0

    def residence_s(self) -> float:
        """How long a request stays in the slower server's blocks, by Little's law."""
        mean_output = self.runs["base"].requirement.workload.output_tokens.mean
        slowest = min(block.tokens.mean() for blocks in self._blocks.values() for block in blocks)
        return float(self.concurrency * mean_output / slowest)

    @property
    def left_s(self) -> float:
        """Seconds until the time limit of either server."""
        return min(run.left_s for run in self.runs.values())

    def samples(self, name: str) -> list[Sample]:
        """Every window of a server."""
        return self.runs[name].samples

    def empty(self, name: str) -> None:
        """Cancel what this server has in flight, so that it idles while the other one is measured."""
        run = self.runs[name]
        run.runner.settle(c.SETTLE_S, cancel=True)
        run.journal = run.runner.journal()

    def problems(self) -> tuple[Problem, ...]:
        """Why either server's blocks cannot be trusted."""
        found = []
        for name, run in self.runs.items():
            found += [msgspec.structs.replace(each, text=f"{name}: {each.text}") for each in run.problems]
            failed, ended = run.errors()
            if failed > max(1.0, float(run.requirement.slo.max_error_rate) * ended):
                told = run.failed_requests() or f"{failed} of {ended} requests failed"
                found.append(Problem(ProblemSource.SERVER, ProblemKind.FAILED_REQUESTS, f"{name}: {told}"))
        return tuple(found)


def _block(run: MeasuringRun, window: Window) -> _Block:
    seconds = window.end_s - window.start_s
    bins = bins_of(run.journal, window.start_s, window.end_s, seconds / BINS)
    fine = seconds / BINS >= LEAST_STEPS * typical_step_s(run.journal, [window])
    return _Block(bins.tokens / bins.width_s, bins.prompt_tokens / bins.width_s, fine)


def _prefill_s(run: MeasuringRun, window: Window) -> float:
    """How long it took until all requests of a hot start had their first token."""
    journal = run.journal
    rows = slice(window.span.first_row, window.span.end_row)
    waited = (journal.first_s - journal.due_s)[rows][journal.hot[rows]]
    waited = waited[~np.isnan(waited)]
    return float(waited.max()) if waited.size else 0.0
