"""How replies are recognised: headers and statuses that are no answer, and reads that are nothing but tokens."""

from __future__ import annotations

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.protocol import Status

OK = 200
CHUNK_SIZES = {header % size: size for size in range(1, 8192) for header in (b"%x", b"%X", b"%04x")}
"""Sizes of chunk headers, as servers write them."""
EVENT_END = b"\n\n\r\n"
"""The end of an event, and of the chunk that holds it alone."""


def judge_head(answer: Answer, status: int, content_type: str, encoding: str) -> None:
    """Fail an answer whose headers promise no event stream (both in lower case)."""
    if status != OK:
        return
    if encoding not in ("", "identity"):
        answer.fail(Status.PROTOCOL, f"compressed ({encoding}) though refused")
    elif not content_type.startswith("text/event-stream"):
        answer.fail(Status.PROTOCOL, f"answered with {content_type or 'nothing'} instead of text/event-stream")


def judge_status(answer: Answer, status: int, body: bytes) -> None:
    """Fail an answer that is none, with the beginning of what came instead."""
    if status != OK:
        answer.fail(_status_of(status), f"HTTP {status}: {_excerpt(body)}")


def whole_events(data: bytes, line: bytes) -> tuple[int, int]:
    """How many whole chunks of one token event each `data` begins with, and their length."""
    events = length = 0
    pieces = data.split(EVENT_END)
    for piece in pieces[:-1]:
        size = piece.find(b"\r\n", 1, 6)
        if (
            CHUNK_SIZES.get(piece[:size]) != len(piece) - size
            or not piece.startswith(line, size + 2)
            or piece.find(b"\n", size + 2) >= 0
        ):
            break
        events += 1
        length += len(piece) + len(EVENT_END)
    return events, length


def _status_of(code: int) -> Status:
    if 300 <= code < 400:  # noqa: PLR2004 - redirects
        return Status.REDIRECT
    if 400 <= code < 500:  # noqa: PLR2004 - client errors
        return Status.HTTP_4XX
    if 500 <= code < 600:  # noqa: PLR2004 - server errors
        return Status.HTTP_5XX
    return Status.PROTOCOL


def _excerpt(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:200]
