"""Where a server is, and how to reach it: by a socket of our own, or through an HTTP library.

The library is for what is not worth a client of our own: calibration, TLS, proxies, HTTP/2. ``httpx2`` comes with
openai 3, ``httpx`` with older versions; both have the same interface. It is imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import socket
import urllib.request
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.requirement import ApiKind

PROBE_TIMEOUT_S = 60.0
"""A probe is one short request; a server that is ready answers within seconds even on a CPU."""
_PATHS = {ApiKind.CHAT: "/v1/chat/completions", ApiKind.COMPLETIONS: "/v1/completions"}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where an OpenAI-compatible server is.

    Attributes:
        root: its URL without ``/v1``.
        api_key: sent as a bearer token, and never shown; None for none.
        http2: it speaks HTTP/2 only, and does not negotiate it.
    """

    root: str
    api_key: str | None = field(default=None, repr=False)
    http2: bool = False

    @classmethod
    def parse(cls, base_url: str, api_key: str | None, *, http2: bool = False) -> ServerAddress:
        """The address in a URL with or without ``/v1``.

        Raises:
            LoadError: if it is no http or https URL with a host, or holds a password.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"{base_url!r} is not the URL of a server: write http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise LoadError(f"the URL of {parts.hostname} holds a password: give the key by the environment instead")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(f"{parts.scheme}://{parts.netloc}{path}", api_key, http2)

    @property
    def parts(self) -> SplitResult:
        """The parts of the URL."""
        return urlsplit(self.root)

    def url(self, api: ApiKind) -> str:
        """The URL that requests are posted to."""
        return self.root + _PATHS[api]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "pytest-gpucap"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    @property
    def secrets(self) -> list[str]:
        """What must never be shown, although a server may repeat it."""
        return [] if not self.api_key else [self.api_key]

    def needs_http_library(self) -> str | None:
        """Why requests must go through an HTTP library: TLS, HTTP/2, or a proxy on the way; None if not."""
        parts = self.parts
        if parts.scheme == "https":
            return "TLS"
        if self.http2:
            return "HTTP/2"
        host = parts.hostname or ""
        if "http" in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            return "a proxy"
        return None

    def request_head(self, api: ApiKind) -> str:
        """The head of every request, up to the value of Content-Length."""
        parts = self.parts
        lines = [f"POST {parts.path}{_PATHS[api]} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Content-Type: application/json", "Accept: text/event-stream", "Content-Length: "]
        return "\r\n".join(lines)

    def socket_address(self) -> tuple[int, tuple[str | int, ...]]:
        """Family and socket address of the first resolved address that accepts a connection.

        Raises:
            LoadError: if none does.
        """
        parts = self.parts
        port = parts.port or 80
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LoadError(f"{parts.hostname} cannot be resolved: {error}") from error
        reason: OSError | None = None
        for family, kind, protocol, _, address in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.settimeout(5.0)
                    probe.connect(address)
            except OSError as error:
                reason = error
            else:
                return int(family), (str(address[0]), *(int(part) for part in address[1:]))
        raise LoadError(f"no connection to {self.root}: {reason}")

    def client(self, timeout_s: float = PROBE_TIMEOUT_S) -> Any:
        """A blocking client of the HTTP library, for probes.

        Raises:
            LoadError: if no library is installed.
        """
        return http_library().Client(
            headers=self.headers,
            timeout=timeout_s,
            trust_env=self.needs_http_library() is not None,
            http1=not self.http2,
            http2=self.http2 or importlib.util.find_spec("h2") is not None,
        )


@functools.cache
def http_library() -> ModuleType:
    """The HTTP library.

    Raises:
        LoadError: if neither is installed.
    """
    for name in ("httpx2", "httpx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise LoadError("neither httpx2 nor httpx can be imported, though openai needs one: pip install --upgrade openai")
