"""Clocks of two machines, compared by exchanges of timestamps."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pytest_gpucap.fleet.ray_telemetry import AGREED_S, MOST_DRIFT, Clocks, compare_clocks


class Network:
    """Two clocks and a network whose every message takes a drawn time."""

    def __init__(self, ahead_s: float, seed: int, rate: float = 1.0) -> None:
        self.time_s = 1000.0
        self._ahead_s, self._rate = ahead_s, rate
        self._draw = random.Random(seed)

    def our_now(self) -> float:
        return self.time_s

    def their_time(self) -> float:
        return 1000.0 + (self.time_s - 1000.0) * self._rate + self._ahead_s

    def their_now(self) -> float:
        self.time_s += self._draw.expovariate(1 / 0.01)
        theirs = self.their_time()
        self.time_s += self._draw.expovariate(1 / 0.001)
        return theirs


@given(st.floats(-1e6, 1e6), st.integers(0, 2**32), st.integers(1, 20))
def test_the_offset_lies_within_its_bound(ahead_s: float, seed: int, exchanges: int) -> None:
    network = Network(ahead_s, seed)
    found = compare_clocks(network.their_now, network.our_now, exchanges)
    assert abs(found.ahead_s - ahead_s) <= found.bound_s + 1e-9 * (1 + abs(ahead_s))


def test_more_exchanges_give_a_smaller_bound() -> None:
    bounds = [
        compare_clocks((n := Network(5.0, 1)).their_now, n.our_now, exchanges).bound_s for exchanges in (1, 8, 64)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]


@pytest.mark.parametrize("rate", [1 + 0.9 * MOST_DRIFT, 1 - 0.9 * MOST_DRIFT])
def test_a_drift_lies_within_the_bound_of_its_time(rate: float) -> None:
    network = Network(7.0, 2, rate)
    clocks = Clocks(network.their_now, network.our_now)
    for _ in range(10):
        clocks.compare()
        network.time_s += 100.0
    clocks.compare()
    for time_s in range(1000, 2000, 7):
        found = clocks.at(time_s)
        theirs = 1000.0 + (time_s - 1000.0) * rate + 7.0
        assert abs(time_s + found.ahead_s - theirs) <= found.bound_at(time_s)
        assert found.bound_at(time_s) < 0.06  # from the nearest of the comparisons, 100 s apart


def test_clocks_that_were_compared_just_now_are_not_compared_again() -> None:
    network = Network(0.0, 3)
    clocks = Clocks(network.their_now, network.our_now)
    clocks.compare()
    before = network.time_s
    clocks.compare()
    assert network.time_s == before
    network.time_s += 2 * AGREED_S
    clocks.compare()
    assert clocks.bound_s == clocks.at(network.time_s).bound_s
    assert network.time_s > before + 2 * AGREED_S
