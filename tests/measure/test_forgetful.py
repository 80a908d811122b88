"""A server that forgets its sessions must not pass on the rate of one that forgets nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.estimate import forgetting as simulation
from pytest_gpucap.load import schedule
from pytest_gpucap.load.sessions import with_session_lengths
from pytest_gpucap.measure.forgetful import if_remembered
from pytest_gpucap.measure.prefix_room import PrefixRoom, remembered
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Length, Requirement, Slo, Workload, declared_limits
from pytest_gpucap.results.measured import Outcome, Verdict
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.telemetry.time_series import counter_growth
from pytest_gpucap.workloads.sessions import with_sessions

ENGINE = profiles.load("mixed").engine
TRUE_RPS, KEEPING_RPS = 3.647, 4.274
"""The rates of `evicting-sessions` (benchmarks/verdict/sessions.toml): its own, and if it forgot nothing."""
SMALL = 40_000
"""KV tokens of a server that forgets sooner."""
CHAT = with_session_lengths(
    with_sessions(
        Workload(
            Length.parse("lognormal:mean=150,cv=1,low=10,high=1500", "input_tokens"),
            Length.parse("lognormal:mean=200,cv=0.8,low=5,high=1000", "output_tokens"),
        ),
        "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=5s,cv=1 context=8192",
    )
)


def hits_of(runner: SimRunner) -> Any:
    """The hit rate between two moments, from the server's counters."""

    def hit_rate(start_s: float, end_s: float) -> float | None:
        seen = runner.readings()
        asked, found = (
            counter_growth(seen["time_s"], seen[name], start_s, end_s) for name in ("prefix_queries", "prefix_hits")
        )
        return found[0] / asked[0] if asked and found and asked[0] > 0 else None

    return hit_rate


def requirement(rate_rps: float, workload: Workload = CHAT) -> Requirement:
    return Requirement(
        "chat", Fraction(rate_rps), 1, Fraction(1), 1, workload, Slo(declared_limits({"ttft_p95": "2s"}))
    )


def checked(rate_rps: float, seed: int, *, counted: bool = True, **known: Any) -> Verdict:
    runner = SimRunner(ENGINE, seed)
    settings = Settings(
        max_time_s=70.0, seed=seed, max_num_seqs=256, max_num_batched_tokens=2048,
        hit_rate=hits_of(runner) if counted else None, **known,
    )  # fmt: skip
    return check(runner, requirement(rate_rps), settings)


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation of a check has 24 long runs at a rate; a third of them tells as much here."""
    monkeypatch.setattr(simulation, "MOST_RUNS", 8)
    monkeypatch.setattr(simulation, "CLOSE_LN", 0.01)


def test_a_server_that_forgets_does_not_pass_at_the_rate_of_one_that_does_not() -> None:
    """At 7% more than its true rate it passed: it would sustain 17% more if it forgot nothing."""
    verdict = checked(1.07 * TRUE_RPS, 1, kv_tokens=60_000)
    assert verdict.outcome is not Outcome.PASS
    found = verdict.measurement
    assert found.sustainable_rate is not None
    assert found.sustainable_rate.value == pytest.approx(TRUE_RPS, rel=0.08)
    assert found.forgetting_cost == pytest.approx(1.0 - TRUE_RPS / KEEPING_RPS, abs=0.05)
    assert "a KV cache of 60000 tokens forgets what sessions said, which costs " in verdict.reason
    assert "give it more memory, or leave more headroom" in verdict.reason


def driven(settings: Settings, workload: Workload = CHAT) -> MeasuringRun:
    """An open loop of a minute and a half at the true rate, after a hold."""
    runner = SimRunner(replace(ENGINE.settled(), kv_tokens=SMALL), 4)
    run = MeasuringRun(runner, requirement(TRUE_RPS, workload), settings, SilentObserver())
    runner.run(schedule.closed_loop(workload, 40, 20.0, 50.0, 1, 0))
    runner.run(schedule.open_loop(workload, TRUE_RPS, 90.0, 1, 1, 10_000))
    run.settings = replace(settings, hit_rate=hits_of(runner))
    return run


def test_the_room_is_what_the_server_tells_or_what_its_hits_show() -> None:
    run = driven(Settings())
    journal, end_s = run.runner.journal(), run.runner.clock.now()
    sent = journal.cached_tokens.sum()
    counted = run.settings.hit_rate
    assert counted is not None

    def room(**known: Any) -> tuple[int, PrefixRoom]:
        settings = Settings(**({"hit_rate": counted} | known))
        found, told = remembered(journal, CHAT, settings, 0.0, end_s)
        return int(found.cached_tokens.sum()), told

    had, told = room(kv_tokens=SMALL)
    assert told == PrefixRoom(float(SMALL), told=True, counted=True, forgot=True)
    assert had < 0.95 * sent
    _, fitted = room(kv_tokens=None)
    assert (fitted.told, fitted.counted, fitted.forgot) == (False, True, True)
    assert fitted.tokens == pytest.approx(SMALL, rel=0.15)
    # It has more than it tells, in a tier below the GPU's memory, say.
    assert not room(kv_tokens=20_000)[1].told
    assert room(kv_tokens=20_000)[1].tokens == pytest.approx(SMALL, rel=0.15)
    assert room(kv_tokens=SMALL, hit_rate=lambda *_: 0.0) == (0, PrefixRoom(0.0, told=True, counted=True, forgot=True))
    assert room(kv_tokens=SMALL, hit_rate=lambda *_: 0.99)[1].tokens == float(SMALL)
    assert room(kv_tokens=None, hit_rate=None) == (sent, PrefixRoom(math.inf))
    assert room(kv_tokens=SMALL, hit_rate=None)[1] == PrefixRoom(float(SMALL), told=True, forgot=True)


def test_what_cannot_be_known_is_said() -> None:
    untold = checked(0.7 * TRUE_RPS, 2, counted=False)
    assert "neither the size of its KV cache nor its prefix hits, so whether it forgets is unknown" in untold.reason
    assert untold.measurement.forgetting_cost == 0.0


def test_a_direct_run_does_not_pass_a_cache_that_began_to_forget() -> None:
    run = driven(Settings(kv_tokens=SMALL))
    run.journal = run._read_journal()
    outcome, reason = if_remembered(run, (Outcome.PASS, "kept every limit"))
    assert outcome is Outcome.INCONCLUSIVE
    assert "enable_prefix_caching=False" in reason
    assert if_remembered(run, (Outcome.FAIL, "broke")) == (Outcome.FAIL, "broke")
    run.room = PrefixRoom(float(SMALL), told=True)
    assert if_remembered(run, (Outcome.PASS, "kept")) == (Outcome.PASS, "kept")
