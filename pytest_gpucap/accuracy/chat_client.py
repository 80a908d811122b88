"""Sends chat requests and keeps the answers' text, a given number of requests at a time.

Nothing is timed here. The load generator's workers measure times, and keep no text.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.plain_request import NoAnswer, ask
from pytest_gpucap.load.proxies import through
from pytest_gpucap.load.server_words import beginning
from pytest_gpucap.requirement import ApiKind

REQUEST_TIMEOUT_S: Final = 600.0
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
    asking = _Asking(server, list(bodies), time.monotonic() + time_s)
    askers = [
        threading.Thread(target=asking.ask, name="gpucap-chat", daemon=True)
        for _ in range(min(max(1, in_flight), len(asking.replies)))
    ]
    try:
        for thread in askers:
            thread.start()
        for thread in askers:
            thread.join()
    except BaseException:
        asking.stopped.set()
        for thread in filter(threading.Thread.is_alive, askers):
            thread.join(_END_S)
        raise
    if asking.failed:
        raise asking.failed[0]
    return asking.replies


class _Asking:
    """The questions under way. Several threads share it."""

    def __init__(self, server: ServerAddress, bodies: list[Mapping[str, Any]], deadline_s: float) -> None:
        self.replies = [NOT_ASKED] * len(bodies)
        self.stopped = threading.Event()
        self.failed: list[BaseException] = []
        self._server, self._bodies, self._deadline_s = server, bodies, deadline_s
        self._left, self._turn = iter(range(len(bodies))), threading.Lock()

    def ask(self) -> None:
        """Ask one question after the other until none is left, or the time is over."""
        try:
            while not self.stopped.is_set():
                with self._turn:
                    number = next(self._left, None)
                left_s = self._deadline_s - time.monotonic()
                if number is None or left_s <= 0:
                    return
                self.replies[number] = _one(self._server, self._bodies[number], left_s, self.stopped.is_set)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.failed.append(error)
            self.stopped.set()


def _one(server: ServerAddress, body: Mapping[str, Any], left_s: float, stop: Callable[[], bool]) -> Reply:
    timeout_s = min(left_s, REQUEST_TIMEOUT_S)
    path = server.url(ApiKind.CHAT).removeprefix(server.root)
    until_s = time.monotonic() + timeout_s
    try:
        answer = ask(server, path, method="POST", body=json.dumps(body).encode(), timeout_s=timeout_s, stop=stop)
    except NoAnswer as error:
        if time.monotonic() < until_s:
            return Reply(error=str(error))
        return NOT_ASKED if left_s <= REQUEST_TIMEOUT_S else Reply(error=f"no answer in {REQUEST_TIMEOUT_S:g} s")
    if not answer.ok:
        text = server.quoted(answer.text)
        return Reply(error=f"HTTP {answer.status}: {text}{through(server.proxy)}")
    try:
        choice = answer.json()["choices"][0]
        message = choice["message"]
        # The field with the reasoning has another name in older servers.
        reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
        return Reply(str(message.get("content") or ""), str(reasoning), choice.get("finish_reason") == "length")
    except (LookupError, TypeError, AttributeError):
        return Reply(error=f"the answer is not a chat completion: {server.masked(beginning(answer.text))[:200]!r}")
