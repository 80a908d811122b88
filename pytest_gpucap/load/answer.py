"""One request's answer, event by event: first token, gaps, token counts, how it ended.

No JSON is parsed for an ordinary token. An event counts as one when it begins like an earlier token event of the same
answer, from its id to the opening of its choices; everything else is parsed and judged. One event may hold several
tokens, and a server may end with an event that holds none: the usage settles both. Until it comes, an answer of several
tokens an event is taken to have as many as its text is long for, by the tokens and texts of the latest whole answers.

The numbers are in a slot that `lane` counts into as well: most events never come here.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from pytest_gpucap.load.event_stream import FIELD
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import Count, PhaseTable

USAGE = b'"completion_tokens"'
"""In every usage object and nowhere else: inside a token's text the quotes would be escaped."""
TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)":\s?"((?:[^"\\]|\\.)*)"')
"""The text of a token event, as it is written."""
CHOICES = re.compile(rb'"choices":\s?\[\{')
"""What the data of a token event and of no other holds near its beginning: the usage chunk's choices are empty."""
MAX_PREFIX = 400


class Answer:
    """The state of one request from its sending to its end.

    In its slot are (see `Slots`):
        first_s, last_s: when its first and last tokens came.
        gap_s: the gap before the last event, not yet recorded: the event may turn out to be no token.
        sent_s: when it was handed to the kernel.
        events: events with a token.
        line: how the data of token events begins, up to their choices; renewed when it changes (a time in it, say).
        size: bytes of the lines of events with a token, after the first: that one may repeat the end of the prompt.
        around: bytes of the line of such an event without its text; 0 until it is known.
        counted_prompt, counted_output: by the usage.
        done: 1 after [DONE].
    """

    __slots__ = (
        "error",
        "recorder",
        "row",
        "slot",
        "slots",
        "spread",
        "spread_to_s",
        "status",
        "table",
        "tail",
    )

    def __init__(self, table: PhaseTable, row: int, recorder: Recorder) -> None:
        self.table, self.row, self.recorder = table, row, recorder
        self.slots = slots = recorder.slots
        self.slot = slot = slots.take()
        slots.first_address[slot] = table.first_address + 8 * row
        slots.sent_address[slot] = table.sent_address + 8 * row
        self.tail = b""
        """The last event with a token that was looked at here; some servers put the usage in there."""
        self.spread = 0
        """Tokens counted so far beyond one an event."""
        self.spread_to_s: float | None = None
        """Up to when; from the first token on."""
        self.status: Status | None = None
        """Set as soon as the answer has gone wrong."""
        self.error = ""

    @property
    def events(self) -> int:
        """Events with a token."""
        events: int = self.slots.events[self.slot]
        return events

    @property
    def done(self) -> bool:
        """The server has said that it is."""
        return bool(self.slots.done[self.slot])

    @property
    def sent_s(self) -> float:
        """When the request was handed to the kernel; NaN before."""
        sent_s: float = self.slots.sent_s[self.slot]
        return sent_s

    @sent_s.setter
    def sent_s(self, time_s: float) -> None:
        self.slots.sent_s[self.slot] = time_s

    def fail(self, status: Status, error: str) -> None:
        """The first thing that goes wrong is what is reported."""
        if self.status is None:
            self.status, self.error = status, error

    def token(self, time_s: float, size: int = 0) -> None:
        """An event with a token, in a line of `size` bytes."""
        slots, slot, recorder = self.slots, self.slot, self.recorder
        if slots.events[slot]:
            recorder.gaps.append(slots.gap_s[slot])
            slots.gap_s[slot] = time_s - slots.last_s[slot]
            slots.size[slot] += size
        else:
            slots.first_s[slot] = time_s
            # Known to the journal from now on: who decodes matters to a measurement while answers are still coming.
            self.table.first[self.row], self.table.sent[self.row] = time_s, slots.sent_s[slot]
        slots.events[slot] += 1
        slots.last_s[slot] = time_s
        recorder.times.append(time_s)

    def event(self, data: bytes, time_s: float) -> None:
        """One event's data."""
        line = self.slots.line_of(self.slot)
        if line and data.startswith(line):
            self._take(data, time_s)
        elif data == b"[DONE]":
            self.slots.done[self.slot] = 1
        else:
            self._inspect(data, time_s)

    def _take(self, data: bytes, time_s: float) -> None:
        """A token event."""
        self.token(time_s, len(FIELD) + len(data))
        self.tail = data

    def _learn(self, data: bytes, prefix: int, time_s: float) -> None:
        """A token event, and how others will begin: with its first `prefix` bytes."""
        self._take(data, time_s)
        texts = TEXT.findall(data)
        self.slots.around[self.slot] = len(FIELD) + len(data) - sum(map(len, texts)) if texts else 0
        self.slots.set_line(self.slot, data[:prefix])

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
                begun = CHOICES.search(data, 0, MAX_PREFIX) if data.startswith(b'{"id"') else None
                self._learn(data, begun.end() if begun else 0, time_s)

    def _opening(self, choice: Any) -> bool:
        """Chat answers open with a chunk that names the role and holds no token."""
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or self.events:
            return False
        holds = any(delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls"))
        return not holds and ("role" in delta or choice.get("finish_reason") is None)

    def _counted(self, usage: dict[str, Any]) -> None:
        self.slots.counted_prompt[self.slot] = _count(usage, "prompt_tokens")
        self.slots.counted_output[self.slot] = _count(usage, "completion_tokens")

    @property
    def text_bytes(self) -> int:
        """Bytes of text after the first event, as they are written in JSON; 0 where events are of no known form."""
        slots, slot = self.slots, self.slot
        around: int = slots.around[slot]
        size: int = slots.size[slot]
        return size - (self.events - 1) * around if around else 0

    def spread_expected(self, per_byte: float) -> None:
        """Count the tokens of the text so far at `per_byte` each: a phase ends, the answer goes on.

        Without them the end of a phase would look slower than its beginning, on a server that sends several at once.
        The number of events does not tell: a busy server sends one token in an event now and a hundred then.
        """
        if per_byte and self.events:
            expected = min(1 + round(self.text_bytes * per_byte), self.table.output[self.row])
            self._spread(max(expected - self.events, 0))

    def _spread(self, extra: int) -> None:
        """Have `extra` tokens beyond one an event counted by now, the new ones evenly since the last time."""
        if extra != self.spread:
            first_s, last_s = self.slots.first_s[self.slot], self.slots.last_s[self.slot]
            since_s = first_s if self.spread_to_s is None else self.spread_to_s
            self.recorder.spread_tokens(since_s, last_s, extra - self.spread)
            self.spread, self.spread_to_s = extra, last_s

    def finish(self, end_s: float, *, ignore_eos: bool) -> Status:
        """Settle the token counts, write the row and give the slot back; the final status."""
        slots, slot = self.slots, self.slot
        recorder, row, table = self.recorder, self.row, self.table
        if USAGE in self.tail and not slots.counted_output[slot]:
            self._usage_of_tail()
        counted, events = slots.counted_output[slot], slots.events[slot]
        if counted and events == counted + 1 and events > 1:
            # The last event only said why the answer ended.
            recorder.withdraw_token(slots.last_s[slot])
            slots.last_s[slot] -= slots.gap_s[slot]
            events = counted
        elif events:
            recorder.gaps.append(slots.gap_s[slot])
        if counted and events:
            extra = max(counted - events, 0)
            self._spread(extra)
            # An event of k tokens is one gap and k - 1 gaps of nothing.
            recorder.gaps.extend([0.0] * extra)
            recorder.learn(counted - 1, self.text_bytes if extra else 0)
        else:
            self.spread_expected(recorder.tokens_per_byte)
        asked = table.output[row]
        whole = self.status is None and events > 0 and (counted >= asked or (counted > 0 and not ignore_eos))
        status = Status.OK if whole else self._judge(ignore_eos=ignore_eos, asked=asked)
        if status is Status.OK or status is Status.SHORT:
            if not counted:
                recorder.add(Count.WITHOUT_USAGE)
            elif slots.counted_prompt[slot] != table.prompt[row]:
                recorder.add(Count.WRONG_PROMPT)
        table.sent[row], table.end[row] = slots.sent_s[slot], end_s
        table.first[row], table.last[row] = slots.first_s[slot], slots.last_s[slot]
        table.counted_prompt[row], table.counted_output[row] = slots.counted_prompt[slot], counted
        table.state[row] = status
        slots.give(slot)
        return status

    def _usage_of_tail(self) -> None:
        with contextlib.suppress(ValueError, AttributeError):
            usage = json.loads(self.tail).get("usage")
            if isinstance(usage, dict):
                self._counted(usage)

    def _judge(self, *, ignore_eos: bool, asked: int) -> Status:
        if self.status is not None:
            return self.status
        counted = self.slots.counted_output[self.slot]
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


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _error_text(chunk: dict[str, Any]) -> str:
    error = chunk.get("error") or chunk
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:200]
