"""Reasoning in every report: how long it was, and when answers began; nothing where no answer reasoned."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pytest_gpucap.report import markdown, rows, terminal, windows
from pytest_gpucap.report.html.cards import result_cards, windows_table
from pytest_gpucap.report.html.distributions import distribution_charts
from pytest_gpucap.report.junit import properties
from pytest_gpucap.report.reasoning import reasoning_text, reasoning_together
from pytest_gpucap.results.build import check_result
from pytest_gpucap.results.measured import Latency, LatencyHistogram, Sample
from pytest_gpucap.results.reasoning import Reasoning
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.results.windows import Phase, WindowId
from tests.results import made


def reasoned(part: int, requests: int, tokens: float, *, unanswered: int = 0, p95_s: float = 4.1) -> Sample:
    plain = made.sample(WindowId(Phase.DESIGN_RATE, 1).part(part, 2), 65.0, 15.0)
    ttfat = Latency(100, 3.0, 3.2, 3.9, p95_s, 5.0)
    return msgspec.structs.replace(
        plain,
        latencies={**plain.latencies, "ttfat": ttfat},
        histograms={"ttfat": LatencyHistogram((1.0, 2.0, 4.0), (50, 50))},
        reasoning=Reasoning(requests, unanswered, tokens, 512.0),
    )


SAMPLES = (reasoned(1, 100, 200.0), reasoned(2, 300, 350.0, unanswered=7, p95_s=4.4))
TOLD = (
    "312.5 of 512 tokens of an answer (61.0%); p50 TTFAT 3.2 s, p95 TTFAT 4.4 s; "
    "7 of 400 answers ended before an answer token, and have no TTFAT"
)


def result(*more: Sample) -> Result:
    measurement = replace(made.MEASUREMENT, samples=(*made.SAMPLES, *more))
    return check_result(replace(made.FAILED, measurement=measurement), made.CONTEXT)


def file_of(found: Result) -> ResultFile:
    return made.session(found)


def test_windows_count_by_their_answers() -> None:
    assert reasoning_together(SAMPLES) == Reasoning(400, 7, 312.5, 512.0)
    assert reasoning_together(made.SAMPLES) is None


def test_every_report_has_it() -> None:
    found = result(*SAMPLES)
    assert reasoning_text(found) == TOLD
    assert ("reasoning", TOLD) in rows.result_rows(found)
    assert ("gpucap_reasoning", TOLD) in properties([found])
    (card,) = result_cards([found])
    assert ("Reasoning", TOLD) in [(fact.name, fact.value) for fact in card.facts]
    headers, body = windows.window_table(found)
    assert "p95 TTFAT" in headers
    assert body[-1][headers.index("p95 TTFAT")] == "4.4 s"
    assert body[0][headers.index("p95 TTFAT")] == "?"  # as for any latency that is not known
    assert "p95 TTFAT" in windows_table(found).headers
    assert "ttfat" in (distribution_charts(found) or {})


def test_a_sample_has_it_beside_its_latencies() -> None:
    found = msgspec.structs.replace(result(*SAMPLES[1:]), kind=ResultKind.SAMPLE, samples=SAMPLES[1:], outcome=None)
    assert ("TTFAT", "p50 3.2 s, p90 3.9 s, p95 4.4 s, p99 5 s (100 requests)") in rows.sampled(found)
    assert ("gpucap_ttfat_p95_s", 4.4) in properties([found])
    told = "350 of 512 tokens of an answer (68.4%); 7 of 300 answers ended before an answer token, and have no TTFAT"
    assert reasoning_text(found) == told
    for text in (markdown.pull_request_page(file_of(found)), terminal.summary([found], 400)):
        assert "350 of 512 tokens of an answer" in text


def test_without_reasoning_no_report_speaks_of_it() -> None:
    found = result()
    assert reasoning_text(found) == ""
    assert "TTFAT" not in windows.window_table(found)[0]
    assert not [name for name, _ in [*rows.result_rows(found), *properties([found])] if "reasoning" in name]
    assert "TTFAT" not in markdown.pull_request_page(file_of(found))
