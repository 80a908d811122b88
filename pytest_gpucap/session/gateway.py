"""A gateway between the load generator and the engine: where it is, and whether it refused requests by itself."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from pytest_gpucap.access import server_root
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.telemetry.bottleneck import GATEWAY_ADVICE, WAITING
from pytest_gpucap.telemetry.probes import read_metrics
from pytest_gpucap.telemetry.sampler import Telemetry

_REFUSALS: Final = (429, 502, 503, 504)
"""Statuses with which a gateway sends requests away: too many of them, or nobody behind it who answers in time."""
_MANY: Final = 0.5
"""Of all requests that ended."""
_AROUND_S: Final = 1.0
"""Before and after them, because the page is read twice a second."""


def gateway_of(target: SystemUnderTest) -> str:
    """The address that requests are sent to, where the engine's metrics are read elsewhere; else empty."""
    pages = getattr(target.endpoint, "pages", ())
    if not pages:
        return ""  # without asking for the address: that would start a simulated server, which nobody sends anything
    root = server_root(target.endpoint.base_url)
    return root if any(page.url != f"{root}/metrics" for page in pages) else ""


def refused_there(target: SystemUnderTest) -> Bottleneck | None:
    """The gateway as the bottleneck, if it refused most requests while none waited in the engine; else None."""
    gateway, telemetry = gateway_of(target), target.telemetry
    if not gateway or target.runner is None or not isinstance(telemetry, Telemetry):
        return None
    counts: dict[int, int] = {}
    for error in target.runner.error_texts():
        if error.code in _REFUSALS:
            counts[error.code] = counts.get(error.code, 0) + error.count
    journal = target.runner.journal()
    ended = np.isfinite(journal.end_s)
    if not counts or sum(counts.values()) < _MANY * int(ended.sum()):
        return None
    start_s, end_s = float(journal.due_s[ended].min()), float(journal.end_s[ended].max())
    seen = telemetry.summary(start_s - _AROUND_S, end_s + _AROUND_S).server
    running, waiting, share = seen.running, seen.waiting, seen.waiting_share
    if running is None or waiting is None:  # refusals may come so fast that nobody has looked meanwhile
        running, waiting = _now(target)
        share = float(waiting > 0)
    if not math.isfinite(running + waiting) or (share or 0.0) > WAITING:
        return None
    refused = ", ".join(f"{count} x HTTP {status}" for status, count in sorted(counts.items()))
    return Bottleneck(
        BottleneckKind.GATEWAY,
        (
            f"the gateway at {gateway} refused requests: {refused}",
            f"the engine had {running:.1f} running and {waiting:.1f} waiting on average meanwhile",
        ),
        GATEWAY_ADVICE,
    )


def _now(target: SystemUnderTest) -> tuple[float, float]:
    """Requests running and waiting in the engine at this moment; NaN where its page does not tell."""
    try:
        page = target.endpoint.request("/metrics")
    except EndpointError:
        return math.nan, math.nan
    found = read_metrics(page, target.endpoint.capabilities().metrics)
    return found.running, found.waiting
