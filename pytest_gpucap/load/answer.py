"""One request's answer, event by event: first token, gaps, token counts, how it ended.

No JSON is parsed for an ordinary token. An event counts as a token event when it begins like an earlier token event of
the same answer, from its id to the opening of its choices. Everything else is parsed and judged. One event may hold
several tokens, and a server may end with an event that holds none; the usage settles both. Until the usage comes, the
tokens of an answer with several tokens per event are estimated from the length of its text, by the tokens per byte of
the latest whole answers.

The figures are in a `STREAM_STATE` record, which the fast reader counts into as well: most events never come here.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pytest_gpucap.load.event_stream import FIELD
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import Count, PhaseTable

USAGE_KEY = b'"completion_tokens"'
"""In every usage object and nowhere else: inside a token's text the quotes would be escaped."""
EVENT_TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)":\s?"((?:[^"\\]|\\.)*)"')
"""The text of a token event, as it is written."""
CHOICES_OPENING = re.compile(rb'"choices":\s?\[\{')
"""Near the beginning of every token event's data, and of no other's: the usage chunk's choices are empty."""
CHOICES_WITHIN = 400
"""The choices open within the first bytes of the data, or the event is not learnt from."""
HTTP_OK = 200


class Answer:
    """The state of one request from its sending to its end; its figures are in ``streams``, at index ``stream``."""

    __slots__ = (
        "error",
        "extra_tokens",
        "extra_until_s",
        "last_event",
        "recorder",
        "row",
        "status",
        "stream",
        "streams",
        "table",
    )

    def __init__(self, table: PhaseTable, row: int, recorder: Recorder) -> None:
        self.table, self.row, self.recorder = table, row, recorder
        self.streams = streams = recorder.streams
        self.stream = stream = streams.acquire()
        streams.first_address[stream] = table.first_address + 8 * row
        streams.sent_address[stream] = table.sent_address + 8 * row
        self.last_event = b""
        """The last token event that was parsed here; some servers put the usage into it."""
        self.extra_tokens = 0
        """Tokens counted so far beyond one per event."""
        self.extra_until_s: float | None = None
        """Extra tokens are counted up to this time; None: up to the first token."""
        self.status: Status | None = None
        """Set as soon as the answer has gone wrong."""
        self.error = ""

    @property
    def events(self) -> int:
        """Events with a token."""
        events: int = self.streams.events[self.stream]
        return events

    @property
    def done(self) -> bool:
        """Whether the server has sent [DONE]."""
        return bool(self.streams.done[self.stream])

    @property
    def sent_s(self) -> float:
        """When the request was handed to the kernel; NaN before."""
        sent_s: float = self.streams.sent_s[self.stream]
        return sent_s

    @sent_s.setter
    def sent_s(self, time_s: float) -> None:
        self.streams.sent_s[self.stream] = time_s

    def fail(self, status: Status, error: str) -> None:
        """Note what went wrong; only the first failure is reported."""
        if self.status is None:
            self.status, self.error = status, error

    def token(self, time_s: float, size: int = 0) -> None:
        """Count an event with a token, in a line of `size` bytes."""
        streams, stream, recorder = self.streams, self.stream, self.recorder
        if streams.events[stream]:
            recorder.gaps.append(streams.gap_s[stream])
            streams.gap_s[stream] = time_s - streams.last_s[stream]
            streams.event_bytes[stream] += size
        else:
            streams.first_s[stream] = time_s
            # In the journal from now on: a measurement asks which requests decode while answers are still coming.
            self.table.first[self.row], self.table.sent[self.row] = time_s, streams.sent_s[stream]
        streams.events[stream] += 1
        streams.last_s[stream] = time_s
        recorder.token_times.append(time_s)

    def event(self, data: bytes, time_s: float) -> None:
        """Take one event's data."""
        prefix = self.streams.prefix_of(self.stream)
        if prefix and data.startswith(prefix):
            self._take(data, time_s)
        elif data == b"[DONE]":
            self.streams.done[self.stream] = 1
        else:
            self._inspect(data, time_s)

    def _take(self, data: bytes, time_s: float) -> None:
        """Count a token event."""
        self.token(time_s, len(FIELD) + len(data))
        self.last_event = data

    def _learn(self, data: bytes, prefix: int, time_s: float) -> None:
        """Count a token event. Others will begin with its first `prefix` bytes."""
        self._take(data, time_s)
        texts = EVENT_TEXT.findall(data)
        self.streams.frame_bytes[self.stream] = len(FIELD) + len(data) - sum(map(len, texts)) if texts else 0
        self.streams.set_prefix(self.stream, data[:prefix])

    def _inspect(self, data: bytes, time_s: float) -> None:
        try:
            chunk = json.loads(data)
        except ValueError:
            self.fail(Status.PROTOCOL, f"an event that is no JSON: {data[:80]!r}")
            return
        if not isinstance(chunk, dict):
            self.fail(Status.PROTOCOL, f"an event that is no JSON object: {data[:80]!r}")
        elif chunk.get("error") or chunk.get("object") == "error":
            self.fail(Status.STREAM_ERROR, _error_text(chunk))
        else:
            usage = chunk.get("usage")
            if isinstance(usage, dict):
                self._counted(usage)
            choices = chunk.get("choices")
            if isinstance(choices, list) and choices and not self._opening(choices[0]):
                begun = CHOICES_OPENING.search(data, 0, CHOICES_WITHIN) if data.startswith(b'{"id"') else None
                self._learn(data, begun.end() if begun else 0, time_s)

    def _opening(self, choice: Any) -> bool:
        """Whether this is the chunk that opens a chat answer: it names the role and holds no token."""
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or self.events:
            return False
        holds = any(delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls"))
        return not holds and ("role" in delta or choice.get("finish_reason") is None)

    def _counted(self, usage: dict[str, Any]) -> None:
        cached = cached_tokens(usage) if self.recorder.cached_apart else None
        self.streams.counted_prompt[self.stream] = _count(usage, "prompt_tokens") + (cached or 0)
        self.streams.counted_output[self.stream] = _count(usage, "completion_tokens")

    @property
    def text_bytes(self) -> int:
        """Bytes of text after the first event, as they are written in JSON; 0 where events are of no known form."""
        streams, stream = self.streams, self.stream
        frame_bytes: int = streams.frame_bytes[stream]
        event_bytes: int = streams.event_bytes[stream]
        return event_bytes - (self.events - 1) * frame_bytes if frame_bytes else 0

    def count_expected_tokens(self, per_byte: float) -> None:
        """Count the tokens of the text so far, at `per_byte` tokens per byte: a phase ends while the answer goes on.

        On a server that sends several tokens per event, the end of a phase would otherwise look slower than its
        beginning. The number of events does not tell: a busy server sends one token in an event now and a hundred then.
        """
        if per_byte and self.events:
            expected = min(1 + round(self.text_bytes * per_byte), self.table.output[self.row])
            self._set_extra_tokens(max(expected - self.events, 0))

    def _set_extra_tokens(self, extra: int) -> None:
        """Have `extra` tokens beyond one per event counted by now; the new ones evenly since the last time."""
        if extra != self.extra_tokens:
            first_s, last_s = self.streams.first_s[self.stream], self.streams.last_s[self.stream]
            since_s = first_s if self.extra_until_s is None else self.extra_until_s
            self.recorder.add_tokens_evenly(since_s, last_s, extra - self.extra_tokens)
            self.extra_tokens, self.extra_until_s = extra, last_s

    def check_headers(self, http_status: int, content_type: str, encoding: str) -> None:
        """Fail where the headers promise no event stream (both in lower case)."""
        if http_status != HTTP_OK:
            return
        if encoding not in ("", "identity"):
            self.fail(Status.PROTOCOL, f"compressed ({encoding}) though refused")
        elif not content_type.startswith("text/event-stream"):
            self.fail(Status.PROTOCOL, f"answered with {content_type or 'nothing'} instead of text/event-stream")

    def check_http_status(self, http_status: int, body: bytes) -> None:
        """Fail where the server refused the request, with the beginning of its reason."""
        if http_status != HTTP_OK:
            reason = " ".join(body.decode("utf-8", "replace").split())[:200]
            self.fail(_REFUSALS.get(http_status // 100, Status.PROTOCOL), f"HTTP {http_status}: {reason}")

    def finish(self, end_s: float, *, ignore_eos: bool) -> Status:
        """Settle the token counts, write the row, release the stream state; returns the final status."""
        streams, stream = self.streams, self.stream
        recorder, row, table = self.recorder, self.row, self.table
        if USAGE_KEY in self.last_event and not streams.counted_output[stream]:
            self._usage_of_last_event()
        counted, events = streams.counted_output[stream], streams.events[stream]
        if counted and events == counted + 1 and events > 1:
            # The last event only said why the answer ended.
            recorder.withdraw_token(streams.last_s[stream])
            streams.last_s[stream] -= streams.gap_s[stream]
            events = counted
        elif events:
            recorder.gaps.append(streams.gap_s[stream])
        if counted and events:
            extra = max(counted - events, 0)
            self._set_extra_tokens(extra)
            # An event of k tokens is one gap and k - 1 gaps of 0 s.
            recorder.gaps.extend([0.0] * extra)
            recorder.learn_text_length(counted - 1, self.text_bytes if extra else 0)
        else:
            self.count_expected_tokens(recorder.tokens_per_byte)
        asked = table.output[row]
        whole = self.status is None and events > 0 and (counted >= asked or (counted > 0 and not ignore_eos))
        status = Status.OK if whole else self._judge(ignore_eos=ignore_eos, asked=asked)
        if status is Status.OK or status is Status.SHORT:
            if not counted:
                recorder.add(Count.WITHOUT_USAGE)
            else:
                recorder.add(Count.PROMPTS)
                if streams.counted_prompt[stream] != table.prompt[row]:
                    recorder.add(Count.WRONG_PROMPT)
                    recorder.add(Count.WRONG_ASKED, table.prompt[row])
                    recorder.add(Count.WRONG_COUNTED, streams.counted_prompt[stream])
        table.sent[row], table.end[row] = streams.sent_s[stream], end_s
        table.first[row], table.last[row] = streams.first_s[stream], streams.last_s[stream]
        table.counted_prompt[row], table.counted_output[row] = streams.counted_prompt[stream], counted
        table.state[row] = status
        streams.release(stream)
        return status

    def _usage_of_last_event(self) -> None:
        with contextlib.suppress(ValueError, AttributeError):
            usage = json.loads(self.last_event).get("usage")
            if isinstance(usage, dict):
                self._counted(usage)

    def _judge(self, *, ignore_eos: bool, asked: int) -> Status:
        if self.status is not None:
            return self.status
        counted = self.streams.counted_output[self.stream]
        if not (self.done or counted):
            self.fail(Status.RESET, "the answer ended before [DONE]")
            return Status.RESET
        if not self.events:
            self.fail(Status.PROTOCOL, "an answer without a token")
            return Status.PROTOCOL
        if ignore_eos and 0 < counted < asked:
            self.fail(Status.SHORT, f"{counted} tokens instead of {asked}")
            return Status.SHORT
        return Status.OK


_REFUSALS = {3: Status.REDIRECT, 4: Status.HTTP_4XX, 5: Status.HTTP_5XX}
"""By the class of the HTTP status."""


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def cached_tokens(usage: Mapping[str, Any]) -> int | None:
    """The prompt tokens that the server had in its cache, by an answer's usage; None if it does not tell."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if isinstance(cached, int) and not isinstance(cached, bool) and 0 <= cached < 2**30 else None


def _error_text(chunk: dict[str, Any]) -> str:
    error = chunk.get("error") or chunk
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:200]
