"""What the terminal shows at the end: worst first, 80 columns, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from _pytest._io.wcwidth import wcswidth
from hypothesis import given, settings
from msgspec.structs import replace

from pytest_gpucap.report import terminal
from pytest_gpucap.report.columns import apart
from pytest_gpucap.report.comparison import comparison_summary
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results.measured import Accuracy, Interval, Latency, Outcome
from pytest_gpucap.results.result import PhysicalLimit, ResultKind
from tests.report.test_escape import TEXTS
from tests.results import made

EVERYTHING = [
    made.measured("a"),
    made.check(Outcome.PASS, "b"),
    made.compared(made.check(Outcome.PASS, "c")),
    replace(made.check(Outcome.FAIL, "d"), expected_failure=True),
    made.check(Outcome.INCONCLUSIVE, "e"),
    made.check(Outcome.FAIL, "f"),
    made.check(Outcome.INVALID, "g"),
]


def rows(summary: str) -> list[list[str]]:
    lines = summary.splitlines()
    return [line.split() for line in lines[2 : lines.index("")]]


def test_the_worst_is_first_and_what_was_expected_is_not_among_it() -> None:
    assert [row[1] for row in rows(terminal.summary(EVERYTHING))] == ["g", "f", "e", "c", "d", "b", "a"]


def test_a_failure_gives_the_arithmetic_the_limit_the_bottleneck_and_what_to_try() -> None:
    summary = terminal.summary([made.check()])
    assert summary[summary.index("- FAIL") :].startswith(
        "- FAIL: chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50\n"
        "  bound by: p95 E2E, limit 20 s\n"
        "  bottleneck: KV cache: KV cache 99% full\n"
        "  try: --kv-cache-dtype fp8\n"
    )


def test_nothing_is_said_of_what_was_not_compared() -> None:
    for result in EVERYTHING[:2]:
        assert "baseline" not in terminal.summary([result]) + terminal.details(result)


def test_the_physical_limit_and_the_accuracy_have_a_row() -> None:
    limit = PhysicalLimit(
        "bandwidth", 85.0, 0.02, 0.005, 43_700.0, 64.0, 0.61, "61% of what the memory bandwidth allows", "a / b"
    )
    accuracy = Accuracy(Interval(0.81, 0.74, 0.87), answers=120, right=97, min_accuracy=0.75)
    told = " ".join(terminal.details(replace(made.check(), limit=limit, accuracy=accuracy)).split())
    assert "physical limit 61% of what the memory bandwidth allows" in told
    assert "accuracy 81.0% (74.0% to 87.0%), 97 of 120 answers right, at least 75.0% required" in told


def test_where_there_is_no_physical_limit_the_reason_is_said_once_and_a_simulation_needs_none() -> None:
    reason = "no bandwidth is known of class cpu"
    results = [replace(made.measured(name), no_limit=reason) for name in "ab"]
    simulated = replace(made.measured("c"), simulated=True, no_limit="it has no hardware")
    summary = terminal.summary([*results, simulated])
    assert f"- no physical limit for a, b: {reason}\n" in summary
    assert "no hardware" not in summary
    assert f"physical limit not known: {reason}" in " ".join(terminal.section(results[0]).split())


def test_what_is_odd_about_answers_is_said_of_a_test_that_passes_once_for_all() -> None:
    odd = "256 output tokens were asked for on average, and 43 came"
    results = [made.check(Outcome.PASS, name) for name in ("chat", "code")]
    results = [replace(each, environment=replace(each.environment, remarks=(odd,))) for each in results]
    told = terminal.summary([*results, made.check(Outcome.PASS, "quiet")], 120)
    assert f"- chat, code: {odd}" in told.splitlines()
    assert told.count(odd) == 1
    page = pull_request_page(made.session(*results)).partition("<details>")[0]
    assert f"**code**: {odd}" in page


@pytest.mark.parametrize(("count", "said"), [(1, "1 request"), (8, "8 requests"), (1234, "1,234 requests")])
def test_percentiles_of_a_sample_say_how_many_requests_they_are_of(count: int, said: str) -> None:
    """Eight requests have no 99th percentile worth the name."""
    one = made.SAMPLES[0]
    few = replace(one, latencies={"itl": Latency(4096, *[0.02] * 5), "e2e": Latency(count, *[2.0] * 5)})
    told = terminal.summary([replace(made.measured(), kind=ResultKind.SAMPLE, samples=(few,))], 120)
    assert f"  E2E: p50 2 s, p90 2 s, p95 2 s, p99 2 s ({said})" in told.splitlines()
    assert "  ITL: p50 20 ms, p90 20 ms, p95 20 ms, p99 20 ms (4,096 gaps)" in told.splitlines()


@pytest.mark.parametrize("rate", [0.0123, 0.881, 52.1, 1230.0, 98765.0])
def test_80_columns_whatever_the_names_and_figures(rate: float) -> None:
    found = Interval(rate, rate * 0.9, rate * 1.1)
    results = [
        replace(result, sustainable_rate=result.sustainable_rate and found, design_rate_rps=rate * 1.2345)
        for outcome in Outcome
        for result in [made.check(outcome, "a requirement whose name is much too long for any table " * 2)]
    ]
    assert max(map(len, terminal.summary(results).splitlines())) <= 80
    for result in results:
        # A name that alone is longer stays whole, so that it can be searched for.
        assert max(map(len, terminal.details(result).splitlines())) <= 80


@pytest.mark.parametrize("name", ["你好世界" * 12, "🚀🧪" * 20, "e\u0301" * 40, "👩\u200d💻" * 25, "größer " * 12])
@pytest.mark.parametrize("width", [60, 80, 137])
def test_names_fit_as_a_terminal_shows_them(name: str, width: int) -> None:
    results = [made.compared(made.check(outcome, name)) for outcome in Outcome]
    lines = [*terminal.summary_lines(results, width), *((line, None) for line in comparison_summary(results, width))]
    for result in results:
        lines += [(line, None) for line in terminal.details(result, width).splitlines()]
        lines += [(line, None) for line in terminal.failure(result, width).splitlines()[1:]]
    # What pytest itself says of the width of a text.
    assert max(wcswidth(line) for line, _ in lines) <= width


def test_a_wide_terminal_shows_whole_names_and_more() -> None:
    name = "a requirement whose name is too long for a table of 80 columns"
    results = [made.check(Outcome.PASS, name), made.compared(made.check(Outcome.FAIL))]
    assert name not in terminal.summary(results)
    table = terminal.summary(results, 200).partition("\n\n")[0]
    assert name in table
    for shown in ("bound by", "p95 E2E, limit 20 s", "-19.8% (-21.7% to -17.8%)"):
        assert shown in table


@pytest.mark.parametrize(
    "names",
    [
        # Parameters of a test are at its end; a series may differ anywhere.
        [f"test_chat_capacity_of_the_long_context_model[{kind}-8k]" for kind in ("bf16", "fp8", "awq")],
        [f"chat of model {kind} with a context of 32k tokens and a prefix" for kind in ("one", "two")],
        [f"{'x' * 40}{letter}{'y' * 40}" for letter in "abc"],
        ["你好世界" * 12 + "一", "你好世界" * 12 + "二"],
    ],
)
@pytest.mark.parametrize("width", [60, 80])
def test_tests_with_long_names_that_differ_can_be_told_apart(names: list[str], width: int) -> None:
    lines = terminal.summary([made.check(Outcome.PASS, name) for name in names], width).splitlines()[2:][: len(names)]
    assert len(set(lines)) == len(names)
    assert max(map(wcswidth, lines)) <= width
    assert len(set(apart([*names, *names], 6))) == len(names)


def test_many_limits_make_tables_that_fit() -> None:
    result = made.check()
    limits = {f"{metric}_p{percent}": 1.0 for metric in ("ttft", "e2e", "itl", "tpot") for percent in (50, 95, 99)}
    lines = terminal.details(replace(result, slo=replace(result.slo, limits=limits))).splitlines()
    assert max(map(len, lines)) <= 80
    headers = [line for line in lines if line.startswith("window")]
    assert len(headers) > 1
    for limit in limits:
        metric, _, percent = limit.partition("_p")
        assert any(f"p{percent} {metric.upper()}" in header for header in headers)


def test_windows_are_one_row_each_with_their_worst_third() -> None:
    result = made.check()
    samples = list(result.samples)
    latencies = samples[4].latencies
    samples[4] = replace(samples[4], latencies={**latencies, "e2e": replace(latencies["e2e"], p95_s=17.5)})
    told = terminal.details(replace(result, samples=tuple(samples)))
    lines = [line for line in told.splitlines() if line.startswith("30 req/s")]
    assert [line.split() for line in lines] == [["30", "req/s", "90", "180", "30", "15400", "17.5", "s", "480", "ms"]]


@settings(deadline=None, max_examples=50)
@given(TEXTS)
def test_nothing_from_outside_reaches_the_terminal_as_a_command(hostile: str) -> None:
    document = made.session(made.compared(made.check()), made.check(Outcome.INVALID))
    changed = made.with_texts(document, lambda value: value + hostile, frozenset({"kind", "binding"}))
    whole = terminal.summary(changed.results) + "".join(map(terminal.failure, changed.results))
    whole.encode("utf-8")
    assert not set(whole) & set("\x1b\x07\x08\x00\r\x9b\u202e\u2066\u2028")
