"""Telemetry -> the time series of a result: all figures on one time axis, with few enough points for a file and a page.

Devices are read ten times a second, the server twice and the host once. Here all are averaged over the same bins. The
bins match the measuring windows in time, because both use the machine's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.results.telemetry import TelemetryOverTime

MOST_POINTS: Final = 300
SHORTEST_BIN_S: Final = 1.0
"""Two readings of the server. In shorter bins, a reading that comes a little late would leave one empty."""

_DEVICE: Final[Mapping[str, tuple[str, Callable[[Floats], Floats]]]] = {
    # Column -> the reading, and how several GPUs are combined: shape (GPUs, bins) to (bins,).
    "gpu_utilisation": ("gpu_use", lambda each: each.mean(axis=0)),
    "sm_clock_mhz": ("sm_clock_mhz", lambda each: each.min(axis=0)),
    "power_w": ("power_w", lambda each: each.sum(axis=0)),
    "temperature_c": ("temperature_c", lambda each: each.max(axis=0)),
    "gpu_memory_bytes": ("memory_bytes", lambda each: each.sum(axis=0)),
}
_SERVER: Final = {"running": "running", "waiting": "waiting", "kv_cache_usage": "kv_use"}
_COUNTERS: Final = {
    "output_tokens_per_s": "output_tokens",
    "prompt_tokens_per_s": "prompt_tokens",
    "preemptions_per_s": "preemptions",
}
_HOST: Final = {"host_cpu_cores": "busy_s", "other_cpu_cores": "others_s", "cpu_pressure": "waiting_s"}
"""Counters of seconds: their rates are cores, or a share of the time."""


def binned_series(watched: Mapping[str, Any], start_s: float, end_s: float) -> TelemetryOverTime | None:
    """The time from `start_s` to `end_s` in at most `MOST_POINTS` bins of equal width.

    Args:
        watched: ``devices`` by UUID, ``server``, ``processes`` by pid and ``host``, each of columns as long as its
            ``time_s``; a missing figure is None.
        start_s: on the clock of the readings.
        end_s: on the clock of the readings.

    Returns:
        The bins on the same clock. Columns without any reading are left out. None if no column is left.
    """
    seconds = end_s - start_s
    if seconds <= 0:
        return None
    count = max(1, min(MOST_POINTS, int(seconds / SHORTEST_BIN_S)))
    edges = np.linspace(start_s, end_s, count + 1)
    columns: dict[str, Floats] = {}
    devices = list(watched.get("devices", {}).values())
    for name, (reading, together) in _DEVICE.items():
        each = [_means(device["time_s"], device.get(reading, ()), edges) for device in devices]
        if each:
            columns[name] = together(np.stack(each))
    server = watched.get("server") or {"time_s": ()}
    for name, reading in _SERVER.items():
        columns[name] = _means(server["time_s"], server.get(reading, ()), edges)
    for name, counter in _COUNTERS.items():
        columns[name] = _rates(server["time_s"], server.get(counter, ()), edges)
    for process in watched.get("processes", {}).values():
        cores = _rates(process["time_s"], process.get("cpu_s", ()), edges)
        columns["server_cpu_cores"] = _added(columns.get("server_cpu_cores"), cores)
    host = watched.get("host") or {"time_s": ()}
    for name, counter in _HOST.items():
        columns[name] = _rates(host["time_s"], host.get(counter, ()), edges)
    read = {name: _listed(column) for name, column in columns.items() if not np.isnan(column).all()}
    return TelemetryOverTime(tuple(((edges[1:] + edges[:-1]) / 2).tolist()), read) if read else None


def _known(time_s: Sequence[float], values: Sequence[float | None]) -> tuple[Floats, Floats]:
    """The values that are not NaN, and their times; shape (n,) each."""
    when, found = np.asarray(time_s, dtype=np.float64), np.array(values, dtype=np.float64)
    if found.size != when.size:
        return np.empty(0), np.empty(0)
    known = ~np.isnan(found)
    return when[known], found[known]


def _means(time_s: Sequence[float], values: Sequence[float | None], edges: Floats) -> Floats:
    """Mean of the readings in each bin; NaN without any. Shape (bins,)."""
    when, found = _known(time_s, values)
    inside = (when >= edges[0]) & (when <= edges[-1])
    bins = np.minimum(np.searchsorted(edges, when[inside], side="right") - 1, edges.size - 2)
    sums = np.bincount(bins, weights=found[inside], minlength=edges.size - 1)
    sizes = np.bincount(bins, minlength=edges.size - 1).astype(np.float64)
    means: Floats = np.divide(sums, sizes, out=np.full(edges.size - 1, np.nan), where=sizes > 0)
    return means


def _rates(time_s: Sequence[float], values: Sequence[float | None], edges: Floats) -> Floats:
    """Growth of a counter per second in each bin, assumed to be even between readings; NaN where it is not known."""
    when, found = _known(time_s, values)
    if when.size < 2:  # noqa: PLR2004 - growth needs two readings
        return np.full(edges.size - 1, np.nan)
    # A counter that falls was reset.
    total = np.concatenate(([0.0], np.cumsum(np.maximum(np.diff(found), 0.0))))
    at_edges = np.interp(edges, when, total, left=np.nan, right=np.nan)
    rates: Floats = np.diff(at_edges) / np.diff(edges)
    return rates


def _added(one: Floats | None, other: Floats) -> Floats:
    """The sum where either is known."""
    if one is None:
        return other
    both: Floats = np.where(np.isnan(one), other, np.where(np.isnan(other), one, one + other))
    return both


def _listed(column: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in column)
