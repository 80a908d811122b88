"""Which proxy a request to a server goes through: one rule for every client of ours.

The environment names proxies (``http_proxy``, ``HTTPS_PROXY``, ``all_proxy``, ``no_proxy``, ...) as it does for curl. A
server on this machine's loopback interface is never asked through one: a proxy would see the key, and be measured.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import ssl
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from pytest_gpucap.load.protocol import LoadError

_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def proxy_for(url: str) -> str | None:
    """The URL of the proxy that the environment names for a server; None: requests go straight to it.

    Raises:
        LoadError: if it is no HTTP proxy.
    """
    parts = urlsplit(url)
    named = urllib.request.getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    host = parts.hostname or ""
    if not proxy or is_loopback(host) or _excepted(host, parts.netloc.rpartition("@")[2], named.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise LoadError(
            f"the environment names the proxy {shown(proxy)} for {host}, and only HTTP proxies can be used: "
            f"name an HTTP proxy, or set no_proxy={host}"
        )
    return proxy


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface: by its name, its address, or all addresses of its name."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        found = [name] if _is_address(name) else [str(each[4][0]) for each in socket.getaddrinfo(name, None)]
    except (OSError, UnicodeError):
        return False
    return all(map(_is_own, found))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_own(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 connects to this machine


def _excepted(host: str, netloc: str, no_proxy: str) -> bool:
    """Whether ``no_proxy`` or the system's settings except a host; networks, such as 10.0.0.0/8, count too."""
    if urllib.request.proxy_bypass(netloc):
        return True
    if not _is_address(host):
        return False
    for entry in no_proxy.split(","):
        try:
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def shown(proxy: str) -> str:
    """A proxy's URL without user and password."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def through(proxy: str | None) -> str:
    """The end of an error message: which proxy the request went through; empty for none."""
    return "" if proxy is None else f" (through the proxy {shown(proxy)} that the environment names)"


def library_options(url: str, proxy: str | None, tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """The options of an HTTP library's client that take it to `url` by this way and no other.

    Args:
        url: of the server.
        proxy: on the way; None: none.
        tls: how the server's certificate is checked; None: as the environment says.
    """
    way: dict[str, Any] = {"trust_env": False} if proxy is None else {"proxy": proxy}
    if tls is None and proxy is None and urlsplit(url).scheme == "https":
        # Without trust_env the library reads no proxies. It then reads no certificates either.
        tls = _context() if any(os.environ.get(name) for name in _CERTIFICATES) else None
    return way if tls is None else {**way, "verify": tls}


def _context() -> ssl.SSLContext:
    file, folder = (os.environ.get(name) or None for name in _CERTIFICATES)
    return ssl.create_default_context(cafile=file, capath=folder)
