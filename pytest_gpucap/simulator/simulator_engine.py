"""The simulator as an engine: its load runs in virtual time, without a server."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_gpucap.engines.protocol import Engine, EnginePair, LoadRequest, Server, ServerRequest
from pytest_gpucap.requirement import positive
from pytest_gpucap.simulator.profile import Profile, load
from pytest_gpucap.vllm_arguments import VllmArguments

if TYPE_CHECKING:  # every collection of tests on a simulator imports this file
    from pytest_gpucap.load.protocol import LoadRunner


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
        """See `Engine.start`. Its process starts when someone asks for its address."""
        from pytest_gpucap.simulator.serve import SimulatedServer

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
