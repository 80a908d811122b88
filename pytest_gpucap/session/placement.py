"""Where a test is measured: on which GPU class and which server. Decided at collection, before anything starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import executable
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_gpucap.engines.protocol import Engine, ServerRequest
from pytest_gpucap.gpu.classes import GpuClass, find_class, read_classes
from pytest_gpucap.markers.declaration import VLLM, Declaration
from pytest_gpucap.markers.server import engine_type
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Workload
from pytest_gpucap.simulated import is_simulated, profile_of, simulated_class
from pytest_gpucap.workloads.adapter_mix import own_adapters

if TYPE_CHECKING:  # only tests on a simulator, a cluster or a URL need them
    from pytest_gpucap.engines.pages import Page
    from pytest_gpucap.fleet.fleet_engine import OnRay
    from pytest_gpucap.simulator.profile import Profile

SIMULATOR: Final = "simulator"
RAY: Final = "ray"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one test is measured.

    Attributes:
        engine: starts the server; None for a test that needs none.
        gpu_class: None for "whatever GPU this machine has", for a simulator, and for an external server whose class
            is not given. The class given for an external server cannot be checked.
        devices: GPUs that the server occupies, all replicas of a fleet together.
        skip: why the test does not apply here; None if it does.
    """

    engine: Engine | None = None
    gpu_class: GpuClass | None = None
    devices: int = 1
    skip: str | None = None

    @property
    def key(self) -> Hashable:
        """Equal for tests that can share one server."""
        engine = None if self.engine is None else (self.engine.name, self.engine.key)
        return (self.gpu_class.name if self.gpu_class else None, engine, self.devices)

    @property
    def one(self) -> Engine | None:
        """The engine of one replica."""
        engine: Engine | None = getattr(self.engine, "one", self.engine)
        return engine

    @property
    def simulated(self) -> Profile | None:
        """The profile that is simulated, in virtual time; None for a real server."""
        one: Any = self.one
        found: Profile | None = one.profile if one is not None and one.name == SIMULATOR else None
        return found

    @property
    def profile(self) -> str | None:
        """The name of that profile."""
        return None if self.simulated is None else self.simulated.name

    @property
    def class_name(self) -> str | None:
        """The GPU class, as results and a file of prices name it; None where only the machine tells."""
        if self.profile is not None:
            return simulated_class(self.profile)
        return None if self.gpu_class is None else self.gpu_class.name


def place(declared: Declaration, options: Options, *, needs_server: bool) -> Placement:
    """Decide where a test is measured.

    Raises:
        ValueError: one line, if a class, profile, model or server argument is invalid.
    """
    own, classes = declared.gpu_class, own_classes(options)
    if own is not None and options.gpu_class is not None and not same_class(own, options.gpu_class, options):
        return Placement(skip=f"this test is about {own}, and --gpu-class is {options.gpu_class}")
    wanted = options.gpu_class or own
    if options.url is not None:
        from pytest_gpucap.engines.url import UrlEngine

        if options.gpu_class is None and own is not None:
            return Placement(skip=f"this test is about {own}: name the GPU class behind --gpucap-url with --gpu-class")
        gpu_class = None if options.gpu_class is None else find_class(options.gpu_class, classes)
        request = ServerRequest(model=options.model, startup_timeout_s=options.startup_timeout_s)
        # A folder or a synthetic model is no name that a server has for its model.
        likely = declared.model if declared.model and not declared.model.startswith(("synthetic:", "/", ".")) else None
        behind = UrlEngine(
            request,
            options.url,
            options.api_key_env,
            headers=options.header,
            ca_file=None if options.ca_file is None else str(options.ca_file),
            likely_model=likely,
            pages=pages_beside(options.metrics_url, options),
        )
        return Placement(behind, gpu_class)
    if wanted is not None and is_simulated(wanted):
        from pytest_gpucap.simulator.simulator_engine import SimulatorEngine

        if declared.engine != VLLM and declared.arguments:
            name, value = next(iter(declared.arguments.items()))
            raise ValueError(f"engine({declared.engine!r}, {name}={value!r}): {wanted} simulates a vLLM, without this")
        if declared.workload.sessions is not None and declared.fleet > 1:
            raise ValueError(
                f"sessions: {wanted} simulates a fleet without sessions: leave replicas out, or measure real servers"
            )
        request = ServerRequest(model=declared.model, arguments=declared.vllm_args.values)
        return Placement(_fleet(SimulatorEngine(request, _profile(wanted)), declared, options))
    gpu_class = None if wanted is None else find_class(wanted, classes)
    engine = _engine(declared, options) if needs_server else None
    engine = None if engine is None else _fleet(engine, declared, options, _on_ray(declared, options, gpu_class))
    return Placement(engine, gpu_class, declared.fleet * declared.gpus_per_replica)


def pages_beside(urls: Sequence[str], options: Options) -> tuple[Page, ...]:
    """Pages of metrics beside a server's address, with what requests to them carry."""
    from pytest_gpucap.access import Access, read_headers
    from pytest_gpucap.engines.pages import Page

    ca_file = None if options.ca_file is None else str(options.ca_file)
    return tuple(Page(url, Access(read_headers(options.metrics_header), ca_file)) for url in urls)


def check_names(options: Options) -> None:
    """Check that the class or profile of ``--gpu-class`` is known and that ``--gpucap-gpu-file`` is valid.

    Raises:
        pytest.UsageError: one line, with similar names.
    """
    try:
        own = own_classes(options)
    except ValueError as error:
        raise pytest.UsageError(f"--gpucap-gpu-file: {error}") from None
    try:
        if options.gpu_class is not None and is_simulated(options.gpu_class):
            _profile(options.gpu_class)
        elif options.gpu_class is not None:
            find_class(options.gpu_class, own)
    except ValueError as error:
        raise pytest.UsageError(f"--gpu-class: {error}") from None


def check_gpu_class(name: str, options: Options) -> None:
    """Check that this machine has the GPU class of ``--gpu-class``. A simulator is always available.

    Raises:
        pytest.UsageError: one line with what the machine has.
    """
    from pytest_gpucap.gpu.inventory import WrongGpuClass, devices_of_class, take_inventory

    if is_simulated(name):
        return
    own = own_classes(options)
    try:
        devices_of_class(take_inventory(), find_class(name, own), own)
    except WrongGpuClass as error:
        raise pytest.UsageError(f"--gpu-class: {error}") from None


def same_class(one: str, other: str, options: Options) -> bool:
    """Whether two names, aliases included, mean the same class."""
    if is_simulated(one) or is_simulated(other):
        return one == other
    own = own_classes(options)
    return find_class(one, own) == find_class(other, own)


def own_classes(options: Options) -> tuple[GpuClass, ...]:
    """Classes that the user adds by file, and those that plugins add, in this order."""
    return (*(() if options.gpu_file is None else read_classes(options.gpu_file)), *options.extensions.gpu_classes)


def _profile(name: str) -> Profile:
    from pytest_gpucap.simulator import profile

    return profile.load(profile_of(name))


def _fleet(engine: Engine, declared: Declaration, options: Options, ray: OnRay | None = None) -> Engine:
    """The engine of all replicas that the test declares; for one replica on this machine the engine itself.

    Raises:
        ValueError: one line, if the router or Ray cannot be had.
    """
    if declared.fleet == 1 and ray is None:
        return engine
    from pytest_gpucap.fleet.fleet_engine import FleetEngine
    from pytest_gpucap.routing import RouterKind, Routing

    routing = options.router or Routing()
    if engine.name == SIMULATOR and routing.kind is not RouterKind.CLIENT:
        raise ValueError(f"--gpucap-router={routing}: a simulated fleet has no router: give client or client:POLICY")
    return FleetEngine(engine, declared.fleet, routing, ray)


def _on_ray(declared: Declaration, options: Options, gpu_class: GpuClass | None) -> OnRay | None:
    """Where on a cluster replicas are placed; None: on this machine."""
    if options.launcher != RAY:
        return None
    from pytest_gpucap.fleet.fleet_engine import HERE, OnRay
    from pytest_gpucap.routing import RouterKind

    if options.load_from != HERE and options.router is not None and options.router.kind is not RouterKind.CLIENT:
        raise ValueError(
            f"--gpucap-load-from={options.load_from}: the router {options.router.kind} listens on this machine alone: "
            "spread requests with --gpucap-router=client"
        )
    if options.load_from != HERE and declared.workload.prompts is not None:
        raise ValueError(
            f"--gpucap-load-from={options.load_from}: prompts of a file stay on this machine: leave the option out, or "
            "prompts="
        )
    if options.load_from != HERE and declared.workload.sessions is not None:
        raise ValueError(
            f"--gpucap-load-from={options.load_from}: turns of a session wait for answers, so one machine sends "
            "them all: leave the option out, or sessions="
        )
    return OnRay(options.ray_address, gpu_class, options.gpu_idle, options.host_check, options.load_from)


def _adapters(workload: Workload) -> dict[str, Any]:
    """What a request to start a server says of the adapters that it makes."""
    rank = workload.adapter_rank
    return {} if rank is None else {"adapters": own_adapters(workload.adapters), "adapter_rank": rank}


def _engine(declared: Declaration, options: Options) -> Engine:
    """The engine that the test names, made for the test."""
    request = ServerRequest(
        model=declared.model,
        arguments=declared.arguments,
        python=options.vllm_python or executable,
        startup_timeout_s=options.startup_timeout_s,
        log_dir=Path(options.dir) / "logs",
        **_adapters(declared.workload),
    )
    return engine_type(declared.engine, options, declared.arguments)(request)
