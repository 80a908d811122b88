"""How long tests took before: from the last session's result file and from saved runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import pytest

from pytest_gpucap.history.comparable import same_requests
from pytest_gpucap.history.compare import is_precise
from pytest_gpucap.history.nightly import read_folder
from pytest_gpucap.history.store import Run, oldest_first, read_run, scrubbed
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.options.table import Options
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.build import declared_workload
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.result import START_UP, Result, ResultKind
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.session.baselines import check_files
from pytest_gpucap.user_files import exists, is_folder

_BROKEN_OFF: Final = frozenset({Ending.UNFINISHED, Ending.CRASHED, Ending.ERROR})
_ANSWERS: Final = "answers"
_PAIRED: Final = "comparison with base"
_ALONE: Final = "one replica alone"
_APART: Final = frozenset({START_UP, _ANSWERS, _PAIRED, _ALONE, "confirmation"})
"""Phases of `Result.spent_s` that are no part of a measurement. A confirmation comes only where something regressed."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a test spent in one session.

    Attributes:
        measuring_s: seconds for each start of its server, each measurement at most the time that one may take now.
        alone_s: seconds for each start of one replica alone, likewise.
        once_s: seconds for all starts together.
        startup_s: of one start; 0 where its server was running already.
        paired_s: seconds of the comparison with a base.
        precise: a rate was measured as precisely as a comparison needs it.
        concludes: it made a check or a measurement, which can be repeated on several starts.
        source: the session's file.
    """

    measuring_s: float
    alone_s: float
    once_s: float
    startup_s: float
    paired_s: float
    precise: bool
    concludes: bool
    source: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """The results of earlier sessions.

    Attributes:
        left_out: files that could not be read, a line each.
    """

    left_out: tuple[str, ...] = ()
    _by_test: dict[str, list[tuple[Run, list[Result]]]] = field(default_factory=dict)

    def spent(self, test: str, declared: Declaration, gpu_class: str | None, *, simulated: bool) -> Spent | None:
        """What a test spent when it was last measured as it is now; None if it never was.

        Its GPU class, model and replicas must be the same, and so must all that is declared of its requests: lengths,
        endpoint, adapters, sessions, files by what they hold. An INVALID result, or one of a test that was broken off,
        does not tell how long a whole one takes.
        """
        for run, results in self._by_test.get(test, ()):
            if all(_is_whole(each) and _is_alike(each, declared, gpu_class, simulated=simulated) for each in results):
                return _spent(results, shown(run.path), declared.max_time_s)
        return None


def read_earlier(options: Options, config: pytest.Config) -> Earlier:
    """The results of the last session, of the baseline that is compared with, and of all that are saved.

    A file that cannot be read is left out: an estimate does without it.
    """
    left_out: list[str] = []
    runs: list[Run] = []
    last = options.dir / "result.json"
    if exists(last):
        try:
            runs.append(read_run(last))
        except ResultFileError as error:
            left_out.append(str(error))
    if options.compare is not None and (baseline := check_files(options, config)) is not None:
        runs += baseline.runs
    if is_folder(options.baselines):
        saved, skipped = read_folder(options.baselines)
        runs += saved
        left_out += skipped
    return earlier_of(runs, left_out)


def earlier_of(runs: Iterable[Run], left_out: Iterable[str] = ()) -> Earlier:
    """The results of these sessions, in any order."""
    return Earlier(tuple(dict.fromkeys(left_out)), _newest_first(runs))


def _newest_first(runs: Iterable[Run]) -> dict[str, list[tuple[Run, list[Result]]]]:
    """By test, what each session measured."""
    found: dict[str, list[tuple[Run, list[Result]]]] = {}
    for run in reversed(oldest_first({run.path: run for run in runs}.values())):
        of_test: dict[str, list[Result]] = {}
        for result in run.results:
            of_test.setdefault(result.test, []).append(result)
        for test, results in of_test.items():
            found.setdefault(test, []).append((run, results))
    return found


def _is_whole(result: Result) -> bool:
    return result.trusted and result.ending not in _BROKEN_OFF


def _is_alike(result: Result, declared: Declaration, gpu_class: str | None, *, simulated: bool) -> bool:
    known = result.environment
    # An engine that takes no exact length is asked for none, which only its server tells.
    ours = msgspec.structs.replace(declared_workload(declared.workload), ignore_eos=result.workload.ignore_eos)
    prompts = declared.workload.prompts
    if not same_requests(ours, result.workload, recorded=prompts is not None and prompts.declared is None):
        return False
    same = (
        (declared.fleet, result.requirement.fleet),
        (simulated, result.simulated),
    )
    # A saved run has only the last part of a path.
    told = (
        (gpu_class, known.gpu_class),
        (declared.model and scrubbed(declared.model), known.model and scrubbed(known.model)),
    )
    return all(one == other for one, other in same) and all(one == other or None in {one, other} for one, other in told)


def _spent(results: Sequence[Result], source: str, max_time_s: float) -> Spent:
    measuring_s = alone_s = once_s = startup_s = paired_s = 0.0
    for result in results:
        starts, spent_s = max(1, len(result.starts)), result.spent_s
        measuring_s += min(max_time_s, sum(s for phase, s in spent_s.items() if phase not in _APART) / starts)
        alone_s += min(max_time_s, spent_s.get(_ALONE, 0.0) / starts)
        once_s += spent_s.get(_ANSWERS, 0.0)
        paired_s += spent_s.get(_PAIRED, 0.0)
        startup_s = max(startup_s, spent_s.get(START_UP, 0.0) / starts)
    concluding = [each for each in results if each.kind in {ResultKind.CHECK, ResultKind.MEASURE}]
    return Spent(
        measuring_s=measuring_s,
        alone_s=alone_s,
        once_s=once_s,
        startup_s=startup_s,
        paired_s=paired_s,
        precise=any(is_precise(each) for each in results) or not concluding,
        concludes=bool(concluding),
        source=source,
    )
