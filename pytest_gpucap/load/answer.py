"""One request's answer, event by event: first token, gaps, token counts, how it ended.

No JSON is parsed for an ordinary token. An event counts as one when it begins like an earlier token event of the same
answer, from its id to the opening of its choices; everything else is parsed and judged. One event may hold several
tokens, and a server may end with an event that holds none: the usage settles both. Until it comes, an answer of several
tokens an event is taken to have as many as its text is long for, by the tokens and texts of the latest whole answers.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from pytest_gpucap.load.blocks import Count, PhaseTable
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.sse import FIELD

USAGE = b'"completion_tokens"'
"""In every usage object and nowhere else: inside a token's text the quotes would be escaped."""
_COMMON = rb'\{"id":"[^"\\]{1,99}","object":"[a-z_.]+","created":\d+,"model":"[^"\\]*","choices":\['
PLAIN = re.compile(
    _COMMON + rb'(?:(\{)"index":0,(?:"text":"|"delta":\{"content":"(?!"))'
    rb'|\],"usage":\{"prompt_tokens":(\d{1,9}),"total_tokens":\d+,"completion_tokens":(\d{1,9})[,}])'
)
"""A token event and the usage chunk as vLLM writes them; what looks otherwise is parsed as JSON."""
TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)":\s?"((?:[^"\\]|\\.)*)"')
"""The text of a token event, as it is written."""
CHOICES = re.compile(rb'"choices":\s?\[\{')
"""What the data of a token event and of no other holds near its beginning: the usage chunk's choices are empty."""
MAX_PREFIX = 400
NAN = float("nan")


class Answer:
    """The state of one request from its sending to its end."""

    __slots__ = (
        "counted_output",
        "counted_prompt",
        "done",
        "error",
        "events",
        "first_s",
        "gap_s",
        "last_s",
        "line",
        "number",
        "prefix",
        "recorder",
        "row",
        "sample",
        "sent_at",
        "size",
        "spread",
        "spread_to_s",
        "status",
        "table",
        "tail",
    )

    def __init__(self, table: PhaseTable, row: int, number: int, recorder: Recorder) -> None:
        self.table, self.row, self.number, self.recorder = table, row, number, recorder
        self.first_s = self.last_s = NAN
        self.gap_s = NAN
        """The gap before the last event, not yet recorded: the event may turn out to be no token."""
        self.events = 0
        self.prefix: bytes | None = None
        """How the data of token events begins, up to their choices; renewed when it changes (a time in it, say)."""
        self.line: bytes | None = None
        """The same with the field's name."""
        self.tail = b""
        """The last read or event with a token; some servers put the usage in there."""
        self.sample = b""
        """The data of a token event, to tell its text from what is around it."""
        self.size = 0
        """Bytes of the lines of events with a token, after the first: that one may repeat the end of the prompt."""
        self.counted_prompt = self.counted_output = 0
        self.spread = 0
        """Tokens counted so far beyond one an event."""
        self.spread_to_s = NAN
        """Up to when; from the first token on."""
        self.done = False
        self.status: Status | None = None
        """Set as soon as the answer has gone wrong."""
        self.error = ""
        self.sent_at = NAN

    def fail(self, status: Status, error: str) -> None:
        """The first thing that goes wrong is what is reported."""
        if self.status is None:
            self.status, self.error = status, error

    def token(self, time_s: float) -> None:
        """An event with a token."""
        recorder = self.recorder
        if self.events:
            recorder.gaps.append(self.gap_s)
            self.gap_s = time_s - self.last_s
        else:
            self.first_s = self.spread_to_s = time_s
            # Known to the journal from now on: who decodes matters to a measurement while answers are still coming.
            self.table.first[self.row], self.table.sent[self.row] = time_s, self.sent_at
        self.events += 1
        self.last_s = time_s
        recorder.times.append(time_s)

    def tokens(self, count: int, size: int, time_s: float) -> None:
        """Several events with a token each, in lines of `size` bytes, received together; not the answer's first."""
        recorder = self.recorder
        recorder.gaps.append(self.gap_s)
        self.gap_s = time_s - self.last_s
        if count > 1:
            recorder.gaps.append(self.gap_s)
            recorder.gaps.extend([0.0] * (count - 2))
            self.gap_s = 0.0
        self.events += count
        self.size += size
        self.last_s = time_s
        recorder.times.extend([time_s] * count)

    def event(self, data: bytes, time_s: float) -> None:
        """One event's data."""
        if self.prefix is not None and data.startswith(self.prefix):
            self._take(data, time_s)
        elif data == b"[DONE]":
            self.done = True
        elif not (plain := PLAIN.match(data)):
            self._inspect(data, time_s)
        elif plain[1]:
            self._learn(data, plain.end(1), time_s)
        else:
            self.counted_prompt, self.counted_output = int(plain[2]), int(plain[3])

    def _take(self, data: bytes, time_s: float) -> None:
        """A token event."""
        if self.events:
            self.size += len(FIELD) + len(data)
        self.token(time_s)
        self.tail = data

    def _learn(self, data: bytes, prefix: int, time_s: float) -> None:
        """A token event, and how others will begin: with its first `prefix` bytes."""
        self._take(data, time_s)
        self.sample = data
        if prefix:
            self.prefix = data[:prefix]
            self.line = FIELD + self.prefix

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
                self.counted_prompt = _count(usage, "prompt_tokens")
                self.counted_output = _count(usage, "completion_tokens")
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

    @property
    def text_bytes(self) -> int:
        """Bytes of text after the first event, as they are written in JSON; 0 where events are of no known form."""
        texts = TEXT.findall(self.sample)
        around = len(FIELD) + len(self.sample) - sum(map(len, texts))
        return self.size - (self.events - 1) * around if texts else 0

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
            self.recorder.spread_tokens(self.spread_to_s, self.last_s, extra - self.spread)
            self.spread, self.spread_to_s = extra, self.last_s

    def finish(self, end_s: float, *, ignore_eos: bool) -> Status:
        """Settle the token counts and write the row; the final status."""
        recorder, row, table = self.recorder, self.row, self.table
        if not self.counted_output and USAGE in self.tail:
            self._usage_of_tail()
        counted, events = self.counted_output, self.events
        if counted and events == counted + 1 and events > 1:
            # The last event only said why the answer ended.
            recorder.withdraw_token(self.last_s)
            self.last_s -= self.gap_s
            events = counted
        elif events:
            recorder.gaps.append(self.gap_s)
        if counted and events:
            extra = max(counted - events, 0)
            self._spread(extra)
            # An event of k tokens is one gap and k - 1 gaps of nothing.
            recorder.gaps.extend([0.0] * extra)
            recorder.learn(counted - 1, self.text_bytes if extra else 0)
        else:
            self.spread_expected(recorder.tokens_per_byte)
        status = self._judge(ignore_eos=ignore_eos, asked=table.output[row])
        if status is Status.OK or status is Status.SHORT:
            if not counted:
                recorder.add(Count.WITHOUT_USAGE)
            elif self.counted_prompt != table.prompt[row]:
                recorder.add(Count.WRONG_PROMPT)
        table.sent[row] = self.sent_at
        table.first[row], table.last[row], table.end[row] = self.first_s, self.last_s, end_s
        table.counted_prompt[row], table.counted_output[row] = self.counted_prompt, counted
        table.state[row] = status
        return status

    def _usage_of_tail(self) -> None:
        for line in self.tail.splitlines():
            if USAGE in line:
                with contextlib.suppress(ValueError, AttributeError):
                    usage = json.loads(line.removeprefix(FIELD)).get("usage")
                    if isinstance(usage, dict):
                        self.counted_prompt = _count(usage, "prompt_tokens")
                        self.counted_output = _count(usage, "completion_tokens")

    def _judge(self, *, ignore_eos: bool, asked: int) -> Status:
        if self.status is not None:
            return self.status
        if not (self.done or self.counted_output):
            self.fail(Status.RESET, "the answer ended before [DONE]")
            return Status.RESET
        if not self.events:
            self.fail(Status.PROTOCOL, "an answer without a token")
            return Status.PROTOCOL
        if ignore_eos and self.counted_output and self.counted_output < asked:
            self.fail(Status.SHORT, f"{self.counted_output} tokens instead of {asked}")
            return Status.SHORT
        return Status.OK


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _error_text(chunk: dict[str, Any]) -> str:
    error = chunk.get("error") or chunk
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:200]
