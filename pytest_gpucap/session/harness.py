"""What one test measures with: its server, leased and started, and the load runner pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

from pytest_gpucap.engines.server import Server
from pytest_gpucap.errors import MeasurementInvalid
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.markers import Declaration
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options import Options
from pytest_gpucap.requirement import Requirement, Workload
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.screen import glance
from pytest_gpucap.session.server_manager import ServerManager, SystemUnderTest, Trust


def load_on(
    server: Server, workload: Workload, settings: Settings, workers: int | None, trust: Trust | None
) -> tuple[LoadRunner, Settings]:
    """A load runner at a server whose caches are emptied, and the settings with what the server tells of itself.

    Args:
        server: ready.
        workload: of every request.
        settings: of the measurement; its seed is the load's.
        workers: load processes; None: as many as the load asks for.
        trust: finds reasons to distrust a span of time; None: nobody watches.
    """
    from pytest_gpucap.load.runner import HttpLoadRunner

    server.reset_caches()
    runner = HttpLoadRunner(
        server.base_url,
        server.model,
        str(server.api_key),
        workload,
        settings.seed,
        workers=workers,
        simulated=server.simulated,
    )
    return runner, replace(settings, max_num_seqs=server.max_num_seqs, kv_tokens=server.kv_tokens, trust=trust)


class Harness:
    """One test's declaration, where it is measured, and the means to."""

    def __init__(
        self, declared: Declaration, placement: Placement, rig: ServerManager, options: Options, live: LiveLine
    ) -> None:
        self.declared, self.placement, self.live = declared, placement, live
        self._rig, self._options = rig, options

    @property
    def requirement(self) -> Requirement:
        """The declared requirement, or one with the test's workload and limits that no verdict is made from."""
        declared = self.declared
        return declared.requirement or Requirement(
            declared.name,
            qps=Fraction(1),
            gpus=declared.gpus_per_replica,
            gpus_per_replica=declared.gpus_per_replica,
            workload=declared.workload,
            slo=declared.slo,
        )

    def server(self) -> Server:
        """The test's server, ready; one over HTTP even where rates come from virtual time."""
        return self._rig.server(self.placement, self.live).endpoint

    def start_afresh(self) -> None:
        """End the server, so that the next measurement starts another; one that is not ours stays as it is."""
        self._rig.keep_only(None)

    @contextmanager
    def driven(self, start: int = 0) -> Iterator[tuple[LoadRunner, Settings, SystemUnderTest]]:
        """A runner at the test's server; closed, with nothing left in flight, whatever happens.

        `start` counts the starts of the server that this test measures from: each has arrivals and prompts of its own.
        """
        seed = self.declared.seed + start
        settings = Settings(max_time_s=self.declared.max_time_s, seed=seed)
        if self.placement.profile is not None:
            from pytest_gpucap.simulator.runner import SimRunner

            engine = self.placement.profile.engine
            target = self._rig.target(self.placement, self.live)
            runner: LoadRunner = SimRunner(engine, seed=seed)
            settings = replace(settings, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
        else:
            try:
                target = self._rig.server(self.placement, self.live)
            except LeaseError as error:
                raise MeasurementInvalid(f"{self.declared.name} was not measured: {error}") from error
            trust = None if target.telemetry is None else target.telemetry.problems
            runner, settings = load_on(target.endpoint, self.declared.workload, settings, self._options.workers, trust)
            if (telemetry := target.telemetry) is not None:
                self.live.gpu = lambda: glance(telemetry)
        try:
            yield runner, settings, target
        finally:
            runner.close()
            self.live.done()
