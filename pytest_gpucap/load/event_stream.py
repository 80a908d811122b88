"""Server-sent events out of a body that arrives in pieces (WHATWG HTML, section 9.2, "Server-sent events")."""

from __future__ import annotations

from pytest_gpucap.errors import GpuCapError

FIELD = b"data: "
"""What stands before an event's data, as servers write it."""
MAX_EVENT_BYTES = 16 * 2**20
"""The longest event that is accepted. No answer of a language model comes near, and memory stays bounded."""


class EventStreamError(GpuCapError, ValueError):
    """The body is no event stream."""


MOST_STRAY_BYTES = 8_192
"""Kept of lines that are no part of an event stream."""
IGNORED_EVENTS = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive"})
"""Names of events that keep a connection open; their data is of any form."""


class EventStream:
    """An incremental parser.

    Fields that carry nothing that is measured are skipped, but not what tells of an error.

    Attributes:
        error: the data of the first event named ``error``, or the value of a field of that name; None where there is
            none.
    """

    __slots__ = ("_data", "_name", "_pending", "_stray", "error")

    def __init__(self) -> None:
        self._pending = self._name = self._stray = b""
        self._data: list[bytes] = []
        self.error: bytes | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is held back: the next byte begins an event."""
        return not self._pending and not self._data and not self._name

    @property
    def stray(self) -> bytes:
        """The beginning of all lines that belong to no event stream, as a page or an object in its place has."""
        return self._stray + (self._pending if _is_stray(self._pending) else b"")

    @property
    def rest(self) -> bytes:
        """The data of an event that has begun."""
        line = self._pending.rstrip(b"\r")
        return b"\n".join([*self._data, *([_value(line)] if line.startswith(b"data:") else [])])

    def feed(self, body: bytes) -> list[bytes]:
        """The data of each event that `body` completes, but not of those that report an error or keep alive.

        Raises:
            EventStreamError: if an event grows beyond `MAX_EVENT_BYTES`.
        """
        if self.empty and b"\r" not in body and body.endswith(b"\n\n"):
            # What nearly every server sends: whole events of one data line each.
            if body.startswith(FIELD) and body.find(b"\n") == len(body) - 2:
                return [body[len(FIELD) : -2]]
            events = body[:-2].split(b"\n\n")
            if all(event.startswith(FIELD) and b"\n" not in event for event in events):
                return [event[len(FIELD) :] for event in events]
        return self._slow(body)

    def _slow(self, body: bytes) -> list[bytes]:
        text = self._pending + body
        if len(text) > MAX_EVENT_BYTES or sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise EventStreamError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pending = lines.pop() + held
        events = []
        for line in lines:
            if not line:
                events += self._dispatched()
            elif line.startswith(b"data:"):
                self._data.append(_value(line))
            elif line == b"data":
                self._data.append(b"")
            elif line.startswith(b"event:"):
                self._name = _value(line).strip()
            elif line.startswith(b"error:"):
                self._failed(_value(line))
            elif _is_stray(line) and len(self._stray) < MOST_STRAY_BYTES:
                self._stray += line + b"\n"
        return events

    def _dispatched(self) -> list[bytes]:
        """The event that a blank line ends; empty if there is none, or if it is none for an answer."""
        data, name = self._data, self._name.lower()
        self._data, self._name = [], b""
        if name == b"error":
            self._failed(b"\n".join(data))
            return []
        return [b"\n".join(data)] if data and name not in IGNORED_EVENTS else []

    def _failed(self, data: bytes) -> None:
        if self.error is None:
            self.error = data


def _value(line: bytes) -> bytes:
    return line.partition(b":")[2].removeprefix(b" ")


def _is_stray(line: bytes) -> bool:
    """Whether a line, or its beginning, is no comment and of no field that event streams have."""
    return bool(line.strip()) and line.partition(b":")[0].strip() not in _FIELDS


_FIELDS = frozenset({b"", b"data", b"event", b"id", b"retry", b"error"})
