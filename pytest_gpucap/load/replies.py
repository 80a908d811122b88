"""How replies are recognised: headers and statuses that are no answer, and reads that are nothing but tokens."""

from __future__ import annotations

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.blocks import Count
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.sse import FIELD

OK = 200
CHUNK_SIZES = {header % size: size for size in range(1, 8192) for header in (b"%x", b"%X", b"%04x")}
"""Sizes of chunk headers, as servers write them."""
CHUNK_HEADS = {len(b"%x" % size) + size: b"%x\r\n" % size for size in range(1, 8192)}
"""How a chunk of one event begins, by its length without `EVENT_END`: what most servers write, in one comparison."""
NO_HEAD = b"\n"
HEAD_BYTES = 6
"""The longest of them; the shortest and ``data: `` are longer."""
EVENT_END = b"\n\n\r\n"
"""The end of an event, and of the chunk that holds it alone."""
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
"""The end of an answer in chunks, without trailers."""


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


def take_events(answer: Answer, data: bytes, time_s: float) -> bytes:
    """Hand over the whole chunks of one event of one data line each that `data` begins with; what is left of it."""
    pieces = data.rsplit(EVENT_END)  # half the time of a split from the left
    left = pieces.pop()
    before, tokens, size = answer.events, 0, 0
    line = answer.line
    for number, piece in enumerate(pieces):
        head = CHUNK_HEADS.get(len(piece), NO_HEAD)
        if line and piece.startswith(head + line) and piece.find(b"\n", HEAD_BYTES) < 0:
            tokens += 1
            size += len(piece) - len(head)
            continue
        if tokens:
            answer.tokens(tokens, size, time_s)
            tokens = size = 0
        if not _take_event(answer, piece, time_s):
            left = EVENT_END.join((*pieces[number:], left))
            break
        line = answer.line
    if tokens:
        answer.tokens(tokens, size, time_s)
    if answer.events > before:
        answer.tail = data
        if answer.events > before + 1:
            answer.recorder.add(Count.SHARED_EVENTS, answer.events - before)
    return left


def _take_event(answer: Answer, piece: bytes, time_s: float) -> bool:
    """Hand over one event, if `piece` is a chunk of one event of one data line, both without their ends."""
    size = piece.find(b"\r\n", 1, HEAD_BYTES)
    line = size + 2
    if (
        CHUNK_SIZES.get(piece[:size]) != len(piece) - size
        or not piece.startswith(FIELD, line)
        or piece.find(b"\n", line) >= 0
        or piece.find(b"\r", line) >= 0
    ):
        return False
    answer.event(piece[line + len(FIELD) :], time_s)
    return True


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
