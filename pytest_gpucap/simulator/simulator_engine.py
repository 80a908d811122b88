"""The simulator as an engine: its load runs in virtual time, without a server."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.engines.protocol import Engine, EnginePair, LoadRequest, Server, ServerRequest
from pytest_gpucap.requirement import Workload, positive
from pytest_gpucap.routing import Routing
from pytest_gpucap.simulator.profile import Profile, load
from pytest_gpucap.vllm_arguments import VllmArguments

if TYPE_CHECKING:  # every collection of tests on a simulator imports this file
    from pytest_gpucap.load.protocol import LoadRunner


_BLOCK: Final = 16
"""Tokens of a KV block, as vLLM has them where nothing else is said."""
_NEUTRAL: Final = frozenset(
    {
        # How many GPUs a replica has. A profile is a whole replica.
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
        *("prefill_context_parallel_size", "decode_context_parallel_size"),
        # Which requests are taken. Their lengths are checked where they are declared.
        "max_model_len",
    }
)
"""Arguments of vLLM that say nothing of how fast a replica is."""
_LIMITS: Final = ("max_num_seqs", "max_num_batched_tokens", "num_gpu_blocks_override", "block_size")
"""Arguments of vLLM that a simulated server has."""


class SimulatorEngine(Engine):
    """Measures a simulated server, whatever the test's own engine is.

    Args:
        request: what the test asks of a real engine. Its arguments are vLLM's.
        profile: how the server behaves, where the arguments say nothing else.

    Raises:
        ValueError: one line, for an argument that would change a real server and not a simulated one.
    """

    name = "simulator"
    leases_devices = False

    def __init__(self, request: ServerRequest, profile: Profile) -> None:
        super().__init__(request)
        arguments = VllmArguments(request.arguments)
        left = {name: value for name, value in arguments.values.items() if value is not None and name not in _NEUTRAL}
        self._whole, self.profile = profile, _limited(profile, VllmArguments(left), left)
        if left:
            name, value = next(iter(left.items()))
            raise ValueError(
                f"vllm({name}={value!r}): a simulated server does not have this; it has {', '.join(_LIMITS)}"
            )

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self.profile.name, self.profile.engine

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:  # noqa: ARG002 - nothing waits
        """See `Engine.start`. Its process starts when someone asks for its address."""
        from pytest_gpucap.simulator.serve import SimulatedServer

        engine = self.profile.engine
        limits = ["--max-num-seqs", str(engine.max_num_seqs), "--kv-tokens", str(engine.kv_tokens)]
        limits += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
        return SimulatedServer(self.profile, limits, server_args=self.request.arguments)

    def runner(self, server: Server, load: LoadRequest) -> LoadRunner:  # noqa: ARG002 - virtual time needs no server
        """In virtual time."""
        from pytest_gpucap.load.adapters import draw_of
        from pytest_gpucap.simulator.runner import SimRunner

        return SimRunner(self.profile.engine, seed=load.seed, adapters=draw_of(load.workload.adapters, load.seed))

    def counted(self, server: Server, workload: Workload) -> Workload:
        """As they are: in virtual time nothing is tokenized, so four characters stand for a token."""
        del server
        return workload

    def with_request(self, request: ServerRequest) -> SimulatorEngine:
        """See `Engine.with_request`: what a replica of a fleet is asked for changes nothing here."""
        del request
        return self

    def fleet_runner(
        self, servers: Sequence[Server], load: LoadRequest, routing: Routing, router_url: str | None
    ) -> LoadRunner:
        """In virtual time. A router's policies that the load generator has too are simulated; it has no others."""
        del router_url
        from pytest_gpucap.load.adapters import draw_of
        from pytest_gpucap.simulator.fleet import FleetSimRunner

        adapters = draw_of(load.workload.adapters, load.seed)
        return FleetSimRunner([self.profile.engine] * len(servers), routing.policy, seed=load.seed, adapters=adapters)

    def with_base(self, base_args: str, base_python: str | None) -> SimulatorPair:  # noqa: ARG002 - it is our own
        """A base with arguments of ``python -m pytest_gpucap.simulator``, and those of vLLM's that it models."""
        try:
            own = VllmArguments(self.request.arguments)
            profile = _changed(self._whole, own, VllmArguments.parse(base_args))
        except ValueError as error:
            raise ValueError(f"--gpucap-base-args: {error}") from None
        return SimulatorPair(SimulatorEngine(replace(self.request, arguments={}), profile), self)


class SimulatorPair(EnginePair[SimulatorEngine]):
    """Two simulated servers on one machine in virtual time."""

    def runners(self, base: Server, head: Server, load: LoadRequest) -> tuple[LoadRunner, LoadRunner]:  # noqa: ARG002
        """See `EnginePair.runners`."""
        from pytest_gpucap.load.adapters import draw_of
        from pytest_gpucap.simulator.machine import Machine, SharedRunner

        machine, adapters = Machine(), draw_of(load.workload.adapters, load.seed)
        return (
            SharedRunner(self.base.profile.engine, machine, 2 * load.seed, adapters),
            SharedRunner(self.head.profile.engine, machine, 2 * load.seed + 1, adapters),
        )

    def changes(self) -> list[str]:
        """See `EnginePair.changes`."""
        base, head = self.base.profile, self.head.profile
        if base == head:
            return []
        return [f"simulated server: {base.name} -> {head.name}" if base.name != head.name else "engine"]


def _limited(profile: Profile, given: VllmArguments, left: dict[str, Any]) -> Profile:
    """The profile under those arguments that set limits of its scheduler; they are taken out of `left`."""
    limits = {name: given.count(name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    blocks, size = given.count("num_gpu_blocks_override"), given.count("block_size")
    if blocks is not None:
        limits["kv_tokens"] = blocks * (size or _BLOCK)
    if left.get("enable_chunked_prefill") in {True, "true", "True"}:
        left.pop("enable_chunked_prefill")  # it always prefills in chunks
    for name in _LIMITS:
        left.pop(name, None)
    changes = {name: value for name, value in limits.items() if value is not None}
    return replace(profile, engine=replace(profile.engine, **changes)) if changes else profile


def _changed(profile: Profile, own: VllmArguments, given: VllmArguments) -> Profile:
    """The profile under arguments of the simulator's command line, laid over those of the test's marker.

    Raises:
        ValueError: for an argument that it does not have.
    """
    both = own.overlaid(given)
    rest: dict[str, Any] = {
        name: value
        for name, value in both.values.items()
        if value is not None and not (name in _NEUTRAL and given.get(name) is None)
    }
    changed = load(str(rest.pop("profile"))) if "profile" in rest else profile
    if "time_scale" in rest:
        scale = float(positive(str(rest.pop("time_scale")), "--time-scale"))
        changed = replace(changed, engine=changed.engine.scaled(scale))
    changed = _limited(changed, both, rest)
    if rest:
        unknown = ", ".join("--" + name.replace("_", "-") for name in rest)
        known = ", ".join("--" + name.replace("_", "-") for name in ("profile", "time_scale", *_LIMITS))
        raise ValueError(f"{unknown}: a simulated base knows {known}")
    return changed
