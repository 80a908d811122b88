"""Observed against modelled latencies: what a replay shows, and how it is read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_gpucap.estimate.queue_model import ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import QueueArrivals, QueueLatencies, QueueStart, simulate
from pytest_gpucap.measure.observed import PACES_LN, _pace_for

STEP_S, PREFILL_S = 0.010, 0.020
REQUESTS, STOP_AT_S, STOP_S = 40, 1.0, 1.5
DUE_S = np.linspace(0.0, 0.05 * (REQUESTS - 1), REQUESTS)


def served(stall_s: float, path: list[float], path_bin_s: float) -> QueueLatencies:
    """Requests every 50 ms on a server that stops by itself after a second, or along a path."""
    per_s = 0.02 if stall_s else 0.0  # so seldom that there is no second one
    model = ServerModel(
        np.full(101, STEP_S), PREFILL_S / 100, stall_per_s=per_s, stall_s=(stall_s,), path=tuple(path),
        path_bin_s=path_bin_s,
    )  # fmt: skip
    arrivals = QueueArrivals(DUE_S, np.full(REQUESTS, 100), np.full(REQUESTS, 20), np.zeros(REQUESTS, np.int64))
    found = QueueLatencies(np.full(REQUESTS, np.nan), np.full(REQUESTS, np.nan), np.zeros(REQUESTS))
    nobody = QueueStart(np.zeros(0, np.int64), np.zeros(0, np.int64))
    phase = 1.0 - math.exp(-per_s * STOP_AT_S)
    simulate(server_of(model), 1.0, phase, arrivals, nobody, (0, REQUESTS), found, np.zeros(0), 4.0)
    return found


def test_a_standstill_seen_in_bins_is_as_long_as_the_stop_itself() -> None:
    """Prompts that are admitted while nothing happens wait until it ends, and no longer."""
    stopped = served(STOP_S, [1.0], math.inf)
    bins = [1.0] * 2 + [50.0] * 3 + [1.0] * 4
    replayed = served(0.0, bins, 0.5)
    for metric in ("ttft_s", "e2e_s"):
        by_stop, by_path = (getattr(each, metric) for each in (stopped, replayed))
        assert np.isfinite(by_path).all()
        assert by_path == pytest.approx(by_stop, abs=0.12), metric
    assert replayed.ttft_s.max() == pytest.approx(STOP_S, abs=0.15)


def test_a_first_token_waits_for_a_stop_that_comes_before_it() -> None:
    stopped = served(STOP_S, [1.0], math.inf)
    during = np.flatnonzero((DUE_S > STOP_AT_S) & (DUE_S < STOP_AT_S + 1.4))
    ends_s = DUE_S[during] + stopped.ttft_s[during]
    assert (ends_s > STOP_AT_S + STOP_S).all()


@pytest.mark.parametrize(
    ("target", "table", "pace"),
    [
        (0.0, [-0.2, -0.1, 0.0, 0.1, 0.2], 0.0),
        (0.05, [-0.2, -0.1, 0.0, 0.1, math.inf], 0.035),
        (0.2, [-0.2, -0.1, 0.0, math.inf, math.inf], 0.0 + 0.2 / (0.1 / 0.07)),
    ],
)
def test_a_pace_is_read_from_as_much_of_the_table_as_there_is(target: float, table: list[float], pace: float) -> None:
    assert _pace_for(target, np.array(table)) == pytest.approx(pace, abs=1e-6)


def test_no_pace_is_read_from_a_table_of_one() -> None:
    assert math.isnan(_pace_for(0.0, np.array([0.0] + [math.inf] * (PACES_LN.size - 1))))
