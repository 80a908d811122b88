"""Server-sent events out of a body that arrives in pieces (WHATWG HTML, section 9.2, "Server-sent events")."""

from __future__ import annotations

from pytest_gpucap.errors import GpuCapError

FIELD = b"data: "
"""What an event's data comes after, as servers write it."""
MAX_EVENT_BYTES = 16 * 2**20
"""One event may not be longer: no answer of a language model comes near, and memory stays bounded."""


class EventStreamError(GpuCapError, ValueError):
    """The body is no event stream."""


class EventStream:
    """An incremental parser. Fields other than ``data`` are skipped; they carry nothing that is measured."""

    __slots__ = ("_data", "_pending")

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []

    @property
    def empty(self) -> bool:
        """Nothing is held back: the next byte begins an event."""
        return not self._pending and not self._data

    def feed(self, body: bytes) -> list[bytes]:
        """The data of each event that `body` completes.

        Raises:
            EventStreamError: if an event grows beyond `MAX_EVENT_BYTES`.
        """
        if not self._pending and not self._data and b"\r" not in body and body.endswith(b"\n\n"):
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
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif line == b"data":
                self._data.append(b"")
        return events
