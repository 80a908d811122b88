"""Figures for Prometheus with all their labels, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from pytest_gpucap.__main__ import main
from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report import exported
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import ResultFile
from pytest_gpucap.results.windows import Phase, WindowId
from tests.report.test_escape import TEXTS
from tests.results import made

REPOSITORY = Path(__file__).parents[2]
DASHBOARD = REPOSITORY / "examples" / "grafana" / "dashboard.json"
POINTS = REPOSITORY / "tests" / "other_tools" / "recorded" / "guidellm-0.8.1" / "open.json"
Found = list[tuple[str, dict[str, str], float]]


def read(text: str) -> Found:
    """By the parser of OpenMetrics, which is strict, and by that of Prometheus' own text: both find the same."""
    strict, loose = (
        [(found.name, dict(found.labels), found.value) for family in parse(text) for found in family.samples]
        for parse in (openmetrics_families, prometheus_families)
    )
    assert strict == loose
    assert text.endswith("# EOF\n")
    return strict


def value(found: Found, name: str, **labels: str) -> float:
    (only,) = (value for each, has, value in found if each == name and labels.items() <= has.items())
    return only


def everything(folder: Path) -> ResultFile:
    """Results that have every figure: a check with goodput, and imported points."""
    assert main(["import", str(POINTS), "-o", str(folder / "points.json")]) == 0
    points = result_file.read(folder / "points.json")
    check = made.check()
    window = made.sample(WindowId(Phase.DESIGN_RATE, 1), 65.0, 15.0)
    judged = msgspec.structs.replace(window, goodput=0.97)
    return made.session(msgspec.structs.replace(check, samples=(*check.samples, judged)), *points.results)


def test_rate_interval_verdict_and_latencies() -> None:
    found = read(exported.exported(made.session(made.check(), made.check(Outcome.PASS, "small"))))
    result = made.check()
    assert result.sustainable_rate is not None
    assert value(found, "gpucap_sustainable_rate_rps", requirement="chat") == 52.1
    assert value(found, "gpucap_sustainable_rate_low_rps", requirement="chat") == result.sustainable_rate.low
    assert value(found, "gpucap_sustainable_rate_high_rps", requirement="chat") == result.sustainable_rate.high
    assert value(found, "gpucap_gpus_required", requirement="chat") == 3
    assert value(found, "gpucap_gpus_budget", requirement="chat") == 2
    assert value(found, "gpucap_measured_timestamp_seconds", requirement="chat") == made.STARTED.timestamp()
    verdicts = {
        has["verdict"]: each for name, has, each in found if name == exported.VERDICT and has["requirement"] == "chat"
    }
    assert verdicts == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 0, "INVALID": 0}
    (latency,) = (each for each in exported.latencies(result) if (each.metric, each.percent) == ("e2e", 95))
    assert value(found, exported.LATENCY, requirement="chat", metric="e2e", quantile="0.95") == latency.value_s
    assert value(found, exported.INFO, requirement="chat", gpu="NVIDIA H200", server="vLLM 0.26.0") == 1


def test_every_figure_has_all_labels(tmp_path: Path) -> None:
    for _, labels, _ in read(exported.exported(everything(tmp_path))):
        assert labels.keys() >= set(exported.LABELS)


def test_a_point_of_another_tool_is_no_sustainable_rate(tmp_path: Path) -> None:
    found = read(exported.exported(everything(tmp_path)))
    theirs = {name for name, labels, _ in found if labels["source"] == "GuideLLM"}
    assert "gpucap_point_rate_rps" in theirs
    assert not theirs & {"gpucap_sustainable_rate_rps", "gpucap_budget_holds", exported.VERDICT}
    assert {labels["kind"] for _, labels, _ in found if labels["source"] == "GuideLLM"} == {"imported"}


def test_simulated_results_say_so() -> None:
    (result,) = made.session(msgspec.structs.replace(made.check(), simulated=True)).results
    assert {labels["source"] for _, labels, _ in read(exported.exported(made.session(result)))} == {"simulated"}


@settings(deadline=None)
@given(TEXTS)
def test_a_name_from_outside_is_a_label_and_nothing_else(hostile: str) -> None:
    found = read(exported.exported(made.session(made.check(name=hostile))))
    assert {labels["requirement"] for _, labels, _ in found} == {visible(hostile)}


def _expressions(value: Any) -> list[str]:
    """Every query of a dashboard."""
    if isinstance(value, dict):
        own = [value[name] for name in ("expr", "query") if isinstance(value.get(name), str)]
        return own + [found for each in value.values() for found in _expressions(each)]
    return [found for each in value for found in _expressions(each)] if isinstance(value, list) else []


def test_the_dashboard_asks_for_what_is_written(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_bytes())
    found = read(exported.exported(everything(tmp_path)))
    written = {name: labels.keys() for name, labels, _ in found}
    asked = _expressions(dashboard)
    for expression in asked:
        for name, selector in re.findall(r"\b(gpucap_\w+)(?:\{([^}]*)\})?", expression):
            assert name in written, expression
            assert set(re.findall(r"(\w+)=", selector)) <= written[name], expression
    for name, label in re.findall(r"label_values\((\w+), (\w+)\)", " ".join(asked)):
        assert label in written[name]
    # Nothing that is written is left out of it.
    assert written.keys() <= set(re.findall(r"\bgpucap_\w+", " ".join(asked)))
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(dashboard))) - {"__all"} <= variables
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = msgspec.structs.replace(made.session(made.check()), started=made.STARTED.replace(year=2025))
    result_file.write(Path("new.json"), made.session(made.check(Outcome.PASS)))
    result_file.write(Path("old.json"), old)
    assert main(["export", "new.json", "old.json", "--openmetrics", "out.txt"]) == 0
    # Of one test in several files, the newest counts.
    assert value(read(Path("out.txt").read_text()), "gpucap_budget_holds", requirement="chat") == 1
    assert main(["export", "new.json", "--openmetrics", "-"]) == 0
    assert read(capsys.readouterr().out)
    for words, said in (
        (["new.json", "--openmetrics", "new.json"], "is one of the result files, and would be replaced"),
        (["none.json", "--openmetrics", "x"], "none.json: No such file or directory"),
        (["new.json", "--openmetrics", "/dev/full"], "/dev/full: No space left on device"),
    ):
        assert main(["export", *words]) == 2
        assert said in capsys.readouterr().err
