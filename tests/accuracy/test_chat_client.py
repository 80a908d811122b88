"""The chat client: whole answers in order, a given number at a time, within the time; against a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest
from aiohttp import web

from pytest_gpucap.accuracy.chat_client import NOT_ASKED, Reply, ask_all
from pytest_gpucap.load.address import ServerAddress
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S


def reply(content: str | None, finish: str = "stop", **message: Any) -> web.Response:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return web.json_response({"choices": [choice]})


def bodies(*texts: str) -> list[dict[str, Any]]:
    return [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in texts]


async def said(request: web.Request) -> str:
    return str((await request.json())["messages"][0]["content"])


def test_answers_come_in_the_order_of_the_questions_and_so_many_at_a_time() -> None:
    now, most, others = 0, 0, 0
    full, answered = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal now, most, others
        text = await said(request)
        now += 1
        most = max(most, now)
        # Nothing is answered before four are asked, and the first question last of its batch.
        if now == 4:
            full.set()
        await full.wait()
        if text == "0":
            await answered.wait()
        others += text != "0"
        if others == 3:
            answered.set()
        now -= 1
        return reply(f"re {text}")

    with TokenServer(handler=answer) as server:
        replies = ask_all(
            ServerAddress.parse(server.url, "k"), bodies(*map(str, range(12))), in_flight=4, time_s=FOREVER_S
        )
    assert [each.text for each in replies] == [f"re {number}" for number in range(12)]
    assert most == 4


def test_every_kind_of_reply_is_told_apart() -> None:
    told = {
        "cut": lambda: reply("and so on", "length"),
        "newer": lambda: reply("4", reasoning="2 and 2"),
        "older": lambda: reply("4", reasoning_content="2 and 2"),
        "nothing": lambda: reply(None),
        "refused": lambda: web.json_response({"error": {"message": "maximum context length is 10"}}, status=400),
        "odd": lambda: web.json_response({"hello": "there"}),
    }

    async def answer(request: web.Request) -> web.Response:
        text = await said(request)
        if text == "gone":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return told[text]()

    with TokenServer(handler=answer) as server:
        cut, newer, older, nothing, refused, odd, gone = ask_all(
            ServerAddress.parse(server.url, None),
            bodies("cut", "newer", "older", "nothing", "refused", "odd", "gone"),
            in_flight=1,
            time_s=FOREVER_S,
        )
    assert cut == Reply("and so on", cut=True)
    assert newer == older == Reply("4", reasoning="2 and 2")
    assert nothing == Reply("")
    assert refused.error is not None
    assert refused.error.startswith("HTTP 400: ")
    assert "maximum context length is 10" in refused.error
    assert odd.error is not None
    assert odd.error.startswith("the answer is not a chat completion: ")
    assert gone.error is not None


def test_what_is_not_answered_in_time_is_given_up() -> None:
    never = asyncio.Event()
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await said(request))
        if asked[-1] == "slow":
            await never.wait()
        return reply("quick")

    time_s = 1.0
    with TokenServer(handler=answer, cancel=True) as server:
        while "slow" not in asked:  # a busy machine may not have come to the second question within the time
            replies = ask_all(
                ServerAddress.parse(server.url, None), bodies("quick", "slow", "late"), in_flight=1, time_s=time_s
            )
            time_s *= 2
    assert "late" not in asked
    assert replies == [Reply("quick"), NOT_ASKED, NOT_ASKED]


def test_an_interrupt_ends_what_is_under_way() -> None:
    gone = threading.Event()

    async def answer(_: web.Request) -> web.Response:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            gone.set()
        return reply("never")

    server = TokenServer(handler=answer, cancel=True)
    with server:
        with pytest.raises(KeyboardInterrupt):
            ask_all(ServerAddress.parse(server.url, None), bodies("2 + 2?"), in_flight=1, time_s=FOREVER_S)
        gone.wait()  # the server sees that nobody waits any more


def test_a_server_that_is_gone_is_an_error_for_each_question() -> None:
    with TokenServer() as server:
        url = server.url
    replies = ask_all(ServerAddress.parse(url, None), bodies("a", "b"), in_flight=2, time_s=FOREVER_S)
    assert all(each.error is not None and "Connection refused" in each.error for each in replies)


def test_a_test_that_is_a_coroutine_may_ask() -> None:
    async def answer(_: web.Request) -> web.Response:
        return reply("4")

    async def test() -> list[Reply]:
        return ask_all(ServerAddress.parse(server.url, None), bodies("2 + 2?"), in_flight=1, time_s=FOREVER_S)

    with TokenServer(handler=answer) as server:
        assert asyncio.run(test()) == [Reply("4")]
