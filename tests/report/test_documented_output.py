"""What README and docs show as output is what the code prints."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from pytest_gpucap.report import assertion, terminal
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval, Outcome
from tests.results import made

REPOSITORY = Path(__file__).parents[2]


def samples(page: str, starts: str) -> list[str]:
    """Lines of the block of `page` that starts so."""
    blocks = (REPOSITORY / page).read_text(encoding="utf-8").split("```text\n")[1:]
    (found,) = (block.partition("\n```")[0] for block in blocks if block.startswith(starts))
    return found.splitlines()


def test_the_failure_in_the_readme_is_that_of_the_measured_examples() -> None:
    examples = result_file.read(REPOSITORY / "benchmarks" / "results" / "cpu" / "examples.json")
    (failed,) = (result for result in examples.results if result.outcome is Outcome.FAIL)
    *shown, rest = samples("README.md", "FAIL: ")
    printed = terminal.failure(failed).splitlines()
    assert shown == printed[: len(shown)]
    assert rest.startswith("(")


def test_the_assertion_in_the_docs_is_explained_so() -> None:
    made_so = made.check(name="test_fleet")
    result = replace(
        made_so,
        requirement=replace(made_so.requirement, qps=100.0, gpus=4, headroom=1.3),
        sustainable_rate=Interval(31.0, 30.0, 31.9),
        gpus_required=5,
        slo=replace(made_so.slo, limits={"e2e_p95": 4.0}),
    )
    explained = assertion.explain("<=", 5, 4, [result])
    assert explained is not None
    shown = [line.removeprefix("E ").strip() for line in samples("docs/reports.md", "E   assert")]
    for line, printed in zip(shown, [f"assert {explained[0]}", *explained[1:]], strict=True):
        start, cut, _ = line.partition(" ...")
        assert printed.startswith(start) if cut else printed == line


def test_the_live_line_in_the_docs_is_the_tested_one() -> None:
    (line,) = samples("docs/reports.md", "chat: hold 1")
    assert line in (REPOSITORY / "tests" / "session" / "test_live_line.py").read_text(encoding="utf-8")
