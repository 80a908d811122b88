"""Goodput in every report: as the limit that binds, and as a plain figure beside percentiles."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from pytest_gpucap.report import declared_text, markdown, rows, terminal, windows
from pytest_gpucap.report.formatting import bound_by, limit_name
from pytest_gpucap.report.goodput import goodput_of, goodput_share, goodput_text
from pytest_gpucap.report.html.cards import result_cards
from pytest_gpucap.report.html.charts import drawn_latencies
from pytest_gpucap.report.junit import properties
from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.report.metrics import openmetrics
from pytest_gpucap.requirement import Slo, declared_limits
from pytest_gpucap.results.build import check_result, declared_slo
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import Phase, WindowId
from tests.results import made

LIMITED = Slo(declared_limits({"e2e_p99": "20s", "goodput": "99.5%", "ttft": "500ms"}))
WINDOWS = tuple(
    msgspec.structs.replace(
        made.sample(WindowId(Phase.DESIGN_RATE, 1).part(third, 3), 65.0, 15.0), goodput=share, requests=requests
    )
    for third, share, requests in ((1, 0.98, 100), (2, 0.92, 300), (3, None, 50))
)


def failed(slo: Slo = LIMITED, binding: str = "goodput_99_5") -> Result:
    requirement = replace(made.REQUIREMENT, slo=slo)
    measurement = replace(made.MEASUREMENT, requirement=requirement, samples=(*made.SAMPLES, *WINDOWS), binding=binding)
    return check_result(replace(made.FAILED, measurement=measurement), made.CONTEXT)


def test_windows_count_by_their_requests() -> None:
    assert goodput_of(WINDOWS) == pytest.approx((98 + 276) / 400)
    assert goodput_of(made.SAMPLES) is None
    assert goodput_share(failed()) == pytest.approx(0.935)


def test_the_limit_is_told_with_its_thresholds() -> None:
    result = failed()
    assert limit_name("goodput_99_5") == "99.5% goodput"
    assert declared_text.limits(result.slo) == "p99 E2E 20 s, 99.5% goodput (TTFT 500 ms, E2E 20 s), errors 1.0%"
    assert bound_by(result) == "99.5% goodput, limits TTFT 500 ms, E2E 20 s together"
    told = ("goodput", "93.5% of the requests that ended at the design rate kept all limits, 99.5% required")
    assert told in rows.result_rows(result)
    assert told in rows.causes(result)


def test_beside_percentiles_it_is_a_figure_and_no_cause() -> None:
    slo = Slo(declared_limits({"e2e_p95": "20s", "itl_p99": "50ms"}))
    result = failed(slo, "e2e_p95")
    text = "93.5% of the requests that ended at the design rate kept all limits but those on ITL"
    assert goodput_text(result) == text
    assert ("goodput", text) in rows.result_rows(result)
    assert not [value for name, value in rows.causes(result) if name == "goodput"]
    assert "goodput" not in declared_text.limits(result.slo)


def test_windows_have_a_column_of_errors_where_there_were_some() -> None:
    headers, body = windows.window_table(failed())
    assert "errors" not in headers
    broken = msgspec.structs.replace(WINDOWS[0], errors={"http_5xx": 3, "timeout": 1})
    headers, body = windows.window_table(msgspec.structs.replace(failed(), samples=(*made.SAMPLES, broken)))
    assert headers[-1] == "errors"
    assert [line[-1] for line in body] == ["", "", "", "", "4"]


def test_results_without_it_look_as_before() -> None:
    result = made.check()
    assert "goodput" not in terminal.failure(result)
    assert "goodput" not in markdown.pull_request_page(made.session(result))
    assert not [name for name, _ in properties([result]) if "goodput" in name]


def test_every_report_has_it() -> None:
    result = failed()
    headers, body = windows.window_table(result)
    assert headers[5:8] == ["p99 E2E", "p99 TTFT", "goodput"]
    assert [line[7] for line in body] == ["", "", "", "", "93.5%"]
    assert "93.5% of the requests" in " ".join(terminal.failure(result).split())
    assert "goodput" in markdown.pull_request_page(made.session(result))
    assert dict(properties([result]))["gpucap_goodput"] == pytest.approx(0.935)
    assert dict(properties([result]))["gpucap_binding"] == "goodput_99_5"
    assert 'gpucap_goodput_ratio{gpu_class="h200",requirement="chat"' in openmetrics(made.session(result))
    (card,) = result_cards([result])
    (fact,) = (each for each in card.facts if each.name == "Goodput")
    assert (fact.value, fact.note) == ("93.5%", "of the requests kept all limits, 99.5% required")
    assert "99.5% goodput (TTFT 500 ms, E2E 20 s)" in card.curve_text
    assert card.windows.headers[-1] == "goodput"
    assert {row[-1] for row in card.windows.rows} == {"98.0%", "92.0%", "\u2013"}


def test_a_threshold_without_a_percentile_is_drawn_at_the_one_that_goodput_asks_for() -> None:
    slo = declared_slo(LIMITED)
    drawn = [(each.metric, each.percent, each.limit_s) for each in drawn_latencies(slo)]
    assert drawn == [("e2e", 99.0, 20.0), ("ttft", 99.5, 0.5)]
    only = Slo(declared_limits({"goodput": "95%", "e2e": "20s"}))
    found = chart(failed(only, "goodput_95"))
    assert found is not None
    assert "red: its limit, 20 s" in found[1]
