"""The Mermaid chart: true to scale, made of numbers alone, and read by Mermaid."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.results.measured import Outcome
from tests.results import made

NUMBER = r"-?\d+(?:\.\d+)?"
LIST = rf"\[{NUMBER}(?:, {NUMBER})*\]"
GRAMMAR = re.compile(
    rf"""```mermaid
%%\{{init: \{{"themeVariables": \{{"xyChart": \{{"plotColorPalette": "#\w{{6}}(?:, #\w{{6}})*"\}}\}}\}}\}}%%
xychart-beta
    x-axis "[A-Za-z ,]+" {NUMBER} --> {NUMBER}
    y-axis "[A-Za-z0-9 .]+" {NUMBER} --> {NUMBER}
(?:    line {LIST}
){{1,3}}```"""
)
"""What `chart` may write, after https://mermaid.js.org/syntax/xyChart.html."""
MERMAID = """
import { JSDOM } from 'jsdom';
const page = new JSDOM('<!doctype html><body></body>');
globalThis.window = page.window;
globalThis.document = page.window.document;
const mermaid = (await import('mermaid')).default;
let text = '';
for await (const part of process.stdin) text += part;
console.log((await mermaid.parse(text)).diagramType);
process.exit(0);
"""


def drawn(record: dict[str, Any]) -> tuple[str, str]:
    found = chart(record)
    assert found is not None
    return found


def series(picture: str, kind: str) -> list[list[float]]:
    return [json.loads(found) for found in re.findall(rf"^    {kind} (\[.*\])$", picture, re.MULTILINE)]


def test_the_curve_goes_through_the_windows_and_the_limit_is_a_line() -> None:
    picture, caption = drawn(made.session(made.check())["results"][0])
    assert GRAMMAR.fullmatch(picture)
    assert 'x-axis "requests a second, one replica" 10 --> 60' in picture
    curve, limit = series(picture, "line")
    assert (curve[0], limit) == (4.0, [20.0, 20.0])
    step = (60 - 10) / (len(curve) - 1)
    for rate, latency in ((30.0, 6.0), (50.0, 15.0), (60.0, 40.0)):
        assert curve[round((rate - 10) / step)] == pytest.approx(latency, rel=0.03)
    assert "4 rates" in caption
    assert "red: its limit, 20 s" in caption


def test_the_design_rate_is_marked_where_it_lies_on_the_axis() -> None:
    picture, caption = drawn({**made.session(made.check())["results"][0], "design_rate_rps": 40.0})
    needle, curve, limit = series(picture, "line")
    assert [index for index, height in enumerate(needle) if height] == [round((40 - 10) / 50 * (len(needle) - 1))]
    assert max(needle) >= max(limit)
    assert len(curve) > 2
    assert "grey: the design rate, 40 req/s" in caption
    off_the_axis, said = drawn(made.session(made.check())["results"][0])
    assert len(series(off_the_axis, "line")) == 2
    assert "design rate" not in said


def test_saturation_is_cut_so_that_the_rest_can_be_seen() -> None:
    record = made.session(made.check())["results"][0]
    for sample in record["samples"]:
        if sample["completed_rps"] == 60.0:
            sample["latencies"]["e2e"]["p95_s"] = 900.0
    picture, caption = drawn(record)
    assert max(series(picture, "line")[0]) == 50.0
    assert "cut at 50 s, the highest was 15 min" in caption


def test_below_a_second_the_axis_is_in_milliseconds() -> None:
    picture, _ = drawn({**made.session(made.check())["results"][0], "binding": "ttft_p95"})
    assert "in ms" in picture
    assert series(picture, "line")[1] == [500.0, 500.0]


def test_without_limits_there_is_a_curve_and_no_limit() -> None:
    record = made.session(made.measured())["results"][0]
    record["slo"]["limits"] = {}
    picture, caption = drawn({**record, "binding": "backlog"})
    assert len(series(picture, "line")) == 1
    assert "limit" not in caption


def test_too_few_rates_are_no_curve() -> None:
    record = made.session(made.check(Outcome.FAIL))["results"][0]
    assert chart({**record, "samples": record["samples"][:6]}) is None
    assert chart({**record, "samples": []}) is None
    assert chart({**record, "samples": record["samples"][3:]}) is not None
    for sample in record["samples"][3:]:
        sample["completed_rps"] = 45.0 + sample["completed_rps"] / 10
    assert chart({**record, "samples": record["samples"][3:]}) is None
    for sample in record["samples"]:
        sample["latencies"] = {}
    assert chart(record) is None


def test_a_sweep_is_drawn_from_its_points() -> None:
    picture, _ = drawn(made.session(made.swept())["results"][0])
    assert GRAMMAR.fullmatch(picture)


def test_a_name_from_outside_never_gets_into_a_chart() -> None:
    record = made.session(made.check())["results"][0]
    evil = 'e2e_p95"]\n  click x "javascript:alert(1)"'
    record["slo"]["limits"] = {evil: 20.0}
    for sample in record["samples"]:
        sample["label"] = f"{evil} {sample['label']}"
    found = chart({**record, "binding": evil})
    assert found is None or GRAMMAR.fullmatch(found[0])


@pytest.mark.skipif(
    "GPUCAP_TEST_MERMAID" not in os.environ or shutil.which("node") is None,
    reason="name a folder in GPUCAP_TEST_MERMAID where `npm install mermaid jsdom` was run",
)
@pytest.mark.parametrize("record", [made.check(), {**made.check(), "design_rate_rps": 40.0}, made.swept()])
def test_mermaid_itself_reads_it(record: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(os.environ["GPUCAP_TEST_MERMAID"])
    script = folder / f"gpucap-{tmp_path.name}.mjs"
    script.write_text(MERMAID)
    try:
        picture = drawn(made.session(record)["results"][0])[0].removeprefix("```mermaid\n").removesuffix("\n```")
        run = ["node", str(script)]
        done = subprocess.run(run, input=picture, capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.returncode) == ("xychart", 0), done.stderr
        broken = subprocess.run(run, input=f"{picture}\n  bogus", capture_output=True, text=True, check=False)
        assert broken.returncode != 0
    finally:
        script.unlink()
