"""Simulated fleets in virtual time: replicas are single servers, and routers do what they say."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pytest_gpucap.load.protocol import Journal, LoadError, OpenLoop, Status
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import MOST_REPLICAS, FleetSimRunner, Policy, replica_seed
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
COLUMNS = ("due_s", "first_s", "last_s", "end_s", "status", "prompt_tokens", "output_tokens", "hot", "tokens")


def assert_same(one: Journal, two: Journal) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_fleet_of_one_is_the_single_server(policy: Policy) -> None:
    for phase in (
        open_loop(FAST.workload, 25.0, 40.0, 1, 0),
        closed_loop(FAST.workload, 60, 30.0, 60.0, 1, 0),
    ):
        single, fleet = SimRunner(FAST.engine, replica_seed(3, 0)), FleetSimRunner([FAST.engine], policy, 3)
        spans = [single.run(phase), fleet.run(phase)]
        assert spans[0].end_row == spans[1].end_row
        np.testing.assert_array_equal(spans[0].gaps.counts, spans[1].gaps.counts)
        assert_same(single.journal(), fleet.journal())
        assert single.in_flight == fleet.in_flight > 0
        for runner in (single, fleet):
            assert runner.settle(100.0)
            # A single server may stop a poll earlier, before its last tokens are shown.
            none = np.empty(0, np.int32)
            runner.run(OpenLoop(100.0 - runner.clock.now(), np.empty(0), none, none))
        assert_same(single.journal(), fleet.journal())
        assert not fleet.replica.any()


@pytest.mark.parametrize("policy", ["round_robin", "random"])
def test_replicas_that_do_not_know_of_each_other_are_single_servers(policy: str) -> None:
    fleet = FleetSimRunner([FAST.engine] * 3, policy, 5)
    phase = open_loop(FAST.workload, 70.0, 40.0, 1, 0)
    fleet.run(phase)
    fleet.settle(100.0)
    journal, replica = fleet.journal(), fleet.replica
    if policy == "round_robin":
        np.testing.assert_array_equal(replica, np.arange(replica.size) % 3)
    for k in range(3):
        mine = replica == k
        alone = SimRunner(FAST.engine, replica_seed(5, k))
        alone.run(OpenLoop(40.0, phase.due_s[mine], phase.prompt_tokens[mine], phase.output_tokens[mine]))
        alone.settle(100.0)
        for name in ("due_s", "first_s", "last_s", "end_s"):
            np.testing.assert_array_equal(getattr(journal, name)[mine], getattr(alone.journal(), name))


def outstanding(journal: Journal, replica: np.ndarray, row: int, replicas: int) -> np.ndarray:
    """Requests of each replica before a row was handed out, from the journal alone."""
    open_then = (np.arange(row) >= 0) & ~(journal.end_s[:row] <= journal.due_s[row])
    return np.bincount(replica[:row][open_then], minlength=replicas)


@pytest.mark.parametrize("closed", [False, True])
def test_the_least_outstanding_replica_gets_the_request(closed: bool) -> None:
    fleet = FleetSimRunner([FAST.engine.scaled(1.5), FAST.engine, FAST.engine], "least_outstanding", 5)
    phase = closed_loop(FAST.workload, 90, 15.0, 90.0, 1, 0) if closed else open_loop(FAST.workload, 60.0, 15.0, 1, 0)
    fleet.run(phase)
    fleet.settle(100.0)
    journal, replica = fleet.journal(), fleet.replica
    for row in range(replica.size):
        counts = outstanding(journal, replica, row, 3)
        assert counts[replica[row]] == counts.min()
    # The slow one holds as many and so ends fewer.
    shares = np.bincount(replica, minlength=3) / replica.size
    assert shares[0] < 0.9 / 3


def test_the_better_of_two_gets_the_request() -> None:
    fleet = FleetSimRunner([FAST.engine] * 4, "power_of_two", 5)
    fleet.run(open_loop(FAST.workload, 90.0, 15.0, 1, 0))
    fleet.settle(100.0)
    journal, replica = fleet.journal(), fleet.replica
    never_the_worst = 0
    for row in range(replica.size):
        counts = outstanding(journal, replica, row, 4)
        # Only a replica that some other does not beat can win against one of them.
        assert (counts >= counts[replica[row]]).sum() >= 2
        never_the_worst += counts[replica[row]] == counts.min()
    assert never_the_worst > replica.size / 2


@pytest.mark.parametrize("policy", list(Policy))
def test_a_closed_loop_keeps_its_concurrency_over_the_fleet(policy: Policy) -> None:
    fleet = FleetSimRunner([FAST.engine] * 3, policy, 5)
    phase = closed_loop(FAST.workload, 50, 20.0, 90.0, 1, 0)
    span = fleet.run(phase)
    assert fleet.in_flight == 50 == sum(fleet.in_flight_of_replicas)
    journal = fleet.journal()
    ended = np.where(np.isnan(journal.end_s), np.inf, journal.end_s)
    for at in np.linspace(span.start_s + 1, span.end_s - 1, 40):
        assert ((journal.due_s <= at) & (ended > at)).sum() == 50
    assert (np.diff(journal.due_s) >= 0).all()
    assert set(fleet.replica) == {0, 1, 2}
    with pytest.raises(LoadError, match="ran out of rows"):
        fleet.run(closed_loop(FAST.workload, 60, 100.0, 1.0, 1, 1))


def test_what_is_cancelled_leaves_nothing_behind() -> None:
    fleet = FleetSimRunner([FAST.engine] * 2, "least_outstanding", 5)
    fleet.run(open_loop(FAST.workload, 50.0, 5.0, 1, 0))
    assert fleet.in_flight > 0
    assert fleet.settle(0.0, cancel=True)
    assert fleet.in_flight == 0
    journal = fleet.journal()
    assert set(journal.status) == {Status.OK, Status.CANCELLED}
    span = fleet.run(open_loop(FAST.workload, 10.0, 5.0, 1, 1))
    fleet.settle(50.0)
    journal = fleet.journal()
    assert (journal.status[span.first_row :] == Status.OK).all()
    assert journal.tokens.sum() >= journal.output_tokens[journal.status == Status.OK].sum()
    fleet.close()


def test_an_early_end_leaves_the_rows_that_were_not_due() -> None:
    fleet = FleetSimRunner([FAST.engine] * 2, "power_of_two", 5)
    span = fleet.run(open_loop(FAST.workload, 200.0, 60.0, 1, 0), lambda progress: progress.in_flight > 100)
    assert span.stopped
    assert span.end_s < 60.0
    journal = fleet.journal()
    assert journal.due_s.size == span.end_row
    assert (journal.due_s <= span.end_s).all()
    assert fleet.preemptions == 0


def test_limits_are_those_of_all_replicas() -> None:
    small = replace(FAST.engine, max_num_seqs=3, kv_tokens=2000)
    fleet = FleetSimRunner([FAST.engine, small], Policy.RANDOM)
    assert fleet.max_num_seqs == FAST.engine.max_num_seqs + 3
    assert fleet.kv_tokens == FAST.engine.kv_tokens + 2000
    assert fleet.max_num_batched_tokens == 2 * FAST.engine.max_num_batched_tokens
    rows = np.full(1, 1500, np.int32)
    with pytest.raises(LoadError, match="KV cache of 2000"):  # the router may send it to any of them
        fleet.run(OpenLoop(1.0, np.zeros(1), rows, rows))
    with pytest.raises(ValueError, match="not 0"):
        FleetSimRunner([])
    with pytest.raises(ValueError, match=str(MOST_REPLICAS)):
        FleetSimRunner([FAST.engine] * (MOST_REPLICAS + 1))
    with pytest.raises(ValueError, match="alike"):
        FleetSimRunner([FAST.engine, replace(FAST.engine, spec_tokens=3)])


def test_the_procedure_takes_a_fleet_for_one_server() -> None:
    fleet = FleetSimRunner([FAST.engine] * 2, "least_outstanding", 11)
    settings = Settings(600.0, 3, fleet.max_num_seqs, fleet.kv_tokens, fleet.max_num_batched_tokens)
    wanted = Requirement("x", Fraction(FAST.true_rate_rps), 1, Fraction(1), 1, FAST.workload, FAST.slo)
    verdict = check(fleet, wanted, settings)
    assert verdict.outcome.value == "PASS"  # half of what the fleet sustains
    assert fleet.in_flight == 0
