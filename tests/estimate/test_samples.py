"""A window in detail agrees with the percentiles that decide, and stays small."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.estimate import samples
from pytest_gpucap.estimate.reasoned import reasoning_of
from pytest_gpucap.estimate.samples import quantile
from pytest_gpucap.load.protocol import Histogram, Journal, OpenLoop, PhaseSpan, SelfCheck
from pytest_gpucap.requirement import Slo
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.reasoning import Reasoning
from pytest_gpucap.results.windows import Phase, WindowId


def journal(due: list[float], end: list[float]) -> Journal:
    due_s, end_s = np.array(due), np.array(end)
    tokens = np.ones(due_s.size, dtype=np.int32)
    return Journal(
        due_s=due_s,
        sent_s=due_s,
        first_s=end_s,
        last_s=end_s,
        end_s=end_s,
        prompt_tokens=tokens,
        output_tokens=tokens,
        counted_prompt_tokens=tokens,
        counted_output_tokens=tokens,
        status=np.zeros(due_s.size, dtype=np.uint8),
        hot=np.zeros(due_s.size, dtype=np.bool_),
        bin_s=1.0,
        bins_start_s=0.0,
        tokens=np.zeros(1, dtype=np.int64),
    )


LATENCIES = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200).map(np.array)


@given(LATENCIES)
def test_a_histogram_counts_everything_in_the_right_bin(latency: np.ndarray) -> None:
    found = samples.histogram(latency)
    edges = np.array(found.edges_s)
    assert len(found.counts) == edges.size - 1
    assert sum(found.counts) == latency.size
    assert found.counts[0] > 0
    assert found.counts[-1] > 0
    for low, high, count in zip(edges, edges[1:], found.counts, strict=False):
        near = 1 + 1e-9  # a value on an edge may fall to either side of it by rounding
        assert ((latency > low * near) & (latency <= high / near)).sum() <= count
        assert count <= ((latency > low / near) & (latency <= high * near)).sum()


@given(LATENCIES)
def test_a_percentile_read_off_a_histogram_is_right_to_its_step(latency: np.ndarray) -> None:
    found = samples.histogram(latency)
    for q in (0.5, 0.95):
        rank = max(1, math.ceil(q * latency.size - 1e-9))
        at = int(np.searchsorted(np.cumsum(found.counts), rank))
        exact = quantile(np.sort(latency), q)
        assert found.edges_s[at] * (1 - 1e-9) <= exact <= max(samples.LOWEST_S, found.edges_s[at + 1]) * (1 + 1e-9)


@pytest.mark.parametrize("growth", [1.002, 1.02, 1.08, 1.2])
def test_gaps_keep_their_number_and_their_place_in_coarser_bins(growth: float) -> None:
    counts = np.zeros(600, dtype=np.int64)
    counts[[0, 1, 137, 138, 599]] = [5, 1, 40, 2, 3]
    fine = Histogram(1e-4, growth, counts)
    found = samples.histogram_of_gaps(fine)
    assert sum(found.counts) == fine.total
    assert found.edges_s[0] == 0.0
    assert found.counts[0] == 5
    steps = [high / low for low, high in zip(found.edges_s[1:], found.edges_s[2:], strict=False)]
    assert max(steps) < max(1.12, growth * 1.001)
    for position in (137, 138, 599):
        value = 1e-4 * growth ** (position - 0.5)
        bin_of = int(np.searchsorted(found.edges_s, value)) - 1
        assert found.counts[bin_of] >= counts[position]


def test_a_timeline_has_the_percentiles_of_each_bin_and_holes_where_nothing_ended() -> None:
    when = np.array([0.1, 0.2, 0.3, 1.6])
    latency = np.array([3.0, 1.0, 2.0, 9.0])
    found = samples.timeline(journal([0.0], [2.0]), {"e2e": (when, latency)}, 0.0, 2.0)
    assert found["t_s"] == (0.25, 0.75, 1.25, 1.75)
    assert found["e2e_p50_s"] == pytest.approx((2.0, math.nan, math.nan, 9.0), nan_ok=True)
    assert found["e2e_p95_s"] == pytest.approx((3.0, math.nan, math.nan, 9.0), nan_ok=True)


def test_a_timeline_knows_the_requests_in_flight() -> None:
    found = samples.timeline(journal([-1.0, 0.5, 1.0], [1.0, 1.5, math.nan]), {}, 0.0, 2.0)
    assert found["in_flight"] == pytest.approx((1.0, 2.0, 2.0, 1.0))


def test_a_long_window_has_few_bins_and_an_empty_one_none() -> None:
    assert len(samples.timeline(journal([0.0], [1.0]), {}, 0.0, 600.0)["t_s"]) == samples.MOST_BINS
    assert samples.timeline(journal([0.0], [1.0]), {}, 5.0, 5.0) == {}


def thinking(reasoning: list[int], answer: list[float]) -> Journal:
    """Answers that are due every second, begin 1 s later and end 10 s later."""
    due = np.arange(len(reasoning), dtype=np.float64)
    plain = journal(due.tolist(), (due + 10).tolist())
    return replace(
        plain,
        first_s=due + 1,
        counted_output_tokens=np.full(due.size, 8, np.int32),
        reasoning_tokens=np.array(reasoning, np.int32),
        answer_s=due + np.array(answer),
    )


def window(found: Journal, start_s: float, end_s: float) -> Sample:
    phase = OpenLoop(100.0, found.due_s, found.prompt_tokens, found.output_tokens)
    gaps = Histogram(1e-6, 1.0005, np.zeros(10, np.int64))
    span = PhaseSpan(phase, 0.0, 100.0, 0, found.due_s.size, stopped=False, check=SelfCheck(), gaps=gaps)
    return samples.sample_of(found, span, WindowId(Phase.SAMPLE), Slo(), start_s, end_s)


def test_a_first_answer_token_belongs_to_the_window_in_which_it_came() -> None:
    # The third answer has no reasoning, the fourth never got beyond it.
    found = thinking([4, 6, 0, 8], [3.0, 9.0, math.nan, math.nan])
    sample = window(found, 0.0, 8.0)
    assert (sample.latencies["ttft"].count, sample.latencies["ttft"].p99_s) == (4, 1.0)
    assert (sample.latencies["ttfat"].count, sample.latencies["ttfat"].mean_s) == (2, 2.0)
    assert sum(sample.histograms["ttfat"].counts) == 2
    assert sample.reasoning is None  # no answer ended here
    sample = window(found, 8.0, 20.0)
    assert (sample.latencies["ttfat"].count, sample.latencies["ttfat"].p50_s) == (1, 9.0)
    assert sample.reasoning == Reasoning(3, 1, 6.0, 8.0)


def test_without_reasoning_there_is_no_time_to_an_answer() -> None:
    for found in (thinking([0, 0], [math.nan, math.nan]), journal([0.0, 1.0], [2.0, 3.0])):
        sample = window(found, 0.0, 50.0)
        assert "ttft" in sample.latencies
        assert "ttfat" not in {*sample.latencies, *sample.histograms}
        assert "ttfat_p95_s" not in sample.timeline
        assert sample.reasoning is None
        np.testing.assert_array_equal(found.ttfat_s, found.ttft_s)


def test_the_reasoning_of_whole_answers_alone_is_counted() -> None:
    found = thinking([4, 6], [3.0, 9.0])
    assert reasoning_of(found, np.array([True, False])) == Reasoning(1, 0, 4.0, 8.0)
    assert reasoning_of(found, np.array([False, False])) is None
