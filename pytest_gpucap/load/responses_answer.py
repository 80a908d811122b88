"""Streamed answers of ``/v1/responses``: events by type, of which those that add to the output are tokens."""

from __future__ import annotations

import json
from typing import Any, Final

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.event_stream import FIELD
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.request_fields import told_usage
from pytest_gpucap.load.server_words import error_in

_ENDS: Final = frozenset({"response.completed", "response.incomplete"})
_GIVEN_UP: Final = frozenset({"response.failed", "response.cancelled", "error"})
_OUTPUT: Final = ".delta"
"""The end of the type of every event that adds to the output: text, reasoning, arguments of a call."""
_REASONS: Final = {"max_output_tokens": "length"}


class ResponsesAnswer(Answer):
    """One such answer."""

    __slots__ = ()

    def event(self, data: bytes, time_s: float) -> None:
        """Take one event's data."""
        if data == b"[DONE]":
            self.streams.done[self.stream] = 1
            return
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            if data.strip():
                self.fail(Status.PROTOCOL, "an event that is no JSON object")
            return
        kind = found.get("type")
        if not isinstance(kind, str):
            kind = ""
        if kind.endswith(_OUTPUT):
            self._output(data, found.get("delta"), time_s)
        elif kind in _ENDS:
            self._ended(found.get("response"))
        elif kind in _GIVEN_UP:
            response = found.get("response")
            told = error_in(response if isinstance(response, dict) else found)
            self.fail(Status.STREAM_ERROR, *(told or (f"the answer ended with {kind}", 0)))
        elif not kind and (told := error_in(found)):
            self.fail(Status.STREAM_ERROR, *told)

    def _output(self, data: bytes, delta: Any, time_s: float) -> None:
        """Count an event that adds to the output; an empty one adds nothing."""
        if not delta:
            return
        size = len(FIELD) + len(data)
        if not self.events:
            text = len(json.dumps(delta, ensure_ascii=False).encode()) - 2
            self.streams.frame_bytes[self.stream] = max(size - text, 0)
        self.token(time_s, size)

    def _ended(self, response: Any) -> None:
        """Take the response as it ended: its usage, and why."""
        told = response if isinstance(response, dict) else {}
        usage, details = told.get("usage"), told.get("incomplete_details")
        if isinstance(usage, dict):
            self._counted(dict(told_usage(usage)), self.events)
        why = details.get("reason") if isinstance(details, dict) else None
        self.opening_reason = _REASONS.get(why, why) if isinstance(why, str) else "stop"
        self.streams.done[self.stream] = 1
