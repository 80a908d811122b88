"""Starts a simulated server in a process of its own."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.server import Server
from pytest_gpucap.simulator.profile import Profile

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class SimulatedServer(Server):
    """A simulated server over HTTP. It ends with `close`, and with this process however that dies."""

    simulated = True

    def __init__(self, process: subprocess.Popen[str], base_url: str, profile: Profile) -> None:
        super().__init__(base_url, f"simulated-{profile.name}", "none")
        self.profile = profile
        self.max_num_seqs = profile.engine.max_num_seqs
        self.kv_tokens = profile.engine.kv_tokens
        self._process = process

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process.poll() is None

    def pids(self) -> set[int]:
        """Its process."""
        return {self._process.pid} if self.running else set()

    def close(self) -> None:
        """End it. Safe to call twice."""
        super().close()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()  # what `--with-parent` waits for
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_simulator(
    profile: Profile | str,
    *,
    seed: int = 0,
    time_scale: float = 1.0,
    profile_file: Path | None = None,
    accuracy: float | None = None,
) -> SimulatedServer:
    """Serve a profile on a free loopback port.

    Args:
        profile: a profile, or the name of one.
        seed: of noise, drift and stalls.
        time_scale: below 1: a faster engine.
        profile_file: the file of a profile that does not come with the plugin; the one it was loaded from (default).
        accuracy: share of right answers to the questions that come with the plugin; the profile's (default).

    Raises:
        EndpointError: if it does not start.
    """
    from pytest_gpucap.simulator.profile import load

    loaded = load(profile) if isinstance(profile, str) else profile
    place = str(profile_file or loaded.file or loaded.name)
    right = repr(loaded.accuracy if accuracy is None else accuracy)
    command = [
        sys.executable, "-m", "pytest_gpucap.simulator", "--profile", place, "--port", "0",
        "--seed", str(seed), "--time-scale", repr(time_scale), "--accuracy", right, "--with-parent",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # noqa: S101 - asked for
    deadline = time.monotonic() + START_TIMEOUT_S
    line = ""
    while time.monotonic() < deadline and process.poll() is None:
        ready, _, _ = select.select([process.stdout], [], [], 0.2)
        if ready:
            line = process.stdout.readline()
            break
    if " serves at " not in line:
        process.kill()
        process.communicate()
        raise EndpointError(f"the simulated server {loaded.name} did not start: {line.strip() or 'it said nothing'}")
    return SimulatedServer(process, line.split()[-1], loaded)
