"""Schedules: distributions, independence, replay from a seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_gpucap.load.draws import draw_lengths, random_generator
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.trace import read_trace
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, RequirementError, Workload

LOGNORMAL = Length.parse("lognormal:mean=256,cv=0.8,low=16,high=2048", "input_tokens")
UNIFORM = Length.parse("uniform:10-20", "input_tokens")


def test_lengths_follow_their_distribution() -> None:
    drawn = draw_lengths(LOGNORMAL, random_generator(1, 0), 200_000)
    assert drawn.dtype == np.int32
    assert drawn.min() >= 16
    assert drawn.max() <= 2048
    wide = draw_lengths(
        Length.parse("lognormal:mean=256,cv=0.8,low=1,high=1000000", "x"), random_generator(1, 0), 200_000
    )
    assert wide.mean() == pytest.approx(256, rel=0.01)
    assert wide.std() / wide.mean() == pytest.approx(0.8, rel=0.03)
    counts = np.bincount(draw_lengths(UNIFORM, random_generator(2, 0), 110_000))[10:]
    assert counts.size == 11
    assert stats.chisquare(counts).pvalue > 1e-4
    assert (draw_lengths(Length.fixed(7), random_generator(3, 0), 5) == 7).all()


@pytest.mark.parametrize(
    ("arrivals", "variation"),
    [
        (Arrivals(ArrivalKind.POISSON), 1.0),
        (Arrivals(ArrivalKind.GAMMA, 2.0), 2.0),
        (Arrivals(ArrivalKind.GAMMA, 0.5), 0.5),
    ],
)
def test_gaps_follow_their_distribution(arrivals: Arrivals, variation: float) -> None:
    phase = open_loop(Workload(arrivals=arrivals), 50.0, 2000.0, seed=5, stream=1)
    gaps = np.diff(phase.due_s)
    assert phase.rate_rps == pytest.approx(50.0, rel=0.03 * variation)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)
    shape = 1 / variation**2
    # 100,000 gaps: a p-value of 0.001 is a statistic of 0.006; rounding to 1 ns makes 0.9% of the burstiest gaps zero.
    assert stats.kstest(gaps, stats.gamma(shape, scale=1 / (50.0 * shape)).cdf).statistic < 0.010
    assert phase.due_s[-1] < 2000.0
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02


def test_bursty_arrivals_are_stationary_from_the_start() -> None:
    """Without the length-biased first gap, bursty phases would start with the wrong rate."""
    workload = Workload(arrivals=Arrivals(ArrivalKind.GAMMA, 2.0))
    early = [np.count_nonzero(open_loop(workload, 10.0, 1.0, 3, stream).due_s < 0.1) for stream in range(4000)]
    assert np.mean(early) == pytest.approx(1.0, abs=0.12)


def test_constant_gaps_are_constant_and_exactly_as_many_as_the_rate_says() -> None:
    phase = open_loop(Workload(arrivals=Arrivals(ArrivalKind.CONSTANT)), 4.0, 5.0, seed=0, stream=0)
    assert phase.due_s.tolist() == [0.125 + 0.25 * i for i in range(20)]


def test_the_same_seed_gives_the_same_schedule_everywhere() -> None:
    """A digest taken once: another NumPy, another machine or a change of the code that shifts a stream is noticed."""
    workload = Workload(input_tokens=LOGNORMAL, output_tokens=UNIFORM)
    phase = open_loop(workload, 20.0, 30.0, seed=42, stream=3)
    hold = closed_loop(workload, 16, 30.0, 5.0, seed=42, stream=4)
    digest = hashlib.sha256()
    for column in (np.rint(phase.due_s * 1e9).astype("<i8"), phase.prompt_tokens, phase.output_tokens):
        digest.update(column.astype("<i8").tobytes())
    for column in (hold.prompt_tokens, hold.output_tokens):
        digest.update(column.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "8cd6e326070812d7"


def test_streams_are_independent_and_a_longer_phase_extends_a_shorter_one() -> None:
    workload = Workload(input_tokens=LOGNORMAL)
    short, long = (open_loop(workload, 20.0, seconds, 1, 0) for seconds in (10.0, 40.0))
    n = short.due_s.size
    np.testing.assert_array_equal(short.due_s, long.due_s[:n])
    np.testing.assert_array_equal(short.prompt_tokens, long.prompt_tokens[:n])
    other = open_loop(workload, 20.0, 10.0, 1, 1)
    assert not np.array_equal(other.prompt_tokens[:20], short.prompt_tokens[:20])


def test_hot_rows_are_the_stationary_distribution() -> None:
    workload = Workload(input_tokens=Length.fixed(100), output_tokens=LOGNORMAL)
    hold = closed_loop(workload, 20_000, 1.0, 1.0, seed=9, stream=0)
    left = hold.output_tokens[: hold.hot]
    age = hold.prompt_tokens[: hold.hot] - 100
    assert hold.hot == 20_000
    assert left.min() >= 1
    assert age.min() >= 0
    # Length-biased: the mean of a whole in-flight request is E[L^2] / E[L].
    drawn = draw_lengths(LOGNORMAL, random_generator(1, 1), 400_000).astype(float)
    assert (left + age).mean() == pytest.approx((drawn**2).mean() / drawn.mean(), rel=0.02)
    # Uniformly aged within its life.
    assert stats.kstest((age + 0.5) / (left + age), "uniform").statistic < 0.012


def test_cold_rows_are_whole_requests_and_the_rest_is_the_same_as_hot() -> None:
    workload = Workload(output_tokens=UNIFORM)
    cold, hot = (closed_loop(workload, 8, 10.0, 4.0, 1, 2, hot=flag) for flag in (False, True))
    assert cold.hot == 0
    assert cold.prompt_tokens.size >= 8 + 40
    np.testing.assert_array_equal(cold.output_tokens[8:], hot.output_tokens[8:])


@settings(max_examples=60, deadline=None)
@given(rate=st.floats(0.05, 300), seconds=st.floats(0.1, 30), seed=st.integers(0, 2**63), variation=st.floats(0, 5))
def test_every_open_loop_is_ordered_and_inside_its_phase(
    rate: float, seconds: float, seed: int, variation: float
) -> None:
    phase = open_loop(Workload(arrivals=Arrivals(ArrivalKind.GAMMA, variation)), rate, seconds, seed, 0)
    assert (np.diff(phase.due_s) >= 0).all()
    assert ((phase.due_s >= 0) & (phase.due_s <= seconds)).all()
    assert phase.due_s.size == phase.prompt_tokens.size == phase.output_tokens.size


TRACE = "arrival_s,input_tokens,output_tokens\n10.0,5,50\n10.5,6,60\n12.0,7,70\n13.0,8,80\n"


def trace_workload(path: Path, text: str) -> Workload:
    path.write_text(text)
    return Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path))


def test_a_trace_is_scaled_to_the_rate_and_goes_round(tmp_path: Path) -> None:
    workload = trace_workload(tmp_path / "t.csv", TRACE)
    native = read_trace(tmp_path / "t.csv")
    assert native.period_s == pytest.approx(4.0)
    phase = open_loop(workload, 2.0, 20.0, seed=1, stream=0)
    assert phase.due_s.size == 40
    assert (np.diff(phase.due_s) >= 0).all()
    # Whole rounds hold every row equally often, each with its own lengths, whatever the entry.
    assert sorted(zip(phase.prompt_tokens.tolist(), phase.output_tokens.tolist(), strict=True)) == sorted(
        [(5, 50), (6, 60), (7, 70), (8, 80)] * 10
    )
    entries = {int(open_loop(workload, 2.0, 2.0, 1, stream).prompt_tokens[0]) for stream in range(40)}
    assert entries == {5, 6, 7, 8}
    hold = closed_loop(workload, 4, 10.0, 2.0, 1, 0)
    assert set(hold.output_tokens[4:].tolist()) == {50, 60, 70, 80}
    assert (hold.prompt_tokens[:4] + hold.output_tokens[:4]).max() <= 88


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    lines = [line.split(",") for line in TRACE.splitlines()]
    text = "\n".join(json.dumps(dict(zip(lines[0], map(float, row), strict=True))) for row in lines[1:])
    one = open_loop(trace_workload(tmp_path / "t.csv", TRACE), 3.0, 9.0, 7, 1)
    other = open_loop(trace_workload(tmp_path / "t.jsonl", text + "\n\n"), 3.0, 9.0, 7, 1)
    np.testing.assert_array_equal(one.due_s, other.due_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("arrival_s,input_tokens\n1,2\n", "t.csv:1: the header lacks output_tokens"),
        (TRACE.replace("10.5", "9.5"), "t.csv:3: arrival_s goes back in time"),
        (TRACE.replace(",7,", ",seven,"), "t.csv:4: input_tokens must be a number, not 'seven'"),
        (TRACE.replace(",7,", ",0,"), "t.csv:4: input_tokens must be a whole number of at least 1"),
        (TRACE.replace(",7,70", ",7"), "t.csv:4: output_tokens must be a number, not None"),
        (TRACE.splitlines()[0], "at least 2 rows, this one has 0"),
        ('{"arrival_s": 1}\n', "t.csv:1: the object lacks input_tokens, output_tokens"),
        ("arrival_s,input_tokens,output_tokens\n1,1,1\n1,1,1\n", "at the same moment"),
        ("arrival_s,input_tokens,output_tokens\nnan,1,1\n1,1,1\n", "t.csv:2: arrival_s must be finite"),
    ],
)
def test_a_bad_trace_is_one_line_that_names_the_place(tmp_path: Path, text: str, place: str) -> None:
    workload = trace_workload(tmp_path / "t.csv", text)
    with pytest.raises(RequirementError) as caught:
        open_loop(workload, 1.0, 1.0, 0, 0)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    workload = Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=tmp_path / "none.csv"))
    with pytest.raises(RequirementError, match=r"none\.csv: the trace file cannot be read"):
        open_loop(workload, 1.0, 1.0, 0, 0)
