"""The machine information for pytest-benchmark: what this session measures on, if known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.gpu.inventory import NoGpu, WrongGpuClass, detect_class, devices_of_class, take_inventory
from pytest_gpucap.options import Options
from pytest_gpucap.results.result import Result
from pytest_gpucap.session import benchmark_bridge
from pytest_gpucap.session.placement import SIMULATED, own_classes

REQUEST = pytest.StashKey[pytest.FixtureRequest]()
"""The request of a test's ``gpucap`` fixture. It is used to get pytest-benchmark's fixture."""


def replay(item: pytest.Item, results: Sequence[Result]) -> None:
    """See `benchmark_bridge.replay`; nothing for a test whose ``gpucap`` fixture was never made."""
    request = item.stash.get(REQUEST, None)
    if request is not None and benchmark_bridge.works(item.config):
        benchmark_bridge.replay(request, results)


def add_machine_info(options: Options, machine_info: dict[str, Any]) -> None:
    """Name the GPU class of this session, its devices and driver, where the session names a class.

    Where it does not, suites that measure no GPU keep the machine information that their saved runs have.
    """
    if options.gpu_class is None or options.url is not None:
        return
    known: dict[str, Any] = {"class": _here(options)}
    if not options.gpu_class.startswith(SIMULATED):
        own = own_classes(options)
        inventory = take_inventory()
        try:
            devices = devices_of_class(inventory, find_class(options.gpu_class, own), own)
        except WrongGpuClass:
            devices = ()  # the session stops for it, with the reason
        if devices:
            known |= {"devices": sorted({device.name for device in devices}), "driver": inventory.driver}
    machine_info["gpu"] = known


def check_comparable(options: Options, compared: dict[str, Any]) -> None:
    """See `pytest_gpucap.session.benchmark_bridge.refuse_other_class`."""
    if any(benchmark_bridge.EXTRA in (bench.get("extra_info") or {}) for bench in compared.get("benchmarks", ())):
        benchmark_bridge.refuse_other_class(compared, _here(options))


def _here(options: Options) -> str | None:
    """What `benchmark_bridge.place` will say of this session's results; None if that is not known."""
    if options.url is not None:
        return urlsplit(options.url).netloc
    if options.gpu_class is not None and options.gpu_class.startswith(SIMULATED):
        from pytest_gpucap.simulator.profile import load

        return f"SIMULATED ({load(options.gpu_class.removeprefix(SIMULATED)).name})"
    own = own_classes(options)
    if options.gpu_class is not None:
        return find_class(options.gpu_class, own).name
    try:
        return detect_class(take_inventory(), own).name
    except (NoGpu, WrongGpuClass):
        return None
