"""What several load generators tell, as if one had told it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load.protocol import Histogram, Journal, LoadPhase, OpenLoop, Progress, SelfCheck, Status
from pytest_gpucap.results.problems import Problem

TIMES: Final = ("due_s", "sent_s", "first_s", "last_s", "end_s")
COLUMNS: Final = (
    *TIMES,
    *("prompt_tokens", "output_tokens", "counted_prompt_tokens", "counted_output_tokens", "status", "hot"),
)
"""Of a journal, one item for each row."""
OPTIONAL: Final = ("replica", "adapter", "reasoning_tokens", "answer_s")
"""Columns that a journal may lack."""
SHIFTED: Final = frozenset({*TIMES, "answer_s"})
"""Columns that are times on the clock of the load generator."""
_NO_TIMES: Final = np.empty(0)
_NO_TOKENS: Final = np.empty(0, np.int32)
_EMPTY: Final = Journal(
    due_s=_NO_TIMES,
    sent_s=_NO_TIMES,
    first_s=_NO_TIMES,
    last_s=_NO_TIMES,
    end_s=_NO_TIMES,
    prompt_tokens=_NO_TOKENS,
    output_tokens=_NO_TOKENS,
    counted_prompt_tokens=_NO_TOKENS,
    counted_output_tokens=_NO_TOKENS,
    status=np.empty(0, np.uint8),
    hot=np.empty(0, np.bool_),
    bin_s=0.1,
    bins_start_s=0.0,
    tokens=np.empty(0, np.int64),
    replica=np.empty(0, np.int64),
    adapter=np.empty(0, np.int64),
    reasoning_tokens=_NO_TOKENS,
    answer_s=_NO_TIMES,
)
_NO_BINS: Final = _EMPTY.bin_s, 0.0, _EMPTY.tokens


@dataclass(slots=True)
class Carried:
    """A phase that has run, by part.

    Attributes:
        rows: of each part's journal that became due in it.
        offsets_s: shape (parts,), of the parts' clocks, as all times of the phase are shifted by.
        order: of the parts' rows, put one behind the other, by when they were due.
    """

    rows: list[slice]
    offsets_s: Floats
    order: Ints


def total(told: Sequence[Progress]) -> Progress:
    """The progress of all parts together."""
    return Progress(
        sum(each.in_flight for each in told), sum(each.completed for each in told), sum(each.failed for each in told)
    )


def merged_histogram(histograms: Sequence[Histogram]) -> Histogram:
    """The counts of all together.

    Raises:
        ValueError: if their bins differ.
    """
    first = histograms[0]
    if len({(each.lowest_s, each.growth, each.counts.size) for each in histograms}) > 1:
        raise ValueError("histograms with other bins cannot be added")
    return replace(first, counts=np.sum([each.counts for each in histograms], axis=0))


def named(problem: Problem, node: str) -> Problem:
    """The problem with the name of the node whose load generator has it or saw it."""
    ours = "the load generator"
    if problem.text.startswith(ours):
        return msgspec.structs.replace(problem, text=f"{ours} on {node}{problem.text.removeprefix(ours)}")
    return msgspec.structs.replace(problem, text=f"{problem.text} (seen by the load generator on {node})")


def or_zero(value: float) -> float:
    """The value; 0 for NaN."""
    return 0.0 if math.isnan(value) else value


def _worst(values: Sequence[float]) -> float:
    """The largest; NaN where none is a number."""
    return max((each for each in values if not math.isnan(each)), default=math.nan)


def carried_phase(rows: list[slice], journals: Sequence[Journal | None], offsets_s: Floats) -> Carried:
    """A phase of some rows of each part's journal, in the order of their due times on the clock of this machine.

    Args:
        rows: of each part.
        journals: of each part; None: nothing is known of it.
        offsets_s: shape (parts,), of the parts' clocks.
    """
    due, part_of, place = [], [], []
    for part, (some, journal) in enumerate(zip(rows, journals, strict=True)):
        times = np.empty(0) if journal is None else journal.due_s[some] - offsets_s[part]
        due.append(times)
        part_of.append(np.full(times.size, part))
        place.append(np.arange(times.size))
    # Rows that are due at the same time were dealt in turn.
    order: Ints = np.lexsort((np.concatenate(part_of), np.concatenate(place), np.concatenate(due)))
    return Carried(rows, offsets_s, order)


def joined_journal(
    phases: Sequence[Carried], journals: Sequence[Journal | None], offsets_s: Sequence[float], ended: Collection[int]
) -> Journal:
    """The parts' journals as one, its times on the clock of this machine.

    Args:
        phases: that have run.
        journals: of each part; None: nothing is known of it.
        offsets_s: of each part's clock, as it was last read.
        ended: parts that have ended: what they had in flight was cancelled.
    """
    names = [*COLUMNS]
    known = [each for each in journals if each is not None]
    if known:
        names += [name for name in OPTIONAL if all(getattr(each, name) is not None for each in known)]
    columns: dict[str, Any] = {name: _column(name, phases, journals, ended) for name in names}
    bin_s, bins_start_s, tokens = _token_bins(journals, offsets_s) if phases else _NO_BINS
    return Journal(**columns, bin_s=bin_s, bins_start_s=bins_start_s, tokens=tokens)


def _column(name: str, phases: Sequence[Carried], journals: Sequence[Journal | None], ended: Collection[int]) -> Any:
    empty = getattr(_EMPTY, name)
    columns = [empty]
    for carried in phases:
        parts = []
        for part, (some, journal) in enumerate(zip(carried.rows, journals, strict=True)):
            values = empty if journal is None else getattr(journal, name)[some]
            if name in SHIFTED:
                values = values - carried.offsets_s[part]
            elif name == "status" and part in ended:
                values = np.where(values == Status.IN_FLIGHT, np.uint8(Status.CANCELLED), values)
            parts.append(values)
        columns.append(np.concatenate(parts)[carried.order])
    return np.concatenate(columns)


def _token_bins(journals: Sequence[Journal | None], offsets_s: Sequence[float]) -> tuple[float, float, Ints]:
    """Width, start and counts of the token bins on this machine's clock.

    The parts' bins begin at other times. Tokens are taken to come evenly within a bin; the sum stays as it was.
    """
    known = [(journal, offset_s) for journal, offset_s in zip(journals, offsets_s, strict=True) if journal is not None]
    known = [(journal, offset_s) for journal, offset_s in known if journal.tokens.size]
    if not known:
        return _NO_BINS
    bin_s = known[0][0].bin_s
    start_s = min(journal.bins_start_s - offset_s for journal, offset_s in known)
    end_s = max(journal.bins_start_s - offset_s + journal.tokens.size * bin_s for journal, offset_s in known)
    edges = np.arange(math.ceil((end_s - start_s) / bin_s - 1e-6) + 1)
    total_tokens = np.zeros(edges.size - 1, np.int64)
    for journal, offset_s in known:
        shift = (journal.bins_start_s - offset_s - start_s) / bin_s
        up_to = np.concatenate([[0], np.cumsum(journal.tokens)])
        at_edges = np.rint(np.interp(edges, shift + np.arange(up_to.size), up_to)).astype(np.int64)
        at_edges[-1] = up_to[-1]
        total_tokens += np.diff(at_edges)
    return bin_s, start_s, total_tokens


def joined_check(phase: LoadPhase, checks: Sequence[SelfCheck], problems: Sequence[Problem]) -> SelfCheck:
    """The parts' checks as one: the _worst figure of any part.

    Args:
        phase: that all of them carried.
        checks: of each part.
        problems: of them all.
    """
    return SelfCheck(
        send_lateness_p99_s=_worst([check.send_lateness_p99_s for check in checks]),
        timestamp_lag_p99_s=_worst([check.timestamp_lag_p99_s for check in checks]),
        loop_lag_p99_s=_worst([check.loop_lag_p99_s for check in checks]),
        worker_cpu_share=tuple(share for check in checks for share in check.worker_cpu_share),
        open_sockets=sum(check.open_sockets for check in checks),
        intended_rps=sum(check.intended_rps for check in checks) if isinstance(phase, OpenLoop) else math.nan,
        achieved_rps=sum(check.achieved_rps for check in checks),
        timestamps=max((check.timestamps for check in checks), key=["kernel", "virtual", "user"].index),
        shared_packet_share=_worst([check.shared_packet_share for check in checks]),
        problems=tuple(problems),
    )
