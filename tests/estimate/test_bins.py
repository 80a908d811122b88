"""Bins of a journal: against what its rows and tokens say without any of the sums that are kept of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate import bins
from pytest_gpucap.estimate.bins import STAIRS, bins_of, integral, padded
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FINE = 400
"""Moments of a bin at which the batch is counted."""


@cache
def journal() -> Journal:
    """Eight seconds of a server at work, in the middle of them: requests decode, and prompts wait."""
    profile = profiles.load("fast")
    runner = SimRunner(profile.engine, 5)
    runner.run(schedule.open_loop(profile.workload, 6.0, 8.0, 1, 0))
    found = runner.journal()
    assert (found.status == Status.IN_FLIGHT).any()
    assert (found.status == Status.OK).any()
    return found


def batch(found: Journal, times: Floats) -> Floats:
    """Requests decoding at each of some times, counted row by row."""
    begun, ended = found.first_s[:, None] <= times, found.end_s[:, None] <= times
    count: Floats = (begun & ~ended).sum(axis=0).astype(np.float64)
    return count


@pytest.mark.parametrize("span", [(0.0, 8.0), (2.3, 5.1), (6.0, 9.0)])
def test_bins_are_what_the_rows_say(span: tuple[float, float]) -> None:
    found = journal()
    made = bins_of(found, *span, 0.4)
    edges = np.concatenate([[span[0]], span[0] + np.cumsum(made.width_s)])
    for i, (begin_s, end_s) in enumerate(pairwise(edges)):
        moments = begin_s + (np.arange(FINE) + 0.5) / FINE * (end_s - begin_s)
        n = batch(found, moments)
        assert made.decoding[i] == pytest.approx(n.mean(), abs=0.15)
        for stair, column in zip(STAIRS, made.padded[i], strict=True):
            assert column == pytest.approx(padded(n, stair).mean(), abs=0.3)
    assert made.decoding == pytest.approx(np.diff(integral(edges, found.first_s, found.end_s)) / made.width_s)


def test_all_prompts_that_begin_to_answer_are_prefilled_by_then() -> None:
    found = journal()
    begun = found.first_s <= 6.0
    part = bins_of(found, 0.0, 6.0, 0.5)
    done = float(part.prompt_tokens.sum())
    whole = float(found.prompt_tokens[begun].sum())
    # The next prompt is under way.
    assert whole <= done <= whole + found.prompt_tokens.max()


def test_a_part_of_a_span_has_the_same_bins_whatever_was_asked_before() -> None:
    first, second = replace(journal()), replace(journal())
    bins_of(first, 0.0, 8.0, 0.25)
    for one, other in (
        (bins_of(first, 2.0, 6.0, 0.5), bins_of(second, 2.0, 6.0, 0.5)),
        (bins_of(first, 2.0, 6.0, 0.4), bins_of(second, 2.0, 6.0, 0.4)),
    ):
        for name in one.__slots__:
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert bins_of(first, 2.0, 6.0, 0.5).width_s.size == 8


def test_a_later_journal_has_bins_of_its_own() -> None:
    earlier = journal()
    known = earlier.first_s <= 4.0
    nan = np.nan
    past = replace(
        earlier, first_s=np.where(known, earlier.first_s, nan), end_s=np.where(earlier.end_s <= 4.0, earlier.end_s, nan)
    )
    assert bins_of(past, 5.0, 6.0, 1.0).decoding[0] != bins_of(earlier, 5.0, 6.0, 1.0).decoding[0]
    assert bins_of(past, 1.0, 3.0, 0.5).decoding == pytest.approx(bins_of(earlier, 1.0, 3.0, 0.5).decoding)


def test_a_journal_is_sorted_once_and_kept_no_longer_than_the_next_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build = bins._Timeline

    def counted(found: Journal) -> bins._Timeline:
        made.append(found)
        return build(found)

    monkeypatch.setattr(bins, "_Timeline", counted)
    journals = [replace(journal()) for _ in range(4)]
    for each in journals:
        for start_s in (0.0, 1.0, 2.0):
            bins_of(each, start_s, 7.0, 0.5)
    assert made == journals
    assert bins._timeline.cache_info().currsize <= 2
