"""One pytest session's measuring: what its tests declare, in which order they run, and what they found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence

import pytest

from pytest_gpucap.gauge import GpuCap, MeasurementInvalid
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.gpu.memory import MemoryNotReturned
from pytest_gpucap.markers import Declaration, declare
from pytest_gpucap.options import Options
from pytest_gpucap.placement import Placement, place
from pytest_gpucap.report.live import Live
from pytest_gpucap.report.record import Record
from pytest_gpucap.rig import Rig, Target
from pytest_gpucap.server.endpoint import Endpoint
from pytest_gpucap.server.errors import ServerError

DECLARATION = pytest.StashKey[Declaration]()
PLACEMENT = pytest.StashKey[Placement]()
_RECORDS = pytest.StashKey[list[Record]]()

_SERVED = frozenset({"gpucap", "vllm_server"})


class Session:
    """Holds what the tests declare and the rig; made when the first of our tests is collected."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._rig = Rig(options)
        self._mistakes = ""

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
                declared = declare(item, self._options, place_of_item)
                served = not _SERVED.isdisjoint(getattr(item, "fixturenames", ()))
                item.stash[PLACEMENT] = place(declared, self._options, needs_server=served)
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
            pytest.UsageError: if ``--gpu-class`` names a class that this machine does not have.
        """
        if self._options.gpu_class is not None:
            self._rig.check_class(self._options.gpu_class)

    def gauge(self, item: pytest.Item) -> GpuCap:
        """The object behind the ``gpucap`` fixture."""
        placed = self._placed(item)
        return GpuCap(
            item.stash[DECLARATION],
            placed,
            self._rig,
            self._options,
            test=item.nodeid,
            live=self._live(item),
            keep=lambda record: item.stash.setdefault(_RECORDS, []).append(record),
        )

    def server(self, item: pytest.Item) -> Endpoint:
        """The test's server, ready."""
        target = self._rig.server(self._placed(item), self._live(item))
        assert target.server is not None  # noqa: S101 - what `Rig.server` is for
        return target.server

    def target(self, item: pytest.Item) -> Target:
        """The test's leased devices."""
        return self._rig.target(self._placed(item), self._live(item))

    def release_unless_needed(self, nextitem: pytest.Item | None) -> None:
        """End the server that is running unless the next test shares it."""
        placed = None if nextitem is None else nextitem.stash.get(PLACEMENT, None)
        self._rig.keep_only(None if placed is None else placed.key)

    @staticmethod
    def explains(error: BaseException) -> bool:
        """Whether an error of ours says all there is to say, so that a traceback through the plugin would bury it."""
        return isinstance(error, MeasurementInvalid | ServerError | LeaseError | MemoryNotReturned)

    @staticmethod
    def take_records(item: pytest.Item) -> list[Record]:
        """The results of a test since the last call."""
        records = item.stash.get(_RECORDS, [])
        item.stash[_RECORDS] = []
        return records

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

    def _live(self, item: pytest.Item) -> Live:
        declared = item.stash[DECLARATION]
        return Live(declared.name, self._writer(), interactive=sys.__stdout__ is not None and sys.__stdout__.isatty())

    def _writer(self) -> Callable[[str], None] | None:
        """Writes to the terminal past pytest's capture; None in an xdist worker and under ``-q``."""
        if hasattr(self._config, "workerinput") or self._config.get_verbosity() < 0:
            return None
        capture = self._config.pluginmanager.getplugin("capturemanager")
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is None:
            return None
        started = False

        def write(text: str) -> None:
            nonlocal started
            # The first line of a test follows pytest's own "test_x.py " or "test_x.py::name ".
            lead = "" if started else "\n"
            started = True
            if capture is None:
                terminal.write(lead + text, flush=True)
                return
            with capture.global_and_fixture_disabled():
                terminal.write(lead + text, flush=True)

        return write
