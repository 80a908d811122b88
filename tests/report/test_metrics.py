"""Figures for GitLab's metrics report and for Prometheus."""

from __future__ import annotations

from hypothesis import given, settings
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report.metrics import openmetrics
from pytest_gpucap.results.measured import Outcome
from tests.report.test_escape import TEXTS
from tests.results import made


def read(text: str) -> dict[tuple[str, str], float]:
    """As GitLab asks for it, and the same to what reads Prometheus' own text."""
    strict, loose = (
        {(found.name, found.labels["requirement"]): found.value for family in parse(text) for found in family.samples}
        for parse in (openmetrics_families, prometheus_families)
    )
    assert strict == loose
    assert text.endswith("# EOF\n")
    return strict


def test_figures_are_gauges_by_requirement() -> None:
    found = read(openmetrics(made.session(made.check(), made.check(Outcome.PASS, "small"))))
    assert found["gpucap_sustainable_rate_rps", "chat"] == 52.1
    assert found["gpucap_gpus_required", "chat"] == 3
    assert (found["gpucap_budget_holds", "chat"], found["gpucap_budget_holds", "small"]) == (0, 1)


def test_what_is_not_known_is_left_out() -> None:
    found = read(openmetrics(made.session(made.check(Outcome.INVALID, "shared"), made.measured("free"))))
    assert {name for name, requirement in found if requirement == "shared"} == {
        "gpucap_budget_holds",
        "gpucap_design_rate_rps",
    }
    assert ("gpucap_budget_holds", "free") not in found


@settings(deadline=None)
@given(TEXTS)
def test_a_name_from_outside_is_a_label_and_nothing_else(hostile: str) -> None:
    found = read(openmetrics(made.session(made.check(name=hostile))))
    assert {requirement for _, requirement in found} == {visible(hostile)}
