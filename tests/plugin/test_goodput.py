"""Whole runs of pytest whose limit is goodput, against a simulated server."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result

SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(gpus=1, goodput="95%", ttft="{ttft}", e2e="4s",
                                    input_tokens=256, output_tokens=512)

    @pytest.mark.gpucap(name="chat", qps={qps})
    def test_chat(gpucap):
        gpucap.check()
"""


def suite(pytester: pytest.Pytester, qps: float = 16, ttft: str = "500ms") -> None:
    pytester.makepyfile(test_suite=SUITE.format(qps=qps, ttft=ttft))


def first(pytester: pytest.Pytester) -> Result:
    """That of the check; one that is saved or compared also has a measurement."""
    return result_file.read(pytester.path / ".gpucap" / "result.json").results[0]


def test_a_check_is_reported_kept_and_compared(pytester: pytest.Pytester) -> None:
    suite(pytester)
    run = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-save=main", "--junit-xml=out.xml")
    run.assert_outcomes(passed=1)
    result = first(pytester)
    assert result.outcome is Outcome.PASS
    assert result.slo.limits == {}
    assert (result.slo.goodput, result.slo.thresholds) == (0.95, {"ttft": 0.5, "e2e": 4.0})
    names = {each.get("name"): each.get("value") for each in ET.parse(pytester.path / "out.xml").iter("property")}
    assert 0.95 < float(names["gpucap_goodput"] or "nan") <= 1.0

    suite(pytester, ttft="400ms")
    other = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-compare=main")
    other.assert_outcomes(passed=1)
    result = first(pytester)
    assert result.comparison is not None
    assert result.comparison.decision is RegressionDecision.NOT_COMPARABLE
    assert result.comparison.differs == ("limit ttft: 0.5 -> 0.4",)


def test_a_failure_says_how_many_kept_the_limits(pytester: pytest.Pytester) -> None:
    suite(pytester, qps=25)
    run = pytester.runpytest("--gpu-class=sim:fast")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(
        [
            "limits * 95% goodput (TTFT 500 ms, E2E 4 s), errors 1.0%",
            "sustainable * bound by 95% goodput",
            "goodput *% of the requests that ended at the design rate kept all*",
        ]
    )
