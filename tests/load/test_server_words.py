"""A server's own words and its code, out of every form that servers and gateways wrap them in."""

from __future__ import annotations

import json

import pytest

from pytest_gpucap.load.server_words import MOST_CHARACTERS, error_in, likeness, one_line, words_in


@pytest.mark.parametrize(
    ("body", "text", "code"),
    [
        ('{"error":{"message":"a","code":429}}', "a", 429),
        ('{"error":{"message":"a","code":"rate_limit_exceeded"}}', "a", 429),
        ('{"error":{"message":"a","type":"insufficient_quota"}}', "a", 429),
        ('{"error":{"message":"a","code":"503"}}', "a", 503),
        ('{"error":"a","status":404}', "a", 404),
        ('{"error":{"error":{"message":"a"}}}', "a", 0),
        ('{"error":{"reason":"unheard of"}}', '{"reason": "unheard of"}', 0),
        ('{"object":"error","message":"a","type":"BadRequestError","code":400}', "a", 400),
        ('{"type":"error","error":{"type":"overloaded_error","message":"a"}}', "a", 503),
        ('{"detail":"a"}', "a", 0),
        ('{"detail":[{"msg":"a"}]}', '[{"msg": "a"}]', 0),
        ('{"message":"a"}', "a", 0),
        ('{"text":"a","error_code":50002}', "a", 0),
        ("<html><head><title>a &lt;b&gt;</title></head></html>", "a <b>", 0),
        ("<html><style>p{}</style><p>a</p></html>", "a", 0),
        ("a\n", "a", 0),
        ("[1]", "[1]", 0),
        ("", "", 0),
    ],
)
def test_words_and_code(body: str, text: str, code: int) -> None:
    found, number = words_in(body.encode())
    assert (found.strip(), number) == (text, code)


@pytest.mark.parametrize(
    "chunk", [{}, {"choices": []}, {"choices": [], "error": None}, {"usage": {}, "message": "m"}, [], 7, None]
)
def test_what_is_no_error(chunk: object) -> None:
    assert error_in(chunk) is None


def test_deep_nesting_is_no_crash() -> None:
    body = b'{"error":' * 100_000
    assert words_in(body)[1] == 0


def test_a_line_is_short_and_printable_and_holds_no_key() -> None:
    key = 'sk-"quoted"&long'
    told = f"bad\x00 {key} \u202e\n and {json.dumps(key)} \x1b[31m"
    line = one_line(told, [key])
    assert line == 'bad\\x00 *** \\u202e and "***" \\x1b[31m'
    assert one_line("any key: any, company", ["any"]) == "*** key: ***, company"
    assert len(one_line("x" * 1000)) == MOST_CHARACTERS
    half = "y" * (MOST_CHARACTERS - 10) + key
    assert "sk-" not in one_line(half, [key])


def test_texts_that_differ_in_numbers_and_identifiers_are_alike() -> None:
    told = [
        f"request {each} failed at 12:0{i}" for i, each in enumerate(["7f3a-22e1", "cmpl-0a1b2c", "9", "10"]) if i != 1
    ]
    assert len(set(map(likeness, told))) == 1
    assert likeness("rate limit") != likeness("out of memory")
