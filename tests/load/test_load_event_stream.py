"""The event-stream parser: any division of any stream gives the events that the whole gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.load.event_stream import MAX_EVENT_BYTES, EventStream, EventStreamError

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data: a b",
        b"data",
        b"data:",
        b": comment",
        b"event: e",
        b"id: 1",
        b"retry: 5",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=30).map(lambda lines: b"".join(line + end for line, end in lines))


def reference(text: bytes) -> list[bytes]:
    """The standard's algorithm, line by line, on the whole text."""
    events: list[bytes] = []
    data: list[bytes] = []
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for line in lines[:-1]:  # what follows the last line end is an unfinished line
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
    return events


def feed(pieces: list[bytes]) -> list[bytes]:
    stream = EventStream()
    return [event for piece in pieces for event in stream.feed(piece)]


@given(STREAMS, st.lists(st.integers(0, 400)))
def test_any_division_gives_the_same_events(text: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    # A CR at the very end may be half of a CRLF: only the next byte tells, so one more line is sent.
    assert feed([*pieces, b": end\n"]) == reference(text + b": end\n")


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_that_comes_breaks_it(one: bytes, other: bytes) -> None:
    assert feed([one, other, b"\n: end\n"]) == reference(one + other + b"\n: end\n")


def test_it_knows_when_nothing_is_held_back() -> None:
    stream = EventStream()
    assert stream.empty
    assert stream.feed(b"data: a\n") == []
    assert not stream.empty
    assert stream.feed(b"\n") == [b"a"]
    assert stream.empty


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"])
def test_an_endless_event_is_refused_not_kept(piece: bytes) -> None:
    with pytest.raises(EventStreamError, match="more than 16777216 bytes"):
        feed([piece] * (MAX_EVENT_BYTES // 2**20 + 2))
