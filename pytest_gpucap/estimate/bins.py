"""Time in bins, as the journal has it: requests decoding, tokens, prompts prefilled, KV tokens held."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
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
    difference: Floats = _since(begun, _sums(begun), times) - _since(ended, _sums(ended), times)
    return difference


def _sums(values: Floats | Ints) -> Floats:
    """Sums of the first 0, 1, 2, ... values."""
    sums: Floats = np.concatenate([[0.0], np.cumsum(values)])
    return sums


def _since(events: Floats, sums: Floats, times: Floats) -> Floats:
    """Seconds since every event before each of `times`, added up; events are sorted, and `sums` is `_sums` of them."""
    before = np.searchsorted(events, times)
    result: Floats = before * times - sums[before]
    return result


def bin_width_s(step_s: float) -> float:
    """A width that holds enough steps of the engine."""
    return min(MOST_BIN_S, max(LEAST_BIN_S, STEPS_PER_BIN * step_s))


def bins_of(journal: Journal, start_s: float, end_s: float, width_s: float) -> Bins:
    """The span [start_s, end_s) in bins of about `width_s`."""
    return _timeline(journal).bins(start_s, end_s, max(1, round((end_s - start_s) / width_s)))


def padded(n: Floats, stair: int) -> Floats:
    """Batch sizes padded to the next CUDA graph: a multiple of `stair`, or below it a power of two."""
    power = np.exp2(np.ceil(np.log2(np.maximum(n, 1.0))))
    result: Floats = np.where(n <= 0.0, 0.0, np.where(n < stair, np.minimum(power, stair), np.ceil(n / stair) * stair))
    return result


class _Timeline:
    """A journal's events in order of time, added up: what the bins of any span are read off.

    A look at the evidence asks one journal for the bins of a hundred spans, and for most of them several times.
    """

    def __init__(self, journal: Journal) -> None:
        begun = np.flatnonzero(~np.isnan(journal.first_s))
        ended = begun[~np.isnan(journal.end_s[begun])]
        begun = begun[np.argsort(journal.first_s[begun], kind="stable")]
        ended = ended[np.argsort(journal.end_s[ended], kind="stable")]
        self.first_s: Floats = journal.first_s[begun]
        self.end_s: Floats = journal.end_s[ended]
        self.ticks_s: Floats = journal.bins_start_s + journal.bin_s * np.arange(
            journal.tokens.size + 1, dtype=np.float64
        )
        """Edges of the journal's own bins."""
        self.made = _sums(journal.tokens)
        """Tokens up to each of them."""
        self._first_sums, self._end_sums = _sums(self.first_s), _sums(self.end_s)
        self._prompts_begun = _sums(journal.prompt_tokens[begun].astype(np.float64))
        self._tokens_ended = _sums(self._whole(journal, ended))
        self._batches()
        self._prompts(journal, begun)
        self._bins: dict[tuple[float, float, int], Bins] = {}

    def bins(self, start_s: float, end_s: float, count: int) -> Bins:
        """The span [start_s, end_s) in so many bins."""
        which = start_s, end_s, count
        if which not in self._bins:
            self._bins[which] = self._binned(np.linspace(start_s, end_s, count + 1))
        return self._bins[which]

    def _binned(self, edges: Floats) -> Bins:
        width = np.diff(edges)
        made = np.interp(edges, self.ticks_s, self.made)
        tokens = np.diff(made) - np.diff(np.searchsorted(self.first_s, edges))
        prompts, squares = np.diff(self.prefilled(edges))
        return Bins(
            width,
            np.diff(self.decoded_s(edges)) / width,
            np.maximum(tokens, 0.0),
            prompts,
            squares,
            self.held(edges, made),
            np.diff(self.padded(edges), axis=0) / width[:, None],
        )

    def decoded_s(self, times: Floats) -> Floats:
        """Seconds that requests have decoded up to each of `times`, added up."""
        difference: Floats = _since(self.first_s, self._first_sums, times) - _since(self.end_s, self._end_sums, times)
        return difference

    def held(self, edges: Floats, made: Floats) -> Floats:
        """KV tokens of the requests decoding, mean of each bin between edges, with the tokens `made` up to each.

        They are those of prompts begun and tokens made, less all of ended requests.
        """
        begun = self._prompts_begun[np.searchsorted(self.first_s, edges)]
        at = begun + made - self._tokens_ended[np.searchsorted(self.end_s, edges)]
        mean: Floats = (at[1:] + at[:-1]) / 2.0
        return mean

    def padded(self, times: Floats) -> Floats:
        """Integral over time, up to each of `times`, of the batch padded by each of `STAIRS`, shape (t, stairs)."""
        if not self._marks_s.size:
            return np.zeros((times.size, len(STAIRS)))
        last_s = float(self._marks_s[-1])
        beyond_s = max(float(times[-1]), last_s) - last_s
        marks_s = np.append(self._marks_s, last_s + beyond_s)
        columns = [
            np.interp(times, marks_s, np.append(total, total[-1] + size * beyond_s))
            for total, size in zip(self._padded_s, self._last_sizes, strict=True)
        ]
        return np.column_stack(columns)

    def prefilled(self, times: Floats) -> Floats:
        """Prompt tokens prefilled up to each time, and the same weighted by the length of their prompt, shape (2, t).

        What a session sent before is not prefilled again: of a prompt of p tokens, c of them cached, it is p - c tokens
        and p * p - c * c. A prompt is spread over the time since the one before it was done. At the end one is under
        way: it is taken to be as fast as the others.
        """
        if not self.first_s.size:
            return np.zeros((2, times.size))
        points_s, levels = self._points_s, self._levels
        if self._next is not None and self._next[0] < times[-1]:
            sent_s, prompt, cached = self._next
            since_s = max(sent_s, float(self.first_s[-1]))
            done = min(prompt - cached, self._prompt_tokens_per_s * max(0.0, float(times[-1]) - since_s))
            points_s = np.append(points_s, [since_s, max(since_s, float(times[-1]))])
            more = (done, done * (done + 2.0 * cached))
            levels = [np.append(each, [each[-1], each[-1] + m]) for each, m in zip(levels, more, strict=True)]
        return np.stack([np.interp(times, points_s, each) for each in levels])

    def _whole(self, journal: Journal, ended: Ints) -> Floats:
        """Tokens of ended requests, shape (ended,). Those of a failed one are estimated from the pace while it ran."""
        output = journal.output_tokens[ended].astype(np.float64)
        broken = journal.status[ended] != Status.OK
        if broken.any():
            decoding = np.diff(self.decoded_s(self.ticks_s)) / journal.bin_s
            clock = _sums(journal.tokens / np.maximum(decoding, LEAST_DECODING))
            first, end = (np.interp(t[ended[broken]], self.ticks_s, clock) for t in (journal.first_s, journal.end_s))
            output[broken] = np.minimum(output[broken], end - first)
        whole: Floats = journal.prompt_tokens[ended].astype(np.float64) + output
        return whole

    def _batches(self) -> None:
        """Between which times the batch stays as it is, and the integrals of what it is padded to up to each."""
        change = np.concatenate([np.ones(self.first_s.size), -np.ones(self.end_s.size)])
        at = np.concatenate([self.first_s, self.end_s])
        order = np.argsort(at, kind="stable")
        self._marks_s: Floats = np.concatenate([at[order][:1], at[order]])
        sizes = [padded(_sums(change[order]), stair) for stair in STAIRS]
        self._padded_s = [_sums(size[:-1] * np.diff(self._marks_s)) for size in sizes]
        self._last_sizes = [float(size[-1]) for size in sizes]

    def _prompts(self, journal: Journal, begun: Ints) -> None:
        """How prefill went on: prompt tokens by time, and the request whose prompt is under way at the end."""
        whole, cached = (each[begun].astype(np.float64) for each in (journal.prompt_tokens, journal.cached_tokens))
        prompt = whole - cached
        before = np.concatenate([[-math.inf], self.first_s[:-1]])[: begun.size]
        begin = np.minimum(np.maximum(journal.sent_s[begun], before), self.first_s)
        self._points_s: Floats = np.maximum.accumulate(np.column_stack([begin, self.first_s]).ravel())
        sums = [_sums(each) for each in (prompt, prompt * (prompt + 2.0 * cached))]
        self._levels = [np.column_stack([each[:-1], each[1:]]).ravel() for each in sums]
        sent = ~np.isnan(journal.sent_s)
        waiting = np.flatnonzero(np.isnan(journal.first_s) & (journal.status == Status.IN_FLIGHT) & sent)
        self._next: tuple[float, float, float] | None = None
        """When it was sent, the tokens of its prompt, and how many of them are cached."""
        if waiting.size and begun.size:
            row = waiting[np.argmin(journal.sent_s[waiting])]
            tokens, known = float(journal.prompt_tokens[row]), float(journal.cached_tokens[row])
            self._next = float(journal.sent_s[row]), tokens, known
            self._prompt_tokens_per_s = float(np.median(prompt / np.maximum(self.first_s - begin, 1e-6)))


@lru_cache(maxsize=2)
def _timeline(journal: Journal) -> _Timeline:
    """The journal's timeline; kept of the last two, for two servers are measured in turns."""
    return _Timeline(journal)
