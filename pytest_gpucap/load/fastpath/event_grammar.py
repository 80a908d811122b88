"""The grammar of events as vLLM writes them: the kind of an event's data, without parsing JSON.

``{"id":"...","object":"...","created":1,"model":"...","choices":[``, then ``{"index":0,"text":"`` or
``{"index":0,"delta":{"content":"`` (a token), ``{"index":0,"delta":{"role":"assistant","content":""}`` (a chat answer
opens) or ``],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1``. The parser takes everything else.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Bytes
from pytest_gpucap.jit import compiled

OTHER_EVENT, TOKEN_EVENT, ROLE_EVENT, USAGE_EVENT = range(4)
"""Kinds of events. A role event opens a chat answer and holds no token."""


def _literal(text: bytes) -> Bytes:
    return np.frombuffer(text, np.uint8)


_ID = _literal(b'{"id":"')
_OBJECT = _literal(b'","object":"')
_CREATED = _literal(b'","created":')
_MODEL = _literal(b',"model":"')
_CHOICES = _literal(b'","choices":[')
_TEXT = _literal(b'{"index":0,"text":"')
_CONTENT = _literal(b'{"index":0,"delta":{"content":"')
_OPENING = _literal(b'{"index":0,"delta":{"role":"assistant","content":""}')
_FINISHED = _literal(b'"finish_reason":"')
_PROMPT = _literal(b'],"usage":{"prompt_tokens":')
_TOTAL = _literal(b',"total_tokens":')
_OUTPUT = _literal(b',"completion_tokens":')
_QUOTE, _BACKSLASH, _ZERO, _NINE, _BRACE = 0x22, 0x5C, 0x30, 0x39, 0x7D
MAX_COUNT_DIGITS = 9
"""Digits of a token count: no usage has more, and a longer number would not fit into a record."""


@compiled
def classify(text: Bytes, at: int, end: int) -> tuple[int, int, int]:
    """The kind of the data ``text[at:end]``, and two numbers about it.

    Returns:
        TOKEN_EVENT: the number of bytes up to the ``{`` of its choice, and the bytes of its text, as it is written.
        USAGE_EVENT: the tokens of the prompt and of the answer.
        The other kinds: 0 and 0.
    """
    start = at
    at = after(text, at, end, _ID)
    at = after(text, _end_of_string(text, at, end), end, _OBJECT)
    at = after(text, _end_of_string(text, at, end), end, _CREATED)
    at = after(text, _end_of_number(text, at, end), end, _MODEL)
    at = after(text, _end_of_string(text, at, end), end, _CHOICES)
    usage = after(text, at, end, _PROMPT)
    if usage >= 0:
        return _usage(text, usage, end)
    opening = after(text, at, end, _OPENING)
    if opening >= 0:
        # Some servers end an answer with the very chunk that opens it.
        return (OTHER_EVENT if _contains(text, opening, end, _FINISHED) else ROLE_EVENT), 0, 0
    token = after(text, at, end, _TEXT)
    if token < 0:
        token = after(text, at, end, _CONTENT)
        if token == end or (token >= 0 and text[token] == _QUOTE):  # no text: not for certain a token
            return OTHER_EVENT, 0, 0
    if token < 0:
        return OTHER_EVENT, 0, 0
    return TOKEN_EVENT, at + 1 - start, _end_of_string(text, token, end) - token


@compiled
def _usage(text: Bytes, at: int, end: int) -> tuple[int, int, int]:
    total = after(text, _end_of_number(text, at, end), end, _TOTAL)
    output = after(text, _end_of_number(text, total, end), end, _OUTPUT)
    closed = _end_of_number(text, output, end)
    # More fields, such as the cached tokens, are the parser's.
    whole = 0 <= closed < end and text[closed] == _BRACE
    prompt_tokens, output_tokens = _number(text, at, end), _number(text, output, end)
    if not whole or prompt_tokens < 0 or output_tokens < 0:
        return OTHER_EVENT, 0, 0
    return USAGE_EVENT, prompt_tokens, output_tokens


@compiled
def after(text: Bytes, at: int, end: int, literal: Bytes) -> int:
    """The position after `literal`, if it stands at `at` and ends by `end`; else -1. -1 for a negative `at`, too."""
    if at < 0 or end - at < literal.size:
        return -1
    for i in range(literal.size):
        if text[at + i] != literal[i]:
            return -1
    return at + literal.size


@compiled
def _contains(text: Bytes, at: int, end: int, literal: Bytes) -> bool:
    """Whether `literal` stands somewhere in ``text[at:end]``."""
    for start in range(at, end - literal.size + 1):  # noqa: SIM110 - compiled code has no generators
        if after(text, start, end, literal) >= 0:
            return True
    return False


@compiled
def _end_of_string(text: Bytes, at: int, end: int) -> int:
    """The position of the quote that closes the string around `at`, or `end`; an escaped quote closes nothing."""
    while 0 <= at < end and text[at] != _QUOTE:
        at += 2 if text[at] == _BACKSLASH else 1
    return min(at, end)


@compiled
def _end_of_number(text: Bytes, at: int, end: int) -> int:
    """The position after the digits at `at`; -1 if there is no digit."""
    start = at
    while 0 <= at < end and _ZERO <= text[at] <= _NINE:
        at += 1
    return at if at > start else -1


@compiled
def _number(text: Bytes, at: int, end: int) -> int:
    """The number that the digits at `at` write; -1 if there is no digit, or there are too many."""
    stop = _end_of_number(text, at, end)
    if stop < 0 or stop - at > MAX_COUNT_DIGITS:
        return -1
    value = 0
    for i in range(at, stop):
        value = 10 * value + int(text[i]) - _ZERO
    return value
