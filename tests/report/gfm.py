"""Markdown as GitHub's own parser reads it."""

from __future__ import annotations

import html
import re

import pytest

cmarkgfm = pytest.importorskip("cmarkgfm", reason="GitHub's Markdown parser is not installed")


def rendered(markdown: str) -> str:
    """HTML, with raw HTML let through: nothing may rest on somebody else's sanitiser."""
    return str(cmarkgfm.github_flavored_markdown_to_html(markdown, options=cmarkgfm.cmark.Options.CMARK_OPT_UNSAFE))


def tags(page: str) -> list[str]:
    """Every tag, attributes included, in order."""
    return re.findall(r"<[^>]*>", page)


def words(page: str) -> str:
    """The text that a reader sees, without the breaks that keep references from being found."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).replace("\u200b", "").split())
