"""A server that already runs. It is measured, but never started or stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from pytest_gpucap.access import (
    AUTHORIZATION,
    NO_KEY,
    OPEN,
    Access,
    HeaderSource,
    read_headers,
    read_secret,
    server_root,
)
from pytest_gpucap.engines.answering import Answering, port_of
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.known_engines import SOFTWARE, engine_on
from pytest_gpucap.engines.pages import Page, read_together
from pytest_gpucap.engines.protocol import Capabilities, Engine, EnginePair, MetricNames, Server, ServerRequest
from pytest_gpucap.engines.readiness import POOLED_PATHS
from pytest_gpucap.engines.server import HTTP_OK, HttpServer
from pytest_gpucap.load.server_words import json_object
from pytest_gpucap.vllm_arguments import VllmArguments

_PARALLEL: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
_SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "model_config": {"dtype": "dtype", "quantization": "quantization"},
    "cache_config": {"cache_dtype": "kv_cache_dtype", "cpu_offload_gb": "cpu_offload_gb"},
    "parallel_config": {name: name for name in _PARALLEL},
    "speculative_config": {"num_speculative_tokens": "speculative_config.num_speculative_tokens"},
}
"""Where vLLM's configuration holds each argument."""

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0
"""Between two looks at a server that is still loading: short at first, for one that is almost ready."""
_ANSWER_S: Final = 30.0
"""Longest wait for an answer. The first token may take as long as the server may take to become ready."""
_LAST_LOOK_S: Final = 2.0
"""Longest wait for an answer of a server that was just measured."""
_MOST_NAMES: Final = 5
_UNAUTHORISED, _FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED, _NOT_IMPLEMENTED = 401, 403, 404, 405, 501
_REFUSED: Final = frozenset({_UNAUTHORISED, _FORBIDDEN})
_REDIRECTS: Final = frozenset(range(300, 400))
_ABSENT: Final = frozenset({_NOT_FOUND, _NOT_ALLOWED, _NOT_IMPLEMENTED})
_PROMPT: Final = "Please say hello and then count to three."


class ExternalServer(HttpServer):
    """An OpenAI-compatible server that somebody else runs. `close` closes our connections to it and nothing else.

    Attributes:
        software: its engine, by whom its list says that the model belongs to, or by the names of its metrics; empty
            where neither tells. Several engines and gateways have a ``/version``.
        origin: the folder or hub name that it loaded the model from; None if it does not say.
        listed: the models that it lists, with their origins.
        owners: whom it says that each belongs to (``owned_by``): engines name themselves.
        unlisted: why it lists none; None if it has a list.
        answering: the process that answered first; None before `know` was called.
        pages: where the engines behind it show their metrics; empty: at its own ``/metrics``.
        metric_names: of the figures on these pages; those of no engine without pages.
    """

    pages: Sequence[Page] = ()
    metric_names = MetricNames()
    origin: str | None = None
    listed: Mapping[str, str | None] = MappingProxyType({})
    owners: Mapping[str, str] = MappingProxyType({})
    unlisted: EndpointError | None = None
    answering: Answering | None = None

    @property
    def running(self) -> bool:
        """Whether it answers now."""
        try:
            self.request("/v1/models")
        except EndpointError as error:
            return error.status is not None and not error.loading  # it may have no such list
        return True

    def ended(self, patience_s: float = 0.0) -> str:
        """See `HttpServer.ended`: nobody listens any more, there or at the engines' pages, or another process does.

        It is asked for nothing while it is under load, unless requests fail.
        """
        known = self.answering
        gone = "" if known is None else known.ended()
        if not patience_s and not gone:
            return ""
        # A first look may meet a process that is just ending, where another one listens beside it already.
        silent = self._silent(max(patience_s, _LAST_LOOK_S)) and self._silent(_LAST_LOOK_S)
        if silent:
            return f"the server can answer no more: {silent}"
        why = gone or ("" if known is None else known.replaced())
        return f"the server was restarted in the middle of the measurement: {why}" if why else ""

    def _silent(self, timeout_s: float) -> str:
        """Why no answer can come from it, in one line; empty if one comes, or if nothing but time says that none does.

        A gateway may let requests wait for any time, and these looks with them. Only requests of the load tell whether
        such a server has stopped answering.
        """
        try:
            self.request("/v1/models", timeout_s=timeout_s)
        except EndpointError as error:
            if error.late:
                return self._engines_gone(timeout_s)
            return "" if error.status is not None else str(error)
        return ""

    def _engines_gone(self, timeout_s: float) -> str:
        """Why the engines behind it can answer no more; empty if they do, or where nothing tells."""
        if not self.pages:
            return ""
        try:
            read_together(self.pages, timeout_s)
        except EndpointError as error:
            return "" if error.late or error.status is not None else str(error)
        return ""

    def _cards(self, timeout_s: float | None) -> dict[str, dict[str, object]]:
        found = super()._cards(timeout_s)
        told = {name: card.get("owned_by") for name, card in found.items()}
        self.owners = {name: owner for name, owner in told.items() if isinstance(owner, str)}
        return found

    def know(self) -> None:
        """Remember which process answers now."""
        self.answering = Answering(
            port_of(self.base_url) if self.loopback else None,
            lambda: self.request("/metrics", timeout_s=_LAST_LOOK_S),
        )

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`. From the server's own report if it gives one."""
        return Capabilities(
            simulated=self.simulated,
            loopback=self.loopback,
            started=False,
            metrics=self.metric_names,
            models=tuple(dict.fromkeys([*filter(None, [self.origin]), self.model])),
            arguments=self._told_arguments(),
            max_model_len=self.max_model_len,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        known = super().facts()
        if self.version is None:
            return {**known, "server": self.software or self.base_url}
        return known if self.software or self.simulated else {**known, "server": f"a server, version {self.version}"}

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout_s: float | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> str:
        """See `Server.request`. The page of metrics is that of the engines behind it, where `pages` names theirs."""
        if path == "/metrics" and self.pages:
            return read_together(self.pages, *([] if timeout_s is None else [timeout_s]))
        return super().request(path, method=method, timeout_s=timeout_s, content=content)

    def find_metrics(self) -> None:
        """Have the figures on its own ``/metrics`` read from now on, if it shows those of an engine that is known."""
        try:
            found = engine_on(self.request("/metrics"))
        except EndpointError:
            return
        if found is not None:
            software, self.metric_names = found
            self.software = self.software or software

    def watch_engines(self, pages: Sequence[Page]) -> None:
        """Take the engines' metrics from pages of their own from now on.

        Args:
            pages: one for each engine.

        Raises:
            EndpointError: if one of them cannot be read, or has no figures of an engine that is known.
        """
        found = set()
        for page in pages:
            try:
                names = engine_on(page.read())
            except EndpointError as error:
                raise EndpointError(f"--gpucap-metrics-url: {error}", status=error.status) from None
            if names is None:
                raise EndpointError(
                    f"--gpucap-metrics-url: {page.url} has no figures of a known engine (such as "
                    "vllm:num_requests_running): name the page of the engine itself, not of the gateway"
                )
            found.add(names)
        if len(found) > 1:
            raise EndpointError("--gpucap-metrics-url: the pages are of several engines: measure one at a time")
        for name, self.metric_names in found:
            self.software = self.software or name
        self.pages = tuple(pages)

    def _told_arguments(self) -> VllmArguments:
        """The vLLM arguments that its limits depend on, from its configuration; empty if it gives none."""
        found: dict[str, object] = {}
        for section, names in _SECTIONS.items():
            values = self.config.get(section) or {}
            found |= {argument: values[name] for name, argument in names.items() if values.get(name) is not None}
        try:
            told = VllmArguments(found)
            _ = told.gpus_per_replica  # the sizes are whole numbers
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
            return VllmArguments()  # not what vLLM tells
        return told


def attach(
    url: str,
    *,
    model: str | None = None,
    likely_model: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    access: Access = OPEN,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
) -> ExternalServer:
    """Use a server that is already running.

    Args:
        url: its address: with or without ``/v1`` at the end, or that of an endpoint such as ``/v1/chat/completions``.
        model: which of its models. If it is given, the server needs no ``/v1/models``.
        likely_model: its model if nothing else tells: it lists several, this one among them, or it has no list.
        api_key_env: the environment variable that holds the key; if it is unset, the server must need no key.
        access: what requests need beside URL and key.
        wait_s: how long to wait for a server that is still loading: nobody listens, or it answers 502, 503 or 504.
        on_wait: called before each further look at it, with what it answered.

    Raises:
        EndpointError: if it does not answer as an OpenAI-compatible server, refuses the key, or has no such model.
        ValueError: if the URL is no plain http or https URL, or carries a password or a query.
    """
    key = NO_KEY if not os.environ.get(api_key_env) else read_secret(api_key_env)
    server = ExternalServer(f"{server_root(url)}/v1", model or "", key, access)
    began, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        waited_s = time.monotonic() - began
        try:
            _look(server, model, likely_model)
            if on_wait is not None:
                on_wait(f"{url}: asking it for a first answer")
            _try(server, max(_ANSWER_S, wait_s - waited_s))
        except EndpointError as error:
            fix = _fix(server, error, api_key_env)
            waited_s = time.monotonic() - began
            if not error.loading:
                raise EndpointError(
                    f"no OpenAI-compatible server at {url}: {error}{fix}", status=error.status
                ) from None
            if waited_s >= wait_s:
                waited = f" ready after {waited_s:.0f} s" if wait_s else ""
                more = "; give it more time with --gpucap-startup-timeout" if wait_s else ""
                text = f"no OpenAI-compatible server{waited} at {url}: {error}{more}"
                raise EndpointError(text, status=error.status, loading=True) from None
            if on_wait is not None:
                on_wait(f"{url} is not ready ({waited_s:.0f} s): {error}")
        else:
            server.know()
            return server
        time.sleep(min(pause_s, wait_s - waited_s))
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)


def _look(server: ExternalServer, model: str | None, likely_model: str | None) -> None:
    """Find the server's model in its list, if it has one.

    Raises:
        EndpointError: if it does not answer, or the model cannot be told.
    """
    named = model or likely_model
    server.listed, server.unlisted = {}, None
    try:
        server.listed = server.origins(_ANSWER_S)
    except EndpointError as error:
        if error.loading or named is None:
            raise
        server.unlisted = error
    listed = list(server.listed)
    if len(listed) > 1 and model is None:  # requests name adapters themselves; the model is the one that has them
        adapters = server.adapters(_ANSWER_S)
        listed = [name for name in listed if name not in adapters] or listed
    if model is not None and listed and model not in listed:
        raise EndpointError(f"it serves no {model}; it serves {_names(listed)}: name one with --gpucap-model")
    if model is None and len(listed) == 1:
        named = listed[0]
    elif model is None and listed and likely_model not in listed:
        raise EndpointError(f"it serves {_names(listed)}: name one with --gpucap-model")
    if named is None:
        # Routers list no model until a worker has come.
        raise EndpointError("it serves no model at all: name one with --gpucap-model if it lists none", loading=True)
    server.model, server.origin = named, server.listed.get(named)
    if named in server.listed:
        server.software = SOFTWARE.get(server.owners.get(named, ""), "")


def _try(server: ExternalServer, timeout_s: float) -> None:
    """Ask for one token. Some servers list their model while it loads, and others have no list.

    Only an answer that settles the matter is an error: the tests may need neither endpoint, or send other requests.

    Raises:
        EndpointError: if it is still loading, refuses the key, or has neither a list of models nor an endpoint.
    """
    common = {"model": server.model, "max_tokens": 1}
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {**common, "messages": [{"role": "user", "content": _PROMPT}]},
        "/v1/completions": {**common, "prompt": _PROMPT},
        **{path: {"model": server.model, "input": _PROMPT} for path in POOLED_PATHS},
    }
    failed: list[EndpointError] = []
    for path, content in requests.items():
        try:
            answer = server.request(path, method="POST", timeout_s=timeout_s, content=content)
        except EndpointError as error:
            if error.loading or error.status is None or error.status in _REFUSED | _REDIRECTS:
                raise
            failed.append(error)
            continue
        if json_object(answer):
            return
        text = f"POST {server.root_url}{path} answered something else than a JSON object"
        failed.append(EndpointError(text, status=_NOT_FOUND))
    if server.listed or not all(error.status in _ABSENT for error in failed):
        return
    if server.unlisted is None:  # a list without models
        raise EndpointError(f"it serves no model at all: {failed[0]}", status=failed[0].status, loading=True)
    raise EndpointError(f"{failed[0]}; {server.unlisted}", status=failed[0].status)


def _fix(server: ExternalServer, error: EndpointError, api_key_env: str) -> str:
    """What to do about an error, after a semicolon; empty where its text says so."""
    if error.untrusted:
        return "; name its CA's certificate with --gpucap-ca-file"
    if error.status in _REFUSED:
        own = next((name for name, _ in server.access.headers if name.lower() == AUTHORIZATION.lower()), None)
        if own is not None:
            return f"; it was sent the header {own} of --gpucap-header"
        if server.api_key == NO_KEY:
            return f"; no key was sent: set ${api_key_env}, or name another variable with --gpucap-api-key-env"
        return f"; the key is read from ${api_key_env}; a gateway may need a header as well (--gpucap-header)"
    if error.status in _ABSENT or error.status == HTTP_OK:
        return "; mend the URL, or name the model with --gpucap-model if the server has no list of models"
    return ""


def _names(models: list[str]) -> str:
    shown = ", ".join(sorted(models)[:_MOST_NAMES])
    return f"{shown}, ... ({len(models)} models)" if len(models) > _MOST_NAMES else shown


class UrlEngine(Engine):
    """Measures a server that already runs, whatever the test's own engine is.

    Args:
        request: its model says which of the server's models is meant.
        url: of ``--gpucap-url``.
        api_key_env: the environment variable that holds the key.
        headers: of ``--gpucap-header``.
        ca_file: of ``--gpucap-ca-file``.
        likely_model: see `attach`.
        pages: where the engines behind it show their metrics, of ``--gpucap-metrics-url``.
    """

    name = "url"
    leases_devices = False
    restarts = False

    def __init__(
        self,
        request: ServerRequest,
        url: str,
        api_key_env: str,
        *,
        headers: Sequence[HeaderSource] = (),
        ca_file: str | None = None,
        likely_model: str | None = None,
        pages: Sequence[Page] = (),
    ) -> None:
        super().__init__(request)
        self._pages = tuple(pages)
        self._url, self._api_key_env, self._likely_model = url, api_key_env, likely_model
        self._access = Access(read_headers(headers), ca_file)

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self._url, self._likely_model

    @property
    def running_server(self) -> str:
        """See `Engine.running_server`."""
        from pytest_gpucap.load.address import one_name

        return one_name(server_root(self._url))

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:  # noqa: ARG002 - it runs
        """Attach to it, once it has loaded.

        Raises:
            EndpointError: see `attach` and `ExternalServer.watch_engines`.
        """
        server = attach(
            self._url,
            model=self.request.model,
            likely_model=self._likely_model,
            api_key_env=self._api_key_env,
            access=self._access,
            wait_s=self.request.startup_timeout_s,
            on_wait=on_wait,
        )
        if self._pages:
            try:
                server.watch_engines(self._pages)
            except BaseException:
                server.close()
                raise
        return server

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:  # noqa: ARG002 - none is meant
        """See `Engine.with_base`."""
        raise ValueError("--gpucap-base-... needs servers that the plugin starts, but --gpucap-url names a running one")
