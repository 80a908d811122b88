"""One pytest session's measuring: what its tests declare, in which order they run, and what they found."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import pytest

from pytest_gpucap.engines.errors import ServerError
from pytest_gpucap.engines.server import Server
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.gpu.occupancy import MemoryNotReturned
from pytest_gpucap.history.baseline import Baseline
from pytest_gpucap.markers import Declaration, declare
from pytest_gpucap.options import Options
from pytest_gpucap.report import assertion
from pytest_gpucap.results.record import Record
from pytest_gpucap.session.base_and_head import BaseAndHead, PairInvalid, base_of
from pytest_gpucap.session.baselines import Comparing, check_files
from pytest_gpucap.session.benchmark_machine import REQUEST, replay
from pytest_gpucap.session.gpucap import GpuCap
from pytest_gpucap.session.harness import Harness, MeasurementInvalid
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.session.placement import Placement, place
from pytest_gpucap.session.screen import live
from pytest_gpucap.session.server_manager import ServerManager, SystemUnderTest

DECLARATION = pytest.StashKey[Declaration]()
PLACEMENT = pytest.StashKey[Placement]()
_BASE = pytest.StashKey[Placement | None]()
_RECORDS = pytest.StashKey[list[Record]]()

_SERVED = frozenset({"gpucap", "vllm_server"})


class PytestSession:
    """Holds what the tests declare and the rig; made when the first of our tests is collected."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._rig = ServerManager(options)
        self._mistakes = ""
        self._measured: list[Record] = []
        self._baseline: Baseline | None = None

    def declare(self, items: Sequence[pytest.Item]) -> str:
        """Parse the markers of our tests and decide where each is measured.

        Returns:
            Every mistake of the session, a line each, so that they are mended in one go; empty if there is none. With a
            mistake anywhere no test of ours runs: pytest stops, or, in an xdist worker, which could only crash, each
            test fails with the mistakes before it starts anything.
        """
        mistakes = []
        for item in items:
            path, line, _ = item.location
            place_of_item = f"{path}:{(line or 0) + 1}"
            try:
                declared = _with_trace(declare(item, self._options, place_of_item))
                served = not _SERVED.isdisjoint(getattr(item, "fixturenames", ()))
                item.stash[PLACEMENT] = placed = place(declared, self._options, needs_server=served)
                item.stash[_BASE] = base_of(placed, self._options)
                item.stash[DECLARATION] = declared
            except ValueError as error:
                mistakes.append(f"{place_of_item}: {error}")
        self._mistakes = "\n".join(dict.fromkeys(mistakes))
        return self._mistakes

    def grouped(self, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """The same tests, with those that share a server next to each other; otherwise in the order they were in."""
        together: dict[Hashable, list[pytest.Item]] = {}
        for item in items:
            placed = item.stash.get(PLACEMENT, None)
            together.setdefault(item if placed is None else placed.key, []).append(item)
        return [item for group in together.values() for item in group]

    def check_machine(self) -> None:
        """See that the machine is the one the command line speaks of.

        Raises:
            pytest.UsageError: if ``--gpu-class`` names a class that this machine does not have, and that no URL has.
        """
        if self._options.gpu_class is not None and self._options.url is None:
            self._rig.check_class(self._options.gpu_class)

    def check_files(self) -> None:
        """See that the baselines that the session names can be read and written.

        Raises:
            pytest.UsageError: one line on the file that cannot; in an xdist worker, which it would crash, every test of
                ours fails with it instead.
        """
        try:
            self._baseline = check_files(self._options, self._config)
        except pytest.UsageError as error:
            if not hasattr(self._config, "workerinput"):
                raise
            self._mistakes = str(error)

    def gauge(self, request: pytest.FixtureRequest) -> GpuCap:
        """The object behind the ``gpucap`` fixture."""
        item: pytest.Item = request.node
        item.stash[REQUEST] = request
        self._measured = item.stash.setdefault(_RECORDS, [])
        placed, declared, live = self._placed(item), item.stash[DECLARATION], self._live(item)
        base = item.stash[_BASE]
        return GpuCap(
            Harness(declared, placed, self._rig, self._options, live),
            self._options,
            test=item.nodeid,
            keep=lambda record: item.stash.setdefault(_RECORDS, []).append(record),
            comparing=Comparing(self._baseline, self._options),
            pairing=None if base is None else BaseAndHead(base, placed, self._rig, declared, self._options, live),
        )

    def server(self, item: pytest.Item) -> Server:
        """The test's server, ready."""
        return self._rig.server(self._placed(item), self._live(item)).endpoint

    def target(self, item: pytest.Item) -> SystemUnderTest:
        """The test's leased devices."""
        return self._rig.target(self._placed(item), self._live(item))

    def release_unless_needed(self, nextitem: pytest.Item | None) -> None:
        """End the server that is running unless the next test shares it."""
        placed = None if nextitem is None else nextitem.stash.get(PLACEMENT, None)
        self._rig.keep_only(None if placed is None else placed.key)

    def explain(self, operator: str, left: object, right: object) -> list[str] | None:
        """What a failed comparison in the running test was about; None where it is no figure that the test measured."""
        return assertion.explain(operator, left, right, self._measured)

    @staticmethod
    def explains(error: BaseException) -> bool:
        """Whether an error of ours says all there is to say, so that a traceback through the plugin would bury it."""
        return isinstance(error, MeasurementInvalid | PairInvalid | ServerError | LeaseError | MemoryNotReturned)

    @staticmethod
    def take_records(item: pytest.Item) -> list[Record]:
        """The results of a test since the last call."""
        records = item.stash.get(_RECORDS, [])
        item.stash[_RECORDS] = []
        return records

    @staticmethod
    def replay(item: pytest.Item) -> None:
        """Let pytest-benchmark report what the test has measured so far."""
        records = item.stash.get(_RECORDS, [])
        replay(item, records)

    def close(self) -> None:
        """End everything that was started."""
        self._rig.keep_only(None)

    def _placed(self, item: pytest.Item) -> Placement:
        if self._mistakes:
            pytest.fail(self._mistakes, pytrace=False)
        placed = item.stash[PLACEMENT]
        if placed.skip is not None:
            pytest.skip(placed.skip)
        return placed

    def _live(self, item: pytest.Item) -> LiveLine:
        return live(self._config, item.stash[DECLARATION].name)


def _with_trace(declared: Declaration) -> Declaration:
    """The declaration with its trace read, where it has one: a mistake in the file costs no GPU time."""
    if declared.workload.arrivals.trace is None:
        return declared
    from pytest_gpucap.load.trace import with_trace_lengths

    workload = with_trace_lengths(declared.workload)
    requirement = declared.requirement and replace(declared.requirement, workload=workload)
    return replace(declared, workload=workload, requirement=requirement)
