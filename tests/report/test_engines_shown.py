"""Which engine served, and what it does not tell, as every report shows it."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from pytest_gpucap.report import rows
from pytest_gpucap.report.html.page import render
from pytest_gpucap.report.junit import junit
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results.result import Result, ResultFile
from tests.results import made

NOT_TOLD = ("metrics", "KV cache size")


def served(*not_told: str) -> Result:
    result = made.check()
    return replace(result, environment=replace(result.environment, engine="transformers", not_told=not_told))


def test_what_an_engine_does_not_tell_is_a_row() -> None:
    shown = dict(rows.result_rows(served(*NOT_TOLD)))
    assert shown["not told"] == "metrics, KV cache size: the engine has none of these"
    assert "not told" not in dict(rows.result_rows(served()))


def test_every_report_names_the_engine() -> None:
    content = ResultFile(started=datetime(2026, 11, 20, tzinfo=UTC), results=(served(*NOT_TOLD),))
    assert '<property name="gpucap_engine" value="transformers" />' in junit(content)
    assert "metrics, KV cache size: the engine has none of these" in pull_request_page(content)
    page = render(content)
    assert "metrics; KV cache size" in page
    assert ("engine", "transformers") in rows.environment_rows(content.results[0])
