"""Text from outside is shown and never obeyed."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import harmless, visible
from tests.report.test_escape import TEXTS

OBEYED = re.compile(r"(?m)^\s*::[A-Za-z]|##(\[|vso\[|teamcity\[)")
"""What GitHub's runner takes for a command after the white space of a line, and what others take anywhere."""


def obeyed(text: str) -> list[str]:
    """What a terminal or a CI system would obey in an output; line breaks and tabs are allowed."""
    marks = [each for each in text if each not in "\n\t" and unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"}]
    return [*marks, *(each for each in text if each in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")] + [
        match[0] for match in OBEYED.finditer(text)
    ]


@given(TEXTS)
@example("\n::error::x")
@example("a ::error::x")
@example("##[add-mask]x")
@example("\x1b[31m::\x1b[0m::error::")
@example("\r::error::x")
@example("\u2028::error::x")
@example("##\u202e[error]")
def test_nothing_in_it_is_obeyed(text: str) -> None:
    assert obeyed(harmless(text)) == []
    assert obeyed(visible(text)) == []
    assert obeyed(str(GpuCapError(text))) == []
    # Wherever a report breaks a line.
    assert obeyed(harmless(text).replace(" ", "\n")) == []
    assert harmless(harmless(text)) == harmless(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error file=a::b", "\\x3a:error file=a::b"),
        ("  ::stop-commands::x", "  \\x3a:stop-commands::x"),
        ("a\n::add-mask::x", "a\n\\x3a:add-mask::x"),
        ("x ##[error]y", "x \\x23#[error]y"),
        ("##vso[task.setvariable]x", "\\x23#vso[task.setvariable]x"),
        ("\x1b[2J\x9b31m\x07", "\\x1b[2J\\x9b31m\\x07"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("a\rb", "a\\rb"),
        ("a\u202eb", "a\\u202eb"),
        ("tests/a.py::TestB::test_c[x::y]", "tests/a.py::TestB::test_c[x::y]"),
        ("std::vector, a :: b, ## heading, größer 你好 👍🏽", "std::vector, a :: b, ## heading, größer 你好 👍🏽"),
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert harmless(text) == shown
