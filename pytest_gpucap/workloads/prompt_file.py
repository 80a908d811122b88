"""Prompts of the user's own, from a file: ``gpucap(prompts=FILE)``.

A file is JSON Lines or one JSON list, packed with gzip or not, or Parquet. What a line may be:

| a line holds | what is sent |
| --- | --- |
| ``messages``, and what else a body has (OpenAI) | the same chat request |
| ``prompt``, and what else a body has (OpenAI) | the same completion, or the text as a user's message |
| ``body`` (a line of OpenAI's batch API) | what is in it, as above |
| ``output_tokens`` beside ``messages`` or ``prompt`` | these alone |
| ``conversations`` (ShareGPT) | what the human says first |

Such texts are personal. So no message of an error quotes a line, and no `repr` here shows one.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

from pytest_gpucap.requirement import MOST_TOKENS, ApiKind, RequirementError
from pytest_gpucap.user_files import MIB, MOST_LINES, UserFileError, is_file, pieced_lines, shown_path, status, unpacked
from pytest_gpucap.workloads.json_text import NoJsonText, json_text
from pytest_gpucap.workloads.parquet_rows import PARQUET, parquet_rows

MAX_PROMPTS: Final = 100_000
"""More than most measurements send."""
MOST_KEPT: Final = 256 * MIB
"""Characters of all prompts together, since they are kept in memory."""
MOST_PROMPT: Final = 16 * MIB
"""Of one line, or of one element of a list."""
_PIECE: Final = MIB
_BOM: Final = b"\xef\xbb\xbf"
_OURS: Final = frozenset({"model", "stream", "stream_options", "ignore_eos", "n", "best_of"})
"""Fields of a body that are ours to say, or are left at what they are for everyone."""
_LENGTHS: Final = ("output_tokens", "max_tokens", "max_completion_tokens")
"""Fields that say how long the answer is, the first one before the others."""
_NO_TEXT: Final = frozenset({"image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file"})
_SPACE: Final = re.compile(r"[ \t\r\n]*+")
HUMAN, ANSWERING = frozenset({"human", "user"}), frozenset({"gpt", "assistant", "chatgpt", "bard", "bing"})
_ADVICE: Final = 'a line is a request body with "messages" or "prompt", a line of a batch, or a ShareGPT conversation'


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """One prompt of a file.

    Attributes:
        place: file and line, for messages.
        body: JSON text of an object: ``messages`` or ``prompt``, and what else the request has.
        api: the endpoint that it is for by itself; a text may be sent to the other as well.
        whole: it has messages, to which nothing is added.
        output_tokens: that the answer shall have; None where the line does not say.
        answer: that was recorded, where its length may stand for that of the new answer.
        characters: of its texts.
    """

    place: str
    body: str = field(repr=False)
    api: ApiKind
    whole: bool
    output_tokens: int | None
    answer: str | None = field(repr=False)
    characters: int

    @property
    def text(self) -> str:
        """What is asked, where it is a text."""
        return str(json.loads(self.body)["prompt"])


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of a file.

    Attributes:
        path: of the file.
        prompts: in its order; at least one.
        sha256: of everything that is sent and asked for. How the file is packed and spaced does not matter.
        left_out: conversations without a question and its answer.
    """

    path: Path
    prompts: tuple[FilePrompt, ...]
    sha256: str
    left_out: int = 0

    def endpoint(self, declared: ApiKind | None) -> ApiKind:
        """The endpoint that all prompts are sent to.

        Raises:
            RequirementError: if they cannot all be sent to it, or the file leaves it open.
        """
        first = self.prompts[0]
        whole = next((each for each in self.prompts if each.whole), None)
        if declared is ApiKind.COMPLETIONS and whole is not None:
            raise RequirementError(f'{whole.place}: "messages" need endpoint="chat": a plain completion has none')
        if declared is not None:
            return declared
        other = next((each for each in self.prompts if each.api is not first.api), None)
        if other is not None:
            raise RequirementError(
                f"{other.place}: is for endpoint={other.api.value!r}, and the lines before it for "
                f'{first.api.value!r}: write endpoint="chat" to send all of them as chats'
            )
        return first.api


def prompts_file(given: str, folder: Path) -> Path:
    """The file behind ``prompts=``, relative to the test file.

    Raises:
        RequirementError: if there is no such file.
    """
    path = folder / given
    if not is_file(path):
        raise RequirementError(f"prompts: there is no file {shown_path(path)}")
    return path


def read_prompts(path: Path) -> PromptFile:
    """Read a file of prompts.

    Raises:
        RequirementError: if the file cannot be read, is too large, or a line cannot be sent; one line, with file and
            line, and without what the line holds.
    """
    try:
        changed = status(path)
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the prompts cannot be read: {error.why}") from None
    return _read(path, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _changed_ns: int, _size: int) -> PromptFile:
    kept: list[FilePrompt] = []
    found = hashlib.sha256()
    left_out = characters = 0
    try:
        for place, row in rows_in(path, _ADVICE):
            prompt = _prompt(place, row)
            if prompt is None:
                left_out += 1
                continue
            kept.append(prompt)
            characters += len(prompt.body) + len(prompt.answer or "")
            if len(kept) > MAX_PROMPTS or characters > MOST_KEPT:
                raise RequirementError(
                    f"{shown_path(path)}: a file may have up to {MAX_PROMPTS} prompts and {MOST_KEPT // MIB} MiB of "
                    f"text; take a part of it: shuf -n 10000 FILE > part.jsonl"
                )
            # Keys in the order of their names, since that of a file means nothing.
            asked = json.dumps([json.loads(prompt.body), prompt.output_tokens, prompt.answer], sort_keys=True)
            found.update(asked.encode() + b"\n")
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the prompts cannot be read: {error.why}") from None
    if not kept:
        none = f"; {left_out} conversations have no question with an answer" if left_out else ""
        raise RequirementError(f"{shown_path(path)}: the file has no prompt{none}")
    return PromptFile(path, tuple(kept), found.hexdigest(), left_out)


def rows_in(
    path: Path, advice: str, columns: tuple[str, ...] = ("conversations", "messages", "prompt", *_LENGTHS)
) -> Iterator[tuple[str, Any]]:
    """Place and value of each row of a file of JSON Lines, of one JSON list, or of Parquet, one after the other.

    Args:
        path: of the file, which may be packed with gzip.
        advice: what a line should be, for messages.
        columns: that are read of a Parquet file.

    Raises:
        UserFileError: if the file cannot be read.
        RequirementError: if it is too large, or a row is no JSON.
    """
    shown = shown_path(path)
    with unpacked(path, MOST_LINES) as read:
        head = read(_PIECE).removeprefix(_BOM)
        while not head.strip() and (more := read(_PIECE)):  # empty lines
            head += more
            _check_size(shown, len(head))
        if head.startswith(PARQUET):
            yield from parquet_rows(path, columns)
        elif head.lstrip().startswith(b"["):
            yield from _Elements(shown, read, head)
        else:
            for number, line in pieced_lines(read, MOST_PROMPT, lambda number: _too_long(f"{shown}:{number}"), head):
                if line.strip():
                    yield f"{shown}:{number}", _json(f"{shown}:{number}", line, advice)


def _check_size(place: str, size: int) -> None:
    if size > MOST_PROMPT:
        raise _too_long(place)


def _too_long(place: str) -> RequirementError:
    return RequirementError(f"{place}: is longer than {MOST_PROMPT // MIB} MiB")


class _Elements:
    """The elements of a JSON list, of which only one is read at a time, with their places.

    Args:
        shown: the file, for messages.
        read: gives the next bytes of the file.
        head: the first ones.
    """

    def __init__(self, shown: str, read: Callable[[int], bytes], head: bytes) -> None:
        self._shown, self._read = shown, read
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._decoder = json.JSONDecoder(parse_constant=_no_number)
        self._text, self._at, self._line = "", 0, 1
        self._add(head)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._mark()  # the opening bracket
        self._skip_space()
        if self._text[self._at : self._at + 1] == "]":
            return
        mark = ","
        while mark == ",":
            self._skip_space()
            yield self._place, self._element()
            mark = self._mark()
        if mark != "]":
            why = "a comma is missing" if mark else "it is cut off"
            raise RequirementError(f"{self._place}: not a whole JSON list: {why}")
        if self._mark():
            raise RequirementError(f"{self._place}: something follows after the JSON list")

    @property
    def _place(self) -> str:
        return f"{self._shown}:{self._line}"

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                too_long = len(self._text) - self._at > MOST_PROMPT
                if too_long or not self._more():
                    what = (
                        f"no JSON within {MOST_PROMPT // MIB} MiB"
                        if too_long
                        else "the JSON list is cut off or damaged"
                    )
                    raise RequirementError(f"{self._place}: {what}") from None
                continue
            except (ValueError, RecursionError):
                raise RequirementError(f"{self._place}: not JSON that can be read") from None
            _check_size(self._place, end - self._at)
            self._move(end)
            return value

    def _mark(self) -> str:
        """The next character that is no space, which is taken; empty at the end."""
        self._skip_space()
        mark = self._text[self._at : self._at + 1]
        self._move(self._at + len(mark))
        return mark

    def _skip_space(self) -> None:
        while True:
            found = _SPACE.match(self._text, self._at)
            self._move(self._at if found is None else found.end())
            if self._at < len(self._text) or not self._more():
                return

    def _move(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _more(self) -> bool:
        """Read on; False at the file's end. As much again each time: a long element is parsed from its start."""
        self._text, self._at = self._text[self._at :], 0
        piece = self._read(max(_PIECE, len(self._text)))
        self._add(piece)
        return bool(piece)

    def _add(self, piece: bytes) -> None:
        try:
            self._text += self._decode(piece, not piece)
        except UnicodeDecodeError:
            raise RequirementError(f"{self._place}: not UTF-8") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _json(place: str, line: bytes, advice: str) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise RequirementError(f"{place}: not UTF-8") from None
    except (ValueError, RecursionError):
        raise RequirementError(f"{place}: not JSON; {advice}") from None


def _prompt(place: str, row: Any) -> FilePrompt | None:
    """The prompt of a row; None for a conversation without a question and its answer.

    Raises:
        RequirementError: if there is none, or it cannot be sent.
    """
    if isinstance(row, dict) and isinstance(row.get("body"), dict) and not {"messages", "prompt"} & row.keys():
        row = row["body"]
    if not isinstance(row, dict):
        raise RequirementError(f"{place}: not a JSON object; {_ADVICE}")
    if "conversations" in row:
        return _conversation(place, row["conversations"])
    if ("messages" in row) == ("prompt" in row):
        both = "has both messages and prompt" if "prompt" in row else "has neither messages nor prompt"
        raise RequirementError(f"{place}: {both}; {_ADVICE}")
    for name in ("n", "best_of"):
        if row.get(name) is not None and (row[name] != 1 or isinstance(row[name], bool)):
            raise RequirementError(f"{place}: {name} must be 1: of several answers only one would be measured")
    whole = "messages" in row
    characters = check_messages(place, row["messages"]) if whole else len(_text(place, row["prompt"], "prompt"))
    kept = {"messages" if whole else "prompt"}
    if "output_tokens" not in row:
        kept |= row.keys() - _OURS - {*_LENGTHS}
    asked = next(((name, row[name]) for name in _LENGTHS if row.get(name) is not None), None)
    return FilePrompt(
        place,
        sendable(place, {name: value for name, value in row.items() if name in kept}),
        ApiKind.CHAT if whole else ApiKind.COMPLETIONS,
        whole,
        None if asked is None else output_tokens(place, *asked),
        None,
        characters,
    )


def _conversation(place: str, turns: Any) -> FilePrompt | None:
    """What the human says first in a conversation, if it was answered."""
    if not isinstance(turns, list):
        raise RequirementError(f"{place}: conversations must be a list")
    said = [(str(turn.get("from")), turn.get("value")) for turn in turns if isinstance(turn, dict)]
    first = next((at for at, (who, _) in enumerate(said) if who in HUMAN), len(said))
    if first + 1 >= len(said) or said[first + 1][0] not in ANSWERING:
        return None
    asked, answer = said[first][1], said[first + 1][1]
    if not (isinstance(asked, str) and asked.strip() and isinstance(answer, str) and answer.strip()):
        return None
    sendable(place, {"answer": answer})
    return FilePrompt(place, sendable(place, {"prompt": asked}), ApiKind.CHAT, False, None, answer, len(asked))


def check_messages(place: str, messages: Any) -> int:
    """The characters of the texts of messages.

    Raises:
        RequirementError: if they are no messages, or hold what is no text.
    """
    if not isinstance(messages, list) or not messages:
        raise RequirementError(f"{place}: messages must be a list that is not empty")
    found = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequirementError(f"{place}: {where} must be an object with a role and a content")
        content = message.get("content")
        parts = content if isinstance(content, list) else [] if content is None else [{"type": "text", "text": content}]
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                what = kind if isinstance(kind, str) and kind in _NO_TEXT else "a part that is no text"
                raise RequirementError(f"{place}: {where} holds {what}: only text can be sent; leave the line out")
            if not isinstance(part.get("text"), str):
                raise RequirementError(f"{place}: the text of {where} must be a text")
            found += len(part["text"])
    if not found:
        raise RequirementError(f"{place}: messages hold no text")
    return found


def _text(place: str, value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequirementError(f"{place}: {name} must be a text that is not empty")
    return value


def output_tokens(place: str, name: str, value: Any) -> int:
    """How long an answer is, as a field of a name says.

    Raises:
        RequirementError: if it says no number of tokens.
    """
    # No message tells the value, which may be anything.
    whole = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS
    if not whole or value != int(value):
        raise RequirementError(f"{place}: {name} must be a whole number from 1 to {MOST_TOKENS}")
    return int(value)


def sendable(place: str, fields: Mapping[str, Any]) -> str:
    """JSON text of an object that any server can read.

    Raises:
        RequirementError: if a text in it is none that can be sent.
    """
    try:
        return json_text(fields)
    except NoJsonText as error:
        raise RequirementError(f"{place}: {error}: leave the line out") from None
