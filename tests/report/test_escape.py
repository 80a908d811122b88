"""Strings from outside are shown, and never obeyed."""

from __future__ import annotations

import html
import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report.escape import cleaned, code_block, command_data, command_property, prose
from tests.report.gfm import rendered, tags, words

HOSTILE = (
    "|", "||", "`", "```", "~~~", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</details>", "<!--",
    "-->", "\n", "\r\n", "\n\n# heading\n", "\n| a | b |\n| --- | --- |\n", "::error::x", "\n::error::x", "%0A", "%",
    "\\", "\\|", "@octocat", "@org/team", "#1", "org/repo#1", "GH-12", "!3", "~bug", "&epic", "$x$", "&amp;",
    "&#64;me", "*a*", "**", "_a_", "~~a~~", "[a](javascript:x)", "![a](http://x/y.png)", "https://evil.example/x",
    "www.evil.example", ":tada:", "a@evil.example", "\x1b[31m", "\x07", "\x00", "\u202e", "\u2028", "\u2066",
    "\ud800", "\ufffe", "{{ x }}", "\t", "${{ secrets.X }}", "\x85", "/close", "- ", "1. ", "> ", "===", "---", '"',
    "'", "[^1]", "<http://a>", "^sup^",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), max_size=12).map("".join)


def shown(page: str) -> str:
    """The text that a reader sees, without the breaks that keep references from being found."""
    return html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\u200b", "")


@given(TEXTS)
@example("a\x1b]0;title\x07b")
@example("\r\n")
def test_visible_text_is_one_printable_line(text: str) -> None:
    line = visible(text)
    line.encode("utf-8")
    assert not {unicodedata.category(each) for each in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff")
    assert line.splitlines() in ([line], [])


def test_what_is_plain_stays_as_it_is() -> None:
    for text in ("chat", "org/Model-1.5B", "größer 你好 👍🏽", "p95 E2E 20 s"):
        assert visible(text) == text
    assert visible("a\n  b\tc") == "a b c"
    assert visible("\x1b[31mred") == "\\x1b[31mred"


def test_a_document_is_cleaned_to_its_leaves_and_left_alone_itself() -> None:
    before = {"a\n": ["b\x1b", {"c": "d\re"}], "n": 1.5, "none": None}
    assert cleaned(before) == {"a": ["b\\x1b", {"c": "d e"}], "n": 1.5, "none": None}
    assert before["a\n"] == ["b\x1b", {"c": "d\re"}]


@given(TEXTS)
def test_prose_is_text_in_a_paragraph(text: str) -> None:
    page = rendered(f"x {prose(text, 10_000)} y")
    assert re.findall(r"<[^>]*>", page) == ["<p>", "</p>"]
    assert " ".join(shown(page).split()) == " ".join(f"x {visible(text)} y".replace("\u200b", "").split())


@given(TEXTS)
def test_prose_is_one_cell_of_a_table_and_one_item_of_a_list(text: str) -> None:
    table = rendered(f"| a | b |\n| --- | --- |\n| {prose(text, 10_000)} | z |\n")
    assert tags(table) == tags(rendered("| a | b |\n| --- | --- |\n| x | z |\n"))
    # Cells beyond the last column vanish, so it is the content that shows whether the row was split.
    found = [words(cell) for cell in re.findall(r"<td>(.*?)</td>", table)]
    assert found == [" ".join(visible(text).replace("\u200b", "").split()), "z"]
    items = rendered(f"- a: {prose(text, 10_000)}\n- b: c\n")
    assert re.findall(r"<[^>]*>", items) == ["<ul>", "<li>", "</li>", "<li>", "</li>", "</ul>"]


@given(TEXTS)
def test_prose_refers_to_nobody_and_links_nowhere(text: str) -> None:
    # GitHub and GitLab look for these in the text of the finished page.
    page = html.unescape(re.sub(r"<[^>]*>", "", rendered(f"x {prose(text, 10_000)}")))
    assert not re.search(r"[@#!~%$&^][\w\"{*\[]", page)
    assert not re.search(r"\bgh-\d|https?://|\bwww\.", page, re.IGNORECASE)


@given(st.lists(TEXTS, max_size=5))
@example(["```"])
@example(["a", "  ````` ", "~~~"])
def test_a_code_block_holds_its_lines(texts: list[str]) -> None:
    page = rendered(f"{code_block(texts)}\n\nafter\n")
    assert re.findall(r"<[^>]*>", page) == ['<pre lang="text">', "<code>", "</code>", "</pre>", "<p>", "</p>"]
    body = html.unescape(page.partition("<code>")[2].partition("</code>")[0])
    assert body == "".join(f"{visible(text)}\n" for text in texts)


def test_long_text_is_cut() -> None:
    assert prose("a" * 700) == "a" * 597 + "..."
    assert prose("abcdef", 5) == "ab..."


ESCAPES = {"%25": "%", "%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ","}


def runner_reads(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as GitHub's runner takes it apart: name, properties, message."""
    match = re.fullmatch(r"::(\w+)(?: (.*?))?::(.*)", line)
    assert match is not None
    pairs = (pair.partition("=") for pair in (match[2] or "").split(",") if pair)
    return match[1], {name: unescaped(value) for name, _, value in pairs}, unescaped(match[3])


def unescaped(text: str) -> str:
    return re.sub("|".join(ESCAPES), lambda found: ESCAPES[found[0]], text)


@given(TEXTS, TEXTS)
def test_a_workflow_command_is_read_as_it_was_meant(title: str, message: str) -> None:
    line = f"::error file=a.py,title={command_property(visible(title))}::{command_data(visible(message))}"
    assert runner_reads(line) == ("error", {"file": "a.py", "title": visible(title)}, visible(message))


@given(TEXTS)
def test_line_breaks_of_a_message_survive(text: str) -> None:
    data = command_data(text)
    assert not re.search(r"[\r\n]", data)
    assert unescaped(data) == text
