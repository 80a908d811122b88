"""Offsets of other clocks: never wrong by more than their bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.fleet.clock_offset import Exchange, OffsetTrack, Reading, read_offset

DELAYS = st.lists(st.tuples(st.floats(1e-5, 0.5), st.floats(1e-5, 0.5)), min_size=1, max_size=20)


class TwoClocks:
    """Our clock, and another whose offset moves; messages between them take given times."""

    def __init__(self, offset_s: float, rates: list[float], step_s: float, delays: list[tuple[float, float]]) -> None:
        self.time_s = 1000.0
        self.knots_s = 1000.0 + step_s * np.arange(len(rates) + 1)
        self.offsets_s = offset_s + step_s * np.concatenate([[0.0], np.cumsum(rates)])
        self.delays = delays
        self.turn = 0

    def offset_s(self, time_s: float) -> float:
        return float(np.interp(time_s, self.knots_s, self.offsets_s))

    def exchange(self) -> Exchange:
        there_s, back_s = self.delays[self.turn % len(self.delays)]
        self.turn += 1
        sent_s = self.time_s
        told_s = sent_s + there_s + self.offset_s(sent_s + there_s)
        self.time_s = sent_s + there_s + back_s
        return Exchange(sent_s, told_s, self.time_s)


@given(offset_s=st.floats(-1e4, 1e4), delays=DELAYS)
def test_a_reading_is_right_within_half_of_the_shortest_round_trip(
    offset_s: float, delays: list[tuple[float, float]]
) -> None:
    clocks = TwoClocks(offset_s, [0.0], 1e6, delays)
    reading = read_offset(clocks.exchange, rounds=len(delays))
    assert reading.bound_s == pytest.approx(min(sum(each) for each in delays) / 2, rel=1e-6)
    assert abs(reading.offset_s - offset_s) <= reading.bound_s + 1e-9


@given(
    offset_s=st.floats(-100, 100),
    rates=st.lists(st.floats(-1e-4, 1e-4), min_size=2, max_size=12),
    delays=DELAYS,
    pauses=st.lists(st.floats(0.0, 60.0), min_size=1, max_size=4),
)
def test_between_and_beyond_readings_the_offset_is_right_within_the_bound(
    offset_s: float, rates: list[float], delays: list[tuple[float, float]], pauses: list[float]
) -> None:
    clocks = TwoClocks(offset_s, rates, 40.0, delays)
    track = OffsetTrack(most_drift=1e-4)
    for pause_s in [0.0, *pauses]:
        clocks.time_s += pause_s
        track.add(read_offset(clocks.exchange, rounds=3))
        assert track.strayed() == 0.0
    # A reading takes up to three seconds here, in which the clock moves too.
    slack_s = 1e-4 * 3.0 + 1e-9
    for time_s in np.linspace(990.0, clocks.time_s + 50.0, 101):
        found = track.at(float(time_s))
        assert abs(found.offset_s - clocks.offset_s(time_s)) <= found.bound_s + slack_s
        assert found.bound_s >= 0
    assumed_s = track.at(1000.0).offset_s
    skew_s = track.skew_s(assumed_s, 1000.0, clocks.time_s)
    for time_s in np.linspace(1000.0, clocks.time_s, 41):
        assert abs(assumed_s - clocks.offset_s(time_s)) <= skew_s + 2 * slack_s


def test_a_clock_that_was_set_is_noticed() -> None:
    track = OffsetTrack(most_drift=1e-4)
    track.add(Reading(0.0, 5.0, 0.001))
    track.add(Reading(10.0, 5.0025, 0.001))
    assert track.strayed() == 0.0
    track.add(Reading(20.0, 5.1025, 0.001))
    assert track.strayed() == track.strayed(20.0) == pytest.approx(0.1 - 0.003)
    track.add(Reading(30.0, 5.1025, 0.001))
    assert track.strayed(20.0) > 0.0 == track.strayed(20.5)
    with pytest.raises(ValueError, match="order"):
        track.add(Reading(19.0, 5.0, 0.001))


def test_the_bound_is_largest_in_the_middle() -> None:
    track = OffsetTrack(most_drift=1e-4)
    track.add(Reading(0.0, 1.0, 0.0))
    assert track.at(30.0) == Reading(30.0, 1.0, pytest.approx(0.003))  # type: ignore[arg-type]
    track.add(Reading(60.0, 1.0, 0.0))
    assert track.at(30.0) == Reading(30.0, 1.0, pytest.approx(0.003))  # type: ignore[arg-type]
    assert track.at(6.0).bound_s == pytest.approx(2 * 1e-4 * 6 * 54 / 60)
    assert track.skew_s(1.0, 0.0, 60.0) == pytest.approx(0.003)
