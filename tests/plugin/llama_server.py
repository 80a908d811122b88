"""Stands for llama.cpp's server: its command line and the names of its metrics, and the simulator's answers."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable
from typing import Any

from pytest_gpucap.simulator import profile, web

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--alias", required=True)
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--parallel", type=int)
parser.add_argument("--ctx-size", type=int)
parser.add_argument("--metrics", action="store_true")

NAMES = {
    "num_requests_running": "requests_processing",
    "num_requests_waiting": "requests_deferred",
    "prompt_tokens_total": "prompt_tokens_total",
    "generation_tokens_total": "tokens_predicted_total",
}


class Connection(web.ClientConnection):
    """One to a server that tells no version."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = ARGUMENTS.alias

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        return {route: answer for route, answer in super()._routes().items() if route != ("GET", "/version")}

    def _metrics(self) -> str:
        page = super()._metrics()
        for theirs, ours in NAMES.items():
            page = page.replace(f"vllm:{theirs}", f"llamacpp:{ours}")
        return re.sub(r"(?m)^.*vllm:.*\n", "", page)


if __name__ == "__main__":
    ARGUMENTS = parser.parse_args()
    web.ClientConnection = Connection  # type: ignore[misc]
    served = profile.load("fast")
    asyncio.run(web.serve(served, ARGUMENTS.host, ARGUMENTS.port, 0, lambda port: print("serving", port, flush=True)))
