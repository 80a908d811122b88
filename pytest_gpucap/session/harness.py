"""What one test measures with: its server, leased and started, and the load runner pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Final

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import Engine, LoadRequest, Server
from pytest_gpucap.errors import MeasurementInvalid, shortened, told
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.load.trace import longest_request
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Requirement, RequirementError, Workload, too_long
from pytest_gpucap.session.live_line import LiveLine, glance
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.server_manager import ServerManager, SystemUnderTest, Trust
from pytest_gpucap.session.session_time import SessionTime
from pytest_gpucap.user_files import shown_path
from pytest_gpucap.workloads.adapter_mix import own_adapters


def settings_on(server: Server, settings: Settings, trust: Trust | None) -> Settings:
    """The settings, with what the server reports about itself and a function that finds problems in a span of time."""
    known = server.capabilities()
    ended = getattr(server, "ended", None)  # servers of other plugins need not tell
    return replace(
        settings,
        max_num_seqs=known.max_num_seqs,
        kv_tokens=known.kv_tokens,
        max_num_batched_tokens=known.max_num_batched_tokens,
        trust=trust,
        ended=ended,
    )


def in_order(workload: Workload, seed: int) -> Workload:
    """A workload with prompts or sessions of a file in the order of a seed; any other as it is."""
    if workload.prompts is not None:
        return replace(workload, prompts=replace(workload.prompts, order=seed))
    sessions, recorded = workload.sessions, workload.recorded
    if sessions is None or recorded is None or recorded.in_order:
        return workload
    return replace(workload, sessions=replace(sessions, recorded=replace(recorded, order=seed)))


def counted(engine: Engine, server: Server, workload: Workload, name: str) -> Workload:
    """A workload with prompts of the user's own as the server counts them; any other as it is.

    Raises:
        MeasurementInvalid: if they cannot be counted.
    """
    if workload.own_texts is None:
        return workload
    try:
        return engine.counted(server, workload)
    except (LoadError, RequirementError) as error:
        raise MeasurementInvalid(f"{name} was not measured: {error}") from error


def check_adapters(server: Server, workload: Workload, name: str) -> None:
    """Check that a real server, or each replica of a fleet, lists the adapters that requests name.

    Args:
        server: ready.
        workload: of the requests.
        name: of the test, for messages.

    Raises:
        MeasurementInvalid: if it does not, or has no list.
    """
    wanted = own_adapters(workload.adapters)
    replicas: Sequence[Server] = getattr(server, "replicas", None) or [server]
    for number, each in enumerate(replicas, 1):
        models = getattr(each, "models", None)  # servers of other plugins need not have it
        if wanted and models is not None:
            which = "the server" if len(replicas) == 1 else f"replica {number} of {len(replicas)}"
            _check_listed(each.model, models, wanted, name, which)


def _check_listed(model: str, models: Callable[[], list[str]], wanted: Sequence[str], name: str, which: str) -> None:
    """Check what one server lists; see `check_adapters`."""
    try:
        listed = models()
    except EndpointError as error:
        raise MeasurementInvalid(f"{name} was not measured: {which} does not list its adapters: {error}") from error
    missing = [each for each in wanted if each not in listed]
    if missing:
        known = ", ".join(each for each in listed if each != model) or "none"
        raise MeasurementInvalid(
            f"{name} was not measured: {which} has no adapter {', '.join(map(told, missing[:_MOST_NAMED]))}; "
            f"/v1/models lists, beside its model: {shortened(known)}: load it there, or mend adapters="
        )


_MOST_NAMED: Final = 5


def _tell_of_compiling(live: LiveLine) -> None:
    """The simulated server is compiled code: of seconds without a word a newcomer would think that it hangs."""
    from pytest_gpucap.simulator.engine import compiles_first

    if compiles_first():
        live.say("compiling the simulator, once after an installation")


def requirement_of(declared: Declaration) -> Requirement:
    """See `Harness.requirement`."""
    return declared.requirement or Requirement(
        declared.name,
        qps=Fraction(1),
        gpus=declared.fleet * declared.gpus_per_replica,
        gpus_per_replica=declared.gpus_per_replica,
        fleet=declared.fleet,
        workload=declared.workload,
        slo=declared.slo,
    )


def bounded(declared: Declaration, session_time: SessionTime, seed: int, needs_s: float | None = None) -> Settings:
    """See `Harness.settings`."""
    left_s = session_time.still(f"{declared.name} was not measured", needs_s)
    if left_s >= declared.max_time_s:
        return Settings(max_time_s=declared.max_time_s, seed=seed)
    return Settings(max_time_s=left_s, seed=seed, time_bound=session_time.bound)


LAST_LINES: Final = 30
ALONE_SEED: Final = 500_009
"""One replica alone gets other prompts than the fleet, which it has in its prefix cache."""
SKIP: Final = "skip"


class Harness:
    """One test's declaration, where it is measured, and what measures it.

    `needs_s` is the server time that the test is taken to need, where the session's is limited.
    """

    def __init__(
        self,
        declared: Declaration,
        placement: Placement,
        manager: ServerManager,
        options: Options,
        live: LiveLine,
        needs_s: float | None = None,
    ) -> None:
        self.declared, self.placement, self.live = declared, placement, live
        self._manager, self._options, self._needs_s = manager, options, needs_s
        self._counted = False

    @property
    def requirement(self) -> Requirement:
        """The declared requirement; without one, the test's workload and limits, which give no verdict."""
        return requirement_of(self.declared)

    def server(self) -> Server:
        """The test's server, ready. It answers over HTTP even if rates come from virtual time."""
        return self._manager.server(self.placement, self.live).endpoint

    def has_ended(self) -> bool:
        """Whether the test's server can no longer answer."""
        return self._manager.has_ended()

    def last_words(self) -> str:
        """The end of the log of a server that answers no more; empty where there is none."""
        log = self._manager.log()
        if log is None:
            return ""
        if self.declared.workload.own_texts is not None:
            return f"the end of its log is not shown, since it may repeat prompts\n\nwhole log: {log.path}"
        tail = log.tail(LAST_LINES)
        said = f"the last {len(tail.splitlines())} lines of its log:\n{tail}" if tail.strip() else "its log is empty"
        return f"{said}\n\nwhole log: {log.path}"

    def start_afresh(self) -> None:
        """End the server, so that the next measurement starts another. A server behind a URL keeps running."""
        self._manager.keep_only(None)

    def give_up(self) -> None:
        """End a server that answers no more, so that the next test has another."""
        if self.placement.engine is not None and self.placement.engine.restarts:
            self.start_afresh()

    @contextmanager
    def driven(self, start: int = 0) -> Iterator[tuple[LoadRunner, Settings, SystemUnderTest]]:
        """A load runner for the test's server. It is closed at the end, with no request left in flight.

        `start` counts the starts of the server that this test measures from: each has arrivals and prompts of its own.
        """
        seed = self.declared.seed + start
        try:
            target = self._manager.server(self.placement, self.live)
        except LeaseError as error:
            raise MeasurementInvalid(f"{self.declared.name} was not measured: {error}") from error
        if self.placement.simulated is None:  # in virtual time nothing answers
            check_adapters(target.endpoint, self.declared.workload, self.declared.name)
        known = target.endpoint.capabilities()
        self.declared = self.declared.with_workload(self.declared.workload.served(known.dialect))
        self._count_prompts(target, seed)
        context = known.max_model_len
        workload = self.declared.workload
        place = None if workload.own_texts is None else shown_path(workload.own_texts)
        mend = "; or end sessions sooner, with context= behind the file" if workload.recorded is not None else ""
        if context is not None and (why := too_long(longest_request(workload), context, place)):
            raise MeasurementInvalid(f"{self.declared.name} was not measured: {why}{mend}")
        telemetry = target.telemetry
        if telemetry is not None:
            self.live.gpu = lambda: glance(telemetry)
        settings = replace(self.settings(seed), steady_s=self._steady_s)
        settings = settings_on(target.endpoint, settings, None if telemetry is None else telemetry.problems)
        load = self._load(seed)
        self._manager.wait_compiled(self.live)
        if self.placement.simulated is not None:
            _tell_of_compiling(self.live)
        target.runner = runner = target.engine.runner(target.endpoint, load)
        try:
            with self._manager.time.driving(runner):
                yield runner, settings, target
        finally:
            target.runner = None
            runner.close()
            self.live.done()

    @property
    def _steady_s(self) -> float:
        """Length of a window for limits that are about a steady load."""
        return constants.STEADY_S if any(each.metric.is_sampled for each in self.declared.secondary) else 0.0

    def _count_prompts(self, target: SystemUnderTest, seed: int) -> None:
        """Have the server count prompts of the user's own, once, and order them by the seed."""
        of_file = self.declared.workload.prompts or self.declared.workload.recorded
        if of_file is None:
            return
        workload = in_order(self.declared.workload, seed)
        if not self._counted:
            if not target.endpoint.capabilities().simulated and workload.own_texts is not None:
                what = "prompts" if workload.prompts is not None else "sessions"
                self.live.waiting(f"counting the tokens of {of_file.count} {what}")
            workload = counted(target.engine, target.endpoint, workload, self.declared.name)
        self.declared, self._counted = self.declared.with_workload(workload), True

    def settings(self, seed: int) -> Settings:
        """What bounds one measurement: the test's own limit, or what the session's leaves if that is less.

        Raises:
            NotMeasured: if the session's leaves too little to begin.
        """
        return bounded(self.declared, self._manager.time, seed, self._needs_s)

    @property
    def left_s(self) -> float:
        """Seconds that the session's limit leaves."""
        return self._manager.time.left_s

    def _load(self, seed: int) -> LoadRequest:
        limits = [limit_s for _, limit_s in self.declared.slo.thresholds]
        return LoadRequest(
            workload=self.declared.workload,
            seed=seed,
            workers=self._options.workers,
            smallest_limit_s=min(limits, default=None),
        )

    @property
    def lost(self) -> int:
        """Replicas of the test's fleet that were lost and are counted."""
        return len(getattr(self._manager.target(self.placement, self.live).server, "lost", ()))

    @property
    def skips_efficiency(self) -> bool:
        """Whether nobody wants to know how well the replicas of a fleet add up."""
        return self._options.efficiency == SKIP

    @contextmanager
    def driven_alone(self) -> Iterator[tuple[LoadRunner, Settings]]:
        """A load runner for one replica of the test's fleet, while the others idle."""
        from pytest_gpucap.fleet.fleet_engine import FleetEngine
        from pytest_gpucap.fleet.fleet_server import FleetServer

        target = self._manager.server(self.placement, self.live)
        engine, server = target.engine, target.endpoint
        assert isinstance(engine, FleetEngine)  # noqa: S101 - what callers know
        assert isinstance(server, FleetServer)  # noqa: S101 - what a fleet's engine starts
        telemetry = target.telemetry
        settings = settings_on(
            server.replicas[0],
            self.settings(self.declared.seed + ALONE_SEED),
            None if telemetry is None else telemetry.problems,
        )
        self._count_prompts(target, settings.seed)
        load = self._load(settings.seed)
        runner = engine.runner_of_one(server, load)
        try:
            with self._manager.time.driving(runner):
                yield runner, settings
        finally:
            runner.close()
            self.live.done()

    def go_on_without_lost(self) -> bool:
        """Whether replicas of the test's fleet were lost and the test counts that; requests go to the others then."""
        from pytest_gpucap.fleet.fleet_engine import FleetEngine
        from pytest_gpucap.fleet.fleet_server import FleetServer

        if not self.declared.counts_loss:
            return False
        target = self._manager.target(self.placement, self.live)
        engine, server = target.engine, target.server
        if not isinstance(engine, FleetEngine) or not isinstance(server, FleetServer):
            return False
        return engine.go_on_without_lost(server, self.live.waiting)
