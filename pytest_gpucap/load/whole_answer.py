"""Answers that come as one JSON object: of chats and completions that are not streamed, and of embeddings and the like.

All that is known of their time is when the last byte came. It stands for the first token and for the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pytest_gpucap.load.answer import GIVEN_UP, HTTP_OK, MOST_TIMES, USAGE_COUNTS, WHOLE, Answer
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.server_words import error_in, json_object, words_in
from pytest_gpucap.load.shared_memory import Count

MOST_BYTES: Final = 64 * 2**20
"""Of one answer: thousands of vectors."""
_SHORT: Final = 8_192
"""Bytes of a body that is parsed as a whole. Of a longer one of vectors only the end is looked at: it has the usage."""
_END: Final = 2_048


class WholeAnswer(Answer):
    """An answer with tokens."""

    __slots__ = ()
    whole = True

    def check_headers(self, http_status: int, content_type: str, encoding: str) -> str:
        """What is wrong with the headers of an answer that should be a JSON object (both in lower case); or empty."""
        if http_status == HTTP_OK and encoding in ("", "identity") and not content_type.startswith("application/json"):
            return f"answered with {content_type or 'nothing'} instead of application/json"
        # An event stream would be right otherwise.
        return super().check_headers(http_status, "text/event-stream", encoding)

    def take_whole(self, body: bytes, time_s: float) -> None:
        """Take the body, whose last byte came at this time."""
        found = self._read(body.strip())
        if self.status is not None:
            return
        usage = found.get("usage")
        self.token(time_s)
        self.streams.done[self.stream] = 1
        if isinstance(usage, dict) and "prompt_tokens" in usage:
            self._counted({**usage, **self._own_count}, 1)
        self._take_ending(found)

    _own_count: ClassVar[Mapping[str, int]] = {}
    """What counts instead of a usage's own figures."""

    def _read(self, body: bytes) -> dict[str, Any]:
        """What the body tells; a failure is noted."""
        found = json_object(body)
        if not found:
            self.fail(Status.PROTOCOL, f"no JSON object: {words_in(body)[0] or 'nothing'}")
        elif error := error_in(found):
            self.fail(Status.STREAM_ERROR, *error)
        return found

    def _take_ending(self, found: dict[str, Any]) -> None:
        """Note why the server ended the answer."""
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        self.opening_reason = reason if isinstance(reason, str) else ""
        if choice is None:
            self.fail(Status.EMPTY, "an answer without a choice")

    def finish(self, end_s: float, *, ignore_eos: bool) -> Status:
        """See `Answer.finish`."""
        streams, stream, table, row = self.streams, self.stream, self.table, self.row
        counted, asked = streams.counted_output[stream], table.output[row]
        if self.status is None:
            self._judge_whole(counted, asked, ignore_eos=ignore_eos)
        status = self.status or Status.OK
        if status in (Status.OK, Status.SHORT):
            if counted > 1:
                self._set_extra_tokens(counted - 1)
            counted = self._verified(counted, self.events, asked, ignore_eos=ignore_eos)
        table.sent[row], table.end[row] = streams.sent_s[stream], end_s
        table.first[row], table.last[row] = streams.first_s[stream], streams.last_s[stream]
        table.counted_prompt[row], table.counted_output[row] = max(streams.counted_prompt[stream], 0), max(counted, 0)
        table.state[row] = status
        streams.release(stream)
        return status

    def _judge_whole(self, counted: int, asked: int, *, ignore_eos: bool) -> None:
        """Note what is wrong with an answer that came. `counted` is -1 without a usage."""
        reason = self.opening_reason.lower()
        kind = GIVEN_UP.get(reason)
        if kind is None and reason and reason not in WHOLE and 0 <= counted < asked:
            kind = Status.ABORTED
        if not self.events:
            self.fail(Status.RESET, "the answer ended before it was whole")
        elif kind is not None:
            self.fail(kind, f"finish_reason {self.opening_reason!r}")
        elif counted == 0:
            self.fail(Status.EMPTY, "an answer without a token")
        elif counted > max(MOST_TIMES * asked, 64):
            self.fail(Status.PROTOCOL, f"{counted} tokens were counted, and {asked} were asked for")
            self.streams.counted_output[self.stream] = asked
        elif ignore_eos and 0 < counted < asked:
            self.fail(Status.SHORT, f"{counted} tokens instead of {asked}")


class PooledAnswer(WholeAnswer):
    """An answer without tokens: vectors, classes, scores. It counts as one token."""

    __slots__ = ()
    _own_count: ClassVar[Mapping[str, int]] = {"completion_tokens": 1}

    def _read(self, body: bytes) -> dict[str, Any]:
        if len(body) <= _SHORT:
            return super()._read(body)
        found = {name.decode(): int(count) for name, count in USAGE_COUNTS.findall(body[-_END:])}
        if "prompt_tokens" in found and body.startswith(b"{") and body.endswith(b"}"):
            return {"usage": {"prompt_tokens": found["prompt_tokens"]}}
        return super()._read(body)

    def _take_ending(self, found: dict[str, Any]) -> None:
        # Whatever it holds is its answer.
        del found

    def _judge_whole(self, counted: int, asked: int, *, ignore_eos: bool) -> None:
        del counted, asked, ignore_eos
        if not self.events:
            self.fail(Status.RESET, "the answer ended before it was whole")

    def _verified(self, counted: int, events: int, asked: int, *, ignore_eos: bool) -> int:
        if counted >= 0:
            return super()._verified(1, events, asked, ignore_eos=ignore_eos)
        self.recorder.add(Count.ANSWERS)
        self.recorder.add(Count.WITHOUT_USAGE)
        return 1
