"""The HTTP library behind what is not worth a client of our own: calibration, TLS, proxies, HTTP/2.

``httpx2`` comes with openai 3, ``httpx`` with older ones; both have the same interface. Imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.protocol import LoadError

PROBE_TIMEOUT_S = 60.0
"""A probe is one short request; a server that is ready answers within seconds even on a CPU."""


@functools.cache
def http() -> ModuleType:
    """The library.

    Raises:
        LoadError: if neither is installed.
    """
    for name in ("httpx2", "httpx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise LoadError("neither httpx2 nor httpx can be imported, though openai needs one: pip install --upgrade openai")


def client(server: ServerAddress, timeout_s: float = PROBE_TIMEOUT_S) -> Any:
    """A blocking client for probes."""
    return http().Client(
        headers=server.headers,
        timeout=timeout_s,
        trust_env=server.needs_library() is not None,
        http1=not server.http2,
        http2=server.http2 or importlib.util.find_spec("h2") is not None,
    )
