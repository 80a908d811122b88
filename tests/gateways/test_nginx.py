"""nginx before a simulated server: it adds nothing, holds tokens back, refuses requests, or lets them wait."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.url import attach
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.pace import in_lumps
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.gateways.gateways import SHORT_PHASES, nginx, vllm_router
from tests.plugin.inner import OWN_LEASE
from tests.waiting import FOREVER_S

SLOWLY = "limit_rate 16k;"
"""Of each answer: far less than the simulated server sends."""
LIMITED = "limit_req_zone $server_port zone=all:1m rate=8r/s;"


@pytest.fixture(scope="module")
def server(patience: None) -> Iterator[SimulatedServer]:
    with start_simulator("fast") as running:
        yield running


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases of a second or two, and a client that may be as late as the machine makes it."""
    for name in ("WARM_UP_S", "LOW_HOLD_S", "HOLD_S", "SEARCH_HOLD_S"):
        monkeypatch.setattr(constants, name, 1.5)
    for limit in ("LATENESS_FLOOR_S", "RATE_SHARE", "CPU_LIMIT"):
        monkeypatch.setattr(f"pytest_gpucap.load.self_check.{limit}", 1e6)


def wanted(**limits: str) -> Requirement:
    slo = Slo(tuple(LatencyLimit.parse(name, value) for name, value in limits.items()))
    return Requirement("x", Fraction(20), 1, Fraction(1), 1, Workload(Length.fixed(32), Length.fixed(32)), slo)


@pytest.mark.parametrize("gateway", ["buffering", "no buffering", "an old protocol", "vllm's router"])
def test_a_gateway_that_passes_tokens_on_leaves_them_their_pace(
    tmp_path: Path, server: SimulatedServer, gateway: str
) -> None:
    """nginx passes on what has come also while it buffers, as long as its client reads."""
    lines = {
        "buffering": "proxy_buffering on;",
        "no buffering": "proxy_http_version 1.1; proxy_buffering off;",
        "an old protocol": "proxy_http_version 1.0;",
    }
    before = (
        nginx(tmp_path / "nginx", server.base_url, location=lines[gateway])
        if gateway in lines
        else vllm_router(tmp_path / "router", server.base_url)
    )
    workload = wanted().workload
    with (
        before as url,
        attach(url) as behind,
        HttpLoadRunner(url, behind.model, None, workload, 1, workers=1) as runner,
    ):
        assert behind.capabilities().simulated
        span = runner.run(closed_loop(workload, 4, 1.0, 200.0, 1, 0))
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all(), runner.error_texts()
        assert runner.journal().status.size >= 4
    assert not in_lumps(span)


@pytest.mark.usefixtures("short")
def test_a_gateway_that_lets_tokens_through_in_lumps_is_named(tmp_path: Path, server: SimulatedServer) -> None:
    with nginx(tmp_path / "nginx", server.base_url, location=SLOWLY) as url:
        requirement = wanted(itl_p99="100ms")
        with HttpLoadRunner(url, server.model, None, requirement.workload, 1, workers=1) as runner:
            verdict = check(runner, requirement, Settings(max_time_s=60.0))
        assert verdict.outcome is Outcome.INVALID
        assert "itl_p99 cannot be judged: tokens arrive in lumps: does a proxy buffer or throttle" in verdict.reason
        assert [problem.kind for problem in verdict.measurement.problems] == [ProblemKind.NO_PACE]


def result_through(pytester: pytest.Pytester, url: str, *options: str) -> dict[str, Any]:
    """The result of a check of 40 requests a second through a gateway."""
    pytester.makeconftest(OWN_LEASE + SHORT_PHASES)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=40, headroom=1, input_tokens=32, output_tokens=8, e2e_p95="2s")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    pytester.runpytest(f"--gpucap-url={url}", *options)
    (found,) = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    return dict(found)


def verdict_through(pytester: pytest.Pytester, server: SimulatedServer, url: str) -> dict[str, Any]:
    """The result of the check, with the engine's metrics beside it."""
    return result_through(pytester, url, f"--gpucap-metrics-url={server.root_url}/metrics")


@pytest.mark.slow
def test_requests_that_wait_in_the_gateway_are_its_limit(
    pytester: pytest.Pytester, tmp_path: Path, server: SimulatedServer
) -> None:
    """The simulated server would carry the rate many times over."""
    with nginx(tmp_path / "nginx", server.base_url, http=LIMITED, chat="limit_req zone=all burst=2000;") as url:
        found = verdict_through(pytester, server, url)
        root = url.removesuffix("/v1")
    assert found["outcome"] == "FAIL", found["reason"]
    assert found["bottleneck"]["kind"] == "gateway"
    assert any(f"in the gateway at {root}" in clause for clause in found["bottleneck"]["evidence"])


@pytest.mark.slow
def test_a_gateway_in_which_everything_waits_is_busy_and_not_dead(
    pytester: pytest.Pytester, tmp_path: Path, server: SimulatedServer
) -> None:
    """Looks at /v1/models wait as long as the load does, and nothing is known of the engine behind it."""
    with nginx(tmp_path / "nginx", server.base_url, http=LIMITED, location="limit_req zone=all burst=2000;") as url:
        found = result_through(pytester, url, "--gpucap-max-time=20s")
    assert found["samples"]
    assert not [problem for problem in found["problems"] if problem["source"] == "server"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "outcome", "said"),
    [
        ("429", "INVALID", "HTTP 429 .*raise the rate limit, or measure behind the gateway"),
        ("503", "FAIL", "HTTP 503 "),
    ],
)
def test_requests_that_the_gateway_refuses_are_its_limit(
    pytester: pytest.Pytester, tmp_path: Path, server: SimulatedServer, status: str, outcome: str, said: str
) -> None:
    limit = f"limit_req zone=all burst=20 nodelay; limit_req_status {status};"
    with nginx(tmp_path / "nginx", server.base_url, http=LIMITED, chat=limit) as url:
        found = verdict_through(pytester, server, url)
    assert found["outcome"] == outcome, found["reason"]
    assert re.search(said, found["reason"]), found["reason"]
    assert found["bottleneck"]["kind"] == "gateway"
    assert any(f"HTTP {status}" in clause for clause in found["bottleneck"]["evidence"])
