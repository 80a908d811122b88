"""Where a server is, and how to reach it: by a socket of our own, or through an HTTP library.

The library is for load that is not worth a client of our own: over TLS, proxies, HTTP/2. ``httpx2`` comes with
openai 3, ``httpx`` with older versions; both have the same interface. It is imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import socket
from dataclasses import dataclass, field
from types import ModuleType
from urllib.parse import SplitResult, urlsplit

from pytest_gpucap.access import OPEN, Access, server_root
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.proxies import is_loopback, proxy_for, shown
from pytest_gpucap.load.server_words import beginning
from pytest_gpucap.masking import Secret
from pytest_gpucap.requirement import ApiKind

_PATHS = {
    ApiKind.CHAT: "/v1/chat/completions",
    ApiKind.COMPLETIONS: "/v1/completions",
    ApiKind.RESPONSES: "/v1/responses",
    ApiKind.EMBEDDINGS: "/v1/embeddings",
    ApiKind.POOLING: "/pooling",
    ApiKind.CLASSIFY: "/classify",
    ApiKind.RERANK: "/rerank",
}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where an OpenAI-compatible server is.

    Attributes:
        root: its URL without ``/v1``.
        api_key: sent as a bearer token, and never shown; None for none.
        http2: it speaks HTTP/2 only, and does not negotiate it.
        access: what requests need beside URL and key.
    """

    root: str
    api_key: str | None = field(default=None, repr=False)
    http2: bool = False
    access: Access = OPEN

    @classmethod
    def parse(cls, base_url: str, api_key: str | None, *, http2: bool = False, access: Access = OPEN) -> ServerAddress:
        """The address in a URL with or without ``/v1``.

        Raises:
            LoadError: if it is no http or https URL with a host, or holds a password or a query.
        """
        try:
            root = server_root(base_url)
        except ValueError as error:
            raise LoadError(str(error)) from None
        return cls(root, None if api_key is None else Secret(api_key), http2, access)

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
        return {"Accept-Encoding": "identity", **self.access.request_headers(self.api_key)}

    def masked(self, text: str) -> str:
        """The text without what only this server may see."""
        return self.access.masked(text, self.api_key)

    def quoted(self, text: str) -> str:
        """The beginning of what the server said, in one line, without secrets."""
        return self.masked(" ".join(beginning(text).split()))[:300]

    @property
    def secrets(self) -> list[str]:
        """See `Access.secrets`."""
        return self.access.secrets(self.api_key)

    def needs_http_library(self) -> str | None:
        """Why requests must go through an HTTP library: TLS, HTTP/2, or a proxy on the way; None if not.

        Raises:
            LoadError: see `proxy`.
        """
        if self.parts.scheme == "https":
            return "TLS"
        if self.http2:
            return "HTTP/2"
        return None if self.proxy is None else f"the proxy {shown(self.proxy)}"

    @property
    def proxy(self) -> str | None:
        """The proxy on the way to the server; None: there is none.

        Raises:
            LoadError: if the environment names one that cannot be used.
        """
        return proxy_for(self.root)

    def request_head(self, api: ApiKind, accept: str = "text/event-stream") -> Secret:
        """The head of every request, up to the value of Content-Length. It holds the key.

        Args:
            api: the endpoint.
            accept: the type of answers that are wanted.
        """
        parts = self.parts
        lines = [f"POST {parts.path}{_PATHS[api]} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Content-Type: application/json", f"Accept: {accept}", "Content-Length: "]
        return Secret("\r\n".join(lines))

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


def one_name(url: str) -> str:
    """The same text for every way to write the URL of a server: host, port and path.

    This machine is ``localhost`` under all its names and addresses. Another is the least address of its name, or the
    name where it cannot be resolved.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        addresses = {host}
    own = is_loopback(host) or not addresses.isdisjoint(_own_addresses())
    host = "localhost" if own else min(addresses)
    return f"{host}:{port}{parts.path.rstrip('/')}"


def _own_addresses() -> set[str]:
    import psutil

    return {each.address.partition("%")[0] for found in psutil.net_if_addrs().values() for each in found}


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
