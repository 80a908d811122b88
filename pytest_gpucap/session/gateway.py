"""A gateway between the load generator and the engine: where it is, and whether it refused requests by itself."""

from __future__ import annotations

from typing import Final

import numpy as np

from pytest_gpucap.access import server_root
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.telemetry.bottleneck import GATEWAY_ADVICE, WAITING
from pytest_gpucap.telemetry.sampler import Telemetry

_REFUSALS: Final = (429, 502, 503, 504)
"""Statuses with which a gateway sends requests away: too many of them, or nobody behind it who answers in time."""
_MANY: Final = 0.5
"""Of all requests that ended."""


def gateway_of(target: SystemUnderTest) -> str:
    """The address that requests are sent to, where the engine's metrics are read elsewhere; else empty."""
    pages = getattr(target.endpoint, "pages", ())
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
    seen = telemetry.summary(float(journal.due_s[ended].min()), float(journal.end_s[ended].max())).server
    if seen.running is None or seen.waiting is None or (seen.waiting_share or 0.0) > WAITING:
        return None
    refused = ", ".join(f"{count} x HTTP {status}" for status, count in sorted(counts.items()))
    return Bottleneck(
        BottleneckKind.GATEWAY,
        (
            f"the gateway at {gateway} refused requests: {refused}",
            f"the engine had {seen.running:.1f} running and {seen.waiting:.1f} waiting on average meanwhile",
        ),
        GATEWAY_ADVICE,
    )
