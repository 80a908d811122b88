"""Servers whose answers show no pace, and phases in which requests fail: judged by what was seen, or INVALID."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from aiohttp import web

from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from tests.load.tokenserver import TokenServer

SHORT = {
    "WARM_UP_S": 0.5,
    "LOW_HOLD_S": 0.4,
    "HOLD_S": 0.4,
    "OPEN_S": 1.0,
    "LEAST_PHASE_S": 0.1,
    "DIRECT_LEAST_S": 1.6,
    "DIRECT_S": 1.6,
    "NONE_SEEN": 0.05,
    "SEARCH_HOLD_S": 0.4,
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, patience: None) -> Iterator[None]:
    """Phases of a second, and a client that may be as late as the machine makes it."""
    for name, value in SHORT.items():
        monkeypatch.setattr(constants, name, value)
    for limit in ("LATENESS_FLOOR_S", "RATE_SHARE", "CPU_LIMIT"):
        monkeypatch.setattr(f"pytest_gpucap.load.self_check.{limit}", 1e6)
    return iter(())


def slo(**limits: str) -> Slo:
    return Slo(tuple(LatencyLimit.parse(name, value) for name, value in limits.items()))


def workload(tokens: int) -> Workload:
    return Workload(Length.fixed(32), Length.fixed(tokens))


def wanted(tokens: int, qps: str = "10", **limits: str) -> Requirement:
    return Requirement("x", Fraction(qps), 1, Fraction(1), 1, workload(tokens), slo(**limits))


def refusing(status: int, text: str, after: int = 0) -> dict[str, Any]:
    """A server that refuses streamed requests from the `after`-th on, and answers probes."""
    seen = 0
    honest: list[TokenServer] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        if (await request.json()).get("stream"):
            seen += 1
            if seen > after:
                return web.json_response({"error": {"message": text}}, status=status)
        if not honest:
            honest.append(TokenServer())  # not started: it only lends its answers
        return await honest[0]._answer(request)

    return {"handler": answer}


def in_lumps(events: int, pause_s: float) -> dict[str, Any]:
    """A gateway's stream: so many events at once, a pause, and so on. Probes are answered well."""
    honest: list[TokenServer] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if not honest:
            honest.append(TokenServer())  # not started: it only lends its answers
        body = await request.json()
        if not body.get("stream"):
            return await honest[0]._answer(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        asked = int(body.get("max_completion_tokens") or body["max_tokens"])
        for first in range(0, asked, events):
            lump = [{"choices": [{"index": 0, "delta": {"content": " t"}}]} for _ in range(min(events, asked - first))]
            if first + events >= asked:
                lump[-1]["choices"][0]["finish_reason"] = "length"
            await response.write(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in lump))
            await asyncio.sleep(pause_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    return {"handler": answer}


@dataclass(frozen=True)
class Situation:
    """What a server does, what is asked of it, and the right outcome."""

    name: str
    tokens: int
    outcomes: set[Outcome]
    words: str
    server: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)


SITUATIONS = [
    Situation("one token, in time", 1, {Outcome.PASS}, "answers of one token have no pace", {}, {"e2e_p50": "20s"}),
    Situation("one token, no limit", 1, {Outcome.PASS}, "kept every limit"),
    Situation("one token, too late", 1, {Outcome.FAIL}, "broke e2e_p50", {"ttft_s": 0.3}, {"e2e_p50": "100ms"}),
    Situation("buffered, in time", 16, {Outcome.PASS}, "does a proxy buffer the stream?", {}, {"e2e_p50": "20s"}),
    Situation("buffered, first token in time", 16, {Outcome.PASS}, "proxy", {}, {"ttft_p50": "20s"}),
    Situation(
        "buffered, first token late", 16, {Outcome.INVALID}, "ttft_p50 cannot", {"ttft_s": 0.3}, {"ttft_p50": "100ms"}
    ),
    Situation("buffered, a pace is limited", 16, {Outcome.INVALID}, "tpot_p95 cannot", {}, {"tpot_p95": "50ms"}),
    Situation("buffered, gaps are limited", 16, {Outcome.INVALID}, "itl_p99 cannot", {}, {"itl_p99": "50ms"}),
    Situation(
        "in lumps, in time", 32, {Outcome.PASS}, "or throttle the stream?", in_lumps(8, 0.06), {"e2e_p50": "20s"}
    ),
    Situation("in lumps, gaps are limited", 32, {Outcome.INVALID}, "in lumps", in_lumps(8, 0.06), {"itl_p99": "90ms"}),
    # A refusal by a client's or a gateway's fault may be INVALID; it is never a pass, and never a crash.
    Situation("all refused", 4, {Outcome.FAIL, Outcome.INVALID}, "failed", refusing(400, "context too long")),
    Situation("refused beyond a rate", 4, {Outcome.FAIL, Outcome.INVALID}, "failed", refusing(429, "slow down", 60)),
    Situation("all fail", 4, {Outcome.FAIL}, "failed", refusing(500, "out of memory")),
]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.name)
def test_what_was_seen_decides(situation: Situation) -> None:
    with TokenServer(**situation.server) as server:
        requirement = wanted(situation.tokens, **situation.limits)
        with HttpLoadRunner(server.url, "m", None, requirement.workload, 1, workers=1) as runner:
            verdict = check(runner, requirement, Settings(max_time_s=60.0))
    assert verdict.outcome in situation.outcomes, verdict.reason
    assert situation.words in verdict.reason
    assert verdict.measurement.sustainable_rate is None
    if verdict.outcome is Outcome.PASS:
        assert verdict.measurement.at_least_rps == 10.0


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("tokens", "server", "kind", "words"),
    [
        (1, {}, None, "answers of one token have no pace"),
        (16, {}, ProblemKind.NO_PACE, "does a proxy buffer the stream?"),
        (4, refusing(503, "overloaded"), ProblemKind.FAILED_REQUESTS, "failed"),
    ],
    ids=["one token", "buffered", "all fail"],
)
def test_a_measurement_without_a_rate_says_why(
    tokens: int, server: dict[str, Any], kind: ProblemKind | None, words: str
) -> None:
    with TokenServer(**server) as running:
        requirement = wanted(tokens)
        with HttpLoadRunner(running.url, "m", None, requirement.workload, 1, workers=1) as runner:
            found = measure(runner, requirement, Settings(max_time_s=60.0))
    assert found.sustainable_rate is None
    assert [problem.kind for problem in found.problems] == ([kind] if kind else [])
    assert words in "".join([found.reason, *(problem.text for problem in found.problems)])


def test_a_stopped_stream_of_errors_does_not_hide_behind_a_busy_client() -> None:
    """In virtual time: half of the requests fail from the start, and the phase ends inside its discarded lead."""
    profile = profiles.load("fast")
    requirement = Requirement("x", Fraction(10), 1, Fraction(1), 1, profile.workload, profile.slo)
    verdict = check(SimRunner(profile.engine, 1, error_rate=0.9), requirement, Settings())
    assert verdict.outcome is Outcome.FAIL
    assert "failed" in verdict.reason
    found = measure(SimRunner(profile.engine, 1, error_rate=0.9), requirement, Settings())
    assert [problem.kind for problem in found.problems] == [ProblemKind.FAILED_REQUESTS]


def test_many_errors_that_are_allowed_do_not_end_a_measurement() -> None:
    profile = profiles.load("fast")
    allowed = Slo(profile.slo.limits, max_error_rate=Fraction(9, 10))
    requirement = Requirement("x", Fraction(5), 1, Fraction(1), 1, profile.workload, allowed)
    verdict = check(SimRunner(profile.engine, 1, error_rate=0.6), requirement, Settings())
    assert "requests failed" not in verdict.reason


@pytest.mark.parametrize(("limit", "outcome"), [("20s", Outcome.PASS), ("1ms", Outcome.FAIL)])
def test_one_token_on_a_simulated_server(limit: str, outcome: Outcome) -> None:
    profile = profiles.load("fast")
    requirement = wanted(1, "5", e2e_p95=limit)
    verdict = check(SimRunner(profile.engine, 1), requirement, Settings())
    assert verdict.outcome is outcome, verdict.reason
    assert verdict.gpus_required is None
    assert verdict.measurement.at_least_rps == (5.0 if outcome is Outcome.PASS else None)


class Rates(SilentObserver):
    """Remembers the rates of open loops."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def phase(
        self, label: str, *, rate_rps: float | None, concurrency: int | None, duration_s: float, spent_s: float
    ) -> None:
        self.seen += [rate_rps] if rate_rps else []


@pytest.mark.parametrize("qps", ["200000", "5000000"])
def test_a_design_rate_far_beyond_the_server_is_not_sent(qps: str) -> None:
    """It would overload the client too, and so end as INVALID."""
    profile = profiles.load("fast")
    rates = Rates()
    verdict = check(SimRunner(profile.engine, 1), wanted(1, qps, e2e_p95="20s"), Settings(), rates)
    assert verdict.outcome is Outcome.FAIL, verdict.reason
    assert f"far below the design rate of {float(qps):.3g} req/s, overloaded the server" in verdict.reason
    assert rates.seen
    assert max(rates.seen) <= float(qps) / constants.DIRECT_STEP


@pytest.mark.usefixtures("short")
def test_a_server_that_keeps_far_more_than_it_showed_first_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold of few requests shows little of what a server can do."""
    # So short a run begins with few requests in flight, and ends with more.
    for name, value in {"FIRST_HOLD": 2, "LOW_HOLD_S": 1.1, "DIRECT_STEP_S": 0.5, "GROWTH_T": 1e6}.items():
        monkeypatch.setattr(constants, name, value)
    rates = Rates()
    with TokenServer(ttft_s=0.5) as server:
        requirement = wanted(1, "150", e2e_p50="20s")
        with HttpLoadRunner(server.url, "m", None, requirement.workload, 1, workers=1) as runner:
            verdict = check(runner, requirement, Settings(max_time_s=60.0), rates)
    assert verdict.outcome is not Outcome.FAIL, verdict.reason
    assert "at the design rate of 150 req/s" in verdict.reason
    assert rates.seen[0] < 100.0 < rates.seen[-1]
