"""Shows the progress of a measurement: one live line on a terminal, elsewhere one plain line per phase."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report.columns import cut, display_width, shortened, terminal_columns
from pytest_gpucap.report.formatting import limit_name, percent, rate, seconds, share_name
from pytest_gpucap.requirement import GOODPUT, goodput_percent
from pytest_gpucap.session.screen import columns
from pytest_gpucap.session.workers import is_one_of_many, told
from pytest_gpucap.telemetry.sampler import Telemetry

if TYPE_CHECKING:
    from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry

_CLEAR: Final = "\r\x1b[K"
_TAKEN_BACK: Final = f"{_CLEAR}\x1b[A\n"
"""Up and down again: pytest counts its columns from the last line break, even if that line was cleared."""
_REPEAT_S: Final = 30.0
_RENEW_S: Final = 0.2
_LEAST_NAME: Final = 8


class LiveLine:
    """Follows one measurement and shows its progress.

    Args:
        name: of the requirement.
        write: takes text for the terminal, past pytest's capture; None says nothing.
        interactive: the terminal can rewrite its last line.
        clock: real time in seconds, even if the measurement runs on a virtual clock.
        width: columns of the terminal, whenever it is asked.

    Attributes:
        gpu: returns what the devices are doing, such as ``GPU 97% 412 W``; set while telemetry runs.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[str], None] | None,
        *,
        interactive: bool,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] = terminal_columns,
    ) -> None:
        self._name = visible(name)
        self._write = write
        self._interactive = interactive
        self._clock = clock
        self._width = width
        self._open_line = False
        self._said_at = -math.inf
        self._began_s = 0.0
        self.gpu: Callable[[], str] | None = None

    def say(self, text: str) -> None:
        """Write one line that stays."""
        if self._write is not None:
            self._write(f"{_CLEAR if self._open_line else ''}{self._name}: {visible(text)}\n")
            self._open_line = False

    def waiting(self, text: str) -> None:
        """Show what a wait is for. A terminal rewrites its line; elsewhere a line is written twice a minute."""
        if self._write is None:
            return
        if self._interactive:
            self._rewrite(visible(text))
        elif self._clock() - self._said_at >= _REPEAT_S:
            self._said_at = self._clock()
            self.say(text)

    def phase(
        self, label: str, *, rate_rps: float | None, concurrency: int | None, duration_s: float, spent_s: float
    ) -> None:
        """A phase begins."""
        self._began_s = spent_s
        load = f" at {rate(rate_rps)}" if rate_rps is not None else ""
        load += f" with {concurrency} in flight" if concurrency is not None else ""
        text = f"{label}{load}, {duration_s:.0f} s ({spent_s:.0f} s spent)"
        if self._interactive:
            self.waiting(text)
        else:
            self.say(text)

    def progress(
        self,
        label: str,
        *,
        in_flight: int,
        completed: int,
        latency: str,
        latency_s: float,
        limit_s: float,
        spent_s: float,
        left_s: float,
    ) -> None:
        """A few times a second while a phase runs; only an interactive terminal shows it."""
        if self._write is None or not self._interactive or self._clock() - self._said_at < _RENEW_S:
            return
        self._said_at = self._clock()
        said = [visible(label)]
        if completed and spent_s > self._began_s:
            said.append(rate(completed / (spent_s - self._began_s)))
        if latency and not math.isnan(latency_s):
            said.append(_nearness(latency, latency_s, limit_s))
        if self.gpu is not None and (devices := self.gpu()):
            said.append(devices)
        said += [f"{spent_s:.0f} s", f"{left_s:.0f} s left"]
        wide = [said[0], f"{in_flight} in flight", *said[1:]]
        room = self._room() - display_width(self._name) - len(": ")
        self._rewrite(", ".join(wide if len(", ".join(wide)) <= room else said))

    def _rewrite(self, text: str) -> None:
        """Replace the live line. On a narrow screen the name is cut, then the end of the line."""
        room = self._room()
        left = room - len(": ") - display_width(text)
        name = shortened(self._name, max(_LEAST_NAME, left))
        if self._write is not None:
            self._write(f"{_CLEAR}{cut(f'{name}: {text}', room)}")
            self._open_line = True

    def _room(self) -> int:
        # A line of full width wraps on some terminals and can then not be replaced.
        return self._width() - 1

    def done(self) -> None:
        """Leave the terminal on a fresh line."""
        self.gpu = None
        if self._open_line and self._write is not None:
            self._write(_TAKEN_BACK)
            self._open_line = False


_GLANCE_S: Final = 2.0
"""The devices are read ten times a second; a line shows the mean of the last readings."""


def live(config: pytest.Config, name: str) -> LiveLine:
    """The live lines of a test: rewritten in place on a terminal, plain under ``-q`` and from an xdist worker."""
    stays = config.get_verbosity() < 0 or is_one_of_many(config) or os.environ.get("TERM") == "dumb"
    # Not `sys.__stdout__.isatty()`: while a test runs, pytest's capture stands behind that.
    terminal = getattr(config.pluginmanager.getplugin("terminalreporter"), "isatty", False)
    return LiveLine(name, _writer(config), interactive=terminal and not stays, width=lambda: columns(config))


def _writer(config: pytest.Config) -> Callable[[str], None] | None:
    """Writes to the terminal past pytest's capture; None under ``-qq``."""
    if config.get_verbosity() < -1:
        return None
    capture = config.pluginmanager.getplugin("capturemanager")
    worker = told(config).get("workerid")
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
    """A worker's standard output is its line to the main process; its standard error is the user's."""
    error = sys.__stderr__
    if error is None:
        return None

    def write(text: str) -> None:
        # Whole lines in one write, so that those of several workers do not mix.
        error.write(f"[{worker}] {text}")
        error.flush()

    return write


def _nearness(limit: str, value: float, allowed: float) -> str:
    """``p95 E2E 3.2 s of 4 s``, ``goodput 96.2% of 95%``."""
    if goodput_percent(limit) is not None:
        return f"{GOODPUT} {percent(value)} of {share_name(allowed)}"
    return f"{limit_name(limit)} {seconds(value)} of {seconds(allowed)}"


def glance(telemetry: Telemetry | FleetTelemetry) -> str:
    """What the devices did in the last two seconds: ``GPU 97% 412 W``; empty without devices or readings."""
    now_s = telemetry.now()
    recent = [watched.series.window(now_s - _GLANCE_S, now_s) for watched in telemetry.devices]
    use = _mean(value for columns in recent for value in columns["gpu_use"])
    power = [_mean(columns["power_w"]) for columns in recent]
    shown = [] if use is None else [f"{use * 100:.0f}%"]
    if power and None not in power:
        shown.append(f"{sum(filter(None, power)):.0f} W")
    count = "GPU" if len(recent) == 1 else f"{len(recent)} GPUs"
    return " ".join([count, *shown]) if shown else ""


def _mean(values: Any) -> float | None:
    present = [float(value) for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else None
