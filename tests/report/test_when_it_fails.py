"""Each verdict, bottleneck, problem, cause of a failed start and class of errors is in docs/when-it-fails.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import pytest_gpucap
from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.startup_errors import PATTERNS
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.explained import PAGE, Subject, anchor
from pytest_gpucap.report import comparison, terminal
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from tests.results import made

TEXT = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
ANCHORS = re.findall(r'<a id="([^"]*)"></a>', TEXT)


def _all_errors(base: type[Exception] = GpuCapError) -> Iterator[type[Exception]]:
    yield base
    for each in base.__subclasses__():
        if each.__module__.startswith("pytest_gpucap."):
            yield from _all_errors(each)


def _names_of_errors() -> set[str]:
    for module in pkgutil.walk_packages(pytest_gpucap.__path__, "pytest_gpucap."):
        # What a server's own Python runs, and what runs as a program, is not imported here.
        if not re.search(r"\.server_side\.|__main__", module.name):
            importlib.import_module(module.name)
    return {error.__name__ for error in _all_errors()}


def _missing(subject: Subject, names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Anchors that the page lacks, and those that stand for nothing in the code."""
    needed = {anchor(subject, name) for name in names}
    there = {each for each in ANCHORS if each.startswith(f"{subject}-")}
    return needed - there, there - needed


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        (Subject.VERDICT, {*Outcome, *RegressionDecision, "NOT MEASURED"}),
        (Subject.BOTTLENECK, set(BottleneckKind)),
        (Subject.PROBLEM, set(ProblemKind)),
        (Subject.START, {pattern.name for pattern in PATTERNS}),
    ],
)
def test_the_page_has_a_place_for_each_and_for_nothing_else(subject: Subject, names: set[str]) -> None:
    assert _missing(subject, names) == (set(), set())


def test_the_page_has_a_place_for_every_class_of_errors() -> None:
    names = _names_of_errors()
    assert {"GpuCapError", "LeaseTimeout", "PluginFault"} < names
    assert _missing(Subject.ERROR, names) == (set(), set())


def test_every_anchor_is_there_once() -> None:
    assert [name for name, count in Counter(ANCHORS).items() if count > 1] == []


def _named(text: str) -> str:
    """The anchor that the last line of a text names."""
    before, _, found = text.splitlines()[-1].partition(f"{PAGE}#")
    assert before.strip() in {"explained:", ""}
    assert found in ANCHORS
    return found


@pytest.mark.parametrize("kind", BottleneckKind)
def test_too_small_a_capacity_is_explained_by_its_bottleneck(kind: BottleneckKind) -> None:
    result = replace(made.check(), bottleneck=Bottleneck(kind, ("seen",), "more"))
    no_limit = kind in {BottleneckKind.NONE, BottleneckKind.UNKNOWN}
    assert _named(terminal.failure(result)) == ("verdict-fail" if no_limit else anchor(Subject.BOTTLENECK, kind))


def test_a_rate_that_holds_is_not_explained_by_a_bottleneck() -> None:
    """As where a limit beside the rate is broken."""
    result = replace(made.check(), slack=Interval(0.2, 0.1, 0.3))
    assert result.bottleneck is not None
    assert _named(terminal.failure(result)) == "verdict-fail"


@pytest.mark.parametrize("kind", [kind for kind in ProblemKind if kind is not ProblemKind.NO_TIME])
def test_an_invalid_measurement_is_explained_by_its_problem(kind: ProblemKind) -> None:
    result = replace(made.check(Outcome.INVALID), problems=(Problem(ProblemSource.HOST, kind, "seen"),))
    assert _named(terminal.failure(result)) == anchor(Subject.PROBLEM, kind)


def test_other_verdicts_are_explained_by_themselves() -> None:
    late = replace(made.SHARED, kind=ProblemKind.NO_TIME)
    unmeasured = replace(made.check(Outcome.INVALID), problems=(late,))
    results: list[tuple[Result, str]] = [
        (made.check(Outcome.INCONCLUSIVE), "verdict-inconclusive"),
        (unmeasured, "verdict-not-measured"),
    ]
    for result, name in results:
        assert _named(terminal.failure(result)) == name


def test_a_regression_names_its_place() -> None:
    assert _named(comparison.regression_failure(made.compared(made.check(Outcome.PASS)))) == "verdict-regressed"


@pytest.mark.parametrize("name", ["", *sorted({pattern.name for pattern in PATTERNS})])
def test_a_failed_start_names_its_place_beneath_the_log(name: str) -> None:
    error = ServerStartError("a cause", "its last line", Path("server.log"), known_as=name)
    assert _named(str(error)) == (anchor(Subject.START, name) if name else "error-serverstarterror")


def test_errors_of_one_line_stay_one_line() -> None:
    assert "\n" not in str(ServerStartError("there is no interpreter"))
