"""Waits until a started server is ready: our own process has answered a real chat. An open port is not enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.startup_errors import NOTHING, Given, diagnose

if TYPE_CHECKING:
    import openai

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


class Readiness:
    """Waits for one server.

    Args:
        process: its processes.
        log: its log.
        model: the unique name that it must list.
        api_key: the key that it must accept.
        deadline: on `time.monotonic`.
        on_wait: called about once a second with what the start is doing.
        title: the server's name in messages.
        given: what is known of its command.
    """

    def __init__(
        self,
        process: OwnedProcess,
        log: ServerLog,
        model: str,
        api_key: str,
        deadline: float,
        on_wait: Callable[[str], None] | None,
        title: str,
        given: Given = NOTHING,
    ) -> None:
        self.exit_code: int | None = None
        """The main process's exit code, once it is known to have ended."""
        self._process = process
        self._log = log
        self._model = model
        self._api_key = api_key
        self._started = time.monotonic()
        self._deadline = deadline
        self._on_wait, self._title, self._given = on_wait, title, given
        self._next_news = self._started

    def wait(self) -> str:
        """Wait until the server has answered; returns its base URL.

        Raises:
            ServerStartError: if the process ends, the time is over, or a chat is refused.
        """
        endpoint = self._find()
        while not self._healthy(endpoint):
            self._pause("waiting for its health check")
        self._tell("asking it for a first answer", force=True)
        try:
            self._ask(endpoint)
        finally:
            endpoint.close()
        return endpoint.base_url

    def _find(self) -> HttpServer:
        """The server that lists our model on a port that our own process listens on."""
        while True:
            for port in self._ports():
                endpoint = HttpServer(f"http://127.0.0.1:{port}/v1", self._model, self._api_key)
                try:
                    if self._model in endpoint.models(timeout_s=_FIND_S):
                        return endpoint
                except EndpointError:
                    continue  # not the API's socket, or not serving yet
            self._pause("starting")

    def _ports(self) -> list[int]:
        """Ports that the main process listens on. Its workers' sockets do not take requests."""
        if self._process.pid is None:
            return []
        try:
            connections = psutil.Process(self._process.pid).net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return []
        return [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]

    @staticmethod
    def _healthy(endpoint: HttpServer) -> bool:
        try:
            endpoint.request("/health", timeout_s=_HEALTH_S)
        except EndpointError:
            return False
        return True

    def _ask(self, endpoint: HttpServer) -> None:
        """Ask for one plain and one streamed chat, or for completions where the model has no chat template."""
        import openai

        client = endpoint.client.with_options(timeout=max(1.0, self._deadline - time.monotonic()))
        try:
            try:
                chat(client, self._model)
            except (openai.BadRequestError, openai.NotFoundError):
                complete(client, self._model)
        except openai.OpenAIError as error:
            self._expect_death()
            raise ServerStartError(f"it listens but does not answer a request: {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            # The client takes any JSON, and any page, for an answer.
            raise ServerStartError(f"it listens but its answer is no completion: {error}") from None

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
                "give it more time with --gpucap-startup-timeout"
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


def chat(client: openai.OpenAI, model: str) -> None:
    """Ask for one plain and one streamed chat.

    Raises:
        openai.OpenAIError: if either is not answered with tokens.
    """
    import openai

    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": _PROMPT}], max_tokens=_TOKENS
    )
    if not reply.choices or not reply.usage or reply.usage.completion_tokens < 1:
        raise openai.OpenAIError(f"a chat came back without a token: {reply}")
    with client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": _PROMPT}], max_tokens=_TOKENS, stream=True
    ) as stream:
        finished = [choice.finish_reason for chunk in stream for choice in chunk.choices if choice.finish_reason]
    if not finished:
        raise openai.OpenAIError("a streamed chat broke off")


def complete(client: openai.OpenAI, model: str) -> None:
    """Ask for one plain and one streamed completion, for a model without a chat template.

    Raises:
        openai.OpenAIError: if either is not answered with tokens.
    """
    import openai

    reply = client.completions.create(model=model, prompt=_PROMPT, max_tokens=_TOKENS)
    if not reply.choices or not reply.usage or reply.usage.completion_tokens < 1:
        raise openai.OpenAIError(f"a completion came back without a token: {reply}")
    with client.completions.create(model=model, prompt=_PROMPT, max_tokens=_TOKENS, stream=True) as stream:
        finished = [choice.finish_reason for chunk in stream for choice in chunk.choices if choice.finish_reason]
    if not finished:
        raise openai.OpenAIError("a streamed completion broke off")
