"""What the live line says of the devices, and that a terminal gets it while pytest captures."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

from pytest_gpucap.session.live_line import glance
from pytest_gpucap.telemetry.probes import DEVICE_FIELDS
from pytest_gpucap.telemetry.sampler import LINK_FIELDS, Telemetry, WatchedDevice
from pytest_gpucap.telemetry.time_series import TimeSeries

NAN = float("nan")


def watching(*devices: list[tuple[float, float, float]]) -> Telemetry:
    """A telemetry whose devices were read so: seconds ago, use, power."""
    now_s = time.monotonic()
    telemetry = Telemetry((), lambda: (), clock=lambda: now_s)
    for readings in devices:
        series = TimeSeries(DEVICE_FIELDS)
        for ago_s, use, power_w in readings:
            values = dict.fromkeys(DEVICE_FIELDS, NAN) | {"gpu_use": use, "power_w": power_w}
            series.append(now_s - ago_s, [values[name] for name in DEVICE_FIELDS])
        telemetry.devices.append(WatchedDevice(cast("Any", None), series, TimeSeries(LINK_FIELDS)))
    return telemetry


def test_the_last_readings_are_averaged() -> None:
    assert glance(watching([(60.0, 0.1, 80.0), (1.0, 0.9, 400.0), (0.5, 1.0, 420.0)])) == "GPU 95% 410 W"


def test_several_devices_share_their_use_and_add_their_power() -> None:
    assert glance(watching([(0.5, 1.0, 400.0)], [(0.5, 0.5, 300.0)])) == "2 GPUs 75% 700 W"


def test_what_cannot_be_read_is_left_out() -> None:
    assert glance(watching([(0.5, 0.8, NAN)])) == "GPU 80%"
    assert glance(watching([(0.5, 1.0, 400.0)], [(0.5, 0.5, NAN)])) == "2 GPUs 75%"
    assert not glance(watching([(60.0, 0.8, 300.0)]))
    assert not glance(watching([]))
    assert not glance(watching())


def test_a_real_terminal_gets_one_live_line_that_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        '@pytest.mark.gpucap(name="chat", qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")\n'
        "def test_it(gpucap): gpucap.check()\n"
    )
    # Virtual time passes faster than anybody reads; here every renewal is to be seen.
    (tmp_path / "conftest.py").write_text("from pytest_gpucap.session import live_line\nlive_line._RENEW_S = 0.0\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--gpu-class=sim:fast", "--color=no"]
    screen = _run_on_a_terminal(command, tmp_path, {"TERM": "xterm"})
    lines = re.findall(r"\r\x1b\[K(chat[^\r\n]*)", screen)
    assert any(re.match(r"chat: .*, p95 E2E .* of 4 s, \d+ s, \d+ s left", line) for line in lines)
    assert max(map(len, lines)) < 80
    # Nothing of it stays: the line is cleared before pytest goes on.
    ended = re.search(r"\r\x1b\[K\x1b\[A\r?\n(\. +\[100%\])", screen)
    assert ended is not None
    assert len(ended[1]) <= 80
    plain = _run_on_a_terminal(command, tmp_path, {"TERM": "dumb"})
    assert "\x1b" not in plain
    assert re.search(r"^chat: warm-up.* in flight, \d+ s \(0 s spent\)", plain, re.MULTILINE)


def _run_on_a_terminal(command: list[str], folder: Path, environ: dict[str, str]) -> str:
    """What a command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **size, **environ}
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # Linux says so when the other end is closed
                    break
                if not part:
                    break
                shown += part
            assert process.wait() == 0
        finally:
            if process.poll() is None:
                process.kill()
            os.close(ours)
    return shown.decode(errors="replace")


def test_a_terminal_of_few_characters_shows_the_whole_summary(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        '@pytest.mark.gpucap(name="größer 你好", qps=100, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")\n'
        "def test_it(gpucap): gpucap.check()\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--gpu-class=sim:fast", "-qq"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    shown = done.stdout.decode("ascii")
    assert done.returncode == 1
    assert "server time:" in shown
    assert "\\u4f60\\u597d needs" in shown
    assert b"UnicodeEncodeError" not in done.stdout + done.stderr
