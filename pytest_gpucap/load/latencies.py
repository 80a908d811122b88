"""The latencies of requests as limits take them: one value per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.requirement import LatencyLimit, Limit, Metric, Threshold


class Latencies(Protocol):
    """Of requests, on a server or in a model: shape (n,) each, NaN where there is none."""

    @property
    def ttft_s(self) -> Floats:
        """Time to first token."""
        ...

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first."""
        ...

    @property
    def e2e_s(self) -> Floats:
        """End to end."""
        ...


class Ended(NamedTuple):
    """Latencies of whole requests as plain columns; see `Latencies`."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


def with_first_tokens(latencies: Latencies, factor: float) -> Latencies:
    """The same requests with every TTFT multiplied by `factor`; what follows the first token takes as long as ever."""
    if factor == 1.0:
        return latencies
    ttft_s, e2e_s = latencies.ttft_s, latencies.e2e_s
    ended = np.isfinite(e2e_s)
    moved_s = np.where(ended, ttft_s, 0.0) * (factor - 1.0)
    return Ended(ttft_s * factor, latencies.tpot_s, np.where(ended, e2e_s + moved_s, e2e_s))


def metric_s(latencies: Latencies, metric: Metric) -> Floats:
    """One latency of each request, shape (n,).

    Raises:
        ValueError: for ITL, of which a request has many.
    """
    match metric:
        case Metric.TTFT:
            return latencies.ttft_s
        case Metric.E2E:
            return latencies.e2e_s
        case Metric.TPOT:
            return latencies.tpot_s
    raise ValueError(f"a request has many of {metric.name}")


def limited(latencies: Latencies, limit: Limit) -> Floats:
    """What a limit is set on, of each request, shape (n,): a request keeps the limit up to `Limit.most`.

    Seconds of one latency; for goodput, the largest latency as a multiple of its threshold.

    Raises:
        ValueError: for ITL, of which a request has many.
    """
    if isinstance(limit, LatencyLimit):
        return metric_s(latencies, limit.metric)
    return multiple(latencies, limit.thresholds)


def multiple(latencies: Latencies, thresholds: Sequence[Threshold]) -> Floats:
    """The largest latency of each request as a multiple of its threshold, shape (n,). A latency of NaN is left out."""
    largest: Floats = np.fmax.reduce([metric_s(latencies, metric) / limit_s for metric, limit_s in thresholds])
    return largest


def good(latencies: Latencies, thresholds: Sequence[Threshold]) -> Bools:
    """Which requests kept every threshold, shape (n,). An answer of one token has no TPOT, and so breaks none on it."""
    kept: Bools = ~(multiple(latencies, thresholds) > 1.0)
    return kept
