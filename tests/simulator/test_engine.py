"""The simulated engine: conservation, limits, and what its profiles are calibrated to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import LoadError, Status
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.profile import EngineModel, ProfileError
from pytest_gpucap.simulator.runner import SimRunner

QUIET: dict[str, Any] = {"noise": 0.0, "drift_sd": 0.0, "stall_per_s": 0.0, "warm_extra": 0.0}
PLAIN = EngineModel(base_s=0.01, per_seq_s=0.0001, per_prompt_token_s=0.00001, **QUIET)


def held(name: Any, concurrency: Any) -> Any:
    """Requests a second at a concurrency, over 60 s."""
    profile = profiles.load(name)
    runner = SimRunner(replace(profile.engine, warm_extra=0.0), 1)
    runner.run(schedule.closed_loop(profile.workload, concurrency, 20, 500, 1, 0))
    span = runner.run(schedule.closed_loop(profile.workload, concurrency, 60, 500, 1, 1, hot=False))
    journal = runner.journal()
    return ((journal.end_s > span.start_s) & (journal.end_s <= span.end_s)).sum() / 60


def test_one_request_alone_takes_its_steps() -> None:
    runner = SimRunner(PLAIN)
    workload = Workload(Length.fixed(100), Length.fixed(50))
    runner.run(schedule.closed_loop(workload, 1, 5, 10, 0, 0, hot=False))
    journal = runner.journal()
    # One step of prefill without decodes, then 49 of one decode.
    assert journal.ttft_s[0] == pytest.approx(0.011)
    assert journal.e2e_s[0] == pytest.approx(0.011 + 49 * 0.0101)


def test_every_token_is_counted_once() -> None:
    runner = SimRunner(PLAIN)
    workload = Workload(Length.parse("uniform:10-300", "i"), Length.parse("uniform:1-200", "o"))
    runner.run(schedule.open_loop(workload, 20, 30, 3, 0))
    assert runner.settle(120)
    journal = runner.journal()
    assert (journal.status == Status.OK).all()
    assert journal.tokens.sum() == journal.output_tokens.sum()
    assert (journal.first_s >= journal.due_s).all()
    assert (journal.last_s >= journal.first_s).all()


def test_a_tight_kv_cache_preempts_and_loses_nothing() -> None:
    runner = SimRunner(replace(PLAIN, kv_tokens=1500))
    workload = Workload(Length.fixed(100), Length.fixed(300))
    runner.run(schedule.open_loop(workload, 2, 60, 3, 0))
    assert runner.settle(600)
    journal = runner.journal()
    assert runner.preemptions > 0
    assert journal.tokens.sum() == journal.output_tokens.sum()


def test_max_sequences_hold() -> None:
    runner = SimRunner(replace(PLAIN, max_num_seqs=4))
    workload = Workload(Length.fixed(10), Length.fixed(100))
    runner.run(schedule.closed_loop(workload, 16, 20, 100, 0, 0, hot=False))
    journal = runner.journal()
    assert journal.tokens[50:150].sum() / 10 == pytest.approx(4 / 0.0104, rel=0.05)


def test_the_same_seed_gives_the_same_run_and_another_does_not() -> None:
    workload = Workload()
    times = []
    for seed in (1, 1, 2):
        runner = SimRunner(replace(PLAIN, noise=0.05), seed)
        runner.run(schedule.open_loop(workload, 5, 20, 7, 0))
        times.append(runner.journal().last_s)
    assert np.array_equal(times[0], times[1], equal_nan=True)
    assert not np.array_equal(times[0], times[2], equal_nan=True)


def test_a_request_that_can_never_fit_is_an_error() -> None:
    runner = SimRunner(replace(PLAIN, kv_tokens=100))
    with pytest.raises(LoadError, match="KV cache"):
        runner.run(schedule.open_loop(Workload(), 5, 5, 0, 0))


def test_what_is_cancelled_says_so() -> None:
    runner = SimRunner(PLAIN)
    runner.run(schedule.open_loop(Workload(), 5, 2, 0, 0))
    assert runner.settle(1, cancel=True)
    assert set(runner.journal().status.tolist()) <= {Status.OK, Status.CANCELLED}
    assert runner.in_flight == 0


@pytest.mark.parametrize(
    ("name", "concurrency", "measured"),
    [("h200", 1, 0.952), ("h200", 64, 38.8), ("h200", 108, 54.9), ("cpu_tiny", 1, 6), ("cpu_tiny", 16, 53)],
)
def test_calibrated_profiles_give_the_measured_rates(name: Any, concurrency: Any, measured: Any) -> None:
    assert held(name, concurrency) == pytest.approx(measured, rel=0.05)


FRONT = replace(PLAIN, base_s=0.002, per_seq_s=0.00001, front_token_s=0.00004, front_loss=2.0, front_backlog_s=2.0)


def test_a_front_end_that_keeps_up_only_adds_its_own_time() -> None:
    workload = Workload(Length.fixed(100), Length.fixed(50))
    runner = SimRunner(FRONT)
    runner.run(schedule.closed_loop(workload, 1, 5, 10, 0, 0, hot=False))
    journal = runner.journal()
    assert journal.ttft_s[0] == pytest.approx(0.002 + 0.001 + 0.00004)
    assert journal.e2e_s[0] == pytest.approx(0.003 + 49 * 0.00201 + 0.00004)


def test_a_front_end_beyond_its_speed_loses_throughput() -> None:
    def rate(concurrency: Any) -> Any:
        runner = SimRunner(FRONT, 1)
        workload = Workload(Length.fixed(16), Length.fixed(200))
        runner.run(schedule.closed_loop(workload, concurrency, 20, 500, 1, 0))
        span = runner.run(schedule.closed_loop(workload, concurrency, 20, 500, 1, 1, hot=False))
        journal = runner.journal()
        return journal.tokens[int(span.start_s * 10) : int(span.end_s * 10)].sum() / 20

    # The front end makes 25,000 tokens a second at its best.
    assert rate(20) < rate(45) < 25_000
    assert rate(200) < 0.8 * rate(45)
    # With no backlog left to grow, 25,000 / (1 + front_loss) is the floor.
    assert 25_000 / 3 < rate(600) < rate(200)


def test_what_the_front_end_holds_is_not_seen_yet() -> None:
    runner = SimRunner(FRONT, 1)
    workload = Workload(Length.fixed(16), Length.parse("uniform:50-200", "o"))
    runner.run(schedule.closed_loop(workload, 300, 10, 500, 1, 0, hot=False))
    now, journal = runner.clock.now(), runner.journal()
    assert (journal.status == Status.IN_FLIGHT).sum() == runner.in_flight == 300
    assert np.nanmax(journal.end_s) <= now
    assert np.nanmax(journal.first_s) <= now
    assert runner.settle(60)
    journal = runner.journal()
    assert (journal.status == Status.OK).all()
    assert journal.tokens.sum() == journal.output_tokens.sum()


def test_cancelling_empties_the_front_end_too() -> None:
    runner = SimRunner(FRONT, 1)
    workload = Workload(Length.fixed(16), Length.fixed(200))
    runner.run(schedule.closed_loop(workload, 300, 10, 500, 1, 0, hot=False))
    assert runner.settle(1, cancel=True)
    assert runner.in_flight == 0
    before = runner.journal().tokens.sum()
    runner.run(schedule.closed_loop(workload, 1, 1, 10, 1, 1, hot=False))
    assert runner.journal().tokens.sum() - before < 1000


def test_profiles_are_complete() -> None:
    loaded = [profiles.load(name) for name in profiles.names()]
    assert len(loaded) >= 4
    assert sum(p.held_out for p in loaded) >= 2
    assert all(p.true_rate_rps > 0 for p in loaded)


def test_an_unknown_profile_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="h200"):
        profiles.load("warp")
    file = tmp_path / "mine.toml"
    file.write_text("[engine]\nbase_s = 1\nspeed = 3\n[workload]\ninput_tokens = 1\noutput_tokens = 1\n")
    with pytest.raises(ProfileError, match="speed"):
        profiles.load(file)
