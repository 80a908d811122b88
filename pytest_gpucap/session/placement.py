"""Where a test is measured: on which GPU class, against which server. Decided at collection, before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from sys import executable
from typing import TYPE_CHECKING, Final

import pytest

from pytest_gpucap.engines.vllm_arguments import ServerSpec
from pytest_gpucap.gpu.classes import GpuClass, find_class, read_classes
from pytest_gpucap.markers import Declaration
from pytest_gpucap.options import Options

if TYPE_CHECKING:  # only tests on a simulator need it
    from pytest_gpucap.simulator.profile import Profile

SIMULATED: Final = "sim:"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one test is measured.

    Attributes:
        gpu_class: None for "whatever GPU this machine has", for a simulator, and for an external server of which
            nobody said; what is said of one cannot be checked.
        profile: of the simulator; None for real servers.
        spec: the vLLM server to start; None where nothing is started.
        url: of the external server; None for servers of our own.
        devices: GPUs that one replica occupies.
        skip: why the test does not apply here; None when it does.
    """

    gpu_class: GpuClass | None = None
    profile: Profile | None = None
    spec: ServerSpec | None = None
    url: str | None = None
    devices: int = 1
    skip: str | None = None

    @property
    def key(self) -> Hashable:
        """Equal for tests that can share one server."""
        return (
            self.gpu_class.name if self.gpu_class else None,
            self.profile.name if self.profile else None,
            self.spec.key if self.spec else None,
            self.url,
            self.devices,
        )


def place(declared: Declaration, options: Options, *, needs_server: bool) -> Placement:
    """Decide where a test is measured.

    Raises:
        ValueError: one line on a class, a profile, a model or a server argument that cannot be.
    """
    own = declared.gpu_class
    if own is not None and options.gpu_class is not None and not same_class(own, options.gpu_class, options):
        return Placement(skip=f"this test is about {own}, and --gpu-class is {options.gpu_class}")
    wanted = options.gpu_class or own
    if options.url is not None:
        if options.gpu_class is not None:
            return Placement(gpu_class=find_class(options.gpu_class, own_classes(options)), url=options.url)
        if own is not None:
            return Placement(skip=f"this test is about {own}: say what is behind --gpucap-url with --gpu-class")
        return Placement(url=options.url)
    if wanted is not None and wanted.startswith(SIMULATED):
        return Placement(profile=_profile(wanted))
    gpu_class = None if wanted is None else find_class(wanted, own_classes(options))
    spec = _spec(declared, options) if needs_server else None
    return Placement(gpu_class=gpu_class, spec=spec, devices=declared.gpus_per_replica)


def check_names(options: Options) -> None:
    """See that the class or simulator profile of ``--gpu-class`` is known, and the file of ``--gpucap-gpu-file`` good.

    Raises:
        pytest.UsageError: one line, with what comes near.
    """
    try:
        own = own_classes(options)
    except ValueError as error:
        raise pytest.UsageError(f"--gpucap-gpu-file: {error}") from None
    try:
        if options.gpu_class is not None and options.gpu_class.startswith(SIMULATED):
            _profile(options.gpu_class)
        elif options.gpu_class is not None:
            find_class(options.gpu_class, own)
    except ValueError as error:
        raise pytest.UsageError(f"--gpu-class: {error}") from None


def check_gpu_class(name: str, options: Options) -> None:
    """See that this machine has the GPU class of ``--gpu-class``; a simulator is always there.

    Raises:
        pytest.UsageError: one line with what the machine has.
    """
    from pytest_gpucap.gpu.inventory import WrongGpuClass, select, take_inventory

    if name.startswith(SIMULATED):
        return
    own = own_classes(options)
    try:
        select(take_inventory(), find_class(name, own), own)
    except WrongGpuClass as error:
        raise pytest.UsageError(f"--gpu-class: {error}") from None


def same_class(one: str, other: str, options: Options) -> bool:
    """Whether two names, aliases included, mean the same class."""
    if SIMULATED in {one[:4], other[:4]}:
        return one == other
    own = own_classes(options)
    return find_class(one, own) == find_class(other, own)


def own_classes(options: Options) -> tuple[GpuClass, ...]:
    """Classes that the user adds by file."""
    return () if options.gpu_file is None else read_classes(options.gpu_file)


def _profile(name: str) -> Profile:
    from pytest_gpucap.simulator import profile

    return profile.load(name.removeprefix(SIMULATED))


def _spec(declared: Declaration, options: Options) -> ServerSpec:
    if declared.model is None:
        raise ValueError(
            'no model is named: mark the test with vllm(model="...") or give --gpucap-model '
            '("synthetic:tiny" needs no download)'
        )
    python = options.vllm_python or executable
    if shutil.which(python) is None:
        raise ValueError(
            f"there is no interpreter at {python} to start vLLM with (--gpucap-vllm-python or ini gpucap_vllm_python)"
        )
    return ServerSpec(
        model=declared.model,
        args=declared.vllm_args,
        python=python,
        startup_timeout_s=options.startup_timeout_s,
        log_dir=Path(options.dir) / "logs",
    )
