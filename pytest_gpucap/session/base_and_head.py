"""The pull request's base beside its head: what the options ``--gpucap-base-...`` mean for a test.

Both servers run on the same leased devices. One idles while the other is measured, so the GPU's memory must hold both.
If it does, the base starts beside the running head. If not, both are restarted for the comparison, each with less
memory, and the result says so.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pytest_gpucap.decisions.paired import PAIR_START_SD
from pytest_gpucap.engines.errors import ServerError
from pytest_gpucap.engines.protocol import Engine, EnginePair, LoadRequest, Server
from pytest_gpucap.errors import PairInvalid
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.history.latencies import compare_latencies, side_by_side
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.measure.comparing import Paired, PairedServer, compare, describe, windows_of
from pytest_gpucap.measure.constants import DRIFT_SD
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Requirement, Workload
from pytest_gpucap.results.build import declared_slo
from pytest_gpucap.results.comparison import (
    BlockPair,
    ComparedBaseline,
    Comparison,
    FigureComparison,
    LatencyComparison,
    PairedComparison,
    RegressionDecision,
)
from pytest_gpucap.results.encoding import from_builtins
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.session.context import limits_of
from pytest_gpucap.session.harness import bounded, counted, in_order, settings_on
from pytest_gpucap.session.kept import KeptResult
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.session.paired_figures import PairedFigures
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.server_manager import ServerManager, SystemUnderTest

SEED_STEP: Final = 1_000_003
"""A comparison uses other prompts than the check before it, which the head has in its prefix cache."""
BASE: Final = "base"
LATENCY_SD: Final = math.hypot(PAIR_START_SD, DRIFT_SD)
"""Standard deviation of ln(pace) between the open loops of base and head: from their starts and from drift."""
NOT_REGRESSED: Final = frozenset(RegressionDecision) - {RegressionDecision.REGRESSED}


def base_of(head: Placement, options: Options, base: Placement | None = None) -> EnginePair[Engine] | None:
    """The engines of a test's head and of the base that it is compared with; None if the session names no base.

    Args:
        head: where the test is measured.
        options: of the session.
        base: where the same test of the base checkout would be; None: the head's arguments are the base's.

    Raises:
        ValueError: one line, if the arguments are invalid.
    """
    if not options.names_base or head.skip is not None or head.engine is None:
        return None
    if options.compare is not None:
        raise ValueError("--gpucap-compare and --gpucap-base-...: a result holds one comparison, so give one of them")
    if options.base_python is not None and shutil.which(options.base_python) is None:
        raise ValueError(f"--gpucap-base-python: there is no interpreter at {options.base_python}")
    own = head.engine if base is None or base.engine is None else base.engine
    pair = own.with_base(options.base_args or "", options.base_python)
    pair.head = head.engine
    if pair.base.gpus > head.devices:
        raise ValueError(
            f"--gpucap-base-args: one replica of the base takes {pair.base.gpus} GPUs, but it must run on the "
            f"GPUs of the head, which takes {head.devices}"
        )
    return pair


class _Sides(NamedTuple):
    """Base and head, ready to be measured."""

    base: PairedServer
    head: PairedServer
    workload: Workload
    watched: PairedFigures


@dataclass(frozen=True, slots=True)
class BaseAndHead:
    """Compares a test's head with its base.

    Attributes:
        engines: the engines of both.
        head: where the test is measured.
        manager: holds the head's server if it is running.
        declared: what the test declares.
        options: the session's options.
        live: the test's live line.
    """

    engines: EnginePair[Engine]
    head: Placement
    manager: ServerManager
    declared: Declaration
    options: Options
    live: LiveLine

    def compare(self, requirement: Requirement, kept: KeptResult) -> None:
        """Measure both in alternation and add the comparison to the result.

        A REGRESSED is measured again on fresh servers.

        Raises:
            PairInvalid: if the alternation cannot be trusted, or the base does not start.
        """
        head_rate = kept.result.sustainable_rate
        allowed = self.options.max_regression
        first, figures = self._once(requirement, head_rate, start=0)
        kept.spend("comparison with base", first.about.spent_s)
        reason, found, confirmed = describe(first, allowed), first, None
        if first.change is RegressionDecision.REGRESSED:
            self.live.say(f"{describe(first, allowed)}: measuring both again from fresh servers")
            second, figures = self._once(requirement, head_rate, start=1)
            kept.spend("confirmation", second.about.spent_s)
            confirmed = second.change is RegressionDecision.REGRESSED
            # The first is biased: it was picked because it was low. The second is not.
            found, first_said = second, "" if first.ratio is None else f" after {first.ratio.value - 1:+.1%}"
            said = "confirmed" if confirmed else f"{second.change}"
            reason = f"from fresh servers{first_said}, {said}: {describe(second, allowed)}"
        latencies = self._latencies(requirement, found)
        kept.compare(
            Comparison(
                baseline=ComparedBaseline(BASE),
                decision=RegressionDecision.INCONCLUSIVE if confirmed is False else found.change,
                ratio=found.ratio,
                base_rate=found.base_rate,
                head_rate=found.head_rate,
                max_regression=allowed,
                changed=tuple(self._fitted().changes()),
                more_gpu_s=found.more_s,
                confirmed=confirmed,
                reason=reason,
                latencies=latencies,
                no_latencies="" if latencies else _why_none(found),
                figures=figures,
                paired=PairedComparison(
                    concurrency=found.about.concurrency,
                    pace=found.pace,
                    elasticity=found.elasticity,
                    pairs=from_builtins(windows_of(found.pairs), tuple[BlockPair, ...]),
                ),
            )
        )

    def _once(
        self, requirement: Requirement, head_rate: Interval | None, start: int
    ) -> tuple[Paired, tuple[FigureComparison, ...]]:
        allowed = self.options.max_regression
        # After a first REGRESSED the second comparison is the one reported.
        after = RegressionDecision if start > 0 else NOT_REGRESSED
        with self._sides(start) as (base, head, workload, watched):
            asked = replace(requirement, workload=workload)
            found = compare(base, head, asked, allowed, head_rate, self.live, latencies_after=tuple(after))
            figures = watched.compare(found)
        if found.problems:
            raise PairInvalid(f"{self.declared.name}: {describe(found, allowed)}")
        return found, figures

    def _latencies(self, requirement: Requirement, found: Paired) -> tuple[LatencyComparison, ...]:
        """Percentiles of both servers at the equal rate; empty where none was measured (see `_why_none`)."""
        if found.equal_rate is None:
            return ()
        return compare_latencies(
            side_by_side(declared_slo(requirement.slo).percentiles),
            found.equal_rate.base,
            found.equal_rate.head,
            self.options.max_regression,
            start_sd=LATENCY_SD,
        )

    @contextmanager
    def _sides(self, start: int) -> Iterator[_Sides]:
        seed = self.declared.seed + SEED_STEP * (start + 1)
        try:
            settings = bounded(self.declared, self.manager.time, seed)
            with self._served(settings, fresh=start > 0) as sides:
                yield sides
        finally:
            self.live.done()

    @contextmanager
    def _served(self, settings: Settings, *, fresh: bool) -> Iterator[_Sides]:
        pair = self._fitted()
        placed = replace(self.head, engine=pair.base), replace(self.head, engine=pair.head)
        try:
            with self.manager.pair(*placed, self.live, fresh=fresh) as (targets, trust):
                base, head = (target.endpoint for target in targets)
                workload = self._workload(pair.head, head, settings.seed)
                load = LoadRequest(workload=workload, seed=settings.seed, workers=self.options.workers)
                self.manager.wait_compiled(self.live)
                runners = pair.runners(base, head, load)
                watched = PairedFigures(self.declared, targets, runners, self.options)
                try:
                    first, second = (
                        self._side(target, runner, settings_on(target.endpoint, settings, trust), workload)
                        for target, runner in zip(targets, runners, strict=True)
                    )
                    # Two simulated servers have one clock.
                    with self.manager.time.driving(runners[0]):
                        yield _Sides(first, second, workload, watched)
                finally:
                    watched.close()
                    for runner in runners:
                        runner.close()
        except (LeaseError, ServerError) as error:
            remark = f" ({pair.remark()})" if pair.remark() else ""
            raise PairInvalid(f"{self.declared.name} was not compared with its base{remark}: {error}") from error

    def _workload(self, engine: Engine, server: Server, seed: int) -> Workload:
        """The test's workload; prompts of its own in the order of this comparison, as the head counts them."""
        workload = self.declared.workload.served(server.capabilities().dialect)
        return counted(engine, server, in_order(workload, seed), self.declared.name)

    def _side(
        self, target: SystemUnderTest, runner: LoadRunner, settings: Settings, workload: Workload
    ) -> PairedServer:
        limit = limits_of(target, self.declared.with_workload(workload))
        return PairedServer(runner, settings, limit if isinstance(limit, Roofline) else None)

    def _fitted(self) -> EnginePair[Engine]:
        """The engines. If they share a GPU that cannot hold both, each gets less memory."""
        on_cpu = self.head.gpu_class is not None and self.head.gpu_class.is_cpu
        return self.engines if on_cpu else self.engines.fitted()


def _why_none(found: Paired) -> str:
    """Why there are no latencies of base and head at an equal rate."""
    if found.equal_rate is None:
        return "too few pairs of blocks were measured to know a rate that both keep"
    return found.equal_rate.problem or "too few requests ended in the windows of the open loops at an equal rate"
