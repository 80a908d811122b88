"""Where the live lines go, and what they show of the devices."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from pytest_gpucap.report.formatting import percent
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.telemetry.sampler import Telemetry

_GLANCE_S: Final = 2.0
"""The devices are read ten times a second; a line shows the mean of the last readings."""


def live(config: pytest.Config, name: str) -> LiveLine:
    """The live lines of a test: rewritten in place on a terminal, plain under ``-q`` and from an xdist worker."""
    stays = config.get_verbosity() < 0 or hasattr(config, "workerinput") or os.environ.get("TERM") == "dumb"
    # Not `sys.__stdout__.isatty()`: pytest captures that stream while a test runs.
    terminal = getattr(config.pluginmanager.getplugin("terminalreporter"), "isatty", False)
    return LiveLine(name, _writer(config), interactive=terminal and not stays)


def _writer(config: pytest.Config) -> Callable[[str], None] | None:
    """Writes to the terminal past pytest's capture; None under ``-qq``."""
    if config.get_verbosity() < -1:
        return None
    capture = config.pluginmanager.getplugin("capturemanager")
    worker = getattr(config, "workerinput", {}).get("workerid")
    out = _to_stderr(worker) if worker else _to_terminal(config.pluginmanager.getplugin("terminalreporter"))
    if out is None or capture is None:
        return out

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            out(text)

    return write


def _to_terminal(terminal: Any) -> Callable[[str], None] | None:
    if terminal is None:
        return None
    started = False

    def write(text: str) -> None:
        nonlocal started
        # The first line of a test follows pytest's own "test_x.py " or "test_x.py::name ".
        lead = "" if started else "\n"
        started = True
        terminal.write(lead + text, flush=True)

    return write


def _to_stderr(worker: str) -> Callable[[str], None] | None:
    """A worker's standard output carries messages to the main process, so lines for the user go to standard error."""
    error = sys.__stderr__
    if error is None:
        return None

    def write(text: str) -> None:
        # Whole lines in one write, so that those of several workers do not mix.
        error.write(f"[{worker}] {text}")
        error.flush()

    return write


def glance(telemetry: Telemetry) -> str:
    """What the devices did in the last two seconds: ``GPU 97% 412 W``; empty without devices or readings."""
    now_s = telemetry.now()
    recent = [watched.series.window(now_s - _GLANCE_S, now_s) for watched in telemetry.devices]
    use = _mean(value for columns in recent for value in columns["gpu_use"])
    power = [_mean(columns["power_w"]) for columns in recent]
    shown = [] if use is None else [f"{percent(use).partition('.')[0]}%"]
    if power and None not in power:
        shown.append(f"{sum(filter(None, power)):.0f} W")
    count = "GPU" if len(recent) == 1 else f"{len(recent)} GPUs"
    return " ".join([count, *shown]) if shown else ""


def _mean(values: Any) -> float | None:
    present = [float(value) for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else None
