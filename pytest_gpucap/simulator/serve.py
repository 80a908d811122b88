"""The simulator as an engine: its load runs in virtual time; its server over HTTP starts when someone asks for it."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import Capabilities, Engine, EnginePair, LoadRequest, Server, ServerRequest
from pytest_gpucap.engines.server import NO_KEY, HttpServer
from pytest_gpucap.requirement import positive
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.vllm_arguments import VllmArguments

if TYPE_CHECKING:  # loads Numba
    from pytest_gpucap.load.protocol import LoadRunner

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class SimulatedServer(HttpServer):
    """A simulated server. Its process starts when its address is first asked for, and ends with `close` or with ours.

    Args:
        profile: how it behaves.
        arguments: further ones of ``python -m pytest_gpucap.simulator``.
    """

    simulated = True

    def __init__(self, profile: Profile, arguments: Sequence[str] = ()) -> None:
        super().__init__("", f"simulated-{profile.name}", NO_KEY)
        self.profile = profile
        self._arguments = tuple(arguments)
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
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        engine = self.profile.engine
        return Capabilities(
            max_num_seqs=engine.max_num_seqs,
            kv_tokens=engine.kv_tokens,
            simulated=True,
            loopback=True,
            started=False,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        name = self.profile.name
        return {"gpu": f"SIMULATED ({name})", "gpu_class": f"sim:{name}", "profile": self.profile.source}

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
            ready, _, _ = select.select([process.stdout], [], [], 0.2)
            if ready:
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


class SimulatorEngine(Engine):
    """Measures a simulated server, whatever the test's own engine is.

    Args:
        request: what the test asks of a real engine.
        profile: how the server behaves.
    """

    name = "simulator"
    leases_devices = False

    def __init__(self, request: ServerRequest, profile: Profile) -> None:
        super().__init__(request)
        self.profile = profile

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self.profile.name

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:  # noqa: ARG002 - nothing waits
        """See `Engine.start`."""
        return SimulatedServer(self.profile)

    def runner(self, server: Server, load: LoadRequest) -> LoadRunner:  # noqa: ARG002 - virtual time needs no server
        """In virtual time."""
        from pytest_gpucap.simulator.runner import SimRunner

        return SimRunner(self.profile.engine, seed=load.seed)

    def with_base(self, base_args: str, base_python: str | None) -> SimulatorPair:  # noqa: ARG002 - it is our own
        """A base with arguments of ``python -m pytest_gpucap.simulator``, and those of vLLM's that it models."""
        try:
            profile = _changed(self.profile, VllmArguments.parse(base_args))
        except ValueError as error:
            raise ValueError(f"--gpucap-base-args: {error}") from None
        return SimulatorPair(SimulatorEngine(self.request, profile), self)


class SimulatorPair(EnginePair[SimulatorEngine]):
    """Two simulated servers on one machine in virtual time."""

    def runners(self, base: Server, head: Server, load: LoadRequest) -> tuple[LoadRunner, LoadRunner]:  # noqa: ARG002
        """See `EnginePair.runners`."""
        from pytest_gpucap.simulator.machine import Machine, SharedRunner

        machine = Machine()
        return (
            SharedRunner(self.base.profile.engine, machine, 2 * load.seed),
            SharedRunner(self.head.profile.engine, machine, 2 * load.seed + 1),
        )

    def changes(self) -> list[str]:
        """See `EnginePair.changes`."""
        base, head = self.base.profile, self.head.profile
        if base == head:
            return []
        return [f"simulated server: {base.name} -> {head.name}" if base.name != head.name else "engine"]


def _changed(profile: Profile, given: VllmArguments) -> Profile:
    """The profile under arguments of the simulator's command line.

    Raises:
        ValueError: for an argument that it does not have.
    """
    from pytest_gpucap.simulator.profile import load

    rest = {name: str(value) for name, value in given.values.items()}
    changed = load(rest.pop("profile")) if "profile" in rest else profile
    engine = changed.engine
    if "time_scale" in rest:
        engine = engine.scaled(float(positive(rest.pop("time_scale"), "--time-scale")))
    if "max_num_seqs" in rest:
        engine = replace(engine, max_num_seqs=int(positive(rest.pop("max_num_seqs"), "--max-num-seqs")))
    if rest:
        unknown = ", ".join("--" + name.replace("_", "-") for name in rest)
        raise ValueError(f"{unknown}: a simulated base knows --profile, --time-scale and --max-num-seqs")
    return replace(changed, engine=engine)
