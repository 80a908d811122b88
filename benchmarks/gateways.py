"""What gateways cost: the same load on a simulated server, alone and through each of them, in alternation.

    PYTHONPATH=$PWD python benchmarks/gateways.py [--seconds 3] [--rounds 2]

It needs nginx and vLLM's router, and LiteLLM where it is installed (`make litellm`); what is missing is left out. It
prints the share of the server's own requests per second that is left with 8 requests in flight, and the factor on the
median TTFT.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.engines.url import attach
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.gateways.gateways import LITELLM_KEY, litellm, nginx, vllm_router

IN_FLIGHT = 8
WORKLOAD = Workload(Length.fixed(64), Length.fixed(32))


def measured(url: str, key: str | None, model: str, seconds: float, seed: int) -> tuple[float, float]:
    """Requests per second, and the median TTFT in seconds."""
    with HttpLoadRunner(url, model, key, WORKLOAD, seed, workers=1) as runner:
        span = runner.run(closed_loop(WORKLOAD, IN_FLIGHT, seconds, 500.0, seed, 0))
        runner.settle(60.0, cancel=True)
        journal = runner.journal()
    done = (journal.status == Status.OK) & (journal.end_s < span.end_s)
    return float(done.sum()) / (span.end_s - span.start_s), float(np.median(journal.ttft_s[done]))


def ways(folder: Path, server: SimulatedServer) -> dict[str, Callable[[], AbstractContextManager[str]]]:
    """How the server is reached."""
    unbuffered = "proxy_http_version 1.1; proxy_buffering off;"
    upstream = {"gateway": (server.base_url, server.model, "none")}
    return {
        "alone": lambda: nullcontext(server.base_url),
        "nginx, proxy_buffering off": lambda: nginx(folder / "off", server.base_url, location=unbuffered),
        "nginx, its defaults": lambda: nginx(folder / "on", server.base_url),
        "vLLM's router": lambda: vllm_router(folder / "router", server.base_url),
        "LiteLLM, one worker": lambda: litellm(folder / "litellm", upstream),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = LITELLM_KEY
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place, start_simulator("fast") as server, ExitStack() as running:
        urls = {}
        for name, way in ways(Path(place), server).items():
            try:
                urls[name] = running.enter_context(way())
            except pytest.skip.Exception as missing:
                print(f"{name}: left out, {missing}")
        models = {name: attach(url, wait_s=60.0).model for name, url in urls.items()}
        for seed in range(given.rounds):
            for name, url in urls.items():
                key = LITELLM_KEY if name.startswith("LiteLLM") else None
                found.setdefault(name, []).append(measured(url, key, models[name], given.seconds, seed))
    alone_rps, alone_s = (statistics.mean(each) for each in zip(*found["alone"], strict=True))
    for name, seen in found.items():
        rps, ttft_s = (statistics.mean(each) for each in zip(*seen, strict=True))
        print(f"{name:28} {rps / alone_rps:6.0%} of the requests per second, median TTFT x {ttft_s / alone_s:.1f}")


if __name__ == "__main__":
    main()
