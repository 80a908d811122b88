"""One server at a time, shared by those who want the same."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from pytest_gpucap.server.errors import ServerStartError
from pytest_gpucap.server.pool import ServerPool
from pytest_gpucap.server.spec import ServerSpec
from tests.server.server_family import TREE, Family

StandIn = Callable[..., ServerSpec]


def test_the_same_server_for_the_same_spec(stand_in: StandIn) -> None:
    with ServerPool() as pool:
        first = pool.get(stand_in(max_model_len=1))
        assert pool.get(stand_in(max_model_len=1)) is first
        assert pool.server is first
    assert pool.server is None
    assert not first.running


@pytest.mark.parametrize(("args", "devices"), [({"max_model_len": 2}, []), ({"max_model_len": 1}, ["0"])])
def test_another_spec_or_device_ends_the_first_fully(
    stand_in: StandIn, family: Family, args: dict[str, int], devices: list[str]
) -> None:
    released: list[set[int]] = []

    def wait_released(pids: set[int]) -> None:
        assert family.alive() == []  # the old one has ended, the new one has not begun
        released.append(pids)

    with ServerPool(wait_released=wait_released) as pool:
        first = pool.get(stand_in(max_model_len=1))
        pids = first.pids()
        second = pool.get(stand_in(**args), devices)
        assert second is not first
        assert not first.running
        assert released == [pids]
        assert len(family.alive()) == TREE + 1  # and its watchdog
    assert len(released) == 2
    assert family.alive() == []


def test_a_server_that_died_is_started_again(stand_in: StandIn, family: Family) -> None:
    with ServerPool() as pool:
        first = pool.get(stand_in())
        main = first._process.pid
        assert main is not None
        psutil.Process(main).kill()
        assert family.survivors() == []
        second = pool.get(stand_in())
        assert second is not first
        assert second.running


def test_a_failed_start_leaves_the_pool_empty(stand_in: StandIn, family: Family) -> None:
    with ServerPool() as pool:
        pool.get(stand_in())
        with pytest.raises(ServerStartError):
            pool.get(stand_in("die"))
        assert pool.server is None
        assert family.alive() == []
        assert pool.get(stand_in()).running
