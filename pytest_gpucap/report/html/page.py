"""The page put together: words and tables by the template, numbers as one block of JSON, code and style inline.

The page fetches nothing and its Content-Security-Policy allows nothing to be fetched: of scripts and styles only those
whose hashes it names may run, so that a hostile string that slipped through would still be inert.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_gpucap.report import rows
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.html import charts, hero, view
from pytest_gpucap.report.html.spread import spread
from pytest_gpucap.report.html.trend import trends
from pytest_gpucap.report.html.windows import NONE

SCRIPTS: Final = ("tools", "frame", "curve", "strips", "spread", "trend", "tables", "start")
"""Ours, in the order in which they need each other; one script element."""
LIBRARY: Final = "vendor/echarts.common.min.js"


def render(document: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    """One self-contained HTML file.

    Args:
        document: what `results.result_file.read` returns.
        history: earlier runs, a mapping for each line to draw; see `report.html.trend.trends`.

    Returns:
        The file's text, to be written as UTF-8. It fetches nothing when opened.
    """
    document = cleaned(document)
    records = rows.worst_first(document["results"])
    shown = view.results(records)
    drawn = [
        {"curve": charts.curve(record), "strips": charts.strips(record), "spread": spread(record)} for record in records
    ]
    past = trends([cleaned(each) for each in history], records)
    title, tone = hero.title(records)
    style, library, script = _asset("assets/page.css"), _asset(LIBRARY), _scripts()
    page: str = _template().render(
        document=document,
        none_text=NONE,
        title=title,
        tone=tone,
        counts=hero.counts(records),
        places=hero.places(records),
        started=hero.moment(document["started"]),
        server_time=hero.server_time(records),
        results=list(zip(shown, drawn, strict=True)),
        trends=past,
        policy=_policy(style, (library, script)),
        # Assets are this package's own; everything else goes through the template's escaping.
        style=Markup(style),  # noqa: S704
        library=Markup(library),  # noqa: S704
        script=Markup(script),  # noqa: S704
        data=embedded({"results": drawn, "trends": [trend.chart for trend in past]}),
    )
    return page


def embedded(value: Any) -> Markup:
    """JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no character that HTML gives a meaning is left


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
        raise ValueError(f"{name} would end the element that it stands in")
    return text


@cache
def _scripts() -> str:
    return '"use strict";\n' + "\n".join(_asset(f"assets/{name}.js") for name in SCRIPTS)


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("pytest_gpucap.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
