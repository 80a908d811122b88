"""Whether a device ran as it should while it was measured.

There are two kinds of slowdown. With heat, a power brake, a power limit below the board's own, or clocks that fell for
no stated reason, the device did not run as its class does, and the measurement is invalid. At its own power limit, a
board runs as its class does: a T4 or an L4 under load always is at that limit, and so is an H100 in a long prefill.
That is reported (`TelemetrySummary`), and invalidates nothing.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.telemetry.time_series import TimeSeries

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h).
GPU_IDLE, CLOCK_SETTING, POWER_CAP, HARDWARE = 0x1, 0x2, 0x4, 0x8
SYNC_BOOST, SOFTWARE_THERMAL, HARDWARE_THERMAL, POWER_BRAKE, DISPLAY = 0x10, 0x20, 0x40, 0x80, 0x100
REASONS = {
    GPU_IDLE: "idle",
    CLOCK_SETTING: "clock setting",
    POWER_CAP: "power cap",
    HARDWARE: "hardware slowdown",
    SYNC_BOOST: "sync boost",
    SOFTWARE_THERMAL: "software thermal slowdown",
    HARDWARE_THERMAL: "hardware thermal slowdown",
    POWER_BRAKE: "power brake",
    DISPLAY: "display clock setting",
}
_FAULTS = (SOFTWARE_THERMAL, HARDWARE_THERMAL, POWER_BRAKE, HARDWARE)
_EXPLAINED = POWER_CAP | GPU_IDLE
"""Lower clocks are expected for these reasons."""

MAX_SHARE = 0.01
"""A slowdown in up to 1% of the readings does not change a verdict."""
BUSY = 0.5
"""Clocks are compared in readings where kernels ran at least half of the time: idle devices clock down."""
MIN_READINGS = 10
MAX_DROP = 0.1


def reason_shares(reasons: Floats) -> dict[str, float]:
    """Share of the readings in which each reason held; reasons that never held are left out."""
    bits = reasons[~np.isnan(reasons)].astype(np.int64)
    if not bits.size:
        return {}
    shares = {name: float(np.mean((bits & bit) != 0)) for bit, name in REASONS.items()}
    return {name: share for name, share in shares.items() if share > 0}


def device_problems(
    device: Device, series: TimeSeries, link: TimeSeries, start_s: float, end_s: float
) -> list[Problem]:
    """What was wrong with a device in a window."""
    columns = series.all()
    inside = (columns["time_s"] >= start_s) & (columns["time_s"] <= end_s)
    window = {name: column[inside] for name, column in columns.items()}
    shares = reason_shares(window["reasons"])
    found: list[Problem] = []

    def blame(kind: ProblemKind, text: str) -> None:
        found.append(Problem(ProblemSource.GPU, kind, f"{device.label} {text}"))

    for bit in _FAULTS:
        share = shares.get(REASONS[bit], 0.0)
        if share > MAX_SHARE and not (bit == HARDWARE and shares.keys() & _NAMED):
            blame(ProblemKind.SLOWED_DOWN, f"had {REASONS[bit]} in {share:.0%} of the readings{_heat(window, bit)}")
    limit, own = device.power_limit_w, device.default_power_limit_w
    capped = shares.get(REASONS[POWER_CAP], 0.0)
    if limit is not None and own is not None and limit < own and capped > MAX_SHARE:
        blame(
            ProblemKind.POWER_LIMIT,
            f"was held by a power limit of {limit:.0f} W, lowered from {own:.0f} W, in {capped:.0%} of the readings",
        )
    if lower := _lower_clock(columns, start_s, inside):
        blame(ProblemKind.SLOWED_DOWN, lower)
    ecc = link.window(start_s, end_s)["ecc_errors"]
    ecc = ecc[~np.isnan(ecc)]
    if ecc.size and ecc[-1] > ecc[0]:
        blame(ProblemKind.MEMORY_ERRORS, f"had {ecc[-1] - ecc[0]:.0f} uncorrected memory errors")
    return found


_NAMED = {REASONS[HARDWARE_THERMAL], REASONS[POWER_BRAKE]}
"""The general hardware bit is set together with these, and then adds nothing."""


def _heat(window: dict[str, Floats], bit: int) -> str:
    temperature = window["temperature_c"]
    if bit not in {SOFTWARE_THERMAL, HARDWARE_THERMAL} or np.isnan(temperature).all():
        return ""
    return f", at up to {np.nanmax(temperature):.0f} C"


def _lower_clock(columns: dict[str, Floats], start_s: float, inside: Bools) -> str:
    """A clause on a busy device that runs slower than before without a stated reason; empty if it does not."""
    clock = columns["sm_clock_mhz"]
    reasons = np.nan_to_num(columns["reasons"]).astype(np.int64)
    told = ~np.isnan(columns["reasons"])  # an exporter may leave them out, and then any lower clock may have a good one
    usable = (columns["gpu_use"] >= BUSY) & told & ((reasons & _EXPLAINED) == 0) & ~np.isnan(clock)
    before = clock[usable & (columns["time_s"] < start_s)]
    now = clock[usable & inside]
    if before.size < MIN_READINGS or now.size < MIN_READINGS:
        return ""
    usual, current = float(np.median(before)), float(np.median(now))
    if current >= usual * (1 - MAX_DROP):
        return ""
    return f"ran at an SM clock of {current:.0f} MHz, {1 - current / usual:.0%} lower than the {usual:.0f} MHz before"
