"""Where a server is, and how to get there."""

from __future__ import annotations

import socket
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.requirement import ApiKind

_PATHS = {ApiKind.CHAT: "/v1/chat/completions", ApiKind.COMPLETIONS: "/v1/completions"}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """An OpenAI-compatible server: its URL without ``/v1``, and its key (never shown)."""

    root: str
    api_key: str | None = field(default=None, repr=False)
    http2: bool = False
    """It speaks HTTP/2 only, and without being asked."""

    @classmethod
    def parse(cls, base_url: str, api_key: str | None, *, http2: bool = False) -> ServerAddress:
        """From a URL with or without ``/v1``.

        Raises:
            LoadError: if it is no http or https URL with a host.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"{base_url!r} is no URL of a server: write http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise LoadError(f"the URL of {parts.hostname} holds a password: give the key by the environment instead")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(f"{parts.scheme}://{parts.netloc}{path}", api_key, http2)

    @property
    def parts(self) -> SplitResult:
        """The URL in pieces."""
        return urlsplit(self.root)

    def url(self, api: ApiKind) -> str:
        """Where requests are posted."""
        return self.root + _PATHS[api]

    @property
    def headers(self) -> dict[str, str]:
        """Sent with every request."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "pytest-gpucap"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    def needs_library(self) -> str | None:
        """Why the raw client cannot be used: TLS, HTTP/2, or a proxy on the way; None where it can."""
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
        """A request up to the value of Content-Length."""
        parts = self.parts
        lines = [f"POST {parts.path}{_PATHS[api]} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Content-Type: application/json", "Accept: text/event-stream", "Content-Length: "]
        return "\r\n".join(lines)

    def address(self) -> tuple[int, tuple[str | int, ...]]:
        """The first resolved address that accepts a connection: family and socket address.

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
