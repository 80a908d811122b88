"""Waits until a started server is ready: our own process has answered a real chat. An open port is not enough."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from pytest_gpucap.access import LOOPBACK
from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.startup_diagnosis import diagnose, known_cause
from pytest_gpucap.engines.startup_errors import NOTHING, Given
from pytest_gpucap.load.event_stream import EventStream
from pytest_gpucap.load.server_words import json_object, one_line

_POLL_S = 0.2
_FIND_S = 2.0
"""Longest wait for an answer on a port that may not be the API's."""
_HEALTH_S = 10.0
"""Longest wait for the answer to a health check. A chat may take the rest of the start-up time."""
_DYING_S = 20.0
"""When an engine dies, its API server ends within this time."""
_LINE = 100
_PROMPT = "Please say hello and then count to three."
"""Not too short: on CPUs with AMX, vLLM 0.32 crashes if the very first prompt has fewer than five tokens."""
_TOKENS = 4
POOLED_PATHS: Final = ("/v1/embeddings", "/pooling", "/classify")
"""Of a server whose model gives no tokens. Which of them it has depends on the model."""
_ABSENT: Final = frozenset({404, 405, 501})
_NO_CHAT: Final = frozenset({400, 404})
"""What a server answers to a chat if the model has no chat template."""


class Readiness:
    """Waits for one server.

    Args:
        process: its processes.
        log: its log.
        model: the unique name that it must list; None: the only one that it lists.
        api_key: the key that it must accept.
        deadline: on `time.monotonic`.
        on_wait: called about once a second with what the start is doing.
        title: the server's name in messages.
        given: what is known of its command.
        host: the address that it listens on.
        port: that it was told to listen on, itself or by a process that it started; None: whatever the main process
            listens on.
        listed: it lists its model. Otherwise the name is known, and a health check tells its port.
    """

    def __init__(
        self,
        process: OwnedProcess,
        log: ServerLog,
        model: str | None,
        api_key: str,
        deadline: float,
        on_wait: Callable[[str], None] | None,
        title: str,
        given: Given = NOTHING,
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        listed: bool = True,
    ) -> None:
        self.exit_code: int | None = None
        """The main process's exit code, once it is known to have ended."""
        self._process = process
        self._log = log
        self._model, self._port, self._listed = model, port, listed
        self._api_key = api_key
        self._host = f"[{host}]" if ":" in host else host
        self._started = time.monotonic()
        self._deadline = deadline
        self._on_wait, self._title, self._given = on_wait, title, given
        self._next_news = self._started

    def wait(self) -> HttpServer:
        """Wait until the server has answered; returns it, under the name that it has for its model.

        Raises:
            ServerStartError: if the process ends, the time is over, or a chat is refused.
        """
        endpoint = self._find()
        while not self._healthy(endpoint):
            self._pause("waiting for its health check")
        endpoint.model = endpoint.model or self._only_model(endpoint)
        self._tell("asking it for a first answer", force=True)
        try:
            self._ask(endpoint)
        finally:
            endpoint.close()
        return endpoint

    def again(self, base_url: str) -> None:
        """Check a server that was ready before: it answers as it did, and the port is our own process's.

        Raises:
            ServerStartError: if it does not.
        """
        endpoint = HttpServer(base_url, self._model or "", self._api_key)
        try:
            if urlsplit(base_url).port not in self._ports():
                raise ServerStartError("its process does not listen on its port any more")
            listed = endpoint.models(timeout_s=_HEALTH_S)
            if (self._model is not None and self._model not in listed) or not self._healthy(endpoint):
                raise ServerStartError("its health check fails")
            self._ask(endpoint)
        except EndpointError as error:
            raise ServerStartError(f"it does not answer: {error}") from None
        finally:
            endpoint.close()

    def _find(self) -> HttpServer:
        """The server that lists our model on a port that our own process listens on."""
        while True:
            for port in self._ports():
                endpoint = HttpServer(f"http://{self._host}:{port}/v1", self._model or "", self._api_key)
                if self._serves(endpoint):
                    return endpoint
            self._pause("starting")

    def _serves(self, endpoint: HttpServer) -> bool:
        """Whether it is the API's socket, and serves already."""
        if not self._listed:
            return self._healthy(endpoint)
        try:
            models = endpoint.models(timeout_s=_FIND_S)
        except EndpointError:
            return False
        return self._model is None or self._model in models

    def _only_model(self, endpoint: HttpServer) -> str:
        """The name of the only model that a ready server lists."""
        models = endpoint.models()
        if len(models) != 1:
            raise ServerStartError(f"it lists {len(models)} models: name the one that is meant with served_name=")
        return models[0]

    def _ports(self) -> list[int]:
        """Ports that may be the API's.

        Workers' sockets take no requests, so without a known port only the main process is looked at. A known port
        counts once one of our own processes listens there, so another server that took it is not measured.
        """
        if self._process.pid is None:
            return []
        if self._port is not None:
            own = self._process.pids()
            return [self._port] if any(self._port in _listening(pid) for pid in own) else []
        return _listening(self._process.pid)

    @staticmethod
    def _healthy(endpoint: HttpServer) -> bool:
        """Whether its health check succeeds; a server without one is ready when it answers a first request."""
        try:
            endpoint.request("/health", timeout_s=_HEALTH_S)
        except EndpointError as error:
            return error.status in _ABSENT
        return True

    def _ask(self, endpoint: HttpServer) -> None:
        """Ask for one plain and one streamed chat; without a chat template for completions; and else for vectors."""
        try:
            try:
                self._answered(endpoint, "/v1/chat/completions", {"messages": [{"role": "user", "content": _PROMPT}]})
            except EndpointError as error:
                if error.status not in _NO_CHAT:
                    raise
                self._completed_or_pooled(endpoint)
        except EndpointError as error:
            self._expect_death()
            raise ServerStartError(f"it listens but does not answer a request: {error}") from None

    def _completed_or_pooled(self, endpoint: HttpServer) -> None:
        """Ask for completions, or for what a server of a pooling model answers: vectors or classes."""
        try:
            self._answered(endpoint, "/v1/completions", {"prompt": _PROMPT})
        except EndpointError as error:
            if error.status not in _NO_CHAT or not any(self._pooled(endpoint, path) for path in POOLED_PATHS):
                raise

    def _pooled(self, endpoint: HttpServer, path: str) -> bool:
        """Whether a request without tokens to generate is answered there."""
        try:
            found = json_object(self._request(endpoint, path, {"model": self._model, "input": _PROMPT}))
        except EndpointError as error:
            if error.status is None:
                raise
            return False
        return bool(found.get("data"))

    def _answered(self, endpoint: HttpServer, path: str, asked: dict[str, Any]) -> None:
        """Ask for a whole and for a streamed answer.

        Raises:
            EndpointError: if either does not come.
            ServerStartError: if something else than a completion comes.
        """
        content = {"model": endpoint.model, "max_tokens": _TOKENS, **asked}
        whole = json_object(self._request(endpoint, path, content))
        usage = whole.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not whole.get("choices") or type(tokens) is not int or tokens < 1:
            shown = one_line(json.dumps(whole)) if whole else "no JSON object"
            raise ServerStartError(f"it listens but its answer is no completion: {shown}")
        stream = EventStream()
        events = list(stream.feed(self._request(endpoint, path, {**content, "stream": True}).encode()))
        if _PROMPT in "".join(_texts(json_object(event)) for event in events):
            raise ServerStartError(
                "its streamed answers begin with the prompt, which the time to the first token would be taken from; "
                "its chat template and its parser of answers do not fit together"
            )
        if not any(_finishes(json_object(event)) for event in events):
            raise EndpointError("a streamed answer broke off")

    def _request(self, endpoint: HttpServer, path: str, content: dict[str, Any]) -> str:
        left_s = max(1.0, self._deadline - time.monotonic())
        return endpoint.request(path, method="POST", timeout_s=left_s, content=content)

    def _expect_death(self) -> None:
        """After a failed request, wait whether the process ends; if so, raise its end as the error."""
        until = min(self._deadline, time.monotonic() + _DYING_S)
        while time.monotonic() < until:
            self._check()
            self._process.wait_news(_POLL_S)

    def _pause(self, doing: str) -> None:
        self._check()
        if time.monotonic() >= self._deadline:
            waited = time.monotonic() - self._started
            raise ServerStartError(
                f"it was not ready after {waited:.0f} s ({doing}); {diagnose(self._log.text(), given=self._given)}; "
                "give it more time with --gpucap-startup-timeout",
                known_as=known_cause(self._log.text()),
            )
        self._tell(doing)
        self._process.wait_news(_POLL_S)

    def _check(self) -> None:
        self.exit_code = self._process.poll()
        if self.exit_code is not None:
            raise ServerStartError("it ended before it was ready")

    def _tell(self, doing: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_wait is None or (now < self._next_news and not force):
            return
        self._next_news = now + 1.0
        last = self._log.tail(1).strip()
        self._on_wait(
            f"{self._title or 'the server'} {doing} ({now - self._started:.0f} s): {last[-_LINE:] or 'no log yet'}"
        )


def _listening(pid: int) -> list[int]:
    """TCP ports that a process listens on; none if it cannot be seen."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
    return [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]


def _texts(chunk: dict[str, Any]) -> str:
    """The text that an event of a stream holds."""
    choices = chunk.get("choices")
    found = []
    for choice in choices if isinstance(choices, list) else []:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        texts = (
            delta.get("content") if isinstance(delta, dict) else None,
            isinstance(choice, dict) and choice.get("text"),
        )
        found += [text for text in texts if isinstance(text, str)]
    return "".join(found)


def _finishes(chunk: dict[str, Any]) -> bool:
    """Whether an event of a stream says why the answer ends."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and bool(choice.get("finish_reason")) for choice in choices
    )
