"""What is uncertain of requests that belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_gpucap.load.protocol import Status
from pytest_gpucap.measure.of_sessions import error_of_share, owners, resampled_sessions
from tests.load.test_load_sessions import journal


def test_turns_that_are_late_together_count_as_one() -> None:
    rng = np.random.default_rng(0)
    late_sessions = rng.random(500) < 0.2
    whose, late = np.repeat(np.arange(500), 4), np.repeat(late_sessions, 4)
    share = late_sessions.mean()
    assert error_of_share(late, whose) == pytest.approx(math.sqrt(share * (1 - share) / 500), rel=0.01)
    # Late independently, they tell as much as so many requests.
    alone = rng.random(2000) < 0.2
    assert error_of_share(alone, whose) == pytest.approx(math.sqrt(0.16 / 2000), rel=0.1)


def test_without_sessions_there_is_nothing_to_add() -> None:
    late = np.array([True, False, False, True, False])
    assert error_of_share(late, np.arange(5)) == 0.0
    found = resampled_sessions(np.arange(5), np.random.default_rng(0), 7)
    assert found is not None
    assert found.shape == (0, 5)


def test_too_few_sessions_tell_nothing() -> None:
    assert resampled_sessions(np.array([1, 1, 2, 2]), np.random.default_rng(0), 7) is None
    assert error_of_share(np.zeros(4, np.bool_), np.array([1, 1, 2, 2])) == math.inf


def test_sessions_are_resampled_whole() -> None:
    whose = np.array([4, 5, 4, 6, 7, 5, 4, 8])
    found = resampled_sessions(whose, np.random.default_rng(0), 200)
    assert found is not None
    assert found.shape == (200, 8)
    for resample in found:
        drawn = whose[resample]
        # All of a session but the one that is cut off at the end: each turn as often as the first.
        kept = drawn[: np.flatnonzero(np.diff(drawn, append=-1))[-2] + 1] if np.unique(drawn).size > 1 else drawn[:0]
        for session in np.unique(kept):
            times = np.bincount(resample[: kept.size][kept == session], minlength=8)[whose == session]
            assert times.min() == times.max()
    assert np.bincount(found.ravel()).min() > 100


def test_a_request_without_a_session_is_one_of_its_own() -> None:
    known = journal([Status.OK] * 4, [1, 2, 3, 4], [2, 3, 4, 5], [1, 0, 0, 0])
    assert owners(known, np.array([0, 1, 3])).tolist() == [7, 7, 9]
