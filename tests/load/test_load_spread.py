"""One load over several replicas: who gets what, and what the journal says of it."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_gpucap.load.protocol import LoadError, Progress, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.spread import Spread, next_replica
from pytest_gpucap.requirement import Length, Workload
from tests.load.tokenserver import TokenServer

WORKLOAD = Workload(Length.fixed(40), Length.fixed(4))
FOREVER_S = 600.0


def test_round_robin_takes_each_in_turn_whatever_is_in_flight() -> None:
    assert [next_replica(Spread.ROUND_ROBIN, number, [9, 0, 0]) for number in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_takes_the_idlest_and_turns_among_equals() -> None:
    assert next_replica(Spread.LEAST_OUTSTANDING, 0, [3, 1, 2]) == 1
    assert [next_replica(Spread.LEAST_OUTSTANDING, number, [0, 0, 5]) for number in range(4)] == [0, 1, 0, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_open_loop_goes_round_and_its_turn_goes_on_in_the_next_phase(workers: int) -> None:
    servers = [TokenServer() for _ in range(3)]
    with servers[0], servers[1], servers[2]:
        first, *others = (server.url for server in servers)
        with HttpLoadRunner(first, "m", None, WORKLOAD, 1, workers=workers, beside=others) as runner:
            sent, probes = 0, len(servers[0].seen.bodies)
            for number in range(2):
                runner.prepare()
                probes = max(probes, len(servers[0].seen.bodies)) if number == 0 else probes
                # 50 is no multiple of 3.
                phase = open_loop(WORKLOAD, 500.0, 0.1, 1, number, first_prompt=sent)
                runner.run(phase)
                assert runner.settle(FOREVER_S)
                sent += phase.prompt_tokens.size
            journal = runner.journal()
    assert (journal.status == Status.OK).all()
    assert journal.replica is not None
    counts = np.bincount(journal.replica, minlength=3)
    assert counts.max() - counts.min() <= 1
    assert [len(server.seen.bodies) - (probes if place == 0 else 0) for place, server in enumerate(servers)] == list(
        counts
    )


def test_a_closed_loop_keeps_its_concurrency_over_all_replicas() -> None:
    with (
        TokenServer(gap_s=0.01) as one,
        TokenServer(gap_s=0.01) as two,
        HttpLoadRunner(one.url, "m", None, WORKLOAD, 1, workers=1, beside=[two.url]) as runner,
    ):
        highest = 0

        def enough(progress: Progress) -> bool:
            nonlocal highest
            highest = max(highest, progress.in_flight)
            return progress.completed > 60

        runner.run(closed_loop(WORKLOAD, 8, FOREVER_S, 500.0, 1, 0), enough)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert highest == 8
    assert journal.replica is not None
    assert abs(np.diff(np.bincount(journal.replica))[0]) <= 1


def test_the_idlest_replica_gets_more_where_another_is_slow() -> None:
    with (
        TokenServer(gap_s=0.2) as slow,
        TokenServer() as fast,
        HttpLoadRunner(
            slow.url, "m", None, WORKLOAD, 1, workers=1, beside=[fast.url], spread=Spread.LEAST_OUTSTANDING
        ) as runner,
    ):
        runner.run(closed_loop(WORKLOAD, 4, FOREVER_S, 500.0, 1, 0), lambda progress: progress.completed > 100)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert journal.replica is not None
    counts = np.bincount(journal.replica)
    assert counts[1] > 3 * counts[0], counts


def test_a_kept_connection_that_the_server_closed_is_replaced_at_the_same_replica() -> None:
    """Connections that were idle while the server closed them are found broken only by the next request."""
    with (
        TokenServer() as one,
        TokenServer() as two,
        HttpLoadRunner(one.url, "m", None, WORKLOAD, 1, workers=1, beside=[two.url]) as runner,
    ):
        sent = 0
        for number in range(2):
            phase = open_loop(WORKLOAD, 200.0, 0.2, 1, number, first_prompt=sent)
            sent += phase.prompt_tokens.size
            runner.run(phase)
            assert runner.settle(FOREVER_S)
            if number == 0:
                assert one.drop_connections()
        journal = runner.journal()
    assert (journal.status == Status.OK).all()
    assert journal.replica is not None
    assert abs(np.diff(np.bincount(journal.replica))[0]) <= 1


def test_one_server_has_no_column_of_replicas() -> None:
    with TokenServer() as server, HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner:
        runner.run(open_loop(WORKLOAD, 100.0, 0.1, 1, 0))
        assert runner.settle(FOREVER_S)
        assert runner.journal().replica is None


def test_a_fleet_behind_tls_is_refused() -> None:
    with pytest.raises(LoadError, match="a fleet whose requests need TLS cannot be measured"):
        HttpLoadRunner("http://127.0.0.1:1/v1", "m", None, WORKLOAD, 1, beside=["https://127.0.0.1:2/v1"])
