"""An OpenAI-compatible server over HTTP as tests use it, whether we started it or not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from pytest_gpucap.access import NO_KEY, OPEN, Access
from pytest_gpucap.engines.errors import EndpointError, MetricsUnavailable
from pytest_gpucap.engines.protocol import Capabilities, ServerLog
from pytest_gpucap.load.server_words import json_object, one_line
from pytest_gpucap.masking import Secret

if TYPE_CHECKING:
    import openai

    from pytest_gpucap.engines.prometheus import Metrics
    from pytest_gpucap.load.plain_request import Reply


HTTP_OK: Final = 200
TIMEOUT_S: Final = 30.0
"""For a whole answer to a plain request."""
_LOADING_STATUS: Final = frozenset({502, 503, 504})
"""A server that loads its model, or a gateway that waits for one."""
_SUCCESS: Final = range(200, 300)
_READ_BODY: Final = 65_536
_SHOWN_BODY: Final = 300
_LONGEST_VERSION: Final = 100
_MOST_TOKENS: Final = 2**31


_MOST_BYTES: Final = 1 << 23
"""Of the answer to a plain request; a page of metrics is the longest."""


class HttpServer:
    """An OpenAI-compatible server over HTTP; a context manager that closes it. It implements `Server`.

    Engines like vLLM need nothing else. Others override what differs.

    Args:
        base_url: with ``/v1`` at the end.
        model: the name that requests must carry.
        api_key: masked in every repr.
        access: what requests need beside URL and key.

    Attributes:
        software: its name in reports.
        model: see `Server.model`.
        api_key: see `Server.api_key`.
        access: what requests need beside URL and key.
    """

    software: str = ""

    def __init__(self, base_url: str, model: str, api_key: str = NO_KEY, access: Access = OPEN) -> None:
        self._base_url = base_url.rstrip("/")
        self.model = model
        self.api_key = Secret(api_key)
        self.access = access

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._base_url!r}, model={self.model!r}, api_key={self.api_key!r})"

    @property
    def base_url(self) -> str:
        """Where requests go; ends in ``/v1``."""
        return self._base_url

    @property
    def log(self) -> ServerLog | None:
        """The server's log; None if it cannot be read."""
        return None

    @property
    def root_url(self) -> str:
        """The URL of ``/metrics`` and ``/health``, without the path."""
        return self.base_url.removesuffix("/v1")

    @cached_property
    def client(self) -> openai.OpenAI:
        """An `openai.OpenAI` for this server. It makes no retries, because they would hide errors from a test."""
        import openai

        return openai.OpenAI(**self._client_settings(), http_client=openai.DefaultHttpxClient(**self._http_settings()))

    @cached_property
    def async_client(self) -> openai.AsyncOpenAI:
        """An `openai.AsyncOpenAI` for this server, without retries."""
        import openai

        http_client = openai.DefaultAsyncHttpxClient(**self._http_settings())
        return openai.AsyncOpenAI(**self._client_settings(), http_client=http_client)

    def _client_settings(self) -> dict[str, Any]:
        """Arguments of both OpenAI clients."""
        headers = self.access.request_headers(None)
        return {"base_url": self.base_url, "api_key": self.api_key, "max_retries": 0, "default_headers": headers}

    def _http_settings(self) -> dict[str, Any]:
        """Arguments of the HTTP clients below them: no redirects, since the headers would go to another server."""
        from pytest_gpucap.load.proxies import library_options, proxy_for

        way = library_options(self.base_url, proxy_for(self.base_url), self.access.tls())
        return {**way, "follow_redirects": False}

    @cached_property
    def version(self) -> str | None:
        """The version of its software from ``/version``, as vLLM gives it; None if there is none."""
        try:
            answer = json_object(self.request("/version"))
        except EndpointError:
            return None
        version = answer.get("version")
        return one_line(version)[:_LONGEST_VERSION] or None if isinstance(version, str) else None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The server's own configuration by section, from vLLM in development mode; empty for others."""
        try:
            told = json_object(self.request("/server_info?config_format=json")).get("vllm_config")
        except EndpointError:
            return {}
        return {name: each for name, each in told.items() if isinstance(each, dict)} if isinstance(told, dict) else {}

    @cached_property
    def max_model_len(self) -> int | None:
        """Tokens that prompt and answer may have together, as vLLM lists them with the model; None if it does not."""
        try:
            cards = json_object(self.request("/v1/models")).get("data")
        except EndpointError:
            return None
        for card in cards if isinstance(cards, list) else []:
            if isinstance(card, dict) and card.get("id") == self.model:
                length = card.get("max_model_len")
                return length if type(length) is int and 0 < length < _MOST_TOKENS else None
        return None

    @property
    def simulated(self) -> bool:
        """Whether the server says in its version that it is a simulation."""
        return (self.version or "").startswith("SIMULATED")

    @property
    def loopback(self) -> bool:
        """Whether it listens on this machine's loopback interface."""
        from pytest_gpucap.load.proxies import is_loopback

        return is_loopback(urlsplit(self._base_url).hostname or "")

    def capabilities(self) -> Capabilities:
        """The capabilities that every server reports."""
        return Capabilities(simulated=self.simulated, loopback=self.loopback, max_model_len=self.max_model_len)

    def facts(self) -> Mapping[str, object]:
        """What a report names of it."""
        named = f"{self.software} {self.version or ''}".strip()
        return {"server": named or self.base_url, "model": self.model, "url": self.base_url}

    def metrics(self) -> Metrics:
        """The server's Prometheus samples, read now.

        Raises:
            MetricsUnavailable: if the server has no ``/metrics``.
        """
        from pytest_gpucap.engines.prometheus import Metrics

        try:
            return Metrics.parse(self.request("/metrics"))
        except EndpointError as error:
            raise MetricsUnavailable(f"{self.root_url}/metrics gives no Prometheus metrics: {error}") from None
        except Exception as error:  # noqa: BLE001 - the parser raises whatever a page that is none makes it raise
            why = one_line(str(error)) or type(error).__name__
            raise MetricsUnavailable(f"{self.root_url}/metrics gives no Prometheus metrics: {why}") from None

    def reset_caches(self) -> bool:
        """Empty the server's prefix and multi-modal caches; False if it cannot, such as with requests in flight.

        Some servers answer every path with 200. Only an empty answer, as vLLM's, or ``"success": true`` is a yes.
        """
        try:
            answer = self.request("/reset_prefix_cache", method="POST")
        except EndpointError:
            return False
        for optional in ("/reset_mm_cache", "/reset_encoder_cache"):
            try:
                self.request(optional, method="POST")
            except EndpointError:
                continue
        return not answer.strip() or json_object(answer).get("success") is True

    def models(self, timeout_s: float | None = None) -> list[str]:
        """The models the server lists.

        Raises:
            EndpointError: if it lists none.
        """
        return list(self.origins(timeout_s))

    def origins(self, timeout_s: float | None = None) -> dict[str, str | None]:
        """The models that the server lists, each with the folder or hub name it was loaded from; None if not given.

        vLLM gives it as ``root``. It is not part of the OpenAI API.

        Raises:
            EndpointError: if it lists none.
        """
        roots = {name: card.get("root") for name, card in self._cards(timeout_s).items()}
        return {name: root if isinstance(root, str) and _is_name(root) else None for name, root in roots.items()}

    def adapters(self, timeout_s: float | None = None) -> set[str]:
        """Those of the models it lists that are LoRA adapters of another one: vLLM gives that one as ``parent``.

        Raises:
            EndpointError: if it lists no models.
        """
        return {name for name, card in self._cards(timeout_s).items() if _is_name(card.get("parent"))}

    def _cards(self, timeout_s: float | None) -> dict[str, dict[str, object]]:
        """What it tells of each model."""
        try:
            listed = json_object(self.request("/v1/models", timeout_s=timeout_s))["data"]
            found = {each["id"]: dict(each) for each in listed}
        except (KeyError, TypeError, ValueError, AttributeError):
            found = {None: {}}
        if not all(_is_name(name) for name in found):
            text = f"{self.base_url}/models does not answer as an OpenAI-compatible server"
            raise EndpointError(text, status=HTTP_OK)
        return found

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout_s: float | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> str:
        """The body of the answer to one plain request under the server's root.

        Args:
            path: from the root.
            method: of HTTP.
            timeout_s: for the whole answer; None: `TIMEOUT_S`.
            content: sent as JSON.

        Raises:
            EndpointError: if the request fails. Its message has the beginning of the answer's body.
        """
        from pytest_gpucap.engines.protocol import address_of
        from pytest_gpucap.load.plain_request import NoAnswer, ask
        from pytest_gpucap.load.protocol import LoadError
        from pytest_gpucap.load.proxies import proxy_for, through

        data = None if content is None else json.dumps(content).encode()
        try:
            reply = ask(
                address_of(self),
                path,
                method=method,
                body=data,
                timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
                most_bytes=_MOST_BYTES,
            )
        except NoAnswer as error:
            text = self.access.masked(str(error), self.api_key)
            raise EndpointError(text, loading=error.loading, untrusted=error.untrusted, late=error.late) from None
        except LoadError as error:
            raise EndpointError(str(error)) from None
        if reply.status in _SUCCESS:
            return reply.text
        text = f"{method} {self.root_url}{path} answered {reply.status} {reply.reason}".rstrip()
        raise EndpointError(
            f"{text}{self._told(reply)}{through(proxy_for(self.root_url))}",
            status=reply.status,
            loading=reply.status in _LOADING_STATUS,
        )

    def _told(self, reply: Reply) -> str:
        """What an answer other than 200 says in its body, or where it points to; empty if nothing."""
        if 300 <= reply.status < 400 and (place := _host(reply.headers.get("location", ""))):  # noqa: PLR2004 - the class of redirects
            return f": it points to {place}, where no key is sent; give that server's URL if it is meant"
        text = self.access.masked(_words(reply.text[:_READ_BODY]), self.api_key)
        if text.lower() in {"", reply.reason.lower()}:
            return ""
        return f": {text[:_SHOWN_BODY]}{'...' if len(text) > _SHOWN_BODY else ''}"

    def pids(self) -> set[int]:
        """Its living processes: none are known."""
        return set()

    def ended(self, patience_s: float = 0.0) -> str:  # noqa: ARG002 - for servers whose processes are known
        """Why it can no longer answer, in one line; empty while it can.

        Args:
            patience_s: requests fail, and the reason may need so long to show.
        """
        return ""

    def close(self) -> None:
        """Close the clients that were made."""
        client = self.__dict__.pop("client", None)
        if client is not None:
            client.close()
        self.__dict__.pop("async_client", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _host(location: str) -> str:
    """Scheme and host of a redirect's target, without a user or password; the path alone where it names no host."""
    try:
        target = urlsplit(location)
    except ValueError:
        return ""
    host = target.netloc.rpartition("@")[2]
    return f"{target.scheme}://{host}" if host else target.path


def _is_name(found: object) -> bool:
    """Whether it is a name that can be sent, shown and written."""
    return isinstance(found, str) and bool(found) and found.isprintable()


_MARKUP: Final = re.compile(r"(?s)<(style|script)\b(?:(?!<\1\b).)*?</\1>|<[^<>]*>")


def _words(body: str) -> str:
    """The message in a body: an error's in JSON, else the text without tags, in one line."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    text = found if isinstance(found, str) else _MARKUP.sub(" ", body)
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
