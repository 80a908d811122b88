"""Every figure of docs/comparison.md about another tool stands in the results that the page names as its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
MEASURED = (DOCS / "comparison.md").read_text(encoding="utf-8").partition("\n## Measured\n")[2].partition("\n## ")[0]
SECTIONS = MEASURED.split("\n### ")[1:]


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _source(link: str) -> str:
    """The section that a link names."""
    path, _, anchor = link.partition("#")
    text = (DOCS / path).read_text(encoding="utf-8")
    headings = list(re.finditer(r"^(#+) (.*)$", text, re.MULTILINE))
    (start,) = (each for each in headings if _slug(each[2]) == anchor)
    later = [each for each in headings if each.start() > start.start() and len(each[1]) <= len(start[1])]
    return text[start.start() : later[0].start() if later else len(text)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_every_row_of_figures_is_a_row_of_its_source(section: str) -> None:
    (link,) = re.findall(r"\]\((\.\./benchmarks/[^)]+)\)", section)
    source = [re.findall(r"[+-]?\d[\d.]*", row) for row in re.findall(r"^\|.*$", _source(link), re.MULTILINE)]
    rows = [row for row in re.findall(r"^\|.*$", section, re.MULTILINE)[2:] if re.search(r"\d", row)]
    assert len(rows) >= 3
    for row in rows:
        figures = re.findall(r"[+-]?\d[\d.]*", row)
        assert any(_in_order(figures, each) for each in source), row


def _in_order(wanted: list[str], there: list[str]) -> bool:
    """Whether the figures stand in a row in this order, with or without others between."""
    rest = iter(there)
    return all(each in rest for each in wanted)


def test_there_are_as_many_tables_as_claims() -> None:
    assert len(SECTIONS) == 4
