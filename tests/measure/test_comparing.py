"""Base against head in alternation, on simulated servers that share a machine and its drift."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import LoadError, LoadPhase, OpenLoop, Status
from pytest_gpucap.measure.comparing import Paired, PairedServer, compare, concurrency_of, describe
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.roofline.served import hardware_of
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.machine import Machine, SharedRunner
from pytest_gpucap.simulator.profile import EngineModel

THROTTLED = Problem(ProblemSource.GPU, ProblemKind.SLOWED_DOWN, "the GPU was throttled")

PROFILE = profiles.load("fast")
DRIFTING = replace(PROFILE.engine, drift_sd=0.05, drift_tau_s=600.0)
"""Twenty minutes of this machine differ by more than any regression looked for."""


def requirement(qps: float = 20.0) -> Requirement:
    return Requirement("chat", Fraction(qps), gpus=1, headroom=Fraction(1), workload=PROFILE.workload, slo=PROFILE.slo)


def servers(
    base: EngineModel, head: EngineModel, seed: int = 0, max_time_s: float = 600.0
) -> tuple[PairedServer, PairedServer]:
    machine = Machine()
    return tuple(  # type: ignore[return-value]
        PairedServer(
            SharedRunner(engine, machine, 2 * seed + number),
            Settings(max_time_s, seed, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens),
        )
        for number, engine in enumerate((base, head))
    )


def compared(base: EngineModel, head: EngineModel, seed: int = 0) -> Paired:
    return compare(*servers(base, head, seed), requirement(), 0.05)


@pytest.mark.parametrize(
    ("head", "change"),
    [
        (DRIFTING, RegressionDecision.SAME),
        (DRIFTING.scaled(1.08), RegressionDecision.REGRESSED),
        (DRIFTING.scaled(0.9), RegressionDecision.IMPROVED),
        (replace(DRIFTING, max_num_seqs=80), RegressionDecision.REGRESSED),
        (replace(DRIFTING, per_prompt_token_s=4 * DRIFTING.per_prompt_token_s), RegressionDecision.REGRESSED),
    ],
    ids=["identical", "8% slower", "10% faster", "fewer sequences", "slow prefill"],
)
def test_what_differs_is_found_whatever_the_machine_does(head: EngineModel, change: RegressionDecision) -> None:
    found = [compared(DRIFTING, head, seed) for seed in range(3)]
    assert [each.change for each in found] == [change] * 3
    for each in found:
        assert each.ratio is not None
        assert each.ratio.low < each.ratio.value < each.ratio.high
        assert each.about.simulated
        assert each.problems == ()
        assert each.about.spent_s < 200


def test_the_ratio_is_that_of_the_sustainable_rates() -> None:
    # 5% longer steps cost 8.0% of this profile's sustainable rate, from long simulated runs (`simulator.truth`).
    ratios = [
        found.ratio.value for seed in range(4) if (found := compared(DRIFTING, DRIFTING.scaled(1.05), seed)).ratio
    ]
    assert float(np.mean(ratios)) == pytest.approx(0.920, abs=0.02)


def test_rates_belong_together() -> None:
    found = compared(PROFILE.engine, PROFILE.engine.scaled(1.1))
    assert found.head_rate is not None
    assert found.base_rate is not None
    assert found.ratio is not None
    assert found.head_rate.value / found.base_rate.value == pytest.approx(found.ratio.value)
    assert found.base_rate.low < PROFILE.true_rate_rps < found.base_rate.high
    # A rate that is known better is taken, one that is known worse is not.
    exact, vague = Interval(22.0, 21.9, 22.1), Interval(40.0, 20.0, 60.0)
    engines = PROFILE.engine, PROFILE.engine.scaled(1.1)
    assert compare(*servers(*engines), requirement(), 0.05, exact).head_rate == exact
    assert compare(*servers(*engines), requirement(), 0.05, vague).head_rate != vague


def test_both_are_sent_the_same_requests_in_balanced_order_and_left_idle() -> None:
    sent: list[tuple[str, LoadPhase]] = []

    class Recording(SharedRunner):
        name = ""

        def run(self, phase, should_stop=None):  # type: ignore[no-untyped-def]
            # Only the open loop at the equal rate goes on where it was.
            assert self.in_flight == 0 or (isinstance(phase, OpenLoop) and isinstance(sent[-1][1], OpenLoop))
            sent.append((self.name, phase))
            return super().run(phase, should_stop)

    machine = Machine()
    both = []
    for name in ("base", "head"):
        runner = Recording(PROFILE.engine, machine, seed=3)
        runner.name = name
        both.append(PairedServer(runner, Settings(max_num_seqs=256)))
    found = compare(both[0], both[1], requirement(), 0.05)
    order = [name for name, _ in sent]
    assert order[:2] == ["base", "head"]
    blocks, equal_rate = order[2 : 2 + 2 * len(found.pairs)], order[2 + 2 * len(found.pairs) :]
    assert equal_rate == ["base", "base", "head", "head"]
    assert len(blocks) == 2 * len(found.pairs)
    assert blocks == (["base", "head", "head", "base"] * len(blocks))[: len(blocks)]
    by_side = {name: [phase for each, phase in sent if each == name] for name in ("base", "head")}
    for one, other in zip(by_side["base"], by_side["head"], strict=True):
        assert one.prompt_tokens.tolist() == other.prompt_tokens.tolist()
        assert one.first_prompt == other.first_prompt
        assert isinstance(one, OpenLoop) == isinstance(other, OpenLoop)
        if isinstance(one, OpenLoop) and isinstance(other, OpenLoop):
            assert one.due_s.tolist() == other.due_s.tolist()
    for server in both:
        assert (server.runner.journal().status != Status.IN_FLIGHT).all()


def test_latencies_are_looked_at_under_an_equal_rate_below_both_capacities() -> None:
    found = compared(PROFILE.engine, PROFILE.engine.scaled(1.1))
    assert found.equal_rate is not None
    assert found.head_rate is not None
    assert found.equal_rate.problem == ""
    for windows in (found.equal_rate.base, found.equal_rate.head):
        assert [window.window for window in windows] == [
            WindowId(Phase.EQUAL_RATE, number).part(part, 3) for number in (1, 2) for part in (1, 2, 3)
        ]
        assert np.mean([w.offered_rps for w in windows]) == pytest.approx(0.8 * found.head_rate.value, rel=0.15)
        # A request is a while in flight: windows that counted from the first arrival on would have fewer.
        in_flight = [window.in_flight_mean for window in windows]
        assert in_flight[0] > 0.7 * max(in_flight)
    p95 = [
        [window.latencies["e2e"].p95_s for window in server]
        for server in (found.equal_rate.base, found.equal_rate.head)
    ]
    assert 1.05 < float(np.mean(p95[1]) / np.mean(p95[0])) < 1.35
    assert found.about.alternated_s < found.about.spent_s


def test_latencies_cost_nothing_where_nobody_wants_them_or_time_is_short() -> None:
    unasked = compare(*servers(PROFILE.engine, PROFILE.engine.scaled(1.1)), requirement(), 0.05, latencies_after=())
    assert unasked.change is RegressionDecision.REGRESSED
    assert unasked.equal_rate is None
    assert unasked.about.alternated_s == unasked.about.spent_s
    hurried = compare(*servers(PROFILE.engine, PROFILE.engine, max_time_s=100.0), requirement(), 0.05)
    assert hurried.change is RegressionDecision.SAME
    assert hurried.equal_rate is not None
    assert (hurried.equal_rate.base, hurried.equal_rate.head) == ((), ())
    assert hurried.equal_rate.problem.startswith("open loops on both take ")
    assert hurried.about.alternated_s == hurried.about.spent_s <= 100


def test_time_that_ends_between_the_open_loops_at_the_equal_rate_spoils_no_decision() -> None:
    """Ending what is in flight may take long, which nobody knows before."""
    engines = PROFILE.engine, PROFILE.engine.scaled(1.1)
    plain = compare(*servers(*engines), requirement(), 0.05)
    looped = False

    class Lingering(SharedRunner):
        def run(self, phase, should_stop=None):  # type: ignore[no-untyped-def]
            nonlocal looped
            looped = looped or isinstance(phase, OpenLoop)
            return super().run(phase, should_stop)

        def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
            done = super().settle(timeout_s, cancel=cancel)
            if looped:
                super().run(schedule.closed_loop(PROFILE.workload, 1, 600.0, 500.0, 5, 0))
                super().settle(timeout_s, cancel=True)
            return done

    machine = Machine()
    base, head = (
        replace(server, runner=Lingering(engine, machine, number))
        for number, (server, engine) in enumerate(zip(servers(*engines), engines, strict=True))
    )
    found = compare(base, head, requirement(), 0.05)
    assert (found.change, found.problems) == (plain.change, ())
    assert found.equal_rate is not None
    assert found.equal_rate.problem.startswith("head: the time limit left no room for an open loop at ")


def test_what_spoils_the_equal_rate_spoils_no_decision() -> None:
    engines = PROFILE.engine, PROFILE.engine.scaled(1.1)
    plain = compare(*servers(*engines), requirement(), 0.05)
    base, head = servers(*engines)
    decided_s = plain.about.alternated_s
    throttled = replace(head.settings, trust=lambda start, _end: [THROTTLED] if start > decided_s else [])
    found = compare(base, replace(head, settings=throttled), requirement(), 0.05)
    assert (found.change, found.ratio, found.problems) == (plain.change, plain.ratio, ())
    assert found.equal_rate is not None
    assert (found.equal_rate.base, found.equal_rate.head) == ((), ())
    assert found.equal_rate.problem == "head: the GPU was throttled"


def roofline(gpu_class: str) -> Roofline:
    config = architecture("synthetic:qwen2-1.5b").config
    hardware = hardware_of(find_class(gpu_class))
    assert hardware is not None
    return Roofline(model_of(config), precision_of(config), hardware, PROFILE.workload)


def test_no_side_may_be_faster_than_physics() -> None:
    # This engine hands out 15,000 tokens a second with 70 in flight: more than a T4 can, less than an H200.
    base, head = (replace(server, roofline=roofline("h200")) for server in servers(PROFILE.engine, PROFILE.engine))
    possible = compare(base, head, requirement(), 0.05)
    assert (possible.change, possible.problems) == (RegressionDecision.SAME, ())
    base, head = servers(PROFILE.engine, PROFILE.engine)
    found = compare(base, replace(head, roofline=roofline("t4")), requirement(), 0.05)
    [problem] = found.problems
    assert problem.text.startswith("head: ")
    assert "limit of" in problem.text
    assert problem.kind is ProblemKind.IMPOSSIBLE
    assert found.ratio is None
    base, head = servers(PROFILE.engine, PROFILE.engine)
    found = compare(replace(base, roofline=roofline("t4")), head, requirement(), 0.05)
    assert found.problems[0].text.startswith("base: ")


def test_time_that_ends_early_says_so() -> None:
    found = compare(*servers(DRIFTING, DRIFTING, max_time_s=50.0), requirement(), 0.05)
    assert found.change is RegressionDecision.INCONCLUSIVE
    assert found.ratio is None
    assert describe(found, 0.05) == "only 0 pairs of blocks fitted the time"


def test_an_undecided_ratio_says_what_would_settle_it() -> None:
    noisy = replace(PROFILE.engine, noise=0.0, stall_per_s=0.5, stall_s=0.8)
    found = compare(*servers(noisy, noisy.scaled(1.015), seed=2), requirement(), 0.05, most_pairs=4)
    assert found.change is RegressionDecision.INCONCLUSIVE
    assert found.ratio is not None
    assert "would settle it" in describe(found, 0.05) or "too near" in describe(found, 0.05)
    assert (found.more_pairs is None) == (found.more_s is None)


def test_a_server_that_fails_spoils_the_comparison() -> None:
    class Failing(SharedRunner):
        def run(self, phase, should_stop=None):  # type: ignore[no-untyped-def]
            if self.clock.time_s > 40:
                raise LoadError("the server is gone")
            return super().run(phase, should_stop)

    machine = Machine()
    base = PairedServer(SharedRunner(PROFILE.engine, machine), Settings(max_num_seqs=256))
    head = PairedServer(Failing(PROFILE.engine, machine, seed=1), Settings(max_num_seqs=256))
    found = compare(base, head, requirement(), 0.05)
    assert [problem.text for problem in found.problems] == ["the server is gone"]
    assert found.change is RegressionDecision.INCONCLUSIVE
    assert describe(found, 0.05) == "base and head could not be compared: the server is gone"


def test_what_cannot_be_trusted_on_one_side_is_a_problem_of_both() -> None:
    base, head = servers(PROFILE.engine, PROFILE.engine)
    distrusted = replace(head, settings=replace(head.settings, trust=lambda _start, _end: [THROTTLED]))
    found = compare(base, distrusted, requirement(), 0.05)
    assert found.problems == (Problem(THROTTLED.source, THROTTLED.kind, "head: the GPU was throttled"),)
    assert found.ratio is None


def test_a_head_that_lost_most_of_its_capacity_is_held_where_the_base_can_show_its_own() -> None:
    base, head = servers(PROFILE.engine, replace(PROFILE.engine, max_num_seqs=8))
    few = concurrency_of(requirement(), base, head, Interval(2.0, 1.9, 2.1))
    assert few == concurrency_of(requirement(), base, base, None)
    assert few > 8


def test_a_shared_machine_has_one_clock_and_one_drift() -> None:
    machine = Machine()
    noiseless = replace(PROFILE.engine, noise=0.0, stall_per_s=0.0, drift_sd=0.2, drift_tau_s=1e6, warm_extra=0.0)
    one, other = (SharedRunner(noiseless, machine, seed) for seed in (1, 2))
    delivered = []
    for runner in (one, other, one):
        span = runner.run(schedule.closed_loop(PROFILE.workload, 64, 20.0, 500.0, 5, 0))
        assert runner.clock.now() == one.clock.now() == span.end_s
        runner.settle(1.0, cancel=True)
        journal = runner.journal()
        edges = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size)
        delivered.append(journal.tokens[(edges > span.start_s + 5) & (edges < span.end_s - 1)].mean())
    # A drift of 20%, and both have the same: the second one's own would have put them apart.
    assert delivered[1] == pytest.approx(delivered[0], rel=0.02)
    assert delivered[2] == pytest.approx(delivered[0], rel=0.02)
    lone = SharedRunner(noiseless, Machine(), 2)
    span = lone.run(schedule.closed_loop(PROFILE.workload, 64, 20.0, 500.0, 5, 0))
    assert abs(math.log(lone.journal().tokens[60:190].mean() / delivered[0])) > 0.05
