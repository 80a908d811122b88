"""Sends chat requests and keeps the answers' text, a given number of requests at a time.

Nothing is timed here. The load generator's workers measure times, and keep no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.load.address import ServerAddress, http_library
from pytest_gpucap.load.proxies import library_options, through
from pytest_gpucap.requirement import ApiKind

REQUEST_TIMEOUT_S: Final = 600.0
_OK: Final = 200
_END_S: Final = 10.0
"""How long closing the requests under way may take when the user interrupts."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one question.

    Attributes:
        text: the answer; empty where there is none.
        reasoning: what a reasoning parser of the server took out of the answer.
        cut: the answer ended because it had used all its tokens.
        error: why there is no answer; None where there is one.
        asked: False if the time was over before the question was sent or answered.
    """

    text: str = ""
    reasoning: str = ""
    cut: bool = False
    error: str | None = None
    asked: bool = True


NOT_ASKED: Final = Reply(asked=False)


def ask_all(
    server: ServerAddress, bodies: Iterable[Mapping[str, Any]], *, in_flight: int, time_s: float
) -> list[Reply]:
    """Send every body as a chat request, `in_flight` at a time, and wait for the answers.

    Args:
        server: where to.
        bodies: request bodies, without ``stream``.
        in_flight: requests under way at once.
        time_s: after this, nothing more is sent, and requests under way are given up.

    Returns:
        A reply for each body, in their order. A request that fails is a reply with its error.
    """
    bodies = list(bodies)
    replies = [NOT_ASKED] * len(bodies)
    _run(_send_all(server, bodies, replies, max(1, in_flight), time.monotonic() + time_s))
    return replies


def context_tokens(server: ServerAddress, model: str) -> int | None:
    """The tokens that prompt and answer may have together, as vLLM lists them with the model; None where unknown."""
    found: list[int] = []

    async def fetch() -> None:
        async with _session(server) as session:
            cards = (await session.get(f"{server.root}/v1/models", timeout=30.0)).json()["data"]
        lengths = [card.get("max_model_len") for card in cards if card["id"] == model]
        found.extend(length for length in lengths if isinstance(length, int))

    try:
        _run(fetch())
    except (http_library().HTTPError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found[0] if found else None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run on a separate event loop, in a thread: a test that is a coroutine has a running loop already."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            loop.run_until_complete(task)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failed.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=serve, name="gpucap-chat", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join(_END_S)
        raise
    if failed:
        raise failed[0]


def _session(server: ServerAddress) -> Any:
    library = http_library()
    return library.AsyncClient(
        headers={**server.headers, "Content-Type": "application/json"},
        **library_options(server.root, server.proxy, server.access.tls()),
        http1=not server.http2,
        http2=server.http2,
        limits=library.Limits(max_connections=None),
    )


async def _send_all(
    server: ServerAddress, bodies: list[Mapping[str, Any]], replies: list[Reply], in_flight: int, deadline_s: float
) -> None:
    left = iter(range(len(bodies)))
    async with _session(server) as session:

        async def asker(numbers: Iterator[int]) -> None:
            for number in numbers:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return
                replies[number] = await _one(session, server, bodies[number], left_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, len(bodies))):
                group.create_task(asker(left))


async def _one(session: Any, server: ServerAddress, body: Mapping[str, Any], left_s: float) -> Reply:
    try:
        async with asyncio.timeout(min(left_s, REQUEST_TIMEOUT_S)):
            response = await session.post(server.url(ApiKind.CHAT), json=body, timeout=None)
    except TimeoutError:
        return NOT_ASKED if left_s <= REQUEST_TIMEOUT_S else Reply(error=f"no answer in {REQUEST_TIMEOUT_S:g} s")
    except http_library().HTTPError as error:
        return Reply(error=f"{type(error).__name__}: {error}{through(server.proxy)}")
    if response.status_code != _OK:
        text = server.quoted(response.text)
        return Reply(error=f"HTTP {response.status_code}: {text}{through(server.proxy)}")
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        # The field with the reasoning has another name in older servers.
        reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
        return Reply(str(message.get("content") or ""), str(reasoning), choice.get("finish_reason") == "length")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Reply(error=f"the answer is not a chat completion: {server.masked(response.text)[:200]!r}")
