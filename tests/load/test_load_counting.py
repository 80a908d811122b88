"""Servers that count prompt tokens in ways of their own: what is mended, what is odd, what cannot be measured."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from aiohttp import web

from pytest_gpucap.load import self_check
from pytest_gpucap.load.protocol import Journal, PhaseSpan, PromptCountError, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.load.token_probe import MOST_COUNTS
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.requirement import ApiKind, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import ProblemKind
from tests.load.tokenserver import TokenServer, stream
from tests.waiting import FOREVER_S

WORKLOAD = Workload(Length.fixed(300), Length.fixed(3))
Counts = dict[str, Any]


def word_tokens(text: str) -> int:
    return len(re.findall(r" ?\w+|[^\w\s]", text))


class CountingServer(TokenServer):
    """Tells prompt tokens as `tell` says: from a request's number, its prompt and the tokens that it really has."""

    def __init__(self, tell: Callable[[int, str, int], Counts], **rest: Any) -> None:
        super().__init__(word_tokens, handler=self._told, **rest)
        self.tell = tell
        self.numbers = itertools.count()

    async def _told(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
        counts = self.tell(next(self.numbers), text, self.prompt_tokens(body))
        usage = {**counts, "completion_tokens": body["max_tokens"]}
        if not body.get("stream"):
            self.probes += 1
            return web.json_response({"choices": [], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        parts = stream(body, {"completion_tokens": body["max_tokens"], "prompt_tokens": 0}, chat="messages" in body)
        told = b'"usage":' + json.dumps({**usage, "total_tokens": 0}).encode()
        for part in parts:
            await response.write(re.sub(rb'"usage":\{[^}]*\}', told, part))
        await response.write_eof()
        return response


class Cache:
    """A prefix cache by the character: how many tokens at the start of a prompt it held already."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def hit(self, text: str, tokens: int) -> int:
        longest = max((len(_common(text, other)) for other in self.seen), default=0)
        self.seen.append(text)
        return min(word_tokens(text[:longest].rpartition(" ")[0]), tokens - 1)


def _common(one: str, other: str) -> str:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return one[:at]
    return min(one, other, key=len)


@dataclass(frozen=True)
class Ran:
    """What a short load showed."""

    span: PhaseSpan
    journal: Journal
    remarks: tuple[str, ...]


def run(server: TokenServer, workload: Workload = WORKLOAD) -> Ran:
    with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
        span = runner.run(open_loop(workload, 30.0, 0.4, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert (journal.status == Status.OK).all(), runner.error_texts()
        assert journal.status.size > 3
        return Ran(span, journal, runner.remarks)


def plain(_number: int, _text: str, tokens: int) -> Counts:
    return {"prompt_tokens": tokens}


@pytest.fixture(autouse=True)
def any_lateness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here does not depend on when it was sent: no machine is too busy for it."""
    for limit in ("LATENESS_FLOOR_S", "RATE_SHARE", "CPU_LIMIT", "STOPPED_S"):
        monkeypatch.setattr(self_check, limit, 1e6)


def test_a_server_that_counts_like_others_has_no_remark() -> None:
    with CountingServer(plain) as server:
        ran = run(server, Workload(Length.fixed(300), Length.fixed(3), endpoint=ApiKind.COMPLETIONS))
    assert not ran.span.check.problems
    assert ran.remarks == ()


def test_cached_tokens_that_are_told_inside_the_prompt_are_not_added() -> None:
    cache = Cache()

    def tell(_number: int, text: str, tokens: int) -> Counts:
        return {"prompt_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cache.hit(text, tokens)}}

    with CountingServer(tell) as server:
        ran = run(server)
    assert not ran.span.check.problems
    assert ran.remarks == ()


@pytest.mark.parametrize("shared", [0, 200])
def test_cached_tokens_that_are_told_beside_the_prompt_are_added(shared: int) -> None:
    cache = Cache()

    def tell(_number: int, text: str, tokens: int) -> Counts:
        hit = cache.hit(text, tokens)
        return {"prompt_tokens": tokens - hit, "prompt_tokens_details": {"cached_tokens": hit}}

    with CountingServer(tell) as server:
        ran = run(server, Workload(Length.fixed(300), Length.fixed(3), shared_prefix_tokens=shared))
    assert not ran.span.check.problems
    (remark,) = ran.remarks
    assert remark.startswith("usage.prompt_tokens leaves cached tokens out")
    assert (ran.journal.counted_prompt_tokens == 300).all()


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_cached_tokens_that_are_left_out_and_not_told_are_recognised(endpoint: ApiKind) -> None:
    cache = Cache()
    workload = Workload(Length.fixed(300), Length.fixed(3), endpoint=endpoint)
    with (
        CountingServer(lambda _, text, tokens: {"prompt_tokens": tokens - cache.hit(text, tokens)}) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1) as runner,
        pytest.raises(
            PromptCountError, match=r"leaves cached tokens out of usage\.prompt_tokens: .* as 1\d\d tokens, and th"
        ),
    ):
        runner.prepare()
    assert server.probes < 40


class Balancer:
    """Every third connection, or one in four by hash, meets a server whose template has eleven tokens more."""

    def __init__(self, turn: Callable[[int], bool]) -> None:
        self.turn = turn

    def __call__(self, number: int, text: str, tokens: int) -> Counts:
        del text
        return {"prompt_tokens": tokens + 11 * self.turn(number)}


@pytest.mark.parametrize(
    "turn",
    [
        lambda number: number % 2 == 1,
        lambda number: number % 4 == 3,
        lambda number: number > 3 and number % 2 == 1,
    ],
    ids=["every second", "every fourth", "later"],
)
def test_servers_behind_one_url_that_count_otherwise_are_recognised(turn: Callable[[int], bool]) -> None:
    with (
        CountingServer(Balancer(turn)) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1) as runner,
        pytest.raises(
            PromptCountError, match=r"the same prompt was counted differently: as \d+ and \d+ tokens .* load balancer"
        ),
    ):
        runner.prepare()
    assert server.probes < MOST_COUNTS


def test_such_servers_give_no_verdict() -> None:
    requirement = Requirement("chat", qps=Fraction(1), gpus=1, workload=WORKLOAD, slo=Slo())
    with (
        CountingServer(Balancer(lambda number: number % 2 == 1)) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1) as runner,
    ):
        verdict = check(runner, requirement)
    assert verdict.outcome is Outcome.INVALID
    assert "the same prompt was counted differently" in verdict.reason
    (problem,) = verdict.measurement.problems
    assert problem.kind is ProblemKind.PROMPT_TOKENS


def test_servers_that_count_otherwise_under_load_alone() -> None:
    state = {"calm": 10_000}

    def tell(number: int, _text: str, tokens: int) -> Counts:
        return {"prompt_tokens": tokens + (9 if number >= state["calm"] and number % 3 == 0 else 0)}

    with CountingServer(tell) as server, HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner:
        runner.prepare()
        state["calm"] = 0
        span = runner.run(open_loop(WORKLOAD, 60.0, 0.6, 1, 0))
        assert runner.settle(FOREVER_S)
    (problem,) = span.check.problems
    assert problem.kind is ProblemKind.PROMPT_TOKENS
    assert re.search(
        r"in \d+ of \d+ answers: 300 asked, 309 counted on average; does a load balancer mix", problem.text
    ), problem.text


def test_a_tokenize_endpoint_that_counts_otherwise_gives_way_to_usage() -> None:
    """Such as where a gateway adds instructions of its own to every chat."""
    with CountingServer(lambda *counts: {"prompt_tokens": counts[2] + 20}, tokenize=True) as server:
        ran = run(server)
    assert not ran.span.check.problems
    (remark,) = ran.remarks
    assert remark.startswith("/tokenize counts other prompt tokens than usage.prompt_tokens")
    assert (ran.journal.counted_prompt_tokens == 300).all()


def test_answers_shorter_than_asked_are_remarked_where_they_may_be() -> None:
    workload = Workload(Length.fixed(300), Length.fixed(8), ignore_eos=False)

    class Short(CountingServer):
        async def _told(self, request: web.Request) -> web.StreamResponse:
            body = await request.json()
            body["max_tokens"] = max(1, body["max_tokens"] // 2)
            request._read_bytes = json.dumps(body).encode()
            return await super()._told(request)

    with Short(plain) as server:
        ran = run(server, workload)
    assert not ran.span.check.problems
    assert ran.remarks == ("8 output tokens were asked for on average, and 4 came",)
