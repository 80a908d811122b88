"""A server that takes vLLM's command line and answers as fast as its profile says, whatever the model is.

It stands for a server that is not what it claims to be: one that skips the model, stops early, or runs elsewhere.
FAST_VLLM_PROFILE names another profile: a shipped one, or a file. FAST_VLLM_ROOT is where it claims to have loaded its
model from, as vLLM 0.26, whose version it then claims too. FAST_VLLM_TELLS is a folder in which it makes a file when it
has begun ("started"), has a request of the load ("loaded") and gets a SIGTERM ("told"), which it then ignores. Each
name ends in its pid.
FAST_VLLM_HANGS: with --max-num-seqs of that number it never listens. FAST_VLLM_DIES: at its first request of the load
it writes that to its log, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gpucap.jit import spare_linear_algebra
from pytest_gpucap.simulator import profile, web

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--served-model-name")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--max-num-seqs")
ARGUMENTS, _ = parser.parse_known_args()
ROOT = os.environ.get("FAST_VLLM_ROOT")
KEY_SHA256 = os.environ.get("GPUCAP_KEY_SHA256")
OPEN_HEALTH = os.environ.get("GPUCAP_OPEN_HEALTH") == "1"
TELLS = os.environ.get("FAST_VLLM_TELLS")
HANGS = ARGUMENTS.max_num_seqs is not None and ARGUMENTS.max_num_seqs == os.environ.get("FAST_VLLM_HANGS")
LONGEST_PROBE = 24
"""Tokens in the prompt of the longest request that is no load."""


def tell(what: str) -> None:
    """Make the file, if somebody wants to know."""
    if TELLS is not None:
        Path(TELLS, f"{what}-{os.getpid()}").touch()


class Connection(web.ClientConnection):
    """One under the name that the command line asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = ARGUMENTS.served_model_name
        self._allowed = KEY_SHA256 is None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._allowed = KEY_SHA256 is None

    def on_header(self, name: bytes, value: bytes) -> None:
        """As every vLLM that the plugin starts, it asks for the key on every path."""
        if name.lower() == b"authorization" and KEY_SHA256 is not None:
            scheme, _, key = value.partition(b" ")
            self._allowed = scheme == b"Bearer" and hashlib.sha256(key).hexdigest() == KEY_SHA256

    def on_message_complete(self) -> None:
        if self._allowed or (OPEN_HEALTH and self._url == b"/health"):
            super().on_message_complete()
        else:
            self._error(401, "Unauthorized")

    def _stream(
        self, head: Mapping[str, Any], content: Sequence[Hashable], asked: int, *, chat: bool, usage: bool
    ) -> None:
        if len(content) > LONGEST_PROBE:
            tell("loaded")
            if (last_words := os.environ.get("FAST_VLLM_DIES")) is not None:
                print(last_words, flush=True)
                os._exit(1)
        super()._stream(head, content, asked, chat=chat, usage=usage)

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        if ROOT is None:
            return super()._routes()
        return super()._routes() | {("GET", "/version"): lambda _: self._json({"version": "0.26.0"})}

    def _card(self) -> dict[str, Any]:
        return super()._card() | ({} if ROOT is None else {"root": ROOT})


if __name__ == "__main__":
    spare_linear_algebra()
    if TELLS is not None:
        signal.signal(signal.SIGTERM, lambda *_: tell("told"))
        tell("started")
    if HANGS:
        threading.Event().wait(600)  # lest a failing test leave it
    web.ClientConnection = Connection  # type: ignore[misc]
    served = profile.load(os.environ.get("FAST_VLLM_PROFILE", "fast"))
    asyncio.run(web.serve(served, ARGUMENTS.host, ARGUMENTS.port, 0, lambda port: print("serving", port, flush=True)))
