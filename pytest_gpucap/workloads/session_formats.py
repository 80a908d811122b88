"""The formats that sessions are recorded in: what each row of a file says of the turns of a session.

| a row holds | format | what is sent |
| --- | --- | --- |
| ``conversations`` | ShareGPT | what the human says, after all that was said before, recorded answers included |
| ``messages`` | OpenAI's messages, vLLM's multi-turn benchmark | the same, at each message of an assistant |
| ``turns``, or ``text`` | AIPerf, multi-turn or single-turn | the text; of several turns after those before it |
| ``spans`` | OpenTelemetry, as inference-perf replays it | the messages of each span |
| ``input_length`` beside ``chat_id`` | Bailian | blocks of 16 tokens |
| ``input_length`` otherwise | Mooncake, as AIPerf extends it | blocks of 512 tokens |

Texts are personal. So no message of an error quotes a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pytest_gpucap.requirement import MOST_TOKENS, RequirementError
from pytest_gpucap.workloads.prompt_file import ANSWERING, HUMAN, check_messages, output_tokens, sendable

ADVICE: Final = (
    'a line is a conversation (ShareGPT, "messages"), a session of AIPerf ("turns"), a trace of OpenTelemetry '
    '("spans"), or a row of a trace with "hash_ids" (Mooncake, Bailian)'
)
MOONCAKE_BLOCK: Final = 512
BAILIAN_BLOCK: Final = 16
MOST_MESSAGES: Final = 2000
"""Of one session: more is a mistake, and its history would fit no model's context."""
MOST_GAP_S: Final = 7 * 86_400.0
"""Between two turns: more is a mistake in the file's unit of time."""
_MOST_TIME: Final = 4e12
"""Of whatever unit: in microseconds its difference fits 64 bits, and it is beyond this millennium in milliseconds."""
_MOST_ID: Final = 2**62
_LENGTHS: Final = ("output_tokens", "max_tokens", "max_completion_tokens")
_NO_TEXT: Final = ("image", "images", "audio", "audios", "video", "videos", "image_uuids")
_WORDS: Final = (
    *("the", "of", "and", "to", "in", "is", "it", "for", "on", "as", "with", "at", "by", "from", "that", "this"),
    *("be", "are", "was", "or", "an", "not", "you", "we", "they", "have", "has", "had", "will", "one", "all", "can"),
)


@dataclass(slots=True)
class FileTurn:
    """One turn of a session.

    Attributes:
        place: file and line, for messages.
        messages: JSON texts of the messages that are sent; empty where the prompt is made of blocks.
        characters: of their texts.
        answer: that was recorded, where its length may stand for that of the new answer.
        output: tokens of the answer; 0: not said.
        pause_s: from the end of the answer before; None: not said.
        at_s: when it arrived; None: not said.
        prompt: tokens of a prompt that is made of blocks.
        blocks: which blocks these are.
    """

    place: str
    messages: tuple[str, ...] = field(default=(), repr=False)
    characters: int = 0
    answer: str | None = field(default=None, repr=False)
    output: int = 0
    pause_s: float | None = None
    at_s: float | None = None
    prompt: int = 0
    blocks: Sequence[int] = ()


@dataclass(slots=True)
class FileRow:
    """What one row of a file says.

    Attributes:
        kind: name of the format, which all rows of a file share.
        turns: of one session, in their order; empty: a conversation without a question and its answer.
        key: of the session, where several rows may make one; None: the row is a session of its own.
        chat, parent: of a row that says which one it follows; the row is a turn of that one's session.
    """

    kind: str
    turns: list[FileTurn]
    key: Hashable | None = None
    chat: int | None = None
    parent: int | None = None


def row_of(place: str, row: Any, usual_answer: int) -> FileRow:
    """What a row says.

    Args:
        place: file and line.
        row: a JSON value.
        usual_answer: tokens of an answer that was not recorded, which stand for it in what follows.

    Raises:
        RequirementError: if it is of no format that is known, or cannot be sent.
    """
    if not isinstance(row, dict):
        raise RequirementError(f"{place}: not a JSON object; {ADVICE}")
    for name, read in _BY_KEY.items():
        if name in row:
            return read(place, row, usual_answer)
    raise RequirementError(f"{place}: the object is of no known format; {ADVICE}")


# -- conversations -----------------------------------------------------------------------------------------------------


def _sharegpt(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:  # noqa: ARG001 - answers are recorded
    said = row["conversations"]
    if not isinstance(said, list):
        raise RequirementError(f"{place}: conversations must be a list")
    _check_count(place, said)
    turns: list[FileTurn] = []
    messages: list[str] = []
    characters, asked = 0, False
    for each in said:
        who, text = (each.get("from"), each.get("value")) if isinstance(each, dict) else (None, None)
        if not isinstance(who, str):
            break
        answers = who in ANSWERING
        if not isinstance(text, str) or not text.strip() or not (answers or who in HUMAN or who == "system"):
            break  # what comes after it has no history that could be sent
        if answers and asked:
            turns.append(FileTurn(place, tuple(messages), characters, text))
        if answers and not asked and not turns:
            continue  # an answer to nothing: conversations that were split begin so
        asked = (asked or who in HUMAN) and not answers
        role = "assistant" if answers else "user" if who in HUMAN else "system"
        messages.append(sendable(place, {"role": role, "content": text}))
        characters += len(text)
    return FileRow("conversations", turns)


def _messages(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:  # noqa: ARG001 - answers are recorded
    said = row["messages"]
    whole = check_messages(place, said)
    _check_count(place, said)
    turns: list[FileTurn] = []
    messages: list[str] = []
    characters, waits = 0, False
    for each in said:
        if each["role"] == "assistant" and waits:
            turns.append(FileTurn(place, tuple(messages), characters, _answer(each)))
        characters += len(each["content"]) if isinstance(each.get("content"), str) else 0
        waits = each["role"] != "assistant" and (waits or each["role"] not in {"system", "developer"})
        messages.append(sendable(place, each))
    if waits:
        asked = next(((name, row[name]) for name in _LENGTHS if row.get(name) is not None), None)
        output = 0 if asked is None else output_tokens(place, *asked)
        turns.append(FileTurn(place, tuple(messages), whole, None, output))
    return FileRow("messages", turns)


def _check_count(place: str, messages: Sequence[Any]) -> None:
    if len(messages) > MOST_MESSAGES:
        raise RequirementError(f"{place}: a session may have up to {MOST_MESSAGES} messages: leave the line out")


def _answer(message: Mapping[str, Any]) -> str | None:
    text = message.get("content")
    return text if isinstance(text, str) and text else None


# -- AIPerf ------------------------------------------------------------------------------------------------------------


def _aiperf(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:
    """A session of AIPerf in one row; as many words as the answer has tokens stand for it in what follows."""
    given = row["turns"]
    if not isinstance(given, list) or not given:
        raise RequirementError(f"{place}: turns must be a list that is not empty")
    _check_count(place, given)
    turns: list[FileTurn] = []
    messages: list[str] = []
    characters = 0
    for number, each in enumerate(given):
        found = _aiperf_turn(f"{place}: turns[{number}]", each)
        messages += found.messages
        characters += found.characters
        if isinstance(each.get("role"), str) and each["role"] == "system" and not turns and len(given) > 1:
            continue  # what is said to the model before the first turn
        turns.append(FileTurn(place, tuple(messages), characters, None, found.output, found.pause_s, found.at_s))
        words = stand_in(f"{place} {number} {found.messages}", found.output or usual_answer)
        messages.append(sendable(place, {"role": "assistant", "content": words}))
        characters += len(words)
    if not turns:
        raise RequirementError(f"{place}: turns has nothing but a system message")
    return FileRow("turns", turns, key=_key(place, row))


def _aiperf_single(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:  # noqa: ARG001 - nothing follows
    """A line of AIPerf's single turns: those of one session follow each other, and each is sent by itself."""
    return FileRow("single turns", [_aiperf_turn(place, row)], key=_key(place, row))


def _aiperf_turn(place: str, turn: Any) -> FileTurn:
    if not isinstance(turn, dict):
        raise RequirementError(f"{place}: not a JSON object")
    if (held := next((name for name in _NO_TEXT if turn.get(name)), None)) is not None:
        raise RequirementError(f"{place}: holds {held}: only text can be sent; leave the line out")
    if turn.get("extra"):
        raise RequirementError(f"{place}: fields in extra are not sent: leave it out, or give extra_body= for all")
    texts = [turn["text"]] if turn.get("text") else turn.get("texts")
    if isinstance(texts, list):
        named = [each.get("contents") if isinstance(each, dict) else [each] for each in texts]
        texts = [text for each in named if isinstance(each, list) for text in each]
    if not (isinstance(texts, list) and texts and all(isinstance(each, str) and each.strip() for each in texts)):
        raise RequirementError(f'{place}: needs a "text" that is not empty')
    role = turn.get("role") or "user"
    if not isinstance(role, str):
        raise RequirementError(f"{place}: role must be a text")
    text = "\n".join(texts)
    output = turn.get("output_length")
    return FileTurn(
        place,
        (sendable(place, {"role": role, "content": text}),),
        len(text),
        None,
        0 if output is None else output_tokens(place, "output_length", output),
        _milliseconds(place, turn, "delay"),
        _milliseconds(place, turn, "timestamp"),
    )


def stand_in(key: str, count: int) -> str:
    """So many common words, which tokenizers mostly take as one token each; the same for the same key."""
    picked = hashlib.shake_256(key.encode("utf-8", "replace")).digest(count)
    return " ".join(_WORDS[each % len(_WORDS)] for each in picked)


def _key(place: str, row: Mapping[str, Any]) -> Hashable | None:
    key = row.get("session_id")
    if key is not None and (isinstance(key, bool) or not isinstance(key, str | int)):
        raise RequirementError(f"{place}: session_id must be a text")
    return None if key is None else (type(key).__name__, key)


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------

_ASKED: Final = "gen_ai.input.messages"


def _spans(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:  # noqa: ARG001 - answers are recorded
    """The requests of one trace, one after the other in the order in which they began."""
    spans = row["spans"]
    if not isinstance(spans, list):
        raise RequirementError(f"{place}: spans must be a list")
    _check_count(place, spans)
    asking: list[tuple[float, float, Mapping[str, Any], str]] = []
    for number, span in enumerate(spans):
        where = f"{place}: spans[{number}]"
        attributes = span.get("attributes") if isinstance(span, dict) else None
        if isinstance(attributes, dict) and _ASKED in attributes:
            asking.append((_date(where, span, "start_time"), _date(where, span, "end_time"), attributes, where))
    asking.sort(key=lambda each: each[0])
    turns: list[FileTurn] = []
    ended_s = -math.inf
    for start_s, end_s, attributes, where in asking:
        messages = _otel_messages(where, attributes[_ASKED])
        output = attributes.get("gen_ai.usage.output_tokens")
        answer = attributes.get("gen_ai.output.text")
        turns.append(
            FileTurn(
                place,
                tuple(sendable(where, each) for each in messages),
                check_messages(where, messages),
                answer if isinstance(answer, str) and answer else None,
                0 if not output else output_tokens(where, "gen_ai.usage.output_tokens", output),
                max(0.0, start_s - ended_s) if turns else None,
                start_s,
            )
        )
        ended_s = max(ended_s, end_s)
    return FileRow("spans", turns)


def _otel_messages(where: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequirementError(f"{where}: {_ASKED} is no JSON") from None
    if not isinstance(value, list):
        raise RequirementError(f"{where}: {_ASKED} must be a list of messages")
    found = [_otel_message(each) if isinstance(each, dict) else each for each in value]
    check_messages(where, found)
    return found


def _otel_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with a content, where OpenTelemetry has parts."""
    parts = message.get("parts")
    if "content" in message or not isinstance(parts, list):
        return message
    texts = [each.get("content") for each in parts if isinstance(each, dict) and each.get("type") == "text"]
    return {"role": message.get("role"), "content": "\n".join(each for each in texts if isinstance(each, str))}


def _date(where: str, span: Mapping[str, Any], name: str) -> float:
    try:
        when = datetime.fromisoformat(span[name])
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RequirementError(f"{where}: {name} must be a date and time") from None


# -- traces ------------------------------------------------------------------------------------------------------------


def _trace(place: str, row: Mapping[str, Any], usual_answer: int) -> FileRow:  # noqa: ARG001 - each row says it
    """A request whose prompt is known by its blocks; failed requests, without tokens, have no turn."""
    bailian = "chat_id" in row
    blocks = row.get("hash_ids")
    if not isinstance(blocks, list) or not all(_is_id(each) for each in blocks):
        raise RequirementError(
            f"{place}: hash_ids must be a list of whole numbers: without them replay single requests, with trace="
        )
    prompt, output = (_count(place, row, name) for name in ("input_length", "output_length"))
    turn = FileTurn(place, output=output, prompt=prompt, blocks=blocks)
    turns = [turn] if prompt and output else []
    if bailian:
        turn.at_s = _number(place, row, "timestamp", "seconds")
        chat, parent = (_chat(place, row, name) for name in ("chat_id", "parent_chat_id"))
        return FileRow("Bailian", turns, chat=chat, parent=parent)
    turn.pause_s, turn.at_s = _milliseconds(place, row, "delay"), _milliseconds(place, row, "timestamp")
    return FileRow("Mooncake", turns, key=_key(place, row))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_ID


def _chat(place: str, row: Mapping[str, Any], name: str) -> int:
    value = row.get(name, -1)
    if not _is_id(value):
        raise RequirementError(f"{place}: {name} must be a whole number")
    return int(value)


def _count(place: str, row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS):
        raise RequirementError(f"{place}: {name} must be a whole number from 0 to {MOST_TOKENS}")
    if value != int(value):
        raise RequirementError(f"{place}: {name} must be a whole number")
    return int(value)


def _milliseconds(place: str, row: Mapping[str, Any], name: str) -> float | None:
    return None if row.get(name) is None else _number(place, row, name, "milliseconds") / 1000.0


def _number(place: str, row: Mapping[str, Any], name: str, unit: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequirementError(f"{place}: {name} must be a number of {unit}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if name == "delay" and not found >= 0:
        raise RequirementError(f"{place}: {name} must be a number of {unit}, and not below 0")
    if not abs(found) <= _MOST_TIME:
        raise RequirementError(f"{place}: {name} must be a number of {unit}, and {_MOST_TIME:g} at most")
    return found


_Read = Callable[[str, Mapping[str, Any], int], FileRow]
_BY_KEY: Final[Mapping[str, _Read]] = {
    "conversations": _sharegpt,
    "turns": _aiperf,
    "spans": _spans,
    "input_length": _trace,
    "messages": _messages,
    "text": _aiperf_single,
    "texts": _aiperf_single,
}


def sessions_of(rows: Iterator[FileRow]) -> Iterator[list[FileTurn]]:
    """The sessions that rows make: of equal keys, or along those that each row follows; in the order of the file.

    A row that follows one that another row follows already is a session of its own, which branches off there.
    """
    sessions: list[list[FileTurn]] = []
    by_key: dict[Hashable, list[FileTurn]] = {}
    last_chats: dict[int, list[FileTurn]] = {}
    for row in rows:
        if row.key is not None and row.key in by_key:
            by_key[row.key] += row.turns
            continue
        followed = None if row.parent is None else last_chats.pop(row.parent, None)
        if followed is not None:
            session = followed
            session += row.turns
        else:
            session = list(row.turns)
            sessions.append(session)
        if row.key is not None:
            by_key[row.key] = session
        if row.chat is not None:
            last_chats[row.chat] = session
    yield from sessions
