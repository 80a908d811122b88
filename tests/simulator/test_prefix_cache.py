"""The prefix cache of the simulated server over HTTP: blocks found by what they hold, as long as there is room."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.load.protocol import OpenLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.live import LiveEngine
from pytest_gpucap.simulator.prefix_cache import BLOCK, LEAST_KEPT, PrefixCache, blocks_of
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from pytest_gpucap.workloads.sessions import with_sessions
from tests.simulator.no_waits import without_waits
from tests.waiting import FOREVER_S

PROMPT = 100
"""Tokens: six full blocks."""


def test_a_block_is_known_by_its_tokens_and_all_before_it() -> None:
    tokens: list[Hashable] = [*range(PROMPT)]
    blocks = blocks_of(tokens)
    assert len(blocks) == PROMPT // BLOCK == 6
    assert blocks_of([*tokens, "more"]) == blocks
    other = blocks_of([*tokens[:40], "other", *tokens[41:]])
    assert other[:2] == blocks[:2]
    assert not set(other[2:]) & set(blocks[2:])
    # Equal tokens in another place are another block.
    assert len(set(blocks_of(["same"] * PROMPT))) == 6
    assert blocks_of(tokens[: BLOCK - 1]) == []


@pytest.mark.parametrize("written", [1000, 1500, 1504, 1505, 1540, 1584, 1585, 1600, 5000])
def test_what_was_released_stays_while_there_is_room_and_its_end_goes_first(written: int) -> None:
    cache, blocks = PrefixCache(2000), blocks_of(range(PROMPT))
    assert cache.found(blocks, 200, 1000) == (0, 0)
    cache.hold(blocks)
    cache.release(blocks, PROMPT, written=1000, free=500)
    # The rule of the simulation in virtual time, in whole blocks.
    left = PROMPT - max(0, written - 1500)
    found, mark = cache.found(blocks, 200, written)
    assert found == max(0, min(left, 96)) // BLOCK * BLOCK
    if found:
        # Where more is written before the request is admitted, the engine counts on from there.
        assert mark == 1500 + PROMPT - found


def test_what_a_request_holds_stays_and_the_last_token_is_always_computed() -> None:
    cache, blocks = PrefixCache(2000), blocks_of(range(96))
    for _ in range(2):
        cache.hold(blocks)
    cache.release(blocks, 96, written=0, free=0)
    assert cache.found(blocks, 97, 10**9)[0] == 96
    assert cache.found(blocks, 96, 10**9)[0] == 80
    cache.release(blocks, 96, written=10**9, free=0)
    assert cache.found(blocks, 97, 10**9 + 500)[0] == 0


def test_what_was_evicted_is_forgotten() -> None:
    cache = PrefixCache(BLOCK)
    for number in range(3 * LEAST_KEPT):
        block = blocks_of([number] * BLOCK)
        cache.hold(block)
        cache.release(block, BLOCK, written=BLOCK * number, free=BLOCK)
        assert cache.found(block, 2 * BLOCK, BLOCK * number)[0] == BLOCK
    assert len(cache._until) <= LEAST_KEPT
    cache.reset()
    assert cache.found(block, 2 * BLOCK, 0)[0] == 0


FAST = replace(profile.load("fast").engine, stall_per_s=0.0, warm_extra=0.0)
CHAT = with_sessions(
    Workload(
        Length.parse("uniform:50-250", "input_tokens"),
        Length.parse("uniform:20-60", "output_tokens"),
        endpoint=ApiKind.COMPLETIONS,
    ),
    "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=1s,cv=1",
)


async def live_hits(model: profile.EngineModel, phase: OpenLoop) -> float:
    """The hit rate of a phase that is sent to the engine in real time."""
    turns = phase.turns
    assert turns is not None
    live = LiveEngine(model)
    serving = asyncio.create_task(live.serve())
    due_s, following = phase.due_s, {int(before): row for row, before in enumerate(turns.after) if before >= 0}

    def told(ended: asyncio.Event, last: bool) -> None:
        if last:
            ended.set()

    async def session(row: int | None) -> None:
        await asyncio.sleep(float(due_s[row]) if row is not None else 0.0)
        while row is not None:
            prompt, ended = int(phase.prompt_tokens[row]), asyncio.Event()
            content = [(int(turns.session[row]), place) for place in range(prompt)]
            live.submit(prompt, int(phase.output_tokens[row]), partial(told, ended), content)
            await ended.wait()
            row = following.get(row)
            if row is not None:
                await asyncio.sleep(float(turns.think_s[row]))

    firsts = [row for row, before in enumerate(turns.after) if before < 0 and due_s[row] < phase.duration_s]
    await asyncio.gather(*map(session, firsts))
    serving.cancel()
    return live.counted["prefix_hits"] / live.counted["prefix_queries"]


@pytest.mark.parametrize("kv_tokens", [2_000_000, 3_000])
def test_it_finds_what_the_simulation_in_virtual_time_finds(kv_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(FAST, kv_tokens=kv_tokens)
    phase = open_loop(CHAT, 12.0, 20.0, 7, 0)
    runner = SimRunner(model)
    runner.run(replace(phase, duration_s=200.0))
    seen = runner.readings()
    expected = seen["prefix_hits"][-1] / seen["prefix_queries"][-1]
    assert (expected > 0.5) == (kv_tokens > 3_000)
    found = without_waits(lambda: live_hits(model, phase), monkeypatch)
    # Blocks are found whole or not at all.
    assert phase.turns is not None
    lost_tokens = BLOCK / 2 * np.mean(phase.turns.cached > 0)
    assert found == pytest.approx(expected - lost_tokens / phase.prompt_tokens.mean(), abs=0.02)


async def preempted(model: profile.EngineModel) -> tuple[LiveEngine, list[int]]:
    """Two requests of 150 tokens that outgrow the KV cache; what two more find that have the prompt of the second.

    One of these comes while the second is preempted, and nothing that no request holds is kept. The other comes when
    the second has computed its prompt again.
    """
    live = LiveEngine(model)
    serving, ended = asyncio.create_task(live.serve()), asyncio.Event()
    content = {name: [(name, place) for place in range(150)] for name in ("first", "second")}
    tokens: Counter[str] = Counter()
    seen, found = 0, []

    def told(name: str, row: Callable[[], int], last: bool) -> None:
        nonlocal seen
        tokens[name] += 1
        if live.preemptions == 1 and tokens["third"] == tokens["asked"] == 0:
            tokens["asked"], seen = 1, tokens["second"]
            live.reset_prefix_cache()
            submit("third", "second")
        if name == "second" and seen and tokens[name] == seen + 1:
            submit("fourth", "second")
        if last and name in {"third", "fourth"}:
            found.append(live.found(row()))
        if len(found) == 2 and tokens["second"] == 100:
            ended.set()

    def submit(name: str, prompt: str, output: int = 1) -> None:
        rows: list[int] = []
        rows.append(live.submit(150, output, partial(told, name, lambda: rows[0]), content[prompt]))

    submit("first", "first", 100)
    submit("second", "second", 100)
    await ended.wait()
    serving.cancel()
    return live, found


def test_a_preempted_request_holds_no_block_until_it_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    live, found = without_waits(lambda: preempted(replace(FAST, kv_tokens=400)), monkeypatch)
    assert live.preemptions == 1
    assert found == [0, 144]
    # At its end nothing is held.
    assert live._cache._held == {}


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    with start_simulator("cpu_tiny") as server:
        yield server


def posted(server: SimulatedServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer's JSON; of a stream that of its last event."""
    request = urllib.request.Request(server.base_url + path, json.dumps({"model": server.model, **body}).encode())
    with urllib.request.urlopen(request) as reply:
        text = reply.read().decode()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    found: dict[str, Any] = json.loads(events[-1] if events else text)
    return found


def hits_of(server: SimulatedServer) -> tuple[float, float]:
    """Prompt tokens found in the prefix cache and looked up there, by the server's page of metrics."""
    metrics = server.metrics()
    return metrics.value("vllm:prefix_cache_hits_total"), metrics.value("vllm:prefix_cache_queries_total")


WORDS = [f"word{number}" for number in range(160)]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_turn_finds_the_turn_before_in_blocks_and_says_so(server: SimulatedServer, streamed: bool) -> None:
    how = STREAM if streamed else {}
    mine = [f"{streamed}", *WORDS]

    def cached(path: str, **body: Any) -> int:
        usage = posted(server, path, {"max_tokens": 3, "max_output_tokens": 3, **body, **how})
        usage = usage.get("response", usage)["usage"]
        details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
        return int(details["cached_tokens"])

    def said(words: list[str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": " ".join(words)}]

    before = hits_of(server)
    assert cached("/completions", prompt=" ".join(mine[:40])) == 0
    assert cached("/completions", prompt=" ".join(mine[:100])) == 32
    assert cached("/completions", prompt=" ".join(mine[:100])) == 96
    assert cached("/completions", prompt=" ".join(mine[:96])) == 80  # its last token is computed
    hits, queries = hits_of(server)
    assert (hits - before[0], queries - before[1]) == (32 + 96 + 80, 40 + 100 + 100 + 96)
    # Eight tokens of a template stand before a conversation, whatever parts it comes in.
    assert cached("/chat/completions", messages=said(mine[:40])) == 0
    assert cached("/chat/completions", messages=[*said(mine[:40]), *said(mine[40:90])]) == 48
    assert cached("/responses", input=said(mine[:90])) == 96
    # Token ids are other tokens than words.
    ids = list(range(1000 + 1000 * streamed, 1100 + 1000 * streamed))
    assert cached("/completions", prompt=ids[:50]) == 0
    assert cached("/completions", prompt=ids) == 48
    assert server.reset_caches()
    assert cached("/completions", prompt=ids) == 0


def test_sessions_over_http_find_all_that_they_sent_before(server: SimulatedServer) -> None:
    chat = with_sessions(replace(CHAT, sessions=None), "turns=4 think=50ms")
    with HttpLoadRunner(server.base_url, server.model, "none", chat, 1, workers=1) as runner:
        runner.prepare()  # sends probes
        before = hits_of(server)
        runner.run(open_loop(chat, 30.0, 1.5, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    hits, queries = hits_of(server)
    assert (journal.status == Status.OK).all()
    assert queries - before[1] == journal.prompt_tokens.sum()
    whole_blocks = journal.cached_tokens // BLOCK * BLOCK
    assert np.count_nonzero(whole_blocks) > 5
    assert hits - before[0] == whole_blocks.sum()
