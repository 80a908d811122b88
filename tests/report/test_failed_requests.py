"""Every report tells how many requests failed, and what the server said."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pytest_gpucap.report import html, terminal
from pytest_gpucap.report.annotations import annotations_of
from pytest_gpucap.report.junit import junit, properties
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results import result_file
from pytest_gpucap.results.failures import FailedRequests, Failure, FailureKind
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result, ResultFile
from tests.report.pages import HOSTILE, changed, simulated

SAID = FailedRequests(412, 2447, (Failure(FailureKind.HTTP_5XX, 412, 500, "engine is dead"),))
TOLD = "412 of 2447 requests failed: 412 x HTTP 500 'engine is dead'"


@pytest.fixture
def content() -> ResultFile:
    """A check that failed by its latencies, while some requests failed as well."""
    one = msgspec.structs.replace(simulated(), results=simulated().results[1:2])
    return changed(one, failed_requests=SAID, outcome=Outcome.FAIL)


def only(content: ResultFile) -> Result:
    (result,) = content.results
    return result


def test_every_report_names_the_failures(content: ResultFile) -> None:
    result = only(content)
    assert TOLD in " ".join(terminal.failure(result).split())
    assert TOLD in " ".join(terminal.summary([result]).split())
    page = pull_request_page(content)
    assert page.count("412 of 2447 requests failed: 412 x HTTP 500 'engine is dead'") == 2  # the reasons, the details
    assert ("gpucap_failed_requests", TOLD) in properties([result])
    assert TOLD in " ".join(junit(content).split())
    (annotation,) = annotations_of(content)
    assert TOLD in annotation.message
    shown = html.render(content)
    assert "412 of 2447 requests failed" in shown
    assert "412 x HTTP 500 &#39;engine is dead&#39;" in shown


def test_a_test_that_passes_names_them_too(content: ResultFile) -> None:
    passed = changed(content, outcome=Outcome.PASS, reason="it holds")
    (line,) = [line for line in terminal.summary([only(passed)], 400).splitlines() if TOLD in line]
    assert line == f"- {only(passed).name}: {TOLD}"
    assert pull_request_page(passed).partition("<details>")[0].count("412 of 2447 requests failed") == 1


def test_a_reason_that_tells_them_is_not_repeated(content: ResultFile) -> None:
    result = only(changed(content, reason=f"{TOLD}; at most 1.00% may fail", sustainable_rate=None, gpus_required=None))
    assert " ".join(terminal.summary([result]).split()).count(TOLD) == 1


def test_the_result_file_keeps_them_typed(content: ResultFile, tmp_path: Path) -> None:
    result_file.write(tmp_path / "result.json", content)
    assert only(result_file.read(tmp_path / "result.json")).failed_requests == SAID


def test_hostile_words_do_no_harm(content: ResultFile) -> None:
    hostile = FailedRequests(1, 2, (Failure(FailureKind.HTTP_5XX, 1, 500, HOSTILE),))
    found = changed(content, failed_requests=hostile)
    assert HOSTILE not in html.render(found)
    assert "<img" not in pull_request_page(found)
    assert "\u202e" not in terminal.failure(only(found))
