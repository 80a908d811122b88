"""Each trait of the simulated engine does what its formula says, and nothing is lost with all of them together."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator.fleet import FleetSimRunner
from pytest_gpucap.simulator.live import LiveEngine
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

PLAIN = EngineModel(
    base_s=0.01,
    per_seq_s=0.0001,
    per_prompt_token_s=0.00001,
    noise=0.0,
    drift_sd=0.0,
    stall_per_s=0.0,
    warm_extra=0.0,
)


def alone(prompt: int, output: int, **traits: Any) -> Journal:
    """One request after another, for two minutes."""
    runner = SimRunner(replace(PLAIN, **traits))
    workload = Workload(Length.fixed(prompt), Length.fixed(output))
    runner.run(schedule.closed_loop(workload, 1, 120, 500, 0, 0, hot=False))
    return runner.journal()


def token_rates(concurrency: int, window_s: float, **traits: Any) -> Floats:
    """Tokens a second in each window of ten minutes at a concurrency, shape (windows,)."""
    runner = SimRunner(replace(PLAIN, **traits), 3)
    workload = Workload(Length.fixed(8), Length.fixed(500))
    runner.run(schedule.closed_loop(workload, concurrency, 600, 5000, 0, 0))
    bins = round(window_s / 0.1)
    tokens = runner.journal().tokens
    rates: Floats = tokens[: tokens.size // bins * bins].reshape(-1, bins).sum(axis=1) / window_s
    return rates


def test_a_graph_serves_every_batch_up_to_its_size() -> None:
    plain, padded = {"graph_step": 0}, {"graph_step": 8}
    pace = {
        (n, every["graph_step"]): token_rates(n, 60, **every)[1:].mean() / n
        for n in (9, 16, 17)
        for every in (plain, padded)
    }
    assert pace[9, 8] == pytest.approx(pace[16, 0], rel=0.01)
    assert pace[16, 8] == pytest.approx(pace[16, 0], rel=0.001)
    assert pace[17, 8] < 0.99 * pace[17, 0]


@pytest.mark.parametrize(
    ("batch", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (7, 8), (8, 8), (9, 16), (33, 40), (41, 41)]
)
def test_graphs_below_the_step_are_powers_of_two_and_there_is_a_largest(batch: int, size: int) -> None:
    assert engine._padded(replace(PLAIN, graph_step=8, graph_most=40).params, batch) == size


def test_attention_grows_with_the_square_of_the_prompt() -> None:
    short, long = (alone(prompt, 2, per_prompt_context_s=1e-7).ttft_s[0] for prompt in (1000, 4000))
    assert short == pytest.approx(0.01 + 1000 * 1e-5 + 1e-7 * 1000**2 / 2)
    assert long == pytest.approx(0.01 + 4000 * 1e-5 + 1e-7 * 4000**2 / 2)


def test_chunks_cost_the_same_attention_as_the_whole_prompt() -> None:
    whole, chunked = (
        alone(4000, 2, per_prompt_context_s=1e-7, base_s=0.0, max_num_batched_tokens=budget).ttft_s[0]
        for budget in (8192, 500)
    )
    assert chunked == pytest.approx(whole)


def test_a_prefill_slows_the_decodes_beside_it() -> None:
    def rate(mixed_slow: float) -> float:
        runner = SimRunner(replace(PLAIN, mixed_slow=mixed_slow, max_num_batched_tokens=64))
        workload = Workload(Length.fixed(600), Length.fixed(10))
        runner.run(schedule.closed_loop(workload, 8, 120, 500, 0, 0))
        return float(runner.journal().tokens.sum())

    assert alone(600, 10, mixed_slow=1.0).e2e_s[0] == alone(600, 10).e2e_s[0]  # no decode runs beside its prefill
    assert rate(1.0) == pytest.approx(rate(0.0) / 2, rel=0.05)


def test_speculation_makes_several_tokens_a_step() -> None:
    accepted, drafts = 0.5, 3
    per_step = int(1000 * (1 - accepted ** (drafts + 1)) / (1 - accepted)) / 1000
    found = alone(10, 301, spec_tokens=drafts, spec_accept=accepted, per_draft_s=0.001, per_draft_seq_s=0.0001)
    steps = np.ceil(300 / per_step)
    assert found.e2e_s[0] - found.ttft_s[0] == pytest.approx(steps * (0.0101 + drafts * 0.0011))


def test_every_request_has_its_own_acceptance() -> None:
    tpot = alone(10, 100, spec_tokens=4, spec_accept=0.6, spec_accept_sd=0.2).tpot_s
    known = tpot[~np.isnan(tpot)]
    assert known.max() > 1.5 * known.min()
    same = alone(10, 100, spec_tokens=4, spec_accept=0.6).tpot_s
    assert np.nanmax(same) == pytest.approx(np.nanmin(same))


def test_a_prefix_cache_warms_up() -> None:
    found = alone(1000, 2, prefix_share=0.8, prefix_warm_s=20.0)
    uncached = 1000 - 800 * (1 - np.exp(-found.due_s / 20.0))
    answered = ~np.isnan(found.ttft_s)
    assert found.ttft_s[answered] == pytest.approx((0.01 + uncached * 1e-5)[answered], abs=2e-5)
    assert alone(1000, 2, prefix_share=0.8).ttft_s[0] == pytest.approx(0.01 + 200 * 1e-5)


def test_a_prompt_that_is_cached_as_a_whole_still_computes_its_last_token() -> None:
    assert alone(1000, 2, prefix_share=1.0).ttft_s[0] == pytest.approx(0.01 + 1e-5)


def test_the_pace_wanders_for_seconds() -> None:
    logs = np.log(token_rates(8, 1.0, wander_sd=0.2, wander_tau_s=2.5)[5:])
    assert np.std(logs) == pytest.approx(0.2, rel=0.25)
    centred = logs - logs.mean()
    after = [float((centred[lag:] * centred[:-lag]).mean() / (centred**2).mean()) for lag in (1, 10)]
    assert after[0] > 0.5
    assert abs(after[1]) < 0.3


def test_the_clock_keeps_a_level_and_then_takes_another() -> None:
    rates = token_rates(8, 6.0, throttle_sd=0.2, throttle_every_s=30.0)[:100].reshape(20, 5)
    inner = rates[:, 1:4]  # a new level begins with the first step after its time
    assert np.all(inner.std(axis=1) / inner.mean(axis=1) < 0.06)
    assert rates.mean(axis=1).std() / rates.mean() > 0.1


def test_stops_differ_in_length() -> None:
    runner = SimRunner(replace(PLAIN, stall_per_s=0.2, stall_s=1.0, stall_spread=0.6), 5)
    workload = Workload(Length.fixed(8), Length.fixed(500))
    span = runner.run(schedule.closed_loop(workload, 4, 900, 5000, 0, 0))
    edges = span.gaps.lowest_s * span.gaps.growth ** np.arange(span.gaps.counts.size)
    stops = np.repeat(edges, span.gaps.counts)
    stops = stops[stops > 0.1]
    assert stops.min() == pytest.approx(0.4, abs=0.06)
    assert stops.max() == pytest.approx(1.6, abs=0.08)
    assert stops.mean() == pytest.approx(1.0, abs=0.1)


def test_a_front_end_that_takes_requests_bounds_their_rate() -> None:
    runner = SimRunner(replace(PLAIN, front_request_s=0.05))
    runner.run(schedule.open_loop(Workload(Length.fixed(8), Length.fixed(2)), 40, 60, 3, 0))
    assert np.sum(~np.isnan(runner.journal().end_s)) / 60 == pytest.approx(20, rel=0.1)


def test_a_front_end_wanders_by_itself() -> None:
    slow = {"front_token_s": 0.002}
    quiet, wandering = (token_rates(8, 1.0, **slow, front_wander_sd=sd)[5:] for sd in (0.0, 0.3))
    assert np.std(np.log(wandering)) > 5 * np.std(np.log(quiet))


def test_speculated_tokens_are_all_delivered_in_real_time() -> None:
    async def serve() -> list[bool]:
        live = LiveEngine(replace(PLAIN, base_s=0.001, spec_tokens=4, spec_accept=0.7, spec_accept_sd=0.2))
        serving = asyncio.create_task(live.serve())
        told: list[bool] = []
        done = [asyncio.Event() for _ in range(4)]

        def deliver(number: int, last: bool) -> None:
            told.append(last)
            if last:
                done[number].set()

        for number in range(4):
            live.submit(20, 50 + number, partial(deliver, number))
        for event in done:
            await event.wait()
        serving.cancel()
        return told

    told = asyncio.run(serve())
    assert len(told) == 4 * 50 + 6
    assert sum(told) == 4


def test_all_traits_together_lose_no_token() -> None:
    everything = EngineModel(
        base_s=0.01,
        per_seq_s=0.0001,
        per_prompt_token_s=0.00001,
        kv_tokens=3000,
        max_num_batched_tokens=128,
        graph_step=8,
        per_prompt_context_s=1e-8,
        mixed_slow=0.2,
        spec_tokens=4,
        spec_accept_sd=0.3,
        per_draft_s=0.0005,
        prefix_share=0.5,
        prefix_warm_s=10.0,
        wander_sd=0.2,
        throttle_sd=0.1,
        stall_per_s=0.05,
        stall_s=1.0,
        stall_spread=0.6,
        front_token_s=0.0001,
        front_request_s=0.001,
        front_wander_sd=0.2,
    )
    runner = SimRunner(everything, 7)
    workload = Workload(Length.parse("uniform:10-300", "i"), Length.parse("uniform:1-400", "o"))
    runner.run(schedule.open_loop(workload, 12, 60, 3, 0))
    assert runner.settle(600)
    journal = runner.journal()
    assert runner.preemptions > 0
    assert (journal.status == Status.OK).all()
    assert journal.tokens.sum() == journal.output_tokens.sum()
    assert (journal.last_s >= journal.first_s).all()
    # Nothing is left in the KV cache.
    assert runner._whole[engine.KV] == 0


def test_a_server_counts_what_it_looks_up_and_speculates_and_the_energy_of_its_device() -> None:
    runner = SimRunner(
        replace(PLAIN, prefix_share=0.5, spec_tokens=2, spec_accept=0.5, idle_w=100.0, busy_w=300.0, kv_tokens=20_000)
    )
    workload = Workload(Length.fixed(100), Length.fixed(400))
    runner.run(schedule.closed_loop(workload, 60, 60, 500, 0, 0, hot=False), lambda _: False)
    found = {name: column[-1] - column[0] for name, column in runner.readings().items()}
    assert found["time_s"] == pytest.approx(60)
    assert found["prefix_hits"] == pytest.approx(found["prefix_queries"] / 2)
    assert found["prefix_queries"] % 100 == 0
    assert found["preemptions"] == runner.preemptions > 0
    # 0.5 and 0.25 of two drafts are accepted. A request's pace is kept in thousandths, and its last step is cut.
    assert found["accepted_tokens"] / found["draft_tokens"] == pytest.approx(0.375, abs=0.01)
    journal = runner.journal()
    assert found["output_tokens"] == journal.tokens[: round(60 / journal.bin_s)].sum()  # the last bin begins then
    assert found["energy_j"] == pytest.approx(400 * 60, rel=0.01)  # it is never idle


def test_a_server_without_speculation_and_power_tells_neither() -> None:
    runner = SimRunner(PLAIN)
    runner.run(schedule.closed_loop(Workload(), 1, 5, 500, 0, 0, hot=False), lambda _: False)
    found = runner.readings()
    assert all(np.isnan(found[name]).all() for name in ("draft_tokens", "accepted_tokens", "energy_j"))
    assert np.all(np.diff(found["time_s"]) >= 0)


def test_a_fleet_counts_what_its_replicas_do() -> None:
    model = replace(PLAIN, prefix_share=0.5, idle_w=100.0)
    runner = FleetSimRunner([model, model])
    runner.run(schedule.closed_loop(Workload(Length.fixed(100), Length.fixed(20)), 4, 10, 500, 0, 0, hot=False))
    found = {name: column[-1] - column[0] for name, column in runner.readings().items()}
    assert found["prefix_hits"] == pytest.approx(found["prefix_queries"] / 2)
    assert found["energy_j"] == pytest.approx(2 * 100 * 10)
