"""A server that takes vLLM's command line and answers as fast as its profile says, whatever the model is.

It stands for a server that is not what it claims to be: one that skips the model, stops early, or runs elsewhere.
FAST_VLLM_PROFILE names another profile: a shipped one, or a file. FAST_VLLM_ROOT is where it claims to have loaded its
model from, as vLLM 0.26, whose version it then claims too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from typing import Any

from pytest_gpucap.simulator import profile, web

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--served-model-name")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
ARGUMENTS, _ = parser.parse_known_args()
ROOT = os.environ.get("FAST_VLLM_ROOT")
KEY = os.environ.get("VLLM_API_KEY")


class Connection(web.ClientConnection):
    """One under the name that the command line asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = ARGUMENTS.served_model_name
        self._allowed = KEY is None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._allowed = KEY is None

    def on_header(self, name: bytes, value: bytes) -> None:
        """As every vLLM that the plugin starts, it asks for the key on every path."""
        if name.lower() == b"authorization" and KEY is not None:
            self._allowed = value.decode() == f"Bearer {KEY}"

    def on_message_complete(self) -> None:
        if self._allowed:
            super().on_message_complete()
        else:
            self._error(401, "Unauthorized")

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        if ROOT is None:
            return super()._routes()
        return super()._routes() | {("GET", "/version"): lambda _: self._json({"version": "0.26.0"})}

    def _card(self) -> dict[str, Any]:
        return super()._card() | ({} if ROOT is None else {"root": ROOT})


if __name__ == "__main__":
    web.ClientConnection = Connection  # type: ignore[misc]
    served = profile.load(os.environ.get("FAST_VLLM_PROFILE", "fast"))
    asyncio.run(web.serve(served, ARGUMENTS.host, ARGUMENTS.port, 0, lambda port: print("serving", port, flush=True)))
