"""The simulated server over HTTP, which stops answering in one way or another once load has come.

HANGS says how: ``all`` answers no request of the load, ``half`` every second one, ``middle`` stops every answer in the
middle of its stream, ``gone`` ends the process, ``replaced`` starts another at the same port and ends then.
HANGS_AFTER: so many requests of the load are answered well. HANGS_PORT: where to listen.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partialmethod
from typing import Any

from pytest_gpucap.jit import spare_linear_algebra
from pytest_gpucap.simulator import profile, web

HOW, AFTER = os.environ["HANGS"], int(os.environ.get("HANGS_AFTER", "0"))
NUMBERS = itertools.count()
MIDDLE = 3
"""Tokens of an answer that stops in its middle."""


class Muted:
    """A transport that takes the first few tokens of a stream."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._left = transport, MIDDLE

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def write(self, data: bytes) -> None:
        self._left -= 1
        if self._left >= 0:
            self._transport.write(data)


def _successor(port: int) -> None:
    """Start the next server at a port, and return when it listens."""
    environment = {**os.environ, "HANGS": "never", "HANGS_AFTER": "1000000", "HANGS_PORT": str(port)}
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.readline()


class Connection(web.ClientConnection):
    """Its answers to streamed requests are those of a broken server."""

    def _stream(
        self, head: Mapping[str, Any], content: Sequence[Hashable], asked: int, *, chat: bool, usage: bool
    ) -> None:
        number = next(NUMBERS)
        if number < AFTER or (HOW == "half" and number % 2):
            super()._stream(head, content, asked, chat=chat, usage=usage)
        elif HOW == "gone":
            os._exit(1)
        elif HOW == "replaced":
            _successor(self._transport.get_extra_info("sockname")[1])  # type: ignore[union-attr]
            os._exit(1)
        elif HOW == "middle":
            whole, self._transport = self._transport, Muted(self._transport)  # type: ignore[assignment]
            super()._stream(head, content, asked, chat=chat, usage=usage)
            self._transport = whole


if __name__ == "__main__":
    spare_linear_algebra()
    web.ClientConnection = Connection  # type: ignore[misc]
    create_server = asyncio.BaseEventLoop.create_server
    asyncio.BaseEventLoop.create_server = partialmethod(create_server, reuse_port=True)  # type: ignore[assignment]
    port = int(os.environ.get("HANGS_PORT", "0"))
    known = profile.load("fast")
    # More than any test needs: a check costs what it holds in flight.
    few = replace(known, engine=replace(known.engine, max_num_seqs=16))
    asyncio.run(web.serve(few, "127.0.0.1", port, 0, lambda port: print(port, flush=True)))
