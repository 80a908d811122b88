"""Lines of a pull request are marked with what is wrong there."""

from __future__ import annotations

import json

from hypothesis import given, settings
from msgspec.structs import replace

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.masking import masked
from pytest_gpucap.report.annotations import MOST, annotations_of, code_quality, workflow_commands
from pytest_gpucap.results.measured import Interval, Outcome
from tests.report.test_escape import TEXTS, runner_reads
from tests.results import made


def test_a_failure_is_an_error_at_the_test() -> None:
    (line,) = workflow_commands(annotations_of(made.session(made.check()), "services/chat"))
    name, properties, message = runner_reads(line)
    assert name == "error"
    assert properties == {"file": "services/chat/tests/test_chat.py", "line": "12", "title": "GPU capacity FAIL: chat"}
    assert message.splitlines() == [
        "chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50",
        "bound by: p95 E2E, limit 20 s",
        "bottleneck: KV cache: KV cache 99% full",
        "try: --kv-cache-dtype fp8",
    ]


def test_what_holds_is_no_finding() -> None:
    assert not annotations_of(made.session(made.check(Outcome.PASS), made.measured()))
    assert not annotations_of(made.session(replace(made.check(), expected_failure=True)))


def test_levels_and_order() -> None:
    document = made.session(
        made.check(Outcome.INCONCLUSIVE, "undecided"),
        made.compared(made.check(Outcome.PASS, "slower")),
        made.check(Outcome.INVALID, "shared"),
        made.check(Outcome.FAIL, "short"),
    )
    assert [(found.level, found.title) for found in annotations_of(document)] == [
        ("error", "GPU capacity INVALID: shared"),
        ("error", "GPU capacity FAIL: short"),
        ("warning", "GPU capacity INCONCLUSIVE: undecided"),
        ("error", "GPU capacity REGRESSED: slower"),
    ]


def test_github_shows_ten_and_the_tenth_counts_the_rest() -> None:
    results = [made.check(name=f"n{number}") for number in range(MOST + 3)]
    lines = workflow_commands(annotations_of(made.session(*results)))
    assert len(lines) == MOST
    assert runner_reads(lines[-1])[2].endswith("... and 3 more, see the result file")


def test_without_a_line_the_file_is_marked() -> None:
    (found,) = annotations_of(made.session(replace(made.check(), line=None)))
    assert (found.file, found.line) == ("tests/test_chat.py", 1)


def test_code_quality_is_what_gitlab_asks_for() -> None:
    report = json.loads(code_quality(annotations_of(made.session(made.check(), made.check(Outcome.INVALID, "b")))))
    assert {issue["severity"] for issue in report} == {"critical"}
    assert len({issue["fingerprint"] for issue in report}) == 2
    for issue in report:
        assert set(issue) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert issue["location"] == {"path": "tests/test_chat.py", "lines": {"begin": 12}}
    assert code_quality([]) == "[]\n"


def test_two_findings_of_one_test_are_two_to_gitlab() -> None:
    report = json.loads(code_quality(annotations_of(made.session(made.check(), made.check()))))
    first, second = (issue["fingerprint"] for issue in report)
    assert first != second
    assert first == json.loads(code_quality(annotations_of(made.session(made.check()))))[0]["fingerprint"]


def test_a_finding_keeps_its_fingerprint_when_its_figures_change() -> None:
    other = replace(made.check(), sustainable_rate=Interval(40.0, 39.0, 41.0), line=99)
    first, second = (json.loads(code_quality(annotations_of(made.session(each))))[0] for each in (made.check(), other))
    assert first["fingerprint"] == second["fingerprint"]
    assert first["description"] != second["description"]


@settings(deadline=None)
@given(TEXTS)
def test_texts_from_outside_stay_in_their_place(hostile: str) -> None:
    named = visible(masked(hostile))
    document = made.session(replace(made.check(name=hostile), test=f"tests/{hostile}.py::test"))
    (line,) = workflow_commands(annotations_of(document))
    name, properties, message = runner_reads(line)
    assert (name, set(properties)) == ("error", {"file", "line", "title"})
    assert properties["title"] == f"GPU capacity FAIL: {named}"
    assert message.startswith(f"{named} needs 3 GPUs")
    assert json.loads(code_quality(annotations_of(document)))[0]["check_name"] == "gpucap"
