"""The page for a pull request: what it says, that GitHub's parser reads it, and that nothing from outside rules it."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_gpucap.report.markdown import LIMIT, pull_request_page
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Outcome
from tests.report.gfm import rendered, tags, words
from tests.report.test_escape import HOSTILE
from tests.results import made

OURS = frozenset({"kind", "outcome", "decision", "schema", "binding", "endpoint", "arrivals"})
"""Texts that a result file takes from a fixed list."""
TEXTS = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=12).map("".join)


def cells(page: str, row: str) -> list[str]:
    """The cells of the first table row that mentions `row`."""
    line = next(line for line in page.splitlines() if line.startswith("|") and row in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_it_starts_with_the_verdict_and_its_arithmetic() -> None:
    page = pull_request_page(made.session(made.check(Outcome.PASS, "small"), made.check()))
    first = page.splitlines()[0]
    assert first == "❌ **chat needs 3 GPUs, budget 2**: 100 req/s x 1.3 / 52.1 req/s = 2.50"
    assert "1 holds, 1 fails" in page


def test_the_table_has_the_worst_first() -> None:
    outcomes = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.INVALID, Outcome.FAIL)
    page = pull_request_page(
        made.session(made.measured("m"), *(made.check(outcome, outcome.value.lower()) for outcome in outcomes))
    )
    table = page[page.index("| verdict") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[2].strip() for line in table] == ["invalid", "fail", "inconclusive", "pass", "m"]
    assert cells(page, "| fail |")[2:] == ["52.1 (50.9-53.4)", "3 / 2", "-19.8% (-21.7% to -17.8%)"]
    assert cells(page, "| invalid |")[2:] == ["", "", ""]


def test_a_comparison_shows_base_and_head() -> None:
    page = pull_request_page(made.session(made.compared(made.check())))
    assert "base → head, req/s per replica (95% interval)" in page
    assert cells(page, "chat")[2:4] == ["59.9 (58-62) → 52.1 (50.9-53.4)", "3 → 3 / 2"]
    assert page.splitlines()[2] == (
        "🔻 **REGRESSED**: chat sustains 52.1 req/s, baseline main 59.9 req/s: -13.0% (-15.0% to -11.0%), 5.0% allowed"
    )
    assert "- latency: p95 TTFT at 50 req/s 410 ms -&#62; 480 ms, +17.0% (+10.0% to +25.0%): REGRESSED" in page
    assert "vLLM 0.25.0" in page
    # Folded away, all that were compared.
    _, _, details = page.partition("<details>")
    assert "Latencies of base and head at an equal load, which fail no test." in details
    row = next(line for line in details.splitlines() if line.startswith("| p95 TTFT at 50 req/s "))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        *("410 ms", "480 ms", "+17.0% (+10.0% to +25.0%)", "REGRESSED"),
    ]


def test_a_latency_without_a_limit_that_did_not_get_worse_is_no_reason() -> None:
    result = made.compared(made.check())
    assert result.comparison is not None
    (latency,) = result.comparison.latencies
    same = replace(latency, limit="itl_p50", decision=RegressionDecision.SAME)
    found = replace(result.comparison, latencies=(latency, same))
    page = pull_request_page(made.session(replace(result, comparison=found)))
    assert page.count("p95 TTFT at 50 req/s") == 2
    assert page.count("p50 ITL at 50 req/s") == 1


def test_a_base_that_cannot_be_compared_is_said() -> None:
    page = pull_request_page(made.session(made.compared(made.check(), RegressionDecision.NOT_COMPARABLE)))
    assert cells(page, "chat")[2] == "no comparable base → 52.1 (50.9-53.4)"
    assert "NVIDIA A10G, not NVIDIA H200" in page


def test_without_a_comparison_there_is_no_word_of_a_base() -> None:
    assert "base" not in pull_request_page(made.session(made.check()))


def test_a_regression_of_a_budget_that_holds_is_not_hidden() -> None:
    page = pull_request_page(made.session(made.compared(made.check(Outcome.PASS))))
    assert page.startswith("🔻 **REGRESSED**: chat sustains 80 req/s, baseline main 59.9 req/s")
    assert cells(page, "chat")[0] == "🔻 REGRESSED"
    assert "bottleneck: KV cache" in page


def test_a_failure_gives_the_limit_the_bottleneck_and_what_to_try() -> None:
    page = pull_request_page(made.session(made.check()))
    assert "- bound by: p95 E2E, limit 20 s" in page
    assert "- bottleneck: KV cache: KV cache 99% full" in page
    assert "- try: --kv-cache-dtype fp8" in page


def test_the_detail_is_folded() -> None:
    page = rendered(pull_request_page(made.session(made.check())))
    folded = page[page.index("<details>") :]
    for part in ("requirement", "p95 E2E 20 s", "NVIDIA H200", "vllm serve", "seed: 0", "10 req/s", "xychart-beta"):
        assert part in folded
    assert page.count("<details>") == page.count("</details>") == 1


def test_a_failure_that_was_expected_leads_nowhere() -> None:
    expected = replace(made.check(name="launch"), expected_failure=True)
    page = pull_request_page(made.session(expected, made.check(Outcome.PASS)))
    assert page.splitlines()[0] == "✅ **1 of 2 GPU budgets hold**"
    assert "1 holds, 1 fails, 1 as expected" in page
    assert cells(page, "launch")[0] == "❌ FAIL (expected)"


def test_a_simulated_result_says_so() -> None:
    simulated = made.session(replace(made.check(), simulated=True))
    assert "SIMULATED" in pull_request_page(simulated).split("| verdict")[0]


def test_measurements_without_a_budget() -> None:
    page = pull_request_page(made.session(made.measured(), made.swept()))
    assert page.startswith("📈 **GPU capacity measured**: 2 results, no budget declared")


@pytest.mark.parametrize("count", [1, 40, 400, 1500])
def test_it_is_cut_to_size_with_the_verdicts_kept(count: int) -> None:
    results = [made.check(Outcome.PASS, f"requirement {number}") for number in range(count)]
    page = pull_request_page(made.session(*results, made.check(name="the one that fails")))
    assert len(page.encode()) <= LIMIT
    assert page.startswith("❌ **the one that fails needs 3 GPUs, budget 2**")
    assert f"{count} holds, 1 fails" in page
    assert "- bound by: p95 E2E, limit 20 s" in page or count == 1500
    left_out = re.search(r"\*Left out, to keep this page short: (.*)\. The result file has them all\.\*", page)
    assert (left_out is None) == (count == 1)
    rows = page.count("| ✅ PASS | requirement")
    cut = 0 if left_out is None else int((re.search(r"table rows of (\d+)", left_out[1]) or ["", "0"])[1])
    assert rows + cut == count
    # A page that is cut is still whole Markdown.
    shown = rendered(page)
    assert shown.count("<details>") == shown.count("</details>")
    assert shown.count("<table>") == shown.count("</table>") >= 1


def test_the_longest_strings_do_not_break_the_size() -> None:
    long = made.with_texts(made.session(made.compared(made.check())), lambda text: text + "<" * 100_000, OURS)
    assert len(pull_request_page(long).encode()) <= LIMIT


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_nothing_from_outside_changes_the_page(hostile: str) -> None:
    # Every text of the document at once: names, reasons, evidence, model, command, baseline, problems.
    whole = made.session(
        made.compared(made.check()),
        made.check(Outcome.INVALID),
        made.compared(made.measured(), RegressionDecision.NOT_COMPARABLE),
    )
    page = rendered(pull_request_page(made.with_texts(whole, lambda _: f"n{hostile}", OURS)))
    assert tags(page) == tags(rendered(pull_request_page(made.with_texts(whole, lambda _: "n", OURS))))
    outside_code = html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"(?s)<pre.*?</pre>", "", page)))
    assert not re.search(r"[@#!~$&^][\w\"{*\[]|https?://|www\.|GH-\d", outside_code, re.IGNORECASE)


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_no_line_starts_with_what_came_from_outside(hostile: str) -> None:
    # GitLab obeys a line that starts with a command such as /close, and a workflow log one that starts with ::error.
    whole = made.session(made.compared(made.check()), made.check(Outcome.INVALID))
    page = pull_request_page(made.with_texts(whole, lambda _: f"/close ::error::{hostile}", OURS))
    assert not [line for line in page.splitlines() if line.lstrip().startswith(("/", "::"))]


def test_the_text_from_outside_is_still_readable() -> None:
    hostile = "a|b `c` <d> @e"
    page = rendered(pull_request_page(made.session(made.check(name=hostile))))
    assert words(page).count("a|b `c` <d> @e") >= 3
