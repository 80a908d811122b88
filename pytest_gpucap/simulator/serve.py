"""A simulated server in a process of its own, which starts when someone asks for its address."""

from __future__ import annotations

import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import Capabilities
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.simulated import simulated_class
from pytest_gpucap.simulator.profile import Profile

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class SimulatedServer(HttpServer):
    """A simulated server. Its process starts when its address is first asked for, and ends with `close` or with ours.

    Args:
        profile: how it behaves.
        arguments: further ones of ``python -m pytest_gpucap.simulator``.
        server_args: those of the test's marker, for reports.
    """

    simulated = True

    def __init__(
        self, profile: Profile, arguments: Sequence[str] = (), *, server_args: Mapping[str, object] | None = None
    ) -> None:
        super().__init__("", f"simulated-{profile.name}")
        self.profile = profile
        self._arguments, self._server_args = tuple(arguments), server_args
        self._process: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        """See `Server.base_url`.

        Raises:
            EndpointError: if the process does not start.
        """
        if self._process is None:
            self._base_url = self._start()
        return self._base_url

    @property
    def startup_s(self) -> float | None:
        """Seconds that a start of what is simulated would take, as its profile says."""
        return self.profile.startup_s

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        engine = self.profile.engine
        return Capabilities(
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            kv_tokens=engine.kv_tokens,
            simulated=True,
            loopback=True,
            started=False,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        name = self.profile.name
        known = {"server_args": dict(self._server_args)} if self._server_args else {}
        return {
            "gpu": f"SIMULATED ({name})",
            "gpu_class": simulated_class(name),
            "profile": self.profile.source,
            **known,
        }

    def pids(self) -> set[int]:
        """Its process."""
        return {self._process.pid} if self._process is not None and self.running else set()

    def close(self) -> None:
        """End it. Safe to call twice."""
        super().close()
        process = self._process
        if process is None:
            return
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()  # what `--with-parent` waits for
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _start(self) -> str:
        """Start the process; its base URL."""
        place = str(self.profile.file or self.profile.name)
        command = [sys.executable, "-m", "pytest_gpucap.simulator", "--profile", place, *self._arguments]
        command += ["--port", "0", "--with-parent"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None  # noqa: S101 - asked for
        deadline = time.monotonic() + START_TIMEOUT_S
        line = ""
        while time.monotonic() < deadline and process.poll() is None:
            with selectors.DefaultSelector() as selector:  # `select` takes no descriptor beyond 1,023
                selector.register(process.stdout, selectors.EVENT_READ)
                if selector.select(0.2):
                    line = process.stdout.readline()
                    break
        if " serves at " not in line:
            process.kill()
            process.communicate()
            said = line.strip() or "it said nothing"
            raise EndpointError(f"the simulated server {self.profile.name} did not start: {said}")
        self._process = process
        return line.split()[-1]


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
    right = loaded.accuracy if accuracy is None else accuracy
    arguments = ["--seed", str(seed), "--time-scale", repr(time_scale), "--accuracy", repr(right)]
    server = SimulatedServer(loaded if profile_file is None else replace(loaded, file=profile_file), arguments)
    _ = server.base_url
    return server
