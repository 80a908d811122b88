"""A server that already runs: measured, never started, never stopped."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.server import Server

NO_KEY = "none"
"""What is sent where the endpoint needs no key; the OpenAI client insists on one."""


class ExternalServer(Server):
    """An OpenAI-compatible server that somebody else runs. `close` closes our connections to it and nothing else.

    Attributes:
        origin: the folder or hub name that it loaded the model from, where it tells.
    """

    origin: str | None = None

    @property
    def running(self) -> bool:
        """Whether it answers now."""
        try:
            self.models()
        except EndpointError:
            return False
        return True

    def pids(self) -> set[int]:
        """Empty: its processes are not ours."""
        return set()


def attach(
    url: str, *, model: str | None = None, api_key_env: str = "OPENAI_API_KEY", timeout_s: float = 30.0
) -> ExternalServer:
    """Use a server that is already running.

    Args:
        url: where it stands, with or without ``/v1`` at the end.
        model: which of its models; may be left out where it lists exactly one.
        api_key_env: the environment variable that holds the key; unset: none is needed.
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
        raise ValueError(f"{url!r} is no URL of a server: write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise ValueError("the URL carries a user or password: give the key in an environment variable instead")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or fragment: write http://HOST:PORT/v1")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else path + '/v1'}"


def _names(models: list[str]) -> str:
    shown = ", ".join(sorted(models)[:5])
    return f"{shown}, ... ({len(models)} models)" if len(models) > 5 else shown or "no model at all"  # noqa: PLR2004
