"""What a server or a gateway says when it fails: its own words and its code, out of whatever form they come in.

OpenAI, vLLM, FastAPI, gateways and web servers all wrap their message differently. A text that is kept is short, on one
line, without control characters, and without the keys that the request was sent with: some servers repeat them.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

from pytest_gpucap.foreign_text import printable, visible
from pytest_gpucap.masking import masked

MOST_CHARACTERS = 200
"""Length of a text that is kept."""
READ_BYTES = 8_192
"""Bytes of a body that are looked at."""
_MESSAGE_KEYS = ("message", "detail", "error_description", "error", "title", "msg", "text")
_CODE_KEYS = ("code", "status", "status_code", "http_status", "error_code", "type")
_CODES = (
    (r"rate.?limit|quota|too.?many|throttl", 429),
    (r"unauthorized|authentication|invalid.?api.?key", 401),
    (r"forbidden|permission", 403),
    (r"not.?found", 404),
    (r"invalid.?request|bad.?request|validation|context.?length", 400),
    (r"unavailable|overloaded", 503),
    (r"timeout", 504),
    (r"internal|server.?error", 500),
)
"""HTTP statuses of names that stand in place of a code."""
_HTTP_ERRORS = range(400, 600)
_MARKUP = re.compile(
    r"<(script|style)\b(?:(?!<\1\b).)*?</\1\s*>|<!--(?:(?!<!--).)*?-->|<[^<>]*>", re.IGNORECASE | re.DOTALL
)
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title", re.IGNORECASE)
_VARIABLE = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*(?:[-:.][0-9a-f]+)*", re.IGNORECASE)
"""Numbers, times and identifiers, which differ from request to request."""


def json_object(body: str | bytes) -> dict[str, Any]:
    """The JSON object in an answer; an empty one for anything else, be it a page, a list or no JSON at all."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def error_in(chunk: Any) -> tuple[str, int] | None:
    """The message and the code (0 for none) of an error object; None where `chunk` reports no error."""
    if not isinstance(chunk, dict):
        return None
    error = chunk.get("error")
    if error:
        return _described(error, chunk)
    says_so = chunk.get("object") == "error" or chunk.get("type") == "error" or bool(chunk.get("error_code"))
    if says_so or ("choices" not in chunk and "usage" not in chunk and _message(chunk)):
        return _described(chunk, chunk)
    return None


def words_in(body: bytes) -> tuple[str, int]:
    """The message in a body of any kind, and the code of an error object in it (0 for none)."""
    text = body[:READ_BYTES].decode("utf-8", "replace").strip()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        if text.startswith("<"):
            title = _TITLE.search(text)
            text = html.unescape(title[1] if title and title[1].strip() else _MARKUP.sub(" ", text))
        return text, 0
    return error_in(found) or (text, 0)


def one_line(text: str, secrets: Iterable[str] = ()) -> str:
    """At most `MOST_CHARACTERS` printable characters of a text, with every secret replaced by ``***``."""
    line = printable(visible(masked(beginning(text), secrets)))
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 3] + "..."


def beginning(text: str) -> str:
    """The first words of a text, more than are ever shown: masking megabytes would take seconds.

    It ends where a word does, since half a secret is one that masking does not know.
    """
    words = text.strip()
    return words if len(words) <= READ_BYTES else words[:READ_BYTES].rsplit(maxsplit=1)[0]


def likeness(text: str) -> str:
    """The same for texts that differ in numbers and identifiers only."""
    return _VARIABLE.sub("#", text)


def _described(error: Any, chunk: dict[str, Any]) -> tuple[str, int]:
    text = _message(error) if isinstance(error, dict) else error if isinstance(error, str) else ""
    return text or _message(chunk) or json.dumps(error), _code(error) or _code(chunk)


def _message(found: dict[str, Any]) -> str:
    for key in _MESSAGE_KEYS:
        value = found.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if key == "detail" and isinstance(value, list | dict) and value:
            return json.dumps(value)
        if key == "error" and isinstance(value, dict) and (inner := _message(value)):
            return inner
    return ""


def _code(found: Any) -> int:
    """The HTTP status that an error object names or describes; 0 for none."""
    if not isinstance(found, dict):
        return 0
    named = ""
    for key in _CODE_KEYS:
        value = found.get(key)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:  # noqa: PLR2004 - an HTTP status
            value = int(value)
        if isinstance(value, int) and value in _HTTP_ERRORS:
            return value
        if isinstance(value, str):
            named += f" {value[:MOST_CHARACTERS]}"
    return next((code for pattern, code in _CODES if re.search(pattern, named, re.IGNORECASE)), 0)
