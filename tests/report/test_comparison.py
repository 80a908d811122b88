"""What a session says of its comparisons."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.history.compare import compare_result
from pytest_gpucap.history.store import Baseline, Run
from pytest_gpucap.report.comparison import comparison_markdown, comparison_summary, regression_failure
from pytest_gpucap.report.headline import comparison_headline
from pytest_gpucap.report.html import render
from pytest_gpucap.report.junit import junit, properties
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.report.terminal import details
from pytest_gpucap.results.comparison import FigureComparison, PairedComparison, RegressionDecision
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.secondary import SecondaryName
from tests.history.made import named, result, session, windows
from tests.results import made


def compared(base: Result, head: Result, again: Result | None = None) -> Result:
    baseline = Baseline("main", (Run(Path("main.json"), session(base)),))
    found = compare_result(head, baseline, 0.05, None if again is None else lambda _why: again)
    return msgspec.structs.replace(head, comparison=found)


REGRESSED = compared(result(25.0), result(22.4, server="vLLM 0.27.0", samples=windows(1.4)), again=result(22.5))


def test_the_headline_is_the_decision_with_its_arithmetic() -> None:
    assert comparison_headline(REGRESSED) == (
        "REGRESSED: chat sustains 22.4 req/s, baseline main 25 req/s: -10.2% (-13.8% to -6.5%), 5.0% allowed"
    )
    other = compared(result(25.0), result(22.4, gpu_class="h100"))
    assert comparison_headline(other) == "NOT COMPARABLE: chat against main: no comparable baseline"


def test_a_failure_leads_with_it_and_names_what_it_rests_on() -> None:
    text = regression_failure(REGRESSED)
    assert text.splitlines()[0] == comparison_headline(REGRESSED)
    for part in (
        "a second measurement from a fresh start confirms it",
        "at 16.2 req/s    base    head    change (95% interval)",
        "p95 E2E          2.5 s   3.5 s   +40.0% (",
        "server: vLLM 0.26.0 -> vLLM 0.27.0",
        "256 tokens in, 512 out",
        "design rate 1",
        "hold 30 s",
    ):
        assert part in text, part


def test_a_summary_names_what_needs_a_look_and_counts_the_rest() -> None:
    same = compared(result(25.0), result(25.0))
    other = compared(result(25.0), result(22.4, gpu_class="h100", requirement=named("other")))
    lines = comparison_summary([same, same, REGRESSED, other, result(25.0)])
    assert lines[-1] == "against baseline main: 1 REGRESSED, 1 NOT COMPARABLE, 2 SAME"
    assert lines[0].startswith("REGRESSED: chat sustains 22.4 req/s")
    text = "\n".join(lines)
    assert "NOT COMPARABLE: other against main: no comparable baseline\n  GPU class: h200 -> h100" in text
    assert max(map(len, lines)) <= 80
    assert comparison_summary([result(25.0)]) == []


def test_a_latency_that_rose_is_said_even_where_the_rate_is_the_same() -> None:
    slower = compared(result(25.0), result(25.0, samples=windows(1.4)))
    assert slower.comparison is not None
    assert slower.comparison.decision is RegressionDecision.SAME
    text = " ".join(" ".join(comparison_summary([slower])).split())
    assert "chat: p95 TTFT at 16.2 req/s 50 ms -> 70 ms, +40.0%" in text
    assert "REGRESSED, which fails no test" in text


def test_latencies_of_base_and_head_stand_side_by_side_in_a_summary() -> None:
    slower = compared(result(25.0), result(25.0, samples=windows(1.01)))
    assert slower.comparison is not None
    first, *others = slower.comparison.latencies
    found = msgspec.structs.replace(
        slower.comparison,
        paired=PairedComparison(70, None, 1.0, ()),
        latencies=(first, *others, msgspec.structs.replace(first, limit="ttft_p50", load="70 in flight")),
    )
    assert RegressionDecision.REGRESSED not in {each.decision for each in found.latencies}
    lines = comparison_summary([msgspec.structs.replace(slower, comparison=found)])
    at = lines.index("chat: latencies of base and head, which fail no test:")
    shown = [" ".join(line.split()) for line in lines[at + 1 :]]
    assert shown[0] == "at 16.2 req/s base head change (95% interval) decision"
    assert shown[1].startswith("p95 E2E 2.5 s 2.52 s +1.0% (")
    assert shown[2].startswith("p95 TTFT 50 ms 50.5 ms +1.0% (")
    assert shown[3] == shown[0].replace("16.2 req/s", "70 in flight")
    assert shown[4].startswith("p50 TTFT 2.5 s 2.52 s +1.0% (")
    assert max(map(len, lines)) <= 80


def test_long_names_that_differ_at_their_end_differ_on_a_page_too() -> None:
    names = [f"{'a long name of a test ' * 9}[{kind}]" for kind in ("bf16", "fp8")]
    found = [compared(*[result(25.0, requirement=named(name), test=f"t.py::{name}")] * 2) for name in names]
    for page in (comparison_markdown(found, "a", "b"), pull_request_page(made.session(*found))):
        rows = [line for line in page.splitlines() if line.startswith("| ") and "a long name" in line]
        assert len(set(rows)) == len(rows) == 2


PASSED = made.compared(made.check(Outcome.PASS), RegressionDecision.SAME)
KV_CACHE = FigureComparison(
    SecondaryName.KV_TOKENS,
    "tokens",
    base=Interval(120_000.0, 120_000.0, 120_000.0),
    head=Interval(90_000.0, 90_000.0, 90_000.0),
    ratio=Interval(0.75, 0.75, 0.75),
)


def beside(**changed: Any) -> Result:
    """A test that passes, with what was compared beside the rate."""
    assert PASSED.comparison is not None
    return msgspec.structs.replace(PASSED, comparison=msgspec.structs.replace(PASSED.comparison, **changed))


def reports(result: Result) -> dict[str, str]:
    """Every report that has room for all of a result, each text on one line."""
    pytest.importorskip("jinja2", reason="the HTML report needs the html extra")
    content = made.session(result)
    texts = {
        "terminal": details(result),
        "markdown": pull_request_page(content),
        "html": html.unescape(re.sub(r"<[^>]*>", " ", render(content))),
        "junit": junit(content),
        "pytest's junit": "\n".join(f"{name} {value}" for name, value in properties([result])),
    }
    return {name: " ".join(text.split()) for name, text in texts.items()}


def test_every_report_of_a_test_that_passes_lists_what_was_compared_beside_the_rate() -> None:
    for name, text in reports(beside(figures=(KV_CACHE,))).items():
        for part in ("p95 TTFT", "410 ms", "480 ms", "+17.0% (+10.0% to +25.0%)", "KV cache", "120,000", "90,000"):
            assert part in text, f"{part} in {name}"


def test_every_report_says_why_base_and_head_have_no_latencies() -> None:
    why = "open loops on both take 88 s, and the time limit left 12 s"
    result = beside(latencies=(), no_latencies=why)
    for name, text in reports(result).items():
        assert why in text, name
    lines = comparison_summary([result], 120)
    assert f"chat: latencies of base and head were not compared: {why}" in lines


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nFAIL: b", "<b>"])
def test_names_cannot_forge_a_line(name: str) -> None:
    forged = compared(result(25.0, requirement=named(name)), result(22.4, requirement=named(name)))
    lines = comparison_summary([forged])
    assert not any("\x1b" in line or line.startswith("FAIL") for line in lines)
    page = comparison_markdown([forged], "a", "b")
    assert "\x1b" not in page
    assert "<b>" not in page
