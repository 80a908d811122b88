"""Reports measurements through pytest-benchmark's public interface: OPS is the sustainable rate in req/s.

A measured test is replayed through the ``benchmark`` fixture's ``pedantic`` with a timer that reads a virtual clock. A
round is one window of the hardest closed loop that was held; it lasts as long as one request took in it at the
sustainable rate, so that the mean over the rounds is the time between two requests that one replica sustains, and OPS
(1 / mean) is the sustainable rate. What the rounds scatter by is what the windows' throughput scattered by. Saving,
comparing, histograms and readers of the JSON then work as they are.

Nothing is replayed where it could only be wrong: a test that uses ``benchmark`` itself keeps it to itself; without a
figure nothing is stored; with ``--benchmark-skip`` or in an xdist worker nothing happens. pytest-benchmark's own
``--benchmark-compare-fail`` compares two figures without their intervals and is no substitute for the gate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.gpu.inventory import NoGpu, WrongGpuClass, detect_class, devices_of_class, take_inventory
from pytest_gpucap.options.table import Options
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.result import Result, ResultKind
from pytest_gpucap.session.placement import own_classes
from pytest_gpucap.session.workers import is_one_of_many
from pytest_gpucap.simulated import is_simulated, profile_of

_OURS: Final = pytest.StashKey["_Clock"]()
"""Marks tests whose ``benchmark`` fixture this plugin requested, under ``--benchmark-only``."""

_BEST_FIRST: Final = (ResultKind.CHECK, ResultKind.MEASURE, ResultKind.SWEEP, ResultKind.SAMPLE)
EXTRA: Final = "gpucap"
"""The key of ``extra_info`` that holds everything of this plugin."""


REQUEST = pytest.StashKey[pytest.FixtureRequest]()
"""The request of a test's ``gpucap`` fixture: what pytest-benchmark's fixture is asked for through."""


class NothingMeasured(Exception):  # noqa: N818 - never seen by a user
    """Raised inside pytest-benchmark for a benchmark without a figure, so that it stores none."""


class _Clock:
    """A timer whose time passes in `pass_round` and nowhere else."""

    __name__ = "gpucap_virtual_clock"  # what pytest-benchmark stores as the timer's name

    def __init__(self) -> None:
        self.reads = 0
        self._now_s = 0.0
        self._left: Iterator[float] = iter(())

    def __call__(self) -> float:
        self.reads += 1
        return self._now_s

    def load(self, durations_s: Sequence[float]) -> None:
        self._left = iter(durations_s)
        self.reads = 0

    def pass_round(self) -> None:
        self._now_s += next(self._left, 0.0)


def works(config: pytest.Config) -> bool:
    """Whether pytest-benchmark is loaded and itself.

    Its session object is registered under this name unless ``-p no:benchmark`` or pytest-codspeed, which then owns the
    ``benchmark`` fixture, keeps it out. In an xdist worker it measures nothing, and what it says there is lost.
    """
    return config.pluginmanager.hasplugin("pytest-benchmark") and not is_one_of_many(config)


def ask_for_fixture(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """With ``--benchmark-only``, make our tests benchmarks, or pytest-benchmark would skip them.

    Otherwise they are none while pytest collects: ``--benchmark-skip`` or ``-m "not benchmark"`` in somebody's
    ``addopts`` must not switch a gate off.
    """
    if not config.getoption("benchmark_only"):
        return
    for item in items:
        names = getattr(item, "fixturenames", [])
        if "gpucap" in names and "benchmark" not in names:
            item.stash[_OURS] = clock = _Clock()
            names.append("benchmark")
            _mark(item, clock)


def report_to_benchmark(item: pytest.Item, results: Sequence[Result]) -> None:
    """Let pytest-benchmark measure again what a test measured; nothing where its ``gpucap`` fixture was never made."""
    config, request = item.config, item.stash.get(REQUEST, None)
    if request is None or not works(config):
        return
    clock = item.stash.get(_OURS, None)
    if clock is None:
        skipped = config.getoption("benchmark_skip") and not config.getoption("benchmark_only")
        if skipped or "benchmark" in request.fixturenames or not _chosen(results):
            return
        clock = _Clock()
        _mark(item, clock)
    benchmark = request.getfixturevalue("benchmark")
    if not all(hasattr(benchmark, name) for name in ("pedantic", "extra_info", "enabled", "has_error")):
        return  # a fixture of the user's own by that name
    result = _chosen(results)
    if result is None:
        with suppress(NothingMeasured):
            benchmark.pedantic(_nothing)
        return
    durations_s = rounds(result)
    clock.load(durations_s)
    group = f"requests on {target_name(result)}"
    benchmark.group = f"{benchmark.group}: {group}" if benchmark.group else group
    benchmark.extra_info[EXTRA] = extra_info(result)
    benchmark.pedantic(clock.pass_round, rounds=len(durations_s), iterations=1)
    expected = 2 * len(durations_s) if benchmark.enabled else 0
    if clock.reads != expected:
        benchmark.has_error = True  # keeps it out of every file
        warnings.warn(
            pytest.PytestWarning(
                f"pytest-benchmark read its timer {clock.reads} times instead of {expected}: the figures of "
                f"{item.nodeid} would be wrong and are not stored; please report its version"
            ),
            stacklevel=1,
        )


def rounds(result: Result) -> list[float]:
    """Seconds a request, one for each window of the hardest closed loop; their mean is 1 / the result's rate.

    Where windows did not all deliver tokens, or only one was measured, one round stands for all.
    """
    rate_rps = _rate(result)
    held = [sample for sample in result.samples if sample.kind == "closed"]
    hardest = max((sample.concurrency for sample in held), default=0)
    tokens = [sample.output_tokens_per_s for sample in held if sample.concurrency == hardest]
    if result.kind is ResultKind.SAMPLE or not tokens or not all(each > 0 for each in tokens):
        return [1.0 / rate_rps]
    taken = [1.0 / each for each in tokens]
    mean = sum(taken) / len(taken)
    return [each / mean / rate_rps for each in taken]


def target_name(result: Result) -> str:
    """What was measured, for pytest-benchmark to group by: a GPU class, a simulator's profile or a URL."""
    environment = result.environment
    if result.simulated:
        return environment.gpu or "SIMULATED"
    if environment.url:
        return urlsplit(environment.url).netloc
    return environment.gpu_class or "an unknown GPU"


def extra_info(result: Result) -> dict[str, Any]:
    """What the rounds cannot hold: the interval, the verdict, the budget, and on what it was measured."""
    environment = result.environment
    return {
        "unit": "req/s per replica",
        "kind": result.kind.value,
        "outcome": None if result.outcome is None else result.outcome.value,
        "sustainable_rate_rps": to_builtins(result.sustainable_rate),
        "at_least_rps": result.at_least_rps,
        "binding": result.binding,
        "gpus_required": result.gpus_required,
        "gpus": result.requirement.gpus if result.kind is ResultKind.CHECK else None,
        "gpus_per_replica": result.requirement.gpus_per_replica,
        "measured_on": target_name(result),
        "simulated": result.simulated,
        "gpu": environment.gpu,
        "driver": environment.driver,
        "server": environment.server,
        "model": environment.model,
        "seed": result.seed,
    }


def refuse_other_class(compared: Mapping[str, Any], here: str | None) -> None:
    """Refuse a saved run whose capacity figures are of another GPU class than this run's (None: not known yet).

    Raises:
        pytest.UsageError: one line that names both.
    """
    if here is None:
        return
    for bench in compared.get("benchmarks", ()):
        saved = (bench.get("extra_info") or {}).get(EXTRA)
        if isinstance(saved, Mapping) and saved.get("measured_on") not in (None, here):
            raise pytest.UsageError(
                f"--benchmark-compare: {bench.get('fullname')} was saved on {saved['measured_on']} and this run is on "
                f"{here}: name a run on {here}, or keep a --benchmark-storage for each"
            )


def add_machine_info(options: Options, machine_info: dict[str, Any]) -> None:
    """Name the GPU class of this session, its devices and driver, where the session names a class.

    Where it does not, suites that measure no GPU keep the machine information that their saved runs have.
    """
    if options.gpu_class is None or options.url is not None:
        return
    known: dict[str, Any] = {"class": _expected_target(options)}
    if not is_simulated(options.gpu_class):
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
    """See `refuse_other_class`."""
    if any(EXTRA in (bench.get("extra_info") or {}) for bench in compared.get("benchmarks", ())):
        refuse_other_class(compared, _expected_target(options))


def _expected_target(options: Options) -> str | None:
    """What `target_name` will say of this session's results; None where nobody can know."""
    if options.url is not None:
        return urlsplit(options.url).netloc
    if options.gpu_class is not None and is_simulated(options.gpu_class):
        from pytest_gpucap.simulator.profile import load

        return f"SIMULATED ({load(profile_of(options.gpu_class)).name})"
    own = own_classes(options)
    if options.gpu_class is not None:
        return find_class(options.gpu_class, own).name
    try:
        return detect_class(take_inventory(), own).name
    except (NoGpu, WrongGpuClass):
        return None


def _chosen(results: Sequence[Result]) -> Result | None:
    """The measurement that represents a test: of the most informative kind that has a figure, the last one."""
    known = [result for result in results if _rate(result) > 0]
    return min(reversed(known), key=lambda result: _BEST_FIRST.index(result.kind), default=None)


def _rate(result: Result) -> float:
    """Requests a second; 0 if there is no figure or the result is invalid."""
    if result.problems:
        return 0.0
    if result.kind is ResultKind.SAMPLE:
        rate_rps = result.samples[0].completed_rps
    else:
        estimate = 0.0 if result.sustainable_rate is None else result.sustainable_rate.value
        # As in every report, the bound that was shown stands in place of an extrapolation.
        rate_rps = estimate if result.at_least_rps is None else result.at_least_rps
    return rate_rps if math.isfinite(rate_rps) else 0.0


def _mark(item: pytest.Item, clock: _Clock) -> None:
    """The fixture takes its timer from the closest marker; what the user's own says otherwise stays."""
    own = item.get_closest_marker("benchmark")
    given = dict(own.kwargs) if own else {}
    item.add_marker(pytest.mark.benchmark(**given | {"timer": clock}), append=False)


def _nothing() -> None:
    raise NothingMeasured
