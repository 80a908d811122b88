"""The Mermaid chart: true to scale, made of numbers alone, and read by Mermaid."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
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


def drawn(result: Result) -> tuple[str, str]:
    found = chart(result)
    assert found is not None
    return found


def series(picture: str, kind: str) -> list[list[float]]:
    return [json.loads(found) for found in re.findall(rf"^    {kind} (\[.*\])$", picture, re.MULTILINE)]


def test_the_curve_goes_through_the_windows_and_the_limit_is_a_line() -> None:
    picture, caption = drawn(made.check())
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
    picture, caption = drawn(replace(made.check(), design_rate_rps=40.0))
    needle, curve, limit = series(picture, "line")
    assert [index for index, height in enumerate(needle) if height] == [round((40 - 10) / 50 * (len(needle) - 1))]
    assert max(needle) >= max(limit)
    assert len(curve) > 2
    assert "grey: the design rate, 40 req/s" in caption
    off_the_axis, said = drawn(made.check())
    assert len(series(off_the_axis, "line")) == 2
    assert "design rate" not in said


def test_saturation_is_cut_so_that_the_rest_can_be_seen() -> None:
    result = made.check()
    samples = [
        replace(each, latencies={"e2e": replace(each.latencies["e2e"], p95_s=900.0)})
        if each.completed_rps == 60.0
        else each
        for each in result.samples
    ]
    picture, caption = drawn(replace(result, samples=tuple(samples)))
    assert max(series(picture, "line")[0]) == 50.0
    assert "cut at 50 s, the highest was 15 min" in caption


def test_below_a_second_the_axis_is_in_milliseconds() -> None:
    picture, _ = drawn(replace(made.check(), binding="ttft_p95"))
    assert "in ms" in picture
    assert series(picture, "line")[1] == [500.0, 500.0]


def test_without_limits_there_is_a_curve_and_no_limit() -> None:
    result = made.measured()
    picture, caption = drawn(replace(result, slo=replace(result.slo, limits={}), binding="backlog"))
    assert len(series(picture, "line")) == 1
    assert "limit" not in caption


def test_too_few_rates_are_no_curve() -> None:
    result = made.check(Outcome.FAIL)
    samples = result.samples
    assert chart(replace(result, samples=samples[:6])) is None
    assert chart(replace(result, samples=())) is None
    assert chart(replace(result, samples=samples[3:])) is not None
    close = tuple(replace(each, completed_rps=45.0 + each.completed_rps / 10) for each in samples[3:])
    assert chart(replace(result, samples=close)) is None
    without = tuple(replace(each, latencies={}) for each in samples)
    assert chart(replace(result, samples=without)) is None


def test_a_sweep_is_drawn_from_its_points() -> None:
    picture, _ = drawn(made.swept())
    assert GRAMMAR.fullmatch(picture)


def test_a_name_from_outside_never_gets_into_a_chart() -> None:
    evil = 'e2e_p95"]\n  click x "javascript:alert(1)"'
    result = made.with_texts(made.check(), lambda text: f"{evil} {text}", frozenset({"kind"}))
    found = chart(replace(result, slo=replace(result.slo, limits={evil: 20.0}), binding=evil))
    assert found is None or GRAMMAR.fullmatch(found[0])


@pytest.mark.skipif(
    "GPUCAP_TEST_MERMAID" not in os.environ or shutil.which("node") is None,
    reason="name a folder in GPUCAP_TEST_MERMAID where `npm install mermaid jsdom` was run",
)
@pytest.mark.parametrize("result", [made.check(), replace(made.check(), design_rate_rps=40.0), made.swept()])
def test_mermaid_itself_reads_it(result: Result, tmp_path: Path) -> None:
    folder = Path(os.environ["GPUCAP_TEST_MERMAID"])
    script = folder / f"gpucap-{tmp_path.name}.mjs"
    script.write_text(MERMAID)
    try:
        picture = drawn(result)[0].removeprefix("```mermaid\n").removesuffix("\n```")
        run = ["node", str(script)]
        done = subprocess.run(run, input=picture, capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.returncode) == ("xychart", 0), done.stderr
        broken = subprocess.run(run, input=f"{picture}\n  bogus", capture_output=True, text=True, check=False)
        assert broken.returncode != 0
    finally:
        script.unlink()
