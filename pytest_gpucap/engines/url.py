"""A server that already runs. It is measured, but never started or stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import Capabilities, Engine, EnginePair, Server, ServerRequest
from pytest_gpucap.engines.server import NO_KEY, HttpServer
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


class ExternalServer(HttpServer):
    """An OpenAI-compatible server that somebody else runs. `close` closes our connections to it and nothing else.

    Attributes:
        origin: the folder or hub name that it loaded the model from; None if it does not say.
    """

    software = "vLLM"  # the only engine known to report a version
    origin: str | None = None

    @property
    def running(self) -> bool:
        """Whether it answers now."""
        try:
            self.models()
        except EndpointError:
            return False
        return True

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`. From the server's own report if it gives one."""
        return Capabilities(
            simulated=self.simulated,
            loopback=self.loopback,
            started=False,
            models=tuple(dict.fromkeys([*filter(None, [self.origin]), self.model])),
            arguments=self._told_arguments(),
            max_model_len=self.max_model_len,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        return {**super().facts(), **({} if self.version else {"server": self.base_url})}

    def _told_arguments(self) -> VllmArguments:
        """The vLLM arguments that its limits depend on, from its configuration; empty if it gives none."""
        found: dict[str, object] = {}
        for section, names in _SECTIONS.items():
            values = self.config.get(section) or {}
            found |= {argument: values[name] for name, argument in names.items() if values.get(name) is not None}
        try:
            told = VllmArguments(found)
            _ = told.gpus_per_replica  # the sizes are whole numbers
        except (ValueError, TypeError, AttributeError):
            return VllmArguments()  # not what vLLM tells
        return told


def attach(
    url: str, *, model: str | None = None, api_key_env: str = "OPENAI_API_KEY", timeout_s: float = 30.0
) -> ExternalServer:
    """Use a server that is already running.

    Args:
        url: its address, with or without ``/v1`` at the end.
        model: which of its models; may be left out if it lists exactly one.
        api_key_env: the environment variable that holds the key; if it is unset, the server must need no key.
        timeout_s: longest wait for its first answer.

    Raises:
        EndpointError: if it does not answer as an OpenAI-compatible server, refuses the key, or has no such model.
        ValueError: if the URL is no plain http or https URL, or carries a password.
    """
    server = ExternalServer(_base_url(url), model or "", os.environ.get(api_key_env) or NO_KEY)
    try:
        origins = server.origins(timeout_s)
    except EndpointError as error:
        hint = f"; the key is read from ${api_key_env}" if " 401 " in str(error) or " 403 " in str(error) else ""
        raise EndpointError(f"no OpenAI-compatible server at {url}: {error}{hint}") from None
    listed = list(origins)
    if model is None:
        if len(listed) != 1:
            raise EndpointError(f"{url} serves {_names(listed)}: name one of them")
        server.model = listed[0]
    elif model not in listed:
        raise EndpointError(f"{url} serves no {model}; it serves {_names(listed)}")
    server.origin = origins[server.model]
    return server


def _base_url(url: str) -> str:
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not a server's URL: write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise ValueError("the URL carries a user or password: give the key in an environment variable instead")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or fragment: write http://HOST:PORT/v1")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else path + '/v1'}"


def _names(models: list[str]) -> str:
    shown = ", ".join(sorted(models)[:5])
    return f"{shown}, ... ({len(models)} models)" if len(models) > 5 else shown or "no model at all"  # noqa: PLR2004


class UrlEngine(Engine):
    """Measures a server that already runs, whatever the test's own engine is.

    Args:
        request: its model says which of the server's models is meant.
        url: of ``--gpucap-url``.
        api_key_env: the environment variable that holds the key.
    """

    name = "url"
    leases_devices = False
    restarts = False

    def __init__(self, request: ServerRequest, url: str, api_key_env: str) -> None:
        super().__init__(request)
        self._url, self._api_key_env = url, api_key_env

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self._url

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:  # noqa: ARG002 - it runs
        """Attach to it.

        Raises:
            EndpointError: see `attach`.
        """
        return attach(self._url, model=self.request.model, api_key_env=self._api_key_env)

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:  # noqa: ARG002 - none is meant
        """See `Engine.with_base`."""
        raise ValueError("--gpucap-base-... needs servers that the plugin starts, but --gpucap-url names a running one")
