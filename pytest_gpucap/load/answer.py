"""One request's answer, event by event: first token, gaps, token counts, how it ended.

No JSON is parsed for an ordinary token. An event counts as a token event when it begins like an earlier token event of
the same answer, from its id to the opening of its choices. Everything else is parsed and judged. One event may hold
several tokens, and a server may end with an event that holds none; the usage settles both. Until the usage comes, the
tokens of an answer with several tokens per event are estimated from the length of its text, by the tokens per byte of
the latest whole answers.

An ended stream is not yet an answer: `finish` looks at why the server ended it and at what it counted, once per answer.

The figures are in a `STREAM_STATE` record, which the fast reader counts into as well: most events never come here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pytest_gpucap.load.event_stream import FIELD, EventStream
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.reasoning import Part, held_in, part_of, text_opens, tokens_of, told_tokens
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.server_words import error_in, json_object, words_in
from pytest_gpucap.load.shared_memory import Count, PhaseTable

USAGE_KEY = b'"completion_tokens"'
"""In every usage object and nowhere else: inside a token's text the quotes would be escaped."""
EVENT_TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content)":\s?"([^"\\]*+(?:\\.[^"\\]*+)*+)"')
"""The text of a token event, as it is written. It gives nothing back: else each character would take 128 bytes."""
ERROR_KEY = b'"error"'
"""In no event of an answer that is well, or with null."""
FINISH_REASON = re.compile(rb'"finish_reason":\s?"([^"\\]*)"')
"""As `USAGE_KEY`, never inside a token's text."""
CHOICES_OPENING = re.compile(rb'"choices":\s?\[\{')
"""Near the beginning of every token event's data, and of no other's: the usage chunk's choices are empty."""
CHOICES_WITHIN = 400
"""The choices open within the first bytes of the data, or the event is not learnt from."""
HTTP_OK = 200
MOST_TIMES, ALWAYS_ALLOWED = 4, 64
"""A usage may count so many times the tokens that were asked for, or so many tokens. More is no count of an answer, and
each one would be an entry in the worker's memory."""
_MOST_COUNTED = 2**31 - 1
"""The journal's counts are 32 bits wide."""
WHOLE = frozenset(
    {
        *("stop", "length", "tool_calls", "function_call"),  # OpenAI, vLLM, SGLang, llama.cpp
        *("eos_token", "stop_sequence"),  # TGI
        *("eos", "end_turn", "max_tokens", "tool_use", "model_length", "repetition"),  # gateways; Mistral; vLLM
    }
)
"""Reasons to end an answer that is whole."""
GIVEN_UP = {
    **dict.fromkeys(
        ("abort", "aborted", "cancelled", "canceled", "timeout", "not_finished", "preempted"), Status.ABORTED
    ),
    **dict.fromkeys(("error", "network_error", "insufficient_system_resource"), Status.ENGINE_ERROR),
    **dict.fromkeys(
        ("content_filter", "content-filter", "sensitive", "safety", "recitation", "refusal"), Status.CONTENT_FILTER
    ),
}
"""Reasons to end an answer that is not. Any other reason is one of an answer with all the tokens that were asked for;
without them, the engine gave up."""


class Answer:
    """The state of one request from its sending to its end; its figures are in ``streams``, at index ``stream``."""

    __slots__ = (
        "code",
        "error",
        "extra_tokens",
        "extra_until_s",
        "last_event",
        "opening_reason",
        "recorder",
        "row",
        "status",
        "stream",
        "streams",
        "table",
        "told_reasoning",
    )

    whole: ClassVar[bool] = False
    """It comes as one JSON object, and not as events."""

    def __init__(self, table: PhaseTable, row: int, recorder: Recorder) -> None:
        self.table, self.row, self.recorder = table, row, recorder
        self.streams = streams = recorder.streams
        self.stream = stream = streams.acquire()
        streams.first_address[stream] = table.first_address + 8 * row
        streams.sent_address[stream] = table.sent_address + 8 * row
        self.last_event = b""
        """The last token event that came here and not to the fast reader."""
        self.opening_reason = ""
        """Why the answer ended, where the chunk that opened it said so."""
        self.extra_tokens = 0
        """Tokens counted so far beyond one per event."""
        self.extra_until_s: float | None = None
        """Extra tokens are counted up to this time; None: up to the first token."""
        self.told_reasoning = 0
        """Tokens of reasoning by the latest usage."""
        self.status: Status | None = None
        """Set as soon as the answer has gone wrong."""
        self.error = ""
        self.code = 0
        """See `ErrorText.code`."""

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

    def fail(self, status: Status, error: str, code: int = 0) -> None:
        """Note what went wrong; only the first failure is reported."""
        if self.status is None:
            self.status, self.error, self.code = status, error, code

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
        if prefix and data.startswith(prefix) and ERROR_KEY not in data:
            self._take(data, time_s)
            if self._reasons:
                self.streams.reasoning[self.stream] += 1
        elif data == b"[DONE]":
            self.streams.done[self.stream] = 1
        else:
            self._inspect(data, time_s)

    def _take(self, data: bytes, time_s: float) -> None:
        """Count a token event."""
        self.token(time_s, len(FIELD) + len(data))
        self.last_event = data
        self.streams.last_bytes[self.stream] = 0

    @property
    def _reasons(self) -> bool:
        """Whether all that has come is reasoning."""
        return self.streams.reasoning[self.stream] > 0 and math.isnan(self.streams.answer_s[self.stream])

    def _take_unknown(self, choice: Any, data: bytes, time_s: float) -> None:
        """Count a token event of a form that is not yet known, and learn it.

        The form of events with reasoning reaches up to their text: the first event with something else does not begin
        like them, and so comes here.
        """
        found = CHOICES_OPENING.search(data, 0, CHOICES_WITHIN) if data.startswith(b'{"id"') else None
        prefix = found.end() if found else 0
        part, reasons = part_of(choice), self._reasons
        if part is Part.REASONING and (reasons or not self.events):
            self.streams.reasoning[self.stream] += 1
            self.table.reasoning[self.row] = self.streams.reasoning[self.stream]
            self._learn(data, text_opens(data, prefix), time_s)
        elif reasons and part is Part.NOTHING:
            self._take(data, time_s)
        elif reasons:
            self._begin_answer(data, prefix, time_s)
        else:
            self._learn(data, prefix, time_s)

    def _begin_answer(self, data: bytes, prefix: int, time_s: float) -> None:
        """Count the first event after the reasoning."""
        streams, stream = self.streams, self.stream
        streams.answer_s[stream] = self.table.answer[self.row] = time_s
        before, events = streams.frame_bytes[stream], self.events
        self._learn(data, prefix, time_s)
        if before and streams.frame_bytes[stream]:
            # Lines so far had another frame, and the text is what is left without frames.
            streams.event_bytes[stream] += (events - 1) * (streams.frame_bytes[stream] - before)

    def _learn(self, data: bytes, prefix: int, time_s: float) -> None:
        """Count a token event. Others will begin with its first `prefix` bytes."""
        self._take(data, time_s)
        texts = EVENT_TEXT.findall(data)
        self.streams.frame_bytes[self.stream] = len(FIELD) + len(data) - sum(map(len, texts)) if texts else 0
        self.streams.set_prefix(self.stream, data[:prefix])

    def _inspect(self, data: bytes, time_s: float) -> None:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            if data.strip():
                self.fail(Status.PROTOCOL, f"an event that is no JSON: {_beginning(data)}")
            return
        if not isinstance(chunk, dict):
            self.fail(Status.PROTOCOL, f"an event that is no JSON object: {_beginning(data)}")
        elif found := error_in(chunk):
            self.fail(Status.STREAM_ERROR, *found)
        else:
            choices = chunk.get("choices")
            if not (isinstance(choices, list) and choices):
                usage = chunk.get("usage")
                if isinstance(usage, dict):
                    self._counted(usage, self.events)
            elif self.events or not self._opens(choices[0]):
                self._take_unknown(choices[0], data, time_s)

    def _opens(self, choice: Any) -> bool:
        """Whether this is the chunk that opens a chat answer: it names the role and holds no token."""
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or _holds_output(choice):
            return False
        reason = choice.get("finish_reason")
        if "role" in delta and isinstance(reason, str):
            self.opening_reason = reason
        return "role" in delta or reason is None

    def error_event(self, data: bytes) -> None:
        """Take an event that is no data but an error, as ``event: error`` and ``error: {...}`` are."""
        text, code = words_in(data)
        self.fail(Status.STREAM_ERROR, text or "an error event without a word", code)

    def body_ended(self, stream: EventStream, time_s: float) -> bool:
        """Take what is left of the body; whether it ended where an event ends.

        Some servers leave the last blank line out. A body that is no event stream at all gives its words away here.
        """
        if stream.error is not None:
            self.error_event(stream.error)
        rest, stray = stream.rest, stream.stray.strip()
        ended = not rest or rest == b"[DONE]" or bool(json_object(rest))
        if rest and ended:
            self.event(rest, time_s)
        if stray and not self.events:
            found = error_in(json_object(stray))
            if found:
                self.fail(Status.STREAM_ERROR, *found)
            else:
                self.fail(Status.PROTOCOL, f"no event stream: {words_in(stray)[0]}")
        return ended

    def _counted(self, usage: dict[str, Any], events: int) -> None:
        """Keep a usage that came after so many token events, if it counts output tokens."""
        output = _count(usage, "completion_tokens")
        if output >= 0:
            cached = (cached_tokens(usage) if self.recorder.cached_apart else None) or 0
            self.streams.counted_output[self.stream], self.streams.counted_at[self.stream] = output, events
            self.told_reasoning = told_tokens(usage)
            prompt = max(_count(usage, "prompt_tokens"), 0) + cached
            self.streams.counted_prompt[self.stream] = min(prompt, _MOST_COUNTED)

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

    def take_whole(self, body: bytes, time_s: float) -> None:
        """Take the body of an answer that is `whole`."""
        raise NotImplementedError

    def check_headers(self, http_status: int, content_type: str, encoding: str) -> str:
        """What is wrong with the headers of an answer that should be an event stream (both in lower case); or empty."""
        if http_status != HTTP_OK:
            return f"HTTP {http_status}"
        if encoding not in ("", "identity"):
            return f"compressed ({encoding}) though refused"
        if not content_type.startswith("text/event-stream"):
            return f"answered with {content_type or 'nothing'} instead of text/event-stream"
        return ""

    def check_body(self, http_status: int, wrong: str, body: bytes) -> None:
        """Fail where the headers were `wrong`, with the reason that the server gives in the body."""
        if http_status != HTTP_OK:
            text, _ = words_in(body)
            self.fail(_REFUSALS.get(http_status // 100, Status.PROTOCOL), text, http_status)
        elif wrong:
            if found := error_in(json_object(body)):
                self.fail(Status.STREAM_ERROR, *found)
            else:
                words = "" if wrong.startswith("compressed") else words_in(body)[0]
                self.fail(Status.PROTOCOL, f"{wrong}: {words}" if words else wrong)

    def finish(self, end_s: float, *, ignore_eos: bool) -> Status:
        """Settle the token counts, write the row, release the stream state; returns the final status."""
        streams, stream = self.streams, self.stream
        recorder, row, table = self.recorder, self.row, self.table
        reason, counted, events = self._ending()
        asked = table.output[row]
        if max(counted, events) > (most := max(MOST_TIMES * asked, ALWAYS_ALLOWED)):
            self.fail(
                Status.PROTOCOL, f"{max(counted, events)} tokens came or were counted, and {asked} were asked for"
            )
            counted = min(events, most)
        if counted > 0 and events:
            extra = max(counted - events, 0)
            self._set_extra_tokens(extra)
            # An event of k tokens is one gap and k - 1 gaps of 0 s.
            recorder.gaps.extend([0.0] * extra)
            recorder.learn_text_length(counted - 1, self.text_bytes if extra else 0)
        else:
            self.count_expected_tokens(recorder.tokens_per_byte)
        whole = self.status is None and events > 0 and counted >= asked and reason in WHOLE
        status = Status.OK if whole else self._judge(reason, counted, events, asked, ignore_eos=ignore_eos)
        if status is Status.OK or status is Status.SHORT:
            counted = self._verified(counted, events, asked, ignore_eos=ignore_eos)
        table.sent[row], table.end[row] = streams.sent_s[stream], end_s
        table.first[row], table.last[row] = streams.first_s[stream], streams.last_s[stream]
        table.counted_prompt[row], table.counted_output[row] = max(streams.counted_prompt[stream], 0), max(counted, 0)
        self._settle_reasoning(events, counted)
        table.state[row] = status
        streams.release(stream)
        return status

    def _settle_reasoning(self, events: int, counted: int) -> None:
        """Write the tokens of the reasoning. Where it was counted and not streamed, the answer began with the first."""
        table, row, streams, stream = self.table, self.row, self.streams, self.stream
        reasoning = min(streams.reasoning[stream], events)
        table.reasoning[row] = tokens_of(reasoning, events, counted, self.told_reasoning)
        if not reasoning and table.reasoning[row]:
            table.answer[row] = streams.first_s[stream]

    def _ending(self) -> tuple[str, int, int]:
        """Why the server ended the answer (or ""), its tokens by the usage (-1 without one), its token events."""
        streams, stream, recorder = self.streams, self.stream, self.recorder
        last = streams.tail_of(stream) if streams.last_bytes[stream] else self.last_event
        events = streams.events[stream]
        if streams.counted_at[stream] < events and USAGE_KEY in last:
            self._usage_of(last)
        found = FINISH_REASON.search(last)
        reason = found[1].decode("utf-8", "replace") if found else self.opening_reason
        counted = streams.counted_output[stream]
        if events and counted != events and self._only_ends(last, reason, counted, events):
            # The last event only said why the answer ended.
            recorder.withdraw_token(streams.last_s[stream])
            streams.last_s[stream] -= streams.gap_s[stream]
            events -= 1
            if not events:
                streams.first_s[stream] = streams.last_s[stream] = math.nan
        elif events:
            recorder.gaps.append(streams.gap_s[stream])
        if streams.counted_at[stream] < events:
            counted = -1  # A count of earlier tokens, which was not brought up to date.
        return reason, counted, events

    def _verified(self, counted: int, events: int, asked: int, *, ignore_eos: bool) -> int:
        """The tokens of a whole answer, as far as they are known; counts answers whose length or prompt is not."""
        streams, stream, recorder = self.streams, self.stream, self.recorder
        recorder.add(Count.ANSWERS)
        if counted >= 0:
            recorder.add(Count.PROMPTS)
            asked_prompt = self.table.prompt[self.row]
            if streams.counted_prompt[stream] != asked_prompt:
                recorder.add(Count.WRONG_PROMPT)
                recorder.add(Count.WRONG_ASKED, asked_prompt)
                recorder.add(Count.WRONG_COUNTED, streams.counted_prompt[stream])
            return counted
        recorder.add(Count.WITHOUT_USAGE)
        if ignore_eos and events >= asked:
            return events
        if ignore_eos:
            recorder.add(Count.UNVERIFIED)
        return counted

    def _usage_of(self, last: bytes) -> None:
        """Take the usage of the last token event."""
        chunk = json_object(last)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._counted(usage, self.events)
        elif found := USAGE_COUNTS.findall(last):
            # Only the event's end was kept.
            self._counted({name.decode(): int(count) for name, count in found}, self.events)

    def _only_ends(self, last: bytes, reason: str, counted: int, events: int) -> bool:
        """Whether the last event holds no token and only says why the answer ended.

        An empty text may be a token, such as one of a special kind. Then the usage counts it: as many tokens as events.
        """
        if 0 < counted == events - 1:
            return True
        if not reason:
            return False
        choices = json_object(last).get("choices")
        return isinstance(choices, list) and bool(choices) and not _holds_output(choices[0])

    def _judge(self, reason: str, counted: int, events: int, asked: int, *, ignore_eos: bool) -> Status:
        """The status of an answer that is not plainly whole. `counted` is -1 without a usage."""
        if self.status is not None:
            return self.status
        tokens = counted if counted >= 0 else events
        kind = GIVEN_UP.get(reason.lower())
        if kind is None and reason and reason.lower() not in WHOLE and tokens < asked:
            kind = Status.ABORTED
        if kind is not None:
            self.fail(kind, f"finish_reason {reason!r}")
        elif not tokens or not events:
            why = f" (finish_reason {reason!r})" if reason else ""
            said = f"; the usage counts {counted}" if counted > 0 else ""
            self.fail(Status.EMPTY, f"an answer without a token{why}{said}")
        elif not (self.done or reason or (counted > 0 and (counted >= asked or not ignore_eos))):
            self.fail(Status.RESET, "the answer ended before [DONE]")
        elif ignore_eos and 0 < counted < asked:
            self.fail(Status.SHORT, f"{counted} tokens instead of {asked}")
        return self.status or Status.OK


_REFUSALS = {3: Status.REDIRECT, 4: Status.HTTP_4XX, 5: Status.HTTP_5XX}
"""By the class of the HTTP status."""
USAGE_COUNTS = re.compile(rb'"(prompt_tokens|completion_tokens)":\s?(\d{1,9})\b')


def _count(usage: dict[str, Any], name: str) -> int:
    """A count in a usage; -1 where there is none."""
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else -1


def cached_tokens(usage: Mapping[str, Any]) -> int | None:
    """The prompt tokens that the server had in its cache, by an answer's usage; None if it does not tell."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if isinstance(cached, int) and not isinstance(cached, bool) and 0 <= cached < 2**30 else None


def _holds_output(choice: Any) -> bool:
    """Whether a choice holds any part of an answer: text, reasoning, a tool call, token ids."""
    if not isinstance(choice, dict):
        return True
    return bool(choice.get("token_ids") or held_in(choice))


def _beginning(data: bytes) -> str:
    return data[:80].decode("utf-8", "replace")
