"""The data of events as vLLM writes them, told apart without parsing JSON.

``{"id":"...","object":"...","created":1,"model":"...","choices":[``, then ``{"index":0,"text":"`` or
``{"index":0,"delta":{"content":"`` (a token), ``{"index":0,"delta":{"role":"assistant","content":""}`` (a chat answer
opens) or ``],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1``. Anything else is left to a parser.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pytest_gpucap.jit import compiled

Text = npt.NDArray[np.uint8]

STRANGE, TOKEN, OPENING, USAGE = range(4)
"""What the data of an event is."""


def _literal(text: bytes) -> Text:
    return np.frombuffer(text, np.uint8)


_ID = _literal(b'{"id":"')
_OBJECT = _literal(b'","object":"')
_CREATED = _literal(b'","created":')
_MODEL = _literal(b',"model":"')
_CHOICES = _literal(b'","choices":[')
_TEXT = _literal(b'{"index":0,"text":"')
_CONTENT = _literal(b'{"index":0,"delta":{"content":"')
_OPENING = _literal(b'{"index":0,"delta":{"role":"assistant","content":""}')
_PROMPT = _literal(b'],"usage":{"prompt_tokens":')
_TOTAL = _literal(b',"total_tokens":')
_OUTPUT = _literal(b',"completion_tokens":')
_QUOTE, _BACKSLASH, _ZERO, _NINE = 0x22, 0x5C, 0x30, 0x39
MAX_DIGITS = 9
"""Of a count of tokens: what has more is nobody's usage, and would not fit into a record."""


@compiled
def shape(text: Text, at: int, end: int) -> tuple[int, int, int]:
    """What the data ``text[at:end]`` is, and two numbers about it.

    Of a token: how many bytes it has up to the ``{`` of its choice, and how many are its text, as it is written. Of the
    usage: the tokens of the prompt and of the answer. 0 of everything else.
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
    if after(text, at, end, _OPENING) >= 0:
        return OPENING, 0, 0
    token = after(text, at, end, _TEXT)
    if token < 0:
        token = after(text, at, end, _CONTENT)
        if 0 <= token < end and text[token] == _QUOTE:  # no text: not for certain a token
            return STRANGE, 0, 0
    if token < 0:
        return STRANGE, 0, 0
    return TOKEN, at + 1 - start, _end_of_string(text, token, end) - token


@compiled
def _usage(text: Text, at: int, end: int) -> tuple[int, int, int]:
    total = after(text, _end_of_number(text, at, end), end, _TOTAL)
    output = after(text, _end_of_number(text, total, end), end, _OUTPUT)
    whole = output >= 0 and _end_of_number(text, output, end) < end
    prompt_tokens, output_tokens = _number(text, at, end), _number(text, output, end)
    if not whole or prompt_tokens < 0 or output_tokens < 0:
        return STRANGE, 0, 0
    return USAGE, prompt_tokens, output_tokens


@compiled
def after(text: Text, at: int, end: int, literal: Text) -> int:
    """Where `literal`, which stands at `at`, ends; -1 if it does not stand there, before `end`, or `at` is negative."""
    if at < 0 or end - at < literal.size:
        return -1
    for i in range(literal.size):
        if text[at + i] != literal[i]:
            return -1
    return at + literal.size


@compiled
def _end_of_string(text: Text, at: int, end: int) -> int:
    """Where the quote is that closes the string that `at` is in, or `end`; escapes are followed."""
    while 0 <= at < end and text[at] != _QUOTE:
        at += 2 if text[at] == _BACKSLASH else 1
    return min(at, end)


@compiled
def _end_of_number(text: Text, at: int, end: int) -> int:
    """What the digits at `at`, of which there is one at least, end before; -1 without any."""
    start = at
    while 0 <= at < end and _ZERO <= text[at] <= _NINE:
        at += 1
    return at if at > start else -1


@compiled
def _number(text: Text, at: int, end: int) -> int:
    """What the digits at `at` say; -1 without any, or with too many."""
    stop = _end_of_number(text, at, end)
    if stop < 0 or stop - at > MAX_DIGITS:
        return -1
    value = 0
    for i in range(at, stop):
        value = 10 * value + int(text[i]) - _ZERO
    return value
