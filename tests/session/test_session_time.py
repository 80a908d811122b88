"""Server time of a session, and what its limit leaves."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_gpucap.errors import NotMeasured
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.session.session_time import SessionTime


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def now(self) -> float:
        return self.now_s


def runner(clock: Hand, *, simulated: bool) -> LoadRunner:
    return cast("LoadRunner", SimpleNamespace(clock=clock, simulated=simulated))


def test_real_servers_are_counted_from_start_to_end_and_two_beside_each_other_once() -> None:
    clock = Hand()
    spent = SessionTime(100.0, clock)
    clock.now_s += 500.0  # no server
    spent.begin()
    clock.now_s += 20.0
    assert (spent.spent_s, spent.left_s) == (20.0, 80.0)
    spent.begin()
    clock.now_s += 10.0
    spent.end()
    clock.now_s += 5.0
    spent.end()
    clock.now_s += 500.0
    assert (spent.spent_s, spent.left_s) == (35.0, 65.0)
    spent.begin()
    clock.now_s += 200.0
    assert spent.left_s == 0.0


@pytest.mark.parametrize(("simulated", "counted_s"), [(True, 60.0), (False, 0.0)])
def test_of_a_simulated_server_virtual_time_is_counted(simulated: bool, counted_s: float) -> None:
    virtual, spent = Hand(), SessionTime(100.0, Hand())
    with spent.driving(runner(virtual, simulated=simulated)):
        virtual.now_s += 60.0
    assert spent.spent_s == counted_s


def test_without_a_limit_any_time_is_left() -> None:
    spent, told = SessionTime(None), list[str]()
    assert spent.still("chat was not measured") == math.inf
    assert spent.while_left(told.append, "late") == told.append


def test_what_does_not_begin_says_what_is_left_and_what_it_needs() -> None:
    clock = Hand()
    spent = SessionTime(600.0, clock)
    spent.begin()
    clock.now_s += 570.0
    assert spent.still("chat was not measured") == 30.0
    clock.now_s += 27.0
    with pytest.raises(NotMeasured, match=r"^chat was not measured: --gpucap-max-total=10m leaves 3 s of server") as e:
        spent.still("chat was not measured", 68.0)
    assert e.value.needs_s == 68.0


def test_a_wait_ends_with_the_time() -> None:
    clock, told = Hand(), list[str]()
    spent = SessionTime(90.0, clock)
    spent.begin()
    waiting = spent.while_left(told.append, "the server was not ready in time")
    waiting("loading")
    clock.now_s += 91.0
    with pytest.raises(NotMeasured, match=r"not ready in time: --gpucap-max-total=90s leaves 0 ms of server time$"):
        waiting("loading")
    assert told == ["loading"]
