"""One pytest session: what its tests declare, in which order they run, and what they found.

Every collection of our tests imports this file. So the methods that measure import what only measuring needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.markers.declaration import Declaration, place_of
from pytest_gpucap.markers.declare import declare
from pytest_gpucap.markers.marks import measures, same_declaration
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import RequirementError, too_long
from pytest_gpucap.secondary import SecondaryName
from pytest_gpucap.session.boundary import fault, one_line
from pytest_gpucap.session.placement import RAY, Placement, check_gpu_class, place
from pytest_gpucap.session.workers import is_one_of_many

if TYPE_CHECKING:
    from pytest_gpucap.engines.protocol import Engine, EnginePair, Server
    from pytest_gpucap.history.store import Baseline
    from pytest_gpucap.planning.session_cost import Need
    from pytest_gpucap.results.result import Result
    from pytest_gpucap.session.base_checkout import OfBase
    from pytest_gpucap.session.costing import Costing
    from pytest_gpucap.session.gpucap import GpuCap
    from pytest_gpucap.session.kept import KeptResults
    from pytest_gpucap.session.live_line import LiveLine
    from pytest_gpucap.session.server_manager import ServerManager, SystemUnderTest

RECORDER: Final = "gpucap-results"
"""Name of the plugin that records results, in the process that talks to the user."""
_SERVED: Final = frozenset({"gpucap", "vllm_server"})


class _Plan(NamedTuple):
    """What tests with equal markers share: everything declared except the name, and where they are measured."""

    declared: Declaration
    placed: Placement
    base: EnginePair[Engine] | None
    not_compared: str = ""
    """Why the base checkout has nothing to compare with."""


_PLAN: pytest.StashKey[_Plan] = pytest.StashKey()
_RESULTS: pytest.StashKey[KeptResults] = pytest.StashKey()


class PytestSession:
    """Holds what the tests declare and the server manager; made when the first of our tests is collected."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._manager: ServerManager | None = None
        self._mistakes = ""
        self._measured: KeptResults | None = None
        self._baseline: Baseline | None = None
        self._costing: Costing | None = None
        self._of_base: dict[str, OfBase] = {}
        """What the base checkout says of each test that measures, by node id; empty without one."""
        self._starts_limited: set[Hashable] = set()
        """Keys of the placements with a test that limits the start-up."""
        self.estimate: Sequence[str] = ()
        """Lines for the terminal on what the session will cost; none where nobody asked."""

    def declare(self, items: Sequence[pytest.Item]) -> str:
        """Parse the markers of our tests and decide where each is measured.

        Returns:
            Every mistake of the session, one per line; empty if there is none. After a mistake no test of ours runs:
            pytest stops. An xdist worker cannot stop without a crash, so there each test fails with the mistakes before
            it starts anything.
        """
        mistakes = [self._collect_base(items)]
        plans: dict[Hashable, _Plan] = {}
        for item in [] if mistakes[0] else items:
            served = not _SERVED.isdisjoint(getattr(item, "fixturenames", ()))
            try:
                of_base = self._of_base.get(item.nodeid)
                key = (served, same_declaration(item), of_base and of_base.key)
                plan = plans.get(key)
                if plan is None:
                    plans[key] = plan = self._plan(item, of_base, served=served)
                item.stash[_PLAN] = plan
            except (ValueError, GpuCapError, OSError) as error:
                mistakes.append(f"{place_of(item)}: {error}")
            except Exception as error:  # noqa: BLE001 - the boundary to pytest: any other is a bug, and is named as one
                mistakes.append(f"{place_of(item)}: {fault(error)}")
        self._mistakes = "\n".join(filter(None, dict.fromkeys(mistakes)))
        return self._mistakes

    def _collect_base(self, items: Sequence[pytest.Item]) -> str:
        """Collect the base checkout, if there is one; returns the mistakes that stop the session, one per line."""
        options, measuring = self._options, [item for item in items if measures(item)]
        # With one of these there is no base, which each test is told.
        if options.base_dir is None or not measuring or options.url is not None or options.compare is not None:
            return ""
        from pytest_gpucap.session.base_checkout import BaseMistake, collect_base

        try:
            with one_line("the base checkout was not collected"):
                base = collect_base(options.base_dir, measuring, options, self._config)
        except GpuCapError as error:
            return str(error)
        mistakes = []
        for item in measuring:
            try:
                self._of_base[item.nodeid] = base.of(item)
            except BaseMistake as error:
                mistakes.append(str(error))
        return "\n".join(dict.fromkeys(mistakes))

    def _plan(self, item: pytest.Item, of_base: OfBase | None, *, served: bool) -> _Plan:
        """Read what a test declares, and decide where it is measured.

        Raises:
            ValueError: one line, the mistake and the fix.
        """
        declared = _with_efficiency(_with_file(declare(item, self._options)), self._options)
        placed = place(declared, self._options, needs_server=served)
        if measures(item) and placed.engine is not None:
            _check_length(declared, placed.engine)
            _check_repeat(self._options, placed.engine)
            if declared.secondary:
                from pytest_gpucap.session.secondary_checks import check_secondary

                check_secondary(declared, placed, self._options)
        if any(limit.name is SecondaryName.STARTUP for limit in declared.secondary):
            self._starts_limited.add(placed.key)
        if not self._options.names_base:
            return _Plan(declared, placed, None)
        from pytest_gpucap.session.base_and_head import base_of

        if of_base is None:
            return _Plan(declared, placed, base_of(placed, self._options))
        from pytest_gpucap.session.base_checkout import NothingToCompare, placed_base

        try:
            based = placed_base(of_base, declared, placed, self._options)
            if based.engine is not None:
                _check_length(declared, based.engine)
        except (NothingToCompare, RequirementError) as why:
            return _Plan(declared, placed, None, f"nothing to compare with in the base: {why}")
        pair = base_of(placed, self._options, based)
        if pair is not None and self._options.base_python is None and pair.base.key == pair.head.key:
            return _Plan(declared, placed, None, "nothing to compare with in the base: it declares the same server")
        return _Plan(declared, placed, pair)

    def grouped(self, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """The tests in their order, but with those that share a server next to each other.

        Servers are ordered by the highest priority of their tests, and the tests of a server by their own: a start
        costs more than a verdict.
        """

        def rank(item: pytest.Item) -> int:
            plan = item.stash.get(_PLAN, None)
            return 0 if plan is None else -plan.declared.priority

        together: dict[Hashable, list[pytest.Item]] = {}
        for item in items:
            plan = item.stash.get(_PLAN, None)
            together.setdefault(item if plan is None else plan.placed.key, []).append(item)
        groups = sorted((sorted(group, key=rank) for group in together.values()), key=lambda group: rank(group[0]))
        return [item for group in groups for item in group]

    def will_run(self, items: Sequence[pytest.Item]) -> None:
        """These tests run, in this order: what they cost is told, and what fits a limited session is known.

        Raises:
            pytest.UsageError: one line, for a file of prices or a place to write to that cannot be used.
        """
        options = self._options
        asked = options.estimate or options.estimate_json is not None
        if self._mistakes or not (asked or options.max_total_s is not None):
            return
        from pytest_gpucap.session.costing import Costing, Planned

        planned = [
            Planned(item, declaration(item), plan.placed, plan.base)
            for item in items
            if (plan := item.stash.get(_PLAN, None)) is not None
            and (plan.placed.engine is not None or plan.placed.skip is not None)
        ]
        try:
            with one_line("what the session will cost is not known"):
                self._costing = Costing(planned, options, self._config)
        except GpuCapError as error:
            if not is_one_of_many(self._config):
                raise pytest.UsageError(str(error)) from None
            self._mistakes = str(error)  # every test of ours fails with it: a worker cannot stop
            return
        if asked:
            from pytest_gpucap.session.cost_told import tell

            self.estimate = tell(self._costing.session_cost(), options, self._config)

    def check_time(self, item: pytest.Item) -> None:
        """Check that what is left of the session's time is enough for a test, before anything of it starts.

        Raises:
            NotMeasured: if it is not; the test then has a result that says so, if it was to measure.
            pytest.skip.Exception: instead, where the session allows that.
        """
        need = self._need(item)
        if need is None or self._options.max_total_s is None or self._costing is None:
            return
        from pytest_gpucap.session.expected import not_measured
        from pytest_gpucap.session.fitting import refusal

        declared, simulated = declaration(item), item.stash[_PLAN].placed.profile is not None
        error = refusal(need, self._costing.later(item), self._servers(), declared)
        if error is None:
            return
        if measures(item):
            from pytest_gpucap.session.context import unmeasured_test

            kept_results(item).keep(unmeasured_test(declared, item.nodeid, error, simulated=simulated))
        raise not_measured(error, self._options)

    def hear_unittest(self, item: pytest.Item) -> None:
        """Keep what a test of ours raises under ``unittest.expectedFailure``."""
        if _PLAN in item.stash:
            from pytest_gpucap.session.expected import hear_unittest

            hear_unittest(item)

    def _need(self, item: pytest.Item) -> Need | None:
        return None if self._costing is None or _PLAN not in item.stash else self._costing.need(item)

    def check_machine(self) -> None:
        """Check that the machine has the GPU class that the command line names.

        Raises:
            pytest.UsageError: if ``--gpu-class`` names a class that this machine does not have, and servers start here.
        """
        elsewhere = self._options.url is not None or self._options.launcher == RAY
        if self._options.gpu_class is not None and not elsewhere:
            check_gpu_class(self._options.gpu_class, self._options)

    def check_files(self) -> None:
        """Check that the session's baselines can be read and written.

        Raises:
            pytest.UsageError: one line on the file that cannot. It would crash an xdist worker; there every test of
                ours fails with it instead.
        """
        if self._options.compare is None and self._options.save is None:
            return
        from pytest_gpucap.session.baselines import check_files

        try:
            self._baseline = check_files(self._options, self._config)
        except pytest.UsageError as error:
            if not is_one_of_many(self._config):
                raise
            self._mistakes = str(error)

    def gpucap(self, request: pytest.FixtureRequest) -> GpuCap:
        """The object behind the ``gpucap`` fixture."""
        from pytest_gpucap.session.base_and_head import BaseAndHead
        from pytest_gpucap.session.base_checkout import NotCompared
        from pytest_gpucap.session.baselines import Comparing
        from pytest_gpucap.session.benchmark_bridge import REQUEST
        from pytest_gpucap.session.gpucap import GpuCap
        from pytest_gpucap.session.harness import Harness
        from pytest_gpucap.session.screen import columns

        item: pytest.Item = request.node
        item.stash[REQUEST] = request
        self._measured = kept_results(item)
        self._measured.begin()
        request.addfinalizer(self._measured.end)
        placed, declared, live = self._placed(item), declaration(item), self._live(item)
        plan, manager, need = item.stash[_PLAN], self._servers(), self._need(item)
        needs_s = None if need is None else need.seconds({manager.running})
        pairing: BaseAndHead | NotCompared | None = None
        if plan.base is not None:
            pairing = BaseAndHead(plan.base, placed, manager, declared, self._options, live)
        elif plan.not_compared:
            pairing = NotCompared(plan.not_compared, self._options.max_regression)
        return GpuCap(
            Harness(declared, placed, manager, self._options, live, needs_s),
            self._options,
            test=item.nodeid,
            results=self._measured,
            comparing=Comparing(self._baseline, self._options),
            pairing=pairing,
            columns=columns(self._config),
        )

    def knows(self, item: pytest.Item) -> bool:
        """Whether collection has read what the test declares, or found mistakes."""
        return bool(self._mistakes) or _PLAN in item.stash

    def server(self, item: pytest.Item) -> Server:
        """The test's server, ready."""
        placed, live = self._placed(item), self._live(item)
        with one_line(f"{declaration(item).name} has no server"):
            return self._servers().server(placed, live).endpoint

    def target(self, item: pytest.Item) -> SystemUnderTest:
        """The test's leased devices."""
        placed, live = self._placed(item), self._live(item)
        with one_line(f"{declaration(item).name} has no device"):
            return self._servers().target(placed, live)

    def release_unless_needed(self, nextitem: pytest.Item | None) -> None:
        """End the server that is running unless the next test shares it."""
        if self._manager is not None:
            plan = None if nextitem is None else nextitem.stash.get(_PLAN, None)
            with one_line("the server was not ended"):
                if nextitem is None:
                    self._manager.finish()
                else:
                    self._manager.keep_only(None if plan is None else plan.placed.key)

    def explain(self, operator: str, left: object, right: object) -> list[str] | None:
        """Explain a failed comparison in the running test; None if neither side is a figure that the test measured."""
        if self._measured is None or not self._measured.results:
            return None
        from pytest_gpucap.report import assertion

        return assertion.explain(operator, left, right, self._measured.results)

    @staticmethod
    def take_results(item: pytest.Item) -> list[Result]:
        """The results of a test since the last call."""
        kept = item.stash.get(_RESULTS, None)
        return [] if kept is None else kept.take()

    @staticmethod
    def report_to_benchmark(item: pytest.Item) -> None:
        """Let pytest-benchmark report what the test has measured so far."""
        from pytest_gpucap.session.benchmark_bridge import report_to_benchmark

        report_to_benchmark(item, kept_results(item).results)

    def close(self) -> None:
        """End everything that was started."""
        if self._manager is not None:
            with one_line("the server was not ended"):
                self._manager.finish()

    def _servers(self) -> ServerManager:
        """The server manager, made when a test first asks for devices or a server."""
        if self._manager is None:
            from pytest_gpucap.session.server_manager import ServerManager
            from pytest_gpucap.session.session_time import SessionTime

            session_time = SessionTime(self._options.max_total_s)
            self._manager = ServerManager(self._options, session_time, self._starts_limited)
        return self._manager

    def _placed(self, item: pytest.Item) -> Placement:
        if self._mistakes:
            pytest.fail(self._mistakes, pytrace=False)
        placed = item.stash[_PLAN].placed
        if placed.skip is not None:
            pytest.skip(placed.skip)
        return placed

    def _live(self, item: pytest.Item) -> LiveLine:
        from pytest_gpucap.session.live_line import live

        return live(self._config, declaration(item).name)


def declaration(item: pytest.Item) -> Declaration:
    """What a test declares, once `PytestSession.declare` has read it."""
    return item.stash[_PLAN].declared.of(item)


def _with_file(declared: Declaration) -> Declaration:
    """The declaration with the lengths of its trace, prompts or sessions. So a mistake in a file costs no GPU time."""
    workload = declared.workload
    if workload.prompts is not None:
        from pytest_gpucap.load.own_bodies import file_of
        from pytest_gpucap.load.prompt_lengths import with_estimates

        return declared.with_workload(with_estimates(workload, file_of(workload)))
    if workload.sessions is not None and workload.recorded is None:
        from pytest_gpucap.load.sessions import with_session_lengths

        return declared.with_workload(with_session_lengths(workload))
    if workload.arrivals.trace is None:  # sessions of a file have their lengths
        return declared
    from pytest_gpucap.load.trace import with_trace_lengths

    return declared.with_workload(with_trace_lengths(workload))


def _with_efficiency(declared: Declaration, options: Options) -> Declaration:
    """The declaration with the efficiency that the session gives for budgets of several replicas.

    Raises:
        ValueError: one line, if it is to come from a file that has none.
    """
    given, requirement = options.efficiency, declared.requirement
    if isinstance(given, str) or requirement is None or requirement.fleet > 1 or requirement.replicas == 1:
        return declared
    if isinstance(given, Path):
        from pytest_gpucap.fleet.known_efficiency import known_efficiency

        try:
            given = known_efficiency(given, requirement.replicas, declared.model)
        except (ValueError, GpuCapError, OSError) as error:
            raise ValueError(f"--gpucap-efficiency: {error}") from None
    return replace(declared, requirement=replace(requirement, efficiency=given))


def _check_length(declared: Declaration, engine: Engine) -> None:
    """Check that the longest request fits the server's context, as far as its arguments tell.

    Raises:
        RequirementError: if it does not.
    """
    if engine.max_model_len is None or declared.workload.own_texts is not None:  # which the server counts
        return
    workload = declared.workload
    if workload.arrivals.trace is None and workload.sessions is None:
        longest = workload.longest
    else:
        from pytest_gpucap.load.trace import longest_request  # loads NumPy

        longest = longest_request(workload)
    if why := too_long(longest, engine.max_model_len):
        mend = "; or let sessions end sooner, with context= in sessions" if workload.sessions is not None else ""
        raise RequirementError(f"{why}{mend}")


def _check_repeat(options: Options, engine: Engine) -> None:
    """Check that the server can be started as often as the session wants.

    Raises:
        ValueError: one line, if it cannot.
    """
    if options.repeat > 1 and not engine.restarts:
        raise ValueError(
            f"--gpucap-repeat={options.repeat}: engine {engine.name} cannot start its server afresh: give "
            "--gpucap-repeat=1"
        )


def kept_results(item: pytest.Item) -> KeptResults:
    """What a test has measured so far; created on first use."""
    from pytest_gpucap.session.kept import KeptResults

    if (kept := item.stash.get(_RESULTS, None)) is None:
        # No plugin of that name runs in an xdist worker.
        recorder = item.config.pluginmanager.getplugin(RECORDER)
        heard = None if recorder is None else partial(recorder.measured, item.nodeid)
        item.stash[_RESULTS] = kept = KeptResults(heard)
    return kept


def is_about_another_class(item: pytest.Item) -> bool:
    """Whether a test names a GPU class that the session is not about."""
    plan = item.stash.get(_PLAN, None)
    return plan is not None and plan.placed.skip is not None


def asked_results(item: pytest.Item) -> KeptResults | None:
    """What a test has measured so far; None if it has asked the ``gpucap`` fixture for nothing."""
    kept = item.stash.get(_RESULTS, None)
    return kept if kept is not None and kept.asked else None
