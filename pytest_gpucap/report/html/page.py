"""Assembles the page: texts and tables by the template, numbers as one block of JSON, code and style inline.

The page fetches nothing, and its Content-Security-Policy allows nothing to be fetched. Only scripts and styles whose
hashes the policy names may run, so a hostile string that slipped through would still be inert.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import seconds
from pytest_gpucap.report.headline import session_counts, session_headlines, worst_first
from pytest_gpucap.report.html.cards import EMPTY_CELL, Badge, badge, result_cards, time_text
from pytest_gpucap.report.html.charts import CurveChart, StripChart, curve_chart, strip_chart
from pytest_gpucap.report.html.distributions import DistributionChart, distribution_charts
from pytest_gpucap.report.html.trend import TrendChart, trend_panels
from pytest_gpucap.results.points import WHAT_IT_IS
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.trend import Trend

SCRIPTS: Final = ("tools", "frame", "curve", "strips", "spread", "trend", "tables", "start")
"""Our own scripts, in the order of their dependencies, for one script element."""
LIBRARY: Final = "vendor/echarts.common.min.js"


class ResultCharts(msgspec.Struct, frozen=True):
    """The charts of one result; None where there is nothing to draw."""

    curve: CurveChart | None
    strips: StripChart | None
    spread: dict[str, DistributionChart] | None


class PageData(msgspec.Struct, frozen=True):
    """All that the page's scripts draw."""

    results: list[ResultCharts]
    trends: list[TrendChart]


def render(content: ResultFile, history: Iterable[Trend] = ()) -> str:
    """One self-contained HTML file.

    Args:
        content: of the result file.
        history: the trends of earlier runs; there is a panel for each.

    Returns:
        The file's text, to be written as UTF-8. It fetches nothing when opened.
    """
    content = cleaned(content)
    results = worst_first(content.results)
    charts = [ResultCharts(curve_chart(each), strip_chart(each), distribution_charts(each)) for each in results]
    panels = trend_panels(map(cleaned, history), results)
    first, *others = session_headlines(results, content.problems)
    style, library, script = _asset("assets/page.css"), _asset(LIBRARY), _scripts()
    return _template().render(
        content=content,
        empty_cell=EMPTY_CELL,
        title=first.text,
        tone=first.standing.tone.value,
        headlines=[line.text for line in others],
        counted=session_counts(results),
        counts=_counts(results),
        places=_places(results),
        started=time_text(content.started),
        server_time=seconds(sum(result.total_spent_s for result in results)),
        results=list(zip(result_cards(results), charts, strict=True)),
        trends=panels,
        imported_is=WHAT_IT_IS,
        policy=_policy(style, (library, script)),
        # Assets are this package's own; everything else goes through the template's escaping.
        style=Markup(style),  # noqa: S704
        library=Markup(library),  # noqa: S704
        script=Markup(script),  # noqa: S704
        data=embedded(PageData(charts, [panel.chart for panel in panels])),
    )


def _counts(results: Sequence[Result]) -> list[tuple[Badge, int]]:
    """The number of each badge, in the order of the results."""
    badges = [badge(result) for result in results]
    return [(each, badges.count(each)) for each in dict.fromkeys(badges)]


def _places(results: Sequence[Result]) -> list[str]:
    """What was measured on what; one line each, usually one."""
    return [place for place in dict.fromkeys(map(rows.measured_on, results)) if place]


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever its strings contain.

    Raises:
        ValueError: for a figure that is not finite.
    """
    text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no character with a meaning in HTML is left


def _policy(style: str, scripts: Sequence[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'; object-src 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    if "</script" in text.lower() or "</style" in text.lower():
        raise ValueError(f"{name} would end the element that contains it")
    return text


@cache
def _scripts() -> str:
    return '"use strict";\n' + "\n".join(_asset(f"assets/{name}.js") for name in SCRIPTS)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pytest_gpucap.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
