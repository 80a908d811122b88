"""Asks a server how many tokens a prompt has: by ``/tokenize``, or by the usage of a real request for one token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.answer import cached_tokens
from pytest_gpucap.load.audio import DECODER
from pytest_gpucap.load.media import media_parts, with_media
from pytest_gpucap.load.plain_request import NoAnswer, Reply, ask
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.proxies import through
from pytest_gpucap.load.request_fields import prompt_fields, tokens_field, told_usage
from pytest_gpucap.load.server_words import json_object
from pytest_gpucap.requirement import ApiKind, Workload

MOST_TOKENS = 2**31
"""No request has so many."""
PROBE_TIMEOUT_S = 60.0
"""A probe is one short request; a server that is ready answers within seconds even on a CPU."""
MOST_COUNTS = 400
"""Requests to count tokens that finding the units may take."""
TEMPLATED = ("tools", "chat_template", "chat_template_kwargs", "continue_final_message")
"""Fields that a chat's prompt depends on beside its messages, and that ``/tokenize`` takes."""
ADVICE = 'exact prompts need a tokenizer that splits at spaces; try endpoint="completions", which sends token ids'


_OF_CONTENT = frozenset({400, 413, 422})
"""HTTP statuses with which a server refuses what a request holds: among others, that it does not fit the context."""
_ITS_FAULT = 500


class Refusal(str):
    """Why a server refused what a probe holds. A shorter one may fit its context."""

    __slots__ = ()


class ProbeRefused(LoadError):  # noqa: N818 - it states what happened
    """The server refused what a probe holds. A shorter one may fit its context."""


class Usage(NamedTuple):
    """Prompt tokens by a request's usage, and those of them (or beside them) that were in the server's cache."""

    prompt: int
    cached: int | None


class TokenProbe:
    """Asks the server how many tokens a prompt has."""

    def __init__(self, server: ServerAddress, model: str, workload: Workload) -> None:
        self._server, self._model, self._workload = server, model, workload
        self.has_tokenize: bool | None = None if workload.dialect.tokenizes else False
        """Whether the server has ``/tokenize``; None: not yet known."""
        self.cached_apart = False
        """Cached tokens stand beside `Usage.prompt`, not in it."""
        self._counts = 0
        self._media = media_parts(workload, 0)

    def count(self, text: str) -> int:
        """Prompt tokens of a request with this prompt."""
        self._counts += 1
        if self._counts > MOST_COUNTS:
            raise LoadError(f"no units of one token were found for this server in {MOST_COUNTS} counts; {ADVICE}")
        if self.has_tokenize is not False:
            counted = self._tokenize(text)
            self.has_tokenize = counted is not None
            if counted is not None:
                return counted
        return self.usage(self.plain_body(text))

    def tokenizes(self) -> bool:
        """Whether the server has ``/tokenize``, which is found out with a prompt of one letter."""
        if self.has_tokenize is None:
            self.has_tokenize = self._tokenize("A") is not None
        return self.has_tokenize

    def count_by_usage(self) -> None:
        """Count by the usage of real requests from now on, as if the server had no ``/tokenize``."""
        self.has_tokenize, self._counts = False, 0

    def _tokenize(self, text: str) -> int | None:
        if self._workload.endpoint is ApiKind.RERANK:
            return None  # how query and documents come together is the server's matter
        if self._workload.endpoint.has_messages:
            return self.tokenized({"messages": self._messages(text)})
        return self.tokenized({"prompt": text})

    def _messages(self, text: str) -> list[dict[str, Any]]:
        return with_media(self._workload.wording.messages(text), self._media)

    def tokenized(self, body: Mapping[str, Any]) -> int | None:
        """Prompt tokens of a request, by ``/tokenize``; None where it does not tell.

        Args:
            body: of the request, as far as its prompt depends on it.
        """
        extra = self._workload.extra_body
        chat = {"add_generation_prompt": True} | {name: extra[name] for name in TEMPLATED if name in extra}
        more = chat if "messages" in body else {}
        try:
            reply = self._post("/tokenize", json.dumps({"model": self._model, **more, **body}).encode())
        except NoAnswer:
            return None  # the usage of real requests tells as well
        return _whole(json_object(reply.body).get("count")) if reply.ok else None

    def plain_body(self, text: str) -> bytes:
        """The body of a request with this prompt for one token."""
        workload = self._workload
        prompt = prompt_fields(workload.endpoint, text, workload.wording, workload.documents)
        if self._media:
            prompt["messages"] = self._messages(text)
        tokens = tokens_field(workload.endpoint)
        body = {"model": self._model, **workload.extra_body, **({} if tokens is None else {tokens: 1}), **prompt}
        return json.dumps(body).encode()

    def usage(self, body: bytes) -> int:
        """Prompt tokens by the usage of a real request.

        Raises:
            ProbeRefused: if the server refuses what the request holds.
            LoadError: if it does not tell.
        """
        counted = self.try_usage(body)
        if isinstance(counted, Refusal):
            raise ProbeRefused(counted)
        if isinstance(counted, str):
            raise LoadError(counted)
        return counted

    def try_usage(self, body: bytes, *, personal: bool = False) -> int | str:
        """Prompt tokens by the usage of a real request, or why the server reports none.

        Args:
            body: of the request.
            personal: it holds a prompt of the user's own, so the server, which may repeat it, is not quoted.
        """
        found = self._ask(body, personal=personal)
        if isinstance(found, str):
            return found
        return found.prompt + (found.cached or 0 if self.cached_apart else 0)

    def again(self, body: bytes, times: int) -> list[Usage]:
        """The usage of one request sent several times, each over a connection of its own; empty if one fails.

        A load balancer may choose another server for every connection.

        Raises:
            ProbeRefused: if a server refuses what the request holds.
        """
        found = []
        for _ in range(times):
            usage = self._ask(body)
            if isinstance(usage, Refusal):
                raise ProbeRefused(usage)
            if isinstance(usage, str):
                return []
            found.append(usage)
        return found

    def _ask(self, body: bytes, *, personal: bool = False) -> Usage | str:
        """The usage of a real request, or why the server reports none."""
        url = self._server.url(self._workload.endpoint)
        reply = self._post(url.removeprefix(self._server.root), body)
        if not reply.ok:
            text = "" if personal else f": {self._server.quoted(reply.text)}"
            why = f"{url} answered a probe with HTTP {reply.status}{text}{through(self._server.proxy)}"
            if self._workload.audio_s and reply.status == _ITS_FAULT:
                why = f"{why}; {DECODER}"
            return Refusal(why) if reply.status in _OF_CONTENT else why
        told = json_object(reply.body).get("usage")
        usage = told_usage(told) if isinstance(told, dict) else {}
        counted, cached = _whole(usage.get("prompt_tokens")), cached_tokens(usage)
        if counted is None:
            return f"{url} reports no usage.prompt_tokens, so prompts of an exact token count cannot be made for it"
        return Usage(counted, cached)

    def _post(self, path: str, body: bytes) -> Reply:
        return ask(self._server, path, method="POST", body=body, timeout_s=PROBE_TIMEOUT_S)


def _whole(count: object) -> int | None:
    """A count of tokens; None if it is none."""
    return count if type(count) is int and 0 <= count < MOST_TOKENS else None
