"""One schedule over several load generators: the parts together are the whole, to the row."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpucap.fleet.joined_parts import COLUMNS, joined_journal
from pytest_gpucap.fleet.split_phase import shares_of, split
from pytest_gpucap.fleet.split_runner import Part, SplitRunner
from pytest_gpucap.load.protocol import ClosedLoop, OpenLoop, Progress
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, Requirement, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner, replica_seed
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
LENGTHS = Length.parse("uniform:30-60", "input_tokens"), Length.parse("uniform:2-12", "output_tokens")


@given(
    parts=st.integers(1, 9),
    rate_rps=st.floats(0.1, 200.0),
    burstiness=st.sampled_from((0.0, 0.5, 1.0, 3.0)),
    seed=st.integers(0, 2**32),
    first_prompt=st.integers(0, 10**6),
)
def test_the_arrivals_of_all_parts_are_the_declared_process(
    parts: int, rate_rps: float, burstiness: float, seed: int, first_prompt: int
) -> None:
    workload = Workload(*LENGTHS, arrivals=Arrivals(ArrivalKind.GAMMA, burstiness))
    whole = open_loop(workload, rate_rps, 3.0, seed, 0, first_prompt)
    pieces = split(whole, parts)
    assert len(pieces) == parts
    for name in ("due_s", "prompt_tokens", "output_tokens"):
        joined = np.empty_like(getattr(whole, name))
        for part, piece in enumerate(pieces):
            joined[part::parts] = getattr(piece, name)
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert all(isinstance(piece, OpenLoop) and piece.duration_s == whole.duration_s for piece in pieces)
    assert_prompts_of_their_own(pieces, first_prompt, whole.due_s.size)


def assert_prompts_of_their_own(pieces: list[OpenLoop | ClosedLoop], first_prompt: int, rows: int) -> None:
    numbers = np.concatenate(
        [np.arange(piece.first_prompt, piece.first_prompt + piece.prompt_tokens.size) for piece in pieces]
    )
    assert sorted(numbers) == list(range(first_prompt, first_prompt + rows))


@given(
    parts=st.integers(1, 9),
    concurrency=st.integers(1, 40),
    hot=st.booleans(),
    busy=st.lists(st.integers(0, 6), min_size=9, max_size=9),
)
def test_a_closed_loop_is_split_into_shares(parts: int, concurrency: int, hot: bool, busy: list[int]) -> None:
    shares = shares_of(concurrency, parts)
    missing = [max(0, share - held) for share, held in zip(shares, busy, strict=False)]
    most_hot = sum(missing)
    whole = closed_loop(Workload(*LENGTHS), concurrency, 2.0, 20.0, 3, 0, hot=False)
    whole = ClosedLoop(
        2.0, concurrency, whole.prompt_tokens, np.arange(whole.prompt_tokens.size, dtype=np.int32), most_hot * hot, 5
    )
    pieces = split(whole, parts, missing)
    # Every row is in one piece, and each piece keeps their order.
    assert sorted(np.concatenate([piece.output_tokens for piece in pieces]).tolist()) == list(whole.output_tokens)
    assert all((np.diff(piece.output_tokens) > 0).all() for piece in pieces)
    assert_prompts_of_their_own(pieces, 5, whole.output_tokens.size)
    assert sum(piece.concurrency for piece in pieces if isinstance(piece, ClosedLoop)) == concurrency
    for piece, share, slots in zip(pieces, shares, missing, strict=True):
        if share == 0:
            assert isinstance(piece, OpenLoop)
            assert piece.due_s.size == 0
        else:
            assert isinstance(piece, ClosedLoop)
            assert piece.concurrency == share
            # Hot rows come first, and fill what is missing.
            assert piece.hot == (slots if hot else 0)
            assert (piece.output_tokens[: piece.hot] < whole.hot).all()
            assert (piece.output_tokens[piece.hot :] >= whole.hot).all()


def in_virtual_time(parts: int, seed: int = 4) -> tuple[SplitRunner, FleetSimRunner]:
    """Two ways to drive the same replicas in turn: a generator for each, and one for all behind a router."""
    apart = [Part(f"node{k}", SimRunner(FAST.engine, replica_seed(seed, k))) for k in range(parts)]
    return SplitRunner(apart, virtual=True), FleetSimRunner([FAST.engine] * parts, "round_robin", seed)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_merged_journal_is_that_of_one_generator_in_virtual_time(parts: int) -> None:
    parted, whole = in_virtual_time(parts)
    one = open_loop(FAST.workload, 25.0 * parts, 30.0, 1, 0)
    rows = one.due_s.size // parts * parts  # the router goes on where it stopped, a split begins anew
    one = OpenLoop(30.0, one.due_s[:rows], one.prompt_tokens[:rows], one.output_tokens[:rows])
    two = open_loop(FAST.workload, 10.0 * parts, 20.0, 1, 1, rows)
    spans = [(parted.run(phase), whole.run(phase)) for phase in (one, two)]
    assert parted.settle(100.0)
    assert whole.settle(100.0)
    for mine, its in spans:
        assert (mine.start_s, mine.end_s) == (its.start_s, its.end_s)
        assert (mine.first_row, mine.end_row, mine.stopped) == (its.first_row, its.end_row, False)
        np.testing.assert_array_equal(mine.gaps.counts, its.gaps.counts)
        assert mine.check.intended_rps == pytest.approx(its.check.intended_rps)
        assert mine.check.achieved_rps == pytest.approx(its.check.achieved_rps)
        assert mine.check.problems == ()
    merged, known = parted.journal(), whole.journal()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(merged, name), getattr(known, name), name)
    np.testing.assert_array_equal(merged.tokens[: known.tokens.size], known.tokens)
    assert merged.tokens.sum() == known.tokens.sum() == known.output_tokens.sum()
    assert parted.simulated
    parted.close()
    parted.close()


def test_closed_loops_keep_the_concurrency_together() -> None:
    parted, _ = in_virtual_time(3)
    phase = closed_loop(FAST.workload, 31, 20.0, 60.0, 1, 0)
    span = parted.run(phase)
    journal = parted.journal()
    later = journal.due_s > span.start_s
    at = np.linspace(span.start_s + 1, span.end_s - 1, 50)
    ended = np.where(np.isnan(journal.end_s), np.inf, journal.end_s)
    held = [int(((journal.due_s <= t) & (ended > t)).sum()) for t in at]
    assert set(held) == {31}
    assert journal.hot.sum() == 31
    assert later.any()
    assert (np.diff(journal.due_s) >= 0).all()
    # A second phase goes on with what is in flight, and all stand at one time after settling.
    assert parted.run(closed_loop(FAST.workload, 8, 5.0, 60.0, 1, 1, hot=False)).start_s == span.end_s
    assert parted.settle(100.0)
    assert len({part.runner.clock.now() for part in parted.parts}) == 1


def test_an_early_end_comes_to_all_parts_at_once_in_virtual_time() -> None:
    parted, _ = in_virtual_time(2)
    seen: list[Progress] = []

    def enough(progress: Progress) -> bool:
        seen.append(progress)
        return progress.in_flight > 40

    span = parted.run(open_loop(FAST.workload, 100.0, 60.0, 1, 0), enough)
    assert span.stopped
    assert span.end_s - span.start_s == pytest.approx(0.25 * len(seen))
    assert all(one.in_flight <= 40 for one in seen[:-1])
    journal = parted.journal()
    assert journal.status.size == span.end_row
    assert parted.settle(0.0, cancel=True)


def test_the_procedure_measures_with_split_generators() -> None:
    parted, whole = in_virtual_time(2)
    engine = FAST.engine
    limits = Settings(600.0, 3, 2 * engine.max_num_seqs, 2 * engine.kv_tokens, 2 * engine.max_num_batched_tokens)
    wanted = Requirement("x", Fraction(2 * FAST.true_rate_rps / 1.2), 1, Fraction(1), 1, FAST.workload, FAST.slo)
    found = [check(runner, wanted, limits) for runner in (parted, whole)]
    assert [each.outcome for each in found] == [Outcome.PASS, Outcome.PASS]
    assert not found[0].measurement.problems
    parted.close()


def test_parts_must_have_names_of_their_own_and_a_time_to_begin() -> None:
    sim = SimRunner(FAST.engine)
    with pytest.raises(ValueError, match="another name"):
        SplitRunner([])
    with pytest.raises(ValueError, match="another name"):
        SplitRunner([Part("a", sim), Part("a", sim)], virtual=True)
    with pytest.raises(ValueError, match="agreed time: a"):
        SplitRunner([Part("a", sim)])


@settings(max_examples=5)
@given(shift=st.floats(-50.0, 50.0))
def test_token_bins_keep_their_sum_when_they_are_shifted(shift: float) -> None:
    parted, _ = in_virtual_time(2)
    parted.run(open_loop(FAST.workload, 40.0, 5.0, 1, 0))
    parted.settle(50.0)
    parted.journal()
    first = parted._journals[1]
    assert first is not None
    object.__setattr__(first, "bins_start_s", shift)
    joined = joined_journal(parted._carried, parted._journals, [0.0, 0.0], ())
    assert joined.tokens.sum() == sum(int(each.tokens.sum()) for each in parted._journals if each is not None)
    assert joined.bins_start_s == min(0.0, shift)
    assert (joined.tokens >= 0).all()
    assert joined.bin_s == first.bin_s
