"""The JUnit file that is made from a result file, and the properties that pytest's own has."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given, settings
from msgspec.structs import replace

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report.junit import junit, properties
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from tests.report.test_escape import TEXTS
from tests.results import made


def suites(*results: Result) -> list[ET.Element]:
    return list(ET.fromstring(junit(made.session(*results))))


def test_every_result_is_a_suite_with_its_properties_and_one_case() -> None:
    (suite,) = suites(made.check())
    assert suite.tag == "testsuite"
    assert [child.tag for child in suite] == ["properties", "testcase"]
    (case,) = suite.findall("testcase")
    assert (case.get("classname"), case.get("name")) == ("tests.test_chat.TestChat", "test_it[long] [chat]")
    assert float(case.get("time", "")) == 113.0


def test_two_measurements_of_one_test_are_two_cases() -> None:
    names = [suite[1].get("name") for suite in suites(made.measured(), made.swept(), made.check(name="other"))]
    assert names == ["test_it[long] [chat]", "test_it[long] [chat] #2", "test_it[long] [other]"]


def test_a_failure_has_the_verdict_first_and_the_report_inside() -> None:
    (suite,) = suites(made.check())
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "FAIL: chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50"
    assert failure.get("type") == "gpucap.FAIL"
    assert "bottleneck: KV cache" in (failure.text or "")
    first = suite.find("properties/property")
    assert first is not None
    assert (first.get("name"), first.get("value")) == ("gpucap_verdict", "FAIL")


def test_every_outcome_has_its_ending() -> None:
    outcomes = [made.check(outcome) for outcome in Outcome]
    endings = {}
    regressed = made.compared(made.check(Outcome.PASS, "slower"))
    for suite in suites(*outcomes, made.measured(), replace(made.check(), expected_failure=True), regressed):
        case = suite[1]
        key = f"{suite.get('name')} {suite[0][0].get('value')}{' expected' if case.find('skipped') is not None else ''}"
        endings[key] = ([child.tag for child in case], suite.get("failures"), suite.get("errors"), suite.get("skipped"))
    assert endings["gpucap: chat PASS"] == ([], "0", "0", "0")
    assert endings["gpucap: chat FAIL"] == (["failure"], "1", "0", "0")
    assert endings["gpucap: slower PASS"] == (["failure"], "1", "0", "0")
    assert endings["gpucap: chat INCONCLUSIVE"] == (["failure"], "1", "0", "0")
    assert endings["gpucap: chat INVALID"] == (["error"], "0", "1", "0")
    assert endings["gpucap: chat FAIL expected"] == (["skipped"], "0", "0", "1")
    root = ET.fromstring(junit(made.session(*outcomes)))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "2", "1")


def test_properties_lead_with_the_verdict_and_are_plain() -> None:
    pairs = properties([made.compared(made.check())])
    assert pairs[0] == ("gpucap_verdict", "FAIL")
    found = dict(pairs)
    assert found["gpucap_headline"] == "chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50"
    assert found["gpucap_baseline"] == "REGRESSED, -13.0% (-15.0% to -11.0%)"
    assert (found["gpucap_gpus_required"], found["gpucap_gpus"]) == (3, 2)
    assert (found["gpucap_rate_rps"], found["gpucap_rate_low_rps"], found["gpucap_rate_high_rps"]) == (52.1, 50.9, 53.4)
    assert (found["gpucap_design_rate_rps"], found["gpucap_slack"], found["gpucap_binding"]) == (
        65.0,
        -0.198,
        "e2e_p95",
    )
    assert {type(value) for _, value in pairs} <= {str, int, float}


def test_an_invalid_measurement_has_no_figure() -> None:
    names = {name for name, _ in properties([made.check(Outcome.INVALID)])}
    assert not names & {"gpucap_rate_rps", "gpucap_gpus_required", "gpucap_slack", "gpucap_binding"}


@settings(deadline=None)
@given(TEXTS)
def test_texts_from_outside_are_xml_that_can_be_read_back(hostile: str) -> None:
    result = made.check(name=hostile)
    (suite,) = suites(replace(result, reason=hostile, environment=replace(result.environment, model=hostile)))
    assert suite.get("name") == f"gpucap: {visible(hostile)}"
    assert [child.tag for child in suite[1]] == ["failure"]
