"""What README and docs show as output is what the code prints."""

from __future__ import annotations

import copy
from pathlib import Path

from pytest_gpucap.report import assertion, terminal
from tests.results import made

REPOSITORY = Path(__file__).parents[2]


def samples(page: str, starts: str) -> list[str]:
    """Lines of the block of `page` that starts so."""
    blocks = (REPOSITORY / page).read_text(encoding="utf-8").split("```text\n")[1:]
    (found,) = (block.partition("\n```")[0] for block in blocks if block.startswith(starts))
    return found.splitlines()


def test_the_failure_in_the_readme_is_that_of_the_measured_examples() -> None:
    document = read_document(REPOSITORY / "benchmarks" / "results" / "cpu" / "examples.json")
    (failed,) = (record for record in document["results"] if record["outcome"] == "FAIL")
    *shown, rest = samples("README.md", "FAIL: ")
    printed = terminal.failure(failed).splitlines()
    assert shown == printed[: len(shown)]
    assert rest.startswith("(")


def test_the_assertion_in_the_docs_is_explained_so() -> None:
    record = copy.deepcopy(made.check(name="test_fleet"))
    record["requirement"] |= {"qps": 100, "gpus": 4, "headroom": 1.3}
    record["sustainable_rate"] |= {"value": 31.0, "low": 30.0, "high": 31.9}
    record |= {"gpus_required": 5, "slo": {**record["slo"], "limits": {"e2e_p95": 4.0}}}
    explained = assertion.explain("<=", 5, 4, [record])
    assert explained is not None
    shown = [line.removeprefix("E ").strip() for line in samples("docs/reports.md", "E   assert")]
    for line, printed in zip(shown, [f"assert {explained[0]}", *explained[1:]], strict=True):
        start, cut, _ = line.partition(" ...")
        assert printed.startswith(start) if cut else printed == line


def test_the_live_line_in_the_docs_is_the_tested_one() -> None:
    (line,) = samples("docs/reports.md", "chat: hold 1")
    assert line in (REPOSITORY / "tests" / "session" / "test_live_line.py").read_text(encoding="utf-8")
