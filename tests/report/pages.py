"""Documents to make pages of: simulated measurements, telemetry laid over them, hostile strings, long histories."""

from __future__ import annotations

import copy
import math
import random
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any

from pytest_gpucap.measure import procedure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.record import Context, curve_record, plain, verdict_record
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.telemetry.over_time import binned_series

HOSTILE = '</script><img src=x onerror="window.pwned=1"><b>&lt;{{7*7}}${8*8}\u2028\u202e'
"""Ends a script, starts an element, and means something to a template, to JavaScript and to bidirectional text."""

SLO = Slo((LatencyLimit.parse("e2e_p95", "3s"), LatencyLimit.parse("ttft_p95", "500ms")))
WORKLOAD = Workload(Length.fixed(128), Length.fixed(32))
ENVIRONMENT = {"gpu": "SIMULATED (fast)", "server": "simulator", "model": "fast", "gpu_class": "sim:fast"}


@cache
def _simulated() -> dict[str, Any]:
    engine = profile.load("fast").engine
    settings = Settings(max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
    quiet = LiveLine("quiet", None, interactive=False)

    def wanted(name: str, qps: int, gpus: int) -> Requirement:
        return Requirement(name, qps=Fraction(qps), gpus=gpus, workload=WORKLOAD, slo=SLO)

    holds = procedure.check(SimRunner(engine), wanted("chat", 300, 1), settings, quiet)
    fails = procedure.check(SimRunner(engine), wanted("launch day", 2000, 2), settings, quiet)
    swept = procedure.sweep(SimRunner(engine), wanted("curve", 1, 1), settings, quiet)
    records = [
        verdict_record(holds, Context("tests/test_chat.py::test_chat", ENVIRONMENT)),
        verdict_record(fails, Context("tests/test_chat.py::test_launch_day", ENVIRONMENT)),
        curve_record(swept, Context("tests/test_chat.py::test_curve", ENVIRONMENT)),
    ]
    return result_file.document(records, started=datetime(2026, 11, 22, 21, 30, tzinfo=UTC), arguments=["tests", "-v"])


def simulated() -> dict[str, Any]:
    """A budget that holds, one that does not, and a sweep, all measured on the simulator just now."""
    return copy.deepcopy(_simulated())


def watched() -> dict[str, Any]:
    """The same, with readings of two GPUs and a server in the form in which telemetry takes them; figures made up."""
    document = simulated()
    for record in document["results"]:
        start_s, end_s = record["samples"][0]["start_s"], record["samples"][-1]["end_s"]
        record["limit"] = {
            "bound": "bandwidth",
            "rate_rps": 900.0,
            "ttft_s": 0.01,
            "tpot_s": 0.002,
            "output_tokens_per_s": 28800.0,
            "batch": 64.0,
            "share": 0.57,
            "text": "513 req/s, 57% of the bandwidth limit at 64 in flight (900 req/s)",
            "formula": "weights and KV cache / bandwidth",
        }
        record["series"] = plain(binned_series(readings(start_s, end_s), start_s, end_s))
    return document


def readings(start_s: float, end_s: float) -> dict[str, Any]:
    """Two devices at 10 Hz, a server at 2 Hz, one process."""
    fast = [start_s + i / 10 for i in range(int((end_s - start_s) * 10) + 1)]
    slow = [start_s + i / 2 for i in range(int((end_s - start_s) * 2) + 1)]

    def device(base_w: float) -> dict[str, list[float | None]]:
        return {
            "time_s": list(fast),
            "gpu_use": [0.8 + 0.1 * math.sin(t) for t in fast],
            "sm_clock_mhz": [1980.0 for _ in fast],
            "power_w": [base_w + 50 * math.sin(t / 3) for t in fast],
            "temperature_c": [None for _ in fast],
        }

    return {
        "devices": {"GPU-a": device(400.0), "GPU-b": device(300.0)},
        "server": {
            "time_s": list(slow),
            "running": [20.0 for _ in slow],
            "waiting": [max(0.0, 5 * math.sin(t)) for t in slow],
            "kv_use": [0.4 for _ in slow],
            "output_tokens": [100.0 * (t - start_s) for t in slow],
        },
        "processes": {"7": {"role": "engine", "time_s": list(slow), "cpu_s": [0.9 * (t - start_s) for t in slow]}},
    }


def hostile() -> dict[str, Any]:
    """`watched`, with every string that comes from outside made hostile."""
    document = watched()
    document["arguments"] = [HOSTILE]
    for number, record in enumerate(document["results"]):
        record["name"] = f"{HOSTILE}{number}"
        record["test"] = HOSTILE
        record["reason"] = HOSTILE
        record["problems"] = [HOSTILE]
        record["environment"] = {"gpu": HOSTILE, HOSTILE: HOSTILE, "command": HOSTILE}
        record["bottleneck"] = {"kind": HOSTILE, "evidence": [HOSTILE], "advice": HOSTILE}
        record["spent_s"] = {HOSTILE: 3.0}
        for sample in record["samples"]:
            sample["label"] = HOSTILE + sample["label"]
            sample["errors"] = {HOSTILE: 1}
    return document


def trend(runs: int, name: str = "chat", test: str = "tests/test_chat.py::test_chat") -> dict[str, Any]:
    """The plain form of a trend of nightly runs with one drop, two thirds in."""
    noise = random.Random(7)
    drop = runs * 2 // 3
    rates = [(500 if at < drop else 440) * math.exp(noise.gauss(0, 0.017)) for at in range(runs)]
    nights = [datetime(2024, 1, 1, 3, 17, tzinfo=UTC) + timedelta(days=at) for at in range(runs)]
    return {
        "test": test,
        "name": name,
        "gpu_class": "sim:fast",
        "model": "fast",
        "workload": "128 in, 32 out",
        "simulated": True,
        "run_sd": 0.017,
        "points": [
            {
                "when": night.isoformat(),
                "rate": {"value": rate, "low": rate * 0.96, "high": rate * 1.04, "confidence": 0.95},
                "judged": True,
                "versions": {"server": "vLLM 0.26.0" if at < drop else "vLLM 0.27.0"},
            }
            for at, (night, rate) in enumerate(zip(nights, rates, strict=True))
        ],
        "segments": [
            {"start": 0, "stop": drop, "rate": {"value": 500.0, "low": 499.0, "high": 501.0, "confidence": 0.95}},
            {"start": drop, "stop": runs, "rate": {"value": 440.0, "low": 439.0, "high": 441.0, "confidence": 0.95}},
        ],
        "changes": [
            {
                "index": drop,
                "ratio": {"value": 0.88, "low": 0.87, "high": 0.89, "confidence": 0.95},
                "changed": ["server vLLM 0.26.0 -> vLLM 0.27.0"],
            }
        ],
    }
