"""What a start-up was spent on, as every report shows it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

from msgspec.structs import replace

from pytest_gpucap.report import rows, terminal
from pytest_gpucap.report.html.page import render
from pytest_gpucap.report.junit import junit
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.report.server_time import start_phases
from pytest_gpucap.results.result import Result, ResultFile
from tests.report.test_documented_output import samples
from tests.results import made

PHASES = {"imports": 21.0, "weights": 4.9, "compile": 16.5, "profiling": 0.6, "graph capture": 17.0, "readiness": 1.0}
SHOWN = "imports 21 s, weights 4.9 s, compile 16.5 s, profiling 600 ms, graph capture 17 s, readiness 1 s, rest 2 s"


def started(**phases: float) -> Result:
    """A result with a start-up of 63 s."""
    return replace(made.check(), start_phases_s=phases)


def server_time(result: Result) -> str:
    return dict(rows.result_rows(result))["server time"]


def test_the_phases_and_the_rest_are_the_start_up() -> None:
    result = started(**PHASES)
    assert start_phases(result) == SHOWN
    assert server_time(result) == f"start-up 63 s ({SHOWN}), hold 20 s, open loop 30 s"
    assert [f"server time  {server_time(result)}"] == samples("docs/start-up.md", "server time")


def test_without_a_known_phase_the_sum_stands_alone() -> None:
    assert start_phases(started()) == ""
    assert server_time(started()) == "start-up 63 s, hold 20 s, open loop 30 s"


def test_what_is_too_short_is_left_out_and_there_is_no_rest_below_nothing() -> None:
    assert start_phases(started(imports=60.0, weights=0.01, readiness=3.0)) == "imports 60 s, readiness 3 s"
    assert start_phases(started(imports=64.0)) == "imports 64 s"


def test_every_report_shows_them() -> None:
    told = ResultFile(results=(started(**PHASES),), started=datetime(2026, 11, 29, tzinfo=UTC))
    (suite,) = ET.fromstring(junit(told))
    properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert properties["gpucap_start_phases"] == SHOWN
    assert SHOWN in " ".join(terminal.section(told.results[0]).split())
    assert SHOWN in pull_request_page(told)
    assert f"Start-up: {SHOWN}" in render(told)
    silent = replace(told, results=(started(),))
    assert "gpucap_start_phases" not in junit(silent)
    assert "Start-up:" not in render(silent)
