"""Time in bins, as the journal has it: requests decoding, tokens, prompts prefilled, KV tokens held."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load.protocol import Journal, Status

STEPS_PER_BIN = 16
"""Engine steps in a bin. The step that the bin's edge cuts is then 6% of it, and the next bin has the rest."""
LEAST_BIN_S = 0.4
"""Shortest bin: tokens are counted in bins of 0.1 s, whose edges do not fall on those of a bin."""
MOST_BIN_S = 2.0
"""Longest bin: a phase of 7 s must still have several, or nothing would tell its noise."""
LEAST_DECODING = 0.5
"""Bins with fewer requests decoding, on average, say nothing of the speed: the engine idles for part of them."""
STAIRS = (8, 16, 32)
"""Multiples of batch sizes with a CUDA graph that are looked for. Those of vLLM are 8, and 16 from 256 on."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Time in bins, shape (b,) each.

    Width, requests decoding, tokens after the first, prompt tokens prefilled, the same weighted by the length of their
    prompt (of a prompt whose start is cached, the difference of both squares), KV tokens held by the requests decoding;
    and, shape (b, len(STAIRS)), the requests decoding with what they are padded by.
    """

    width_s: Floats
    decoding: Floats
    tokens: Floats
    prompt_tokens: Floats
    prompt_squares: Floats
    held: Floats
    padded: Floats

    def excess(self, mean_context: float) -> Floats:
        """KV tokens held beyond `mean_context` per request, shape (b,); zeros where that is unknown (0)."""
        return self.held - self.decoding * mean_context if mean_context else np.zeros_like(self.held)

    def sizes(self, stair: int) -> Floats:
        """Batch sizes, padded to multiples of `stair`, one of `STAIRS` (0: as they are), shape (b,)."""
        return self.padded[:, STAIRS.index(stair)] if stair else self.decoding

    def join(self, other: Bins) -> Bins:
        """Both, one after the other."""
        return Bins(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in Bins.__slots__))


def integral(times: Floats, starts: Floats, ends: Floats) -> Floats:
    """Integral over time, up to each of `times`, of how many spans [start, end) are under way; NaN: not ended."""
    begun = np.sort(starts[~np.isnan(starts)])
    ended = np.sort(ends[~np.isnan(ends) & ~np.isnan(starts)])

    def elapsed(events: Floats) -> Floats:
        before = np.searchsorted(events, times)
        total = np.concatenate([[0.0], np.cumsum(events)])
        result: Floats = before * times - total[before]
        return result

    difference: Floats = elapsed(begun) - elapsed(ended)
    return difference


def bin_width_s(step_s: float) -> float:
    """A width that holds enough steps of the engine."""
    return min(MOST_BIN_S, max(LEAST_BIN_S, STEPS_PER_BIN * step_s))


def bins_of(journal: Journal, start_s: float, end_s: float, width_s: float) -> Bins:
    """The span [start_s, end_s) in bins of about `width_s`."""
    count = max(1, round((end_s - start_s) / width_s))
    edges = np.linspace(start_s, end_s, count + 1)
    decoding = np.diff(integral(edges, journal.first_s, journal.end_s)) / np.diff(edges)
    ticks: Floats = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size + 1, dtype=np.float64)
    made = np.interp(edges, ticks, np.concatenate([[0.0], np.cumsum(journal.tokens)]))
    first = np.sort(journal.first_s[~np.isnan(journal.first_s)])
    tokens = np.diff(made) - np.diff(np.searchsorted(first, edges))
    width = np.diff(edges)
    prompts, squares = np.diff(_prefilled(journal, edges))
    return Bins(
        width,
        decoding,
        np.maximum(tokens, 0.0),
        prompts,
        squares,
        _held(journal, edges, ticks, made),
        np.diff(_padded(journal, edges), axis=0) / width[:, None],
    )


def padded(n: Floats, stair: int) -> Floats:
    """Batch sizes padded to the next CUDA graph: a multiple of `stair`, or below it a power of two."""
    power = np.exp2(np.ceil(np.log2(np.maximum(n, 1.0))))
    result: Floats = np.where(n <= 0.0, 0.0, np.where(n < stair, np.minimum(power, stair), np.ceil(n / stair) * stair))
    return result


def _padded(journal: Journal, times: Floats) -> Floats:
    """Integral over time, up to each of `times`, of the batch padded by each of `STAIRS`, shape (t, len(STAIRS))."""
    begun = ~np.isnan(journal.first_s)
    ended = begun & ~np.isnan(journal.end_s)
    at = np.concatenate([journal.first_s[begun], journal.end_s[ended]])
    change = np.concatenate([np.ones(int(begun.sum())), -np.ones(int(ended.sum()))])
    order = np.argsort(at, kind="stable")
    at, n = np.append(at[order], math.inf), np.concatenate([[0.0], np.cumsum(change[order])])
    start_s = min(float(at[0]), float(times[0]))
    marks = np.concatenate([[start_s], at[:-1]])
    held = np.diff(np.append(marks, max(float(times[-1]), float(marks[-1]))))
    columns = []
    for stair in STAIRS:
        total = np.concatenate([[0.0], np.cumsum(padded(n, stair) * held)])
        columns.append(np.interp(times, np.append(marks, marks[-1] + held[-1]), total))
    return np.column_stack(columns)


def _held(journal: Journal, edges: Floats, ticks: Floats, made: Floats) -> Floats:
    """KV tokens of the requests decoding, mean of each bin: prompts begun and tokens made, less all of ended requests.

    `ticks`: the edges of the journal's own bins; `made`: tokens up to each of `edges`. The tokens of a request that
    failed are estimated from the pace while it ran.
    """
    begun = ~np.isnan(journal.first_s)
    over = begun & ~np.isnan(journal.end_s)

    def total(times: Floats, tokens: Floats) -> Floats:
        order = np.argsort(times, kind="stable")
        sums: Floats = np.concatenate([[0.0], np.cumsum(tokens[order])])
        return sums[np.searchsorted(times[order], edges)]

    prompt, output = journal.prompt_tokens.astype(np.float64), journal.output_tokens.astype(np.float64)
    broken = over & (journal.status != Status.OK)
    if broken.any():
        decoding = np.diff(integral(ticks, journal.first_s, journal.end_s)) / journal.bin_s
        clock = np.concatenate([[0.0], np.cumsum(journal.tokens / np.maximum(decoding, LEAST_DECODING))])
        first, end = (np.interp(t[broken], ticks, clock) for t in (journal.first_s, journal.end_s))
        output[broken] = np.minimum(output[broken], end - first)
    at = total(journal.first_s[begun], prompt[begun]) + made - total(journal.end_s[over], (prompt + output)[over])
    mean: Floats = (at[1:] + at[:-1]) / 2.0
    return mean


def _prefilled(journal: Journal, times: Floats) -> Floats:
    """Prompt tokens prefilled up to each time, and the same weighted by the length of their prompt, shape (2, t).

    What a session sent before is not prefilled again: of a prompt of p tokens, c of them cached, it is p - c tokens
    and p * p - c * c. A prompt is spread over the time since the one before it was done. At the end one is under way:
    it is taken to be as fast as the others.
    """
    known = ~np.isnan(journal.first_s)
    order = np.argsort(journal.first_s[known], kind="stable")
    first = journal.first_s[known][order]
    if first.size == 0:
        return np.zeros((2, times.size))
    whole, cached = (each[known][order].astype(np.float64) for each in (journal.prompt_tokens, journal.cached_tokens))
    prompt = whole - cached
    before = np.concatenate([[-math.inf], first[:-1]])
    begin = np.maximum(journal.sent_s[known][order], before)
    waiting = np.isnan(journal.first_s) & (journal.status == Status.IN_FLIGHT) & (journal.sent_s < times[-1])
    if waiting.any():
        under_way = np.flatnonzero(waiting)[np.argmin(journal.sent_s[waiting])]
        since = max(float(journal.sent_s[under_way]), float(first[-1]))
        per_s = float(np.median(prompt / np.maximum(first - np.minimum(begin, first), 1e-6)))
        under_way_cached = float(journal.cached_tokens[under_way])
        done = min(
            float(journal.prompt_tokens[under_way]) - under_way_cached, per_s * max(0.0, float(times[-1]) - since)
        )
        begin, first = np.append(begin, since), np.append(first, max(since, float(times[-1])))
        prompt, cached = np.append(prompt, done), np.append(cached, under_way_cached)
    points = np.maximum.accumulate(np.column_stack([np.minimum(begin, first), first]).ravel())

    def total(each: Floats) -> Floats:
        levels = np.concatenate([[0.0], np.cumsum(each)])
        result: Floats = np.interp(times, points, np.column_stack([levels[:-1], levels[1:]]).ravel())
        return result

    return np.stack([total(prompt), total(prompt * (prompt + 2.0 * cached))])
