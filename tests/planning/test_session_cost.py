"""What a session will cost, and what fits one whose time is limited: the arithmetic."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.planning.session_cost import (
    Basis,
    Need,
    ServerCost,
    SessionCost,
    TestCost,
    fits,
    server_cost,
    session_cost,
    unfit,
)
from pytest_gpucap.report.session_cost import cost_json, cost_lines

PRICES = Prices("USD", {"h200": Fraction("4.5")})


def of_server(
    gpu_class: str | None = "h200", *, gpus: int = 2, starts: int = 1, own: int = 0, times: int = 1
) -> ServerCost:
    tests = [
        TestCost(test="t.py::a", name="a", priority=0, measuring_s=60.0, measuring_from=Basis.EARLIER, own_starts=own),
        TestCost(test="t.py::b", name="b", priority=3, measuring_s=68.0, measuring_from=Basis.DEFAULT),
    ]
    return server_cost(
        server="vLLM m",
        gpu_class=gpu_class,
        gpus=gpus,
        shared_starts=starts,
        startup_s=100.0,
        startup_from=Basis.EARLIER,
        tests=tests,
        prices=PRICES,
        times=times,
    )


def of_session(*servers: ServerCost, workers: int = 1, limit_s: float | None = None, out: str = "") -> SessionCost:
    return session_cost(
        servers,
        skipped=2,
        workers=workers,
        prices=PRICES,
        limit_s=limit_s,
        unfit=[out] if out else [],
        sources=["a.json"],
        left_out=["b.json: not JSON"],
    )


def test_starts_and_measuring_make_the_server_time_and_gpus_and_prices_the_cost() -> None:
    found = of_server()
    assert (found.starts, found.server_s) == (1, 228.0)
    assert found.gpu_hours == pytest.approx(228 * 2 / 3600)
    assert found.cost == pytest.approx(228 * 2 / 3600 * 4.5)
    assert of_server(own=2).server_s == 428.0
    each = of_server(starts=3, own=1, times=3)  # every worker runs every test
    assert (each.starts, each.server_s) == (6, 600.0 + 3 * 128.0)


def test_a_class_without_a_price_is_named_and_a_simulated_one_has_none_to_miss() -> None:
    found = of_session(of_server(), of_server("a10g"), of_server("sim:fast"), of_server(None))
    assert found.unpriced == ("a10g", "unknown")
    assert found.cost == of_server().cost
    assert found.server_s == 4 * 228.0
    assert of_session(of_server("sim:fast")).cost is None


def test_the_text_tells_totals_defaults_and_what_does_not_fit() -> None:
    text = "\n".join(cost_lines(of_session(of_server(), limit_s=120.0, out="t.py::b"), 120))
    for told in (
        "vLLM m    2 x h200  1         100 s       128 s*       3.8               0.57",
        "  60 s t.py::a\n  68 s* t.py::b (priority 3, does NOT fit)",
        "total: 1 server, 1 start, 2 tests (2 skipped); 3.8 server minutes; 0.127 GPU hours; 0.57 USD",
        "--gpucap-max-total allows 2.0 minutes: 1 test will NOT be measured",
        "from the last results in a.json",
        "* a default, where no earlier result tells: 96 s for a start, 68 s for check(), 137 s for measure()",
        "left out: b.json: not JSON",
    ):
        assert told in text
    shared = "\n".join(cost_lines(of_session(of_server(starts=2), workers=2, limit_s=60.0), 200))
    assert "2 workers share the tests" in shared
    assert "at least 164 s" in shared
    assert "allows 1.0 minutes for each worker" in shared
    assert cost_lines(of_session()) == ["GPU capacity: estimate", "no server is needed (2 skipped)"]


def test_lines_fit_the_terminal() -> None:
    assert max(map(len, cost_lines(of_session(of_server(), limit_s=120.0, out="t.py::b"), 60))) <= 60


def test_the_document_has_every_figure() -> None:
    document = json.loads(cost_json(of_session(of_server())))
    assert (document["schema"], document["schema_version"]) == ("pytest-gpucap-estimate", 1)
    [server] = document["servers"]
    assert [test["measuring_from"] for test in server["tests"]] == ["earlier result", "default"]
    assert document["server_s"] == server["server_s"] == 228.0


def test_a_server_that_runs_needs_no_start() -> None:
    need = Need("one", startup_s=90.0, own_s=60.0)
    assert not fits(need, [], 149.0, None)
    assert fits(need, [], 150.0, None)
    assert fits(need, [], 60.0, "one")
    assert not fits(need, [], 60.0, "other")


def test_time_is_set_aside_for_what_is_more_important_and_comes_later() -> None:
    low, high = Need("one", 90.0, 60.0), Need("two", 90.0, 60.0, priority=1)
    assert not fits(low, [high], 299.0, None)
    assert fits(low, [high], 300.0, None)
    assert fits(high, [low], 150.0, None)
    assert fits(low, [Need("two", 90.0, 60.0)], 150.0, None)  # an equal sets nothing aside
    assert fits(low, [Need("two", 90.0, 600.0, priority=1)], 150.0, None)  # what cannot fit itself takes nothing
    assert fits(low, [Need("one", 90.0, 60.0, priority=1)], 210.0, None)  # both share the start


def test_what_does_not_fit_is_known_before() -> None:
    needs = [Need("one", 90.0, 60.0), Need("one", 90.0, 600.0), Need("one", 90.0, 20.0), Need("two", 90.0, 60.0)]
    assert unfit(needs, 170.0) == [1, 3]
    assert unfit(needs, 320.0) == [1]
    assert unfit(needs, 1000.0) == []
    assert unfit(needs, 10.0) == [0, 1, 2, 3]


NEEDS = st.lists(
    st.builds(Need, st.integers(0, 2), st.just(50.0), st.integers(1, 200).map(float), st.integers(-2, 2)), max_size=8
)


@given(NEEDS, st.integers(0, 600).map(float))
def test_what_fits_stays_within_the_limit_and_the_most_important_comes_first(needs: list[Need], limit_s: float) -> None:
    needs.sort(key=lambda need: str(need.server))  # tests of a server run one after the other
    out = unfit(needs, limit_s)
    running, spent_s = None, 0.0
    for place, need in enumerate(needs):
        if place not in out:
            spent_s += need.seconds({running})
            running = need.server
    assert spent_s <= limit_s
    most = max((need.priority for need in needs), default=0)
    first, *others = [place for place, need in enumerate(needs) if need.priority == most] or [0, 0]
    if not others:  # whatever comes before it, its own time is set aside
        assert (first in out) == (50.0 + needs[first].own_s > limit_s)
