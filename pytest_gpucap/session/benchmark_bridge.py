"""pytest-benchmark's reports of our measurements, by its public interface: OPS is the sustainable rate in req/s.

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

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

_OURS: Final = pytest.StashKey["_Clock"]()
"""Set on tests whose ``benchmark`` fixture was asked for by us, under ``--benchmark-only``."""

_BEST_FIRST: Final = ("check", "measure", "sweep", "sample")
EXTRA: Final = "gpucap"
"""The key of ``extra_info`` under which all of ours stands."""


class NothingMeasured(Exception):  # noqa: N818 - never seen by a user
    """Raised inside pytest-benchmark, so that it knows of a benchmark that has no figure, and stores none."""


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
    return config.pluginmanager.hasplugin("pytest-benchmark") and not hasattr(config, "workerinput")


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


def replay(request: pytest.FixtureRequest, records: Sequence[Mapping[str, Any]]) -> None:
    """Let pytest-benchmark measure again what the test that is running has measured."""
    item, config = request.node, request.config
    clock = item.stash.get(_OURS, None)
    if clock is None:
        skipped = config.getoption("benchmark_skip") and not config.getoption("benchmark_only")
        if skipped or "benchmark" in request.fixturenames or not _chosen(records):
            return
        clock = _Clock()
        _mark(item, clock)
    benchmark = request.getfixturevalue("benchmark")
    if not all(hasattr(benchmark, name) for name in ("pedantic", "extra_info", "enabled", "has_error")):
        return  # a fixture of the user's own by that name
    record = _chosen(records)
    if record is None:
        with suppress(NothingMeasured):
            benchmark.pedantic(_nothing)
        return
    durations_s = rounds(record)
    clock.load(durations_s)
    group = f"requests on {place(record)}"
    benchmark.group = f"{benchmark.group}: {group}" if benchmark.group else group
    benchmark.extra_info[EXTRA] = extra_info(record)
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


def rounds(record: Mapping[str, Any]) -> list[float]:
    """Seconds a request, one for each window of the hardest closed loop; their mean is 1 / the record's rate.

    Where windows did not all deliver tokens, or only one was measured, one round stands for all.
    """
    rate_rps = _rate(record)
    held = [sample for sample in record["samples"] if sample["kind"] == "closed"]
    hardest = max((sample["concurrency"] for sample in held), default=0)
    tokens = [sample["output_tokens_per_s"] for sample in held if sample["concurrency"] == hardest]
    if record["kind"] == "sample" or not tokens or not all(tokens):
        return [1.0 / rate_rps]
    taken = [1.0 / each for each in tokens]
    mean = sum(taken) / len(taken)
    return [each / mean / rate_rps for each in taken]


def place(record: Mapping[str, Any]) -> str:
    """What was measured, for pytest-benchmark to group by: a GPU class, a simulator's profile or a URL."""
    environment = record["environment"]
    if record["simulated"]:
        return str(environment.get("gpu") or "SIMULATED")
    if url := environment.get("url"):
        return urlsplit(str(url)).netloc
    return str(environment.get("gpu_class") or "an unknown GPU")


def extra_info(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the rounds cannot say: the interval, the verdict, the budget, and on what it was measured."""
    environment = record["environment"]
    return {
        "unit": "req/s a replica",
        "kind": record["kind"],
        "outcome": record["outcome"],
        "sustainable_rate_rps": record["sustainable_rate"],
        "binding": record["binding"],
        "gpus_required": record.get("gpus_required"),
        "gpus": record["requirement"]["gpus"] if record["kind"] == "check" else None,
        "gpus_per_replica": record["requirement"]["gpus_per_replica"],
        "measured_on": place(record),
        "simulated": record["simulated"],
        "gpu": environment.get("gpu"),
        "driver": environment.get("driver"),
        "server": environment.get("server"),
        "model": environment.get("model"),
        "seed": record["seed"],
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
        if isinstance(saved, Mapping) and saved.get("measured_on") not in {None, here}:
            raise pytest.UsageError(
                f"--benchmark-compare: {bench.get('fullname')} was saved on {saved['measured_on']} and this run is on "
                f"{here}: name a run on {here}, or keep a --benchmark-storage for each"
            )


def _chosen(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one measurement of a test that stands for it: the last of the most telling kind that has a figure."""
    known = [record for record in records if _rate(record) > 0]
    return min(reversed(known), key=lambda record: _BEST_FIRST.index(record["kind"]), default=None)


def _rate(record: Mapping[str, Any]) -> float:
    if record["problems"]:
        return 0.0  # not to be trusted, and so not to be kept
    if record["kind"] == "sample":
        return float(record["samples"][0]["completed_rps"] or 0.0)
    found = record["sustainable_rate"]
    return 0.0 if found is None else float(found["value"] or 0.0)


def _mark(item: pytest.Item, clock: _Clock) -> None:
    """The fixture takes its timer from the closest marker; what the user's own says otherwise stays."""
    own = item.get_closest_marker("benchmark")
    given = dict(own.kwargs) if own else {}
    item.add_marker(pytest.mark.benchmark(**given | {"timer": clock}), append=False)


def _nothing() -> None:
    raise NothingMeasured
