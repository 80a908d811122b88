"""What a row of the table of situations is, and how a situation is tried."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest

from pytest_gpucap.load.protocol import (
    ErrorText,
    Journal,
    LoadError,
    LoadPhase,
    LoadRunner,
    PhaseSpan,
    Progress,
)
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure import procedure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ApiKind, LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.failures import FailureKind
from pytest_gpucap.results.measured import Measurement, Outcome
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.telemetry.host_watch import HostWatch
from tests.situations.server import Behaviour, SituationServer
from tests.telemetry.recorded_host import RecordedHost

KEY: Final = "sk-secret-0123456789"
"""The key of every request. It must never be shown."""
STRANGER: Final = 123
"""A process that is not ours, on a recorded machine."""
OUTPUT_TOKENS: Final = 8
IN_FLIGHT: Final = 8
"""Most requests that are held in flight: each server here sustains about 100 requests a second with them."""
AT_ONCE: Final = 6
"""Situations that are tried at a time. They mostly wait."""


@dataclass(frozen=True)
class Found:
    """What a situation led to.

    Attributes:
        outcome: the verdict; of a measurement without a verdict PASS, or INVALID where it cannot be trusted.
        causes: the kinds of its problems and of its failed requests.
        text: everything that is said of it.
    """

    outcome: Outcome
    causes: frozenset[ProblemKind | FailureKind]
    text: str


@dataclass(frozen=True)
class Situation:
    """One row.

    Attributes:
        name: what happens, in a few words.
        behaviour: of the server.
        outcome: the right one.
        cause: a kind of problem or of failed request that must be named; None: there must be none.
        words: what must be said.
        ask: how it is tried; see `checked`.
        chat: by the chat endpoint, otherwise by that of completions.
        qps: of the requirement.
        limits: of the requirement, by name.
        max_error_rate: of the requirement.
        output_tokens, ignore_eos: of the workload.
        timeout_s: of one request.
        probes: answers the requests before the load, if they are not answered well.
    """

    name: str
    behaviour: Behaviour
    outcome: Outcome
    cause: ProblemKind | FailureKind | None = None
    words: str = ""
    ask: Callable[[Situation, Lane], Found] = lambda row, lane: checked(row, lane)  # noqa: PLW0108 - defined below
    chat: bool = False
    qps: float = 5.0
    limits: tuple[tuple[str, str], ...] = (("e2e_p95", "20s"),)
    max_error_rate: float = 0.01
    output_tokens: int = OUTPUT_TOKENS
    ignore_eos: bool = True
    timeout_s: float = 30.0
    probes: Behaviour | None = None

    @property
    def requirement(self) -> Requirement:
        """As a test declares it."""
        api = ApiKind.CHAT if self.chat else ApiKind.COMPLETIONS
        workload = Workload(
            Length.fixed(64), Length.fixed(self.output_tokens), endpoint=api, ignore_eos=self.ignore_eos
        )
        limits = tuple(LatencyLimit.parse(name, limit) for name, limit in self.limits)
        slo = replace(Slo(limits), max_error_rate=Fraction(str(self.max_error_rate)))
        return Requirement("here", Fraction(str(self.qps)), 1, Fraction(1), 1, workload, slo)


SETTINGS: Final = Settings(max_time_s=1e5, max_num_seqs=IN_FLIGHT)


class Fresh:
    """A load runner that has carried other situations before, as if it had not: their rows and texts are left out.

    Starting a load generator takes longer than most situations.
    """

    def __init__(self, runner: HttpLoadRunner) -> None:
        self.runner, self.clock, self.simulated = runner, runner.clock, runner.simulated
        self.broken = False
        self._rows = runner.journal().status.size
        self._texts = {(each.status, each.code, each.text): each.count for each in runner.error_texts()}

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        try:
            span = self.runner.run(phase, should_stop)
        except LoadError:
            self.broken = True
            raise
        return replace(span, first_row=span.first_row - self._rows, end_row=span.end_row - self._rows)

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        return self.runner.settle(timeout_s, cancel=cancel)

    def journal(self) -> Journal:
        journal = self.runner.journal()
        rows = journal.status.size
        columns = {each.name: getattr(journal, each.name) for each in fields(journal)}
        no_rows = {"tokens", "replica", "sessions"} | _NUMBERS
        own = {
            name: column[self._rows :] for name, column in columns.items() if name not in no_rows and column is not None
        }
        assert all(column.size == rows - self._rows for column in own.values())
        return replace(journal, **own)

    def error_texts(self) -> list[ErrorText]:
        known = self.runner.error_texts()
        counts = [(each, each.count - self._texts.get((each.status, each.code, each.text), 0)) for each in known]
        return [replace(each, count=count) for each, count in counts if count]

    def close(self) -> None:
        """The lane closes the runner."""


_NUMBERS: Final = {"bin_s", "bins_start_s"}


class Lane:
    """Where situations are tried one after the other."""

    def __init__(self, server: SituationServer, name: str) -> None:
        self._server, self._name = server, name
        self._runners: dict[str, HttpLoadRunner] = {}

    def url(self, situation: Situation) -> str:
        """A URL for a situation that needs no load generator of this lane."""
        return self._server.url(f"{self._name}-own", situation.behaviour, situation.probes)

    @contextmanager
    def driven(self, situation: Situation) -> Iterator[LoadRunner]:
        """A load generator that is pointed at the situation's server."""
        kind = f"{self._name}-{situation.chat}-{situation.ignore_eos}-{situation.timeout_s}-{situation.probes is None}"
        url = self._server.url(kind, situation.behaviour, situation.probes)
        if kind not in self._runners:
            workload, timeout_s = situation.requirement.workload, situation.timeout_s
            self._runners[kind] = HttpLoadRunner(url, "m", KEY, workload, 1, workers=1, request_timeout_s=timeout_s)
        runner = Fresh(self._runners[kind])
        yield runner
        if runner.broken:
            self._runners.pop(kind).close()

    def close(self) -> None:
        """End the load generators."""
        for runner in self._runners.values():
            runner.close()


def checked(situation: Situation, lane: Lane) -> Found:
    """Tried by `check`."""
    with lane.driven(situation) as runner:
        verdict = procedure.check(runner, situation.requirement, SETTINGS)
    return Found(verdict.outcome, _causes(verdict.measurement), f"{verdict.reason}\n{_text(verdict.measurement)}")


Machine = Callable[[RecordedHost, HostWatch], tuple[float, float]]
"""What a machine does while it is watched; the window in which it does."""


def on(machine: Machine, *, cores: int = 2) -> Callable[[Situation, Lane], Found]:
    """Tried by `check`, while a machine of so many cores did this by its recorded files."""

    def ask(situation: Situation, lane: Lane) -> Found:
        with tempfile.TemporaryDirectory(prefix="gpucap-test-") as folder:
            host = RecordedHost(Path(folder), cores=cores)
            host.process(STRANGER, "stranger")
            watch = host.watch()
            window = machine(host, watch)
            settings = replace(SETTINGS, trust=lambda _since_s, _until_s: watch.problems(*window))
            with lane.driven(situation) as runner:
                verdict = procedure.check(runner, situation.requirement, settings)
        return Found(verdict.outcome, _causes(verdict.measurement), f"{verdict.reason}\n{_text(verdict.measurement)}")

    return ask


def measured(situation: Situation, lane: Lane) -> Found:
    """Tried by `measure`."""
    with lane.driven(situation) as runner:
        measurement = procedure.measure(runner, situation.requirement, SETTINGS)
    outcome = Outcome.INVALID if measurement.problems else Outcome.PASS
    return Found(outcome, _causes(measurement), _text(measurement))


def _causes(measurement: Measurement) -> frozenset[ProblemKind | FailureKind]:
    failed = measurement.failed_requests
    return frozenset(
        [*(each.kind for each in measurement.problems), *(each.kind for each in (failed.kinds if failed else ()))]
    )


def _text(measurement: Measurement) -> str:
    return "\n".join([*(each.text for each in measurement.problems), str(measurement.failed_requests or "")])


def tried(situations: Sequence[Situation]) -> dict[str, Found | BaseException]:
    """What each situation led to, by its name; or the error that it led to."""
    waiting = deque(situations)
    found: dict[str, Found | BaseException] = {}

    def along(lane: Lane) -> None:
        with contextlib.suppress(IndexError), contextlib.closing(lane):
            while True:
                situation = waiting.popleft()
                try:
                    found[situation.name] = situation.ask(situation, lane)
                except Exception as error:  # noqa: BLE001 - its test reports it
                    found[situation.name] = error

    with SituationServer() as server, _short_phases(), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(along, [Lane(server, f"lane{number}") for number in range(AT_ONCE)]))
    return found


@contextmanager
def _short_phases() -> Iterator[None]:
    """What shows here shows within seconds, and no machine is too busy for it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WARM_UP_S": 0.5,
            "HOLD_S": 1.2,
            "LOW_HOLD_S": 1.2,
            "SEARCH_HOLD_S": 1.2,
            "OPEN_S": 1.5,
            "REFILL_S": 0.3,
            "TOP_UP_S": 0.3,
            "LEAST_PHASE_S": 0.5,
            "DIRECT_S": 4.0,
            "MOST_EXTENSIONS": 0,
            "MOST_CYCLES": 2,
            "MEASURE_CYCLES": 1,
        }.items():
            patch.setattr(f"pytest_gpucap.measure.constants.{name}", value)
        for name in ("LATENESS_FLOOR_S", "RATE_SHARE", "CPU_LIMIT", "STOPPED_S"):
            patch.setattr(f"pytest_gpucap.load.self_check.{name}", 1e6)
        yield
