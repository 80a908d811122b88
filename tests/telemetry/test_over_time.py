"""Telemetry on one time axis: right figures, few points, on the clock of the measuring windows."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from pytest_gpucap.results.build import lean
from pytest_gpucap.results.encoding import rounded
from pytest_gpucap.results.measured import LatencyHistogram, Sample
from pytest_gpucap.telemetry.over_time import MOST_POINTS, binned_series
from tests.report.pages import readings
from tests.results import made


def columns(
    watched: dict[str, Any], start_s: float, end_s: float
) -> tuple[tuple[float, ...], dict[str, list[float | None]]]:
    found = binned_series(watched, start_s, end_s)
    assert found is not None
    return found.t_s, {name: list(column) for name, column in found.columns.items()}


def test_bins_are_even_and_named_by_their_middle_on_the_windows_clock() -> None:
    times, found = columns(readings(1000.0, 1010.0), 1000.0, 1010.0)
    assert times == pytest.approx([1000.5 + i for i in range(10)])
    assert all(len(column) == len(times) for column in found.values())


def test_several_gpus_are_summed_averaged_or_bounded() -> None:
    watched = readings(0.0, 10.0)
    first, second = watched["devices"].values()
    first["sm_clock_mhz"] = [1500.0 for _ in first["time_s"]]
    first["gpu_use"] = [1.0 for _ in first["time_s"]]
    second["gpu_use"] = [0.5 for _ in second["time_s"]]
    _, found = columns(watched, 0.0, 10.0)
    assert found["sm_clock_mhz"] == [1500.0] * 10
    assert found["gpu_utilisation"] == pytest.approx([0.75] * 10)
    power = [sum(values) for values in zip(first["power_w"], second["power_w"], strict=True)]
    # A bin holds the readings on its lower edge, the last bin those on both.
    assert found["power_w"][:9] == pytest.approx([sum(power[i : i + 10]) / 10 for i in range(0, 90, 10)])


def test_counters_become_rates_and_a_restart_counts_nothing() -> None:
    watched = readings(0.0, 10.0)
    server = watched["server"]
    server["output_tokens"] = [100.0 * t if t < 5 else 100.0 * (t - 5) for t in server["time_s"]]
    _, found = columns(watched, 0.0, 10.0)
    rates = [value for value in found["output_tokens_per_s"] if value is not None]
    assert rates[:4] == pytest.approx([100.0] * 4)
    assert min(rates) >= 0
    assert rates[-4:] == pytest.approx([100.0] * 4)
    assert found["server_cpu_cores"] == pytest.approx([0.9] * 10)


def test_what_is_missing_stays_missing() -> None:
    watched = readings(0.0, 10.0)
    server = watched["server"]
    server["waiting"] = [None if 2 <= t < 4 else 3.0 for t in server["time_s"]]
    _, found = columns(watched, 0.0, 10.0)
    assert found["waiting"] == [None if 2 <= i < 4 else 3.0 for i in range(10)]
    assert "temperature_c" not in found
    assert "preemptions_per_s" not in found
    assert binned_series({"devices": {}, "server": {"time_s": []}, "processes": {}}, 0.0, 10.0) is None


def test_a_long_measurement_has_no_more_points_than_a_short_one() -> None:
    times, found = columns(readings(0.0, 3600.0), 0.0, 3600.0)
    assert len(times) == MOST_POINTS
    waiting = [value for value in found["waiting"] if value is not None]
    assert math.fsum(waiting) / len(waiting) == pytest.approx(5 / math.pi, rel=0.02)


def test_a_span_without_length_has_no_series() -> None:
    assert binned_series(readings(0.0, 1.0), 5.0, 5.0) is None


def test_what_the_windows_of_a_phase_share_is_kept_once() -> None:
    def sample(*itl: int) -> Sample:
        histogram = LatencyHistogram((0.0, 0.0012345678, 0.0013333333), itl)
        histograms = {"itl": histogram, "ttft": LatencyHistogram((1.0, 1.08), (4,))}
        return msgspec.structs.replace(made.SAMPLES[0], histograms=histograms)

    found = lean([sample(3, 4), sample(3, 4), sample(3, 4), sample(9, 9), sample(3, 4)])
    assert ["itl" in each.histograms for each in found] == [True, False, False, True, True]
    assert all(each.histograms["ttft"].counts == (4,) for each in found)
    assert found[0].histograms["itl"].edges_s == (0.0, 0.0012346, 0.0013333)


def test_times_keep_their_milliseconds_on_a_machine_that_is_up_for_months() -> None:
    assert rounded(9_000_000.1234) == 9_000_000.123
    assert rounded(12345.6789) == 12345.679
    assert rounded(0.00012345678) == 0.0001234568
