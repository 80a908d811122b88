"""Recorded sessions, from a file: ``gpucap(sessions=FILE)``. What a row may be: `workloads.session_formats`.

A file is JSON Lines or one JSON list, packed with gzip or not, or Parquet. The messages of a session are kept once:
what a turn sends is a beginning of what the next one sends, unless the file says otherwise.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Bools, Floats, Int32s, Ints
from pytest_gpucap.requirement import USUAL_OUTPUT, RequirementError
from pytest_gpucap.user_files import MIB, UserFileError, is_file, shown_path, status
from pytest_gpucap.workloads.prompt_file import rows_in
from pytest_gpucap.workloads.session_formats import (
    ADVICE,
    BAILIAN_BLOCK,
    MOONCAKE_BLOCK,
    MOST_GAP_S,
    FileRow,
    FileTurn,
    row_of,
    sessions_of,
)

MOST_SESSIONS: Final = 200_000
MOST_TURNS: Final = 500_000
MOST_BLOCKS: Final = 8_000_000
"""Of all prompts together: they are kept in memory, with what an earlier prompt had of each."""
MOST_KEPT: Final = 256 * MIB
"""Bytes of all messages together."""
_MOST_MESSAGES: Final = 20_000_000
"""Of all turns, each with all before it: so many references take some hundred megabytes."""
_COLUMNS: Final = (
    *("conversations", "messages", "turns", "spans", "text", "texts", "session_id", "delay", "timestamp", "role"),
    *("output_length", "input_length", "hash_ids", "chat_id", "parent_chat_id", "max_tokens", "output_tokens"),
)
_TAKE_A_PART: Final = "take a part of it: head -n 10000 FILE > part.jsonl"


@dataclass(frozen=True, slots=True)
class SessionFile:
    """The sessions of a file: s sessions with t turns in all, session by session.

    Attributes:
        path: of the file.
        sha256: of everything that is sent and asked for, and when. How the file is packed and spaced does not matter.
        places: file and line of each turn, for messages.
        begin: shape (s + 1,), the first turn of each session, and t.
        think_s: shape (t,), from the end of the answer before; 0 for first turns.
        start_s: shape (s,), when each session began, rising; None: not every one says so.
        output: shape (t,), tokens of the answer; 0: not said.
        text: messages of all sessions as they are sent; empty where prompts are made of blocks.
        span: shape (t, 2), where in `text` the messages of each turn begin and end.
        characters: shape (t,), of the texts of these messages.
        answers: that were recorded, by turn; None: none was.
        extends: shape (t,), the prompt begins with that of the turn before it.
        prompt: shape (t,), tokens of a prompt that is made of blocks.
        blocks: which blocks these are, prompt by prompt.
        block_ends: shape (t + 1,), where in `blocks` those of each prompt end, and 0 before the first.
        block: tokens of a block; None where there are none.
        left_out: rows without a turn that could be sent.
    """

    path: Path
    sha256: str
    places: tuple[str, ...] = field(repr=False)
    begin: Ints
    think_s: Floats
    start_s: Floats | None
    output: Int32s
    text: bytes = field(repr=False)
    span: Ints
    characters: Ints
    answers: tuple[str | None, ...] = field(repr=False)
    extends: Bools
    prompt: Int32s
    blocks: Ints
    block_ends: Ints
    block: int | None
    left_out: int = 0

    @property
    def personal(self) -> bool:
        """Whether it holds texts of the user's own."""
        return self.block is None


def sessions_file(given: str, folder: Path) -> Path:
    """The file behind ``sessions=``, relative to the test file.

    Raises:
        RequirementError: if there is no such file.
    """
    path = folder / given
    if not is_file(path):
        raise RequirementError(
            f"sessions: there is no file {shown_path(path)}; without a file write turns= and think=, as in "
            'sessions="turns=4 think=8s"'
        )
    return path


def read_sessions(path: Path, usual_answer: int = USUAL_OUTPUT, block: int | None = None) -> SessionFile:
    """Read a file of sessions.

    Args:
        path: of the file.
        usual_answer: tokens of an answer that neither was recorded nor has a length.
        block: tokens of a block of a trace; None: 16 of Bailian's, 512 of Mooncake's.

    Raises:
        RequirementError: if the file cannot be read, is too large, or a row cannot be sent; one line, with file and
            line, and without what the line holds.
    """
    try:
        changed = status(path)
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the sessions cannot be read: {error.why}") from None
    return _read(path, usual_answer, block, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, usual_answer: int, block: int | None, _changed_ns: int, _size: int) -> SessionFile:
    rows = _Rows(path, usual_answer)
    try:
        sessions = list(sessions_of(iter(rows)))
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the sessions cannot be read: {error.why}") from None
    kept = [_in_time(each) for each in sessions if each]
    if not kept:
        none = f"; {rows.count} rows have no question with an answer" if rows.count else ""
        raise RequirementError(f"{shown_path(path)}: the file has no session{none}")
    if block is not None and rows.kind not in _BLOCKS:
        raise RequirementError(f"sessions: block= is about traces with hash_ids, and {shown_path(path)} holds texts")
    starts = [each[0].at_s for each in kept]
    start_s = None if None in starts else np.array(starts, np.float64)
    tokens = block or _BLOCKS.get(rows.kind)
    if start_s is not None:
        order = np.argsort(start_s, kind="stable")
        kept, start_s = [kept[at] for at in order], start_s[order]
    if start_s is not None:
        start_s -= start_s.min()
        start_s = start_s if start_s.any() else None
    return _file(path, kept, start_s, tokens, rows.count - len(kept) if rows.single else 0)


_BLOCKS: Final = {"Mooncake": MOONCAKE_BLOCK, "Bailian": BAILIAN_BLOCK}


class _Rows:
    """The rows of a file, all of one format; counts them, and bounds what they hold together."""

    def __init__(self, path: Path, usual_answer: int) -> None:
        self._path, self._usual_answer = path, usual_answer
        self.kind, self.count = "", 0
        self.single = True
        """Each row is a session of its own."""

    def __iter__(self) -> Iterator[FileRow]:
        turns = blocks = size = messages = 0
        for place, value in rows_in(self._path, ADVICE, _COLUMNS):
            row = row_of(place, value, self._usual_answer)
            self.kind = self.kind or row.kind
            if row.kind != self.kind:
                raise RequirementError(f"{place}: is of another format ({row.kind}) than the rows before ({self.kind})")
            self.count += 1
            self.single = self.single and row.key is None and row.chat is None
            turns += len(row.turns)
            blocks += sum(len(each.blocks) for each in row.turns)
            size += sum(map(len, row.turns[-1].messages)) + len(row.turns[-1].answer or "") if row.turns else 0
            messages += sum(len(each.messages) for each in row.turns)
            many = turns > MOST_TURNS or blocks > MOST_BLOCKS or messages > _MOST_MESSAGES
            if many or size > MOST_KEPT or self.count > MOST_TURNS:
                raise RequirementError(
                    f"{shown_path(self._path)}: a file may have up to {MOST_TURNS} turns, {MOST_BLOCKS} blocks and "
                    f"{MOST_KEPT // MIB} MiB of text; {_TAKE_A_PART}"
                )
            yield row


def _in_time(turns: list[FileTurn]) -> list[FileTurn]:
    """The turns of a session in the order of time, where every one says when it came."""
    if all(each.at_s is not None for each in turns):
        return sorted(turns, key=lambda each: each.at_s or 0.0)
    return turns


def _file(
    path: Path, sessions: Sequence[list[FileTurn]], start_s: Floats | None, block: int | None, left_out: int
) -> SessionFile:
    turns = [each for session in sessions for each in session]
    if len(sessions) > MOST_SESSIONS:
        raise RequirementError(f"{shown_path(path)}: a file may have up to {MOST_SESSIONS} sessions; {_TAKE_A_PART}")
    begin = np.cumsum([0, *map(len, sessions)]).astype(np.int64)
    think_s = np.array([_think_s(session, at) for session in sessions for at in range(len(session))], np.float64)
    text, span, extends = _texts(path, sessions)
    ids = array("q", itertools.chain.from_iterable(each.blocks for each in turns))
    output = np.array([each.output for each in turns], np.int32)
    prompt = np.array([each.prompt for each in turns], np.int32)
    block_ends = np.cumsum([0, *(len(each.blocks) for each in turns)]).astype(np.int64)
    blocks = np.frombuffer(ids, np.int64) if ids else np.zeros(0, np.int64)
    digest = hashlib.sha256(f"{block}\n".encode())
    for column, form in ((begin, "<i8"), (think_s * 1e6, "<i8"), (output, "<i4"), (prompt, "<i4"), (span, "<i8")):
        digest.update(np.round(column).astype(form).tobytes())
    digest.update(b"" if start_s is None else np.round(start_s * 1e6).astype("<i8").tobytes())
    digest.update(blocks.astype("<i8").tobytes() + block_ends.astype("<i8").tobytes() + text)
    for each in turns:
        digest.update(f"{each.answer}\n".encode("utf-8", "replace"))
    return SessionFile(
        path=path,
        sha256=digest.hexdigest(),
        places=tuple(each.place for each in turns),
        begin=begin,
        think_s=think_s,
        start_s=start_s,
        output=output,
        text=text,
        span=span,
        characters=np.array([each.characters for each in turns], np.int64),
        answers=tuple(each.answer for each in turns),
        extends=extends,
        prompt=prompt,
        blocks=blocks,
        block_ends=block_ends,
        block=block,
        left_out=left_out,
    )


def _think_s(session: Sequence[FileTurn], at: int) -> float:
    """The pause before a turn: as the file says, else from one arrival to the next, else none.

    A trace does not say how long its answers took. So the time from one request to the next is taken for the pause,
    which is too long by that: what was said before is kept for longer than it was there.
    """
    if at == 0:
        return 0.0
    turn, before = session[at], session[at - 1]
    pause_s = turn.pause_s
    if pause_s is None:
        known = turn.at_s is not None and before.at_s is not None
        pause_s = (turn.at_s or 0.0) - (before.at_s or 0.0) if known else 0.0
    if pause_s > MOST_GAP_S:
        raise RequirementError(
            f"{turn.place}: {pause_s:.3g} s lie between two turns of a session: is the time in another unit?"
        )
    return max(0.0, pause_s)


def _texts(path: Path, sessions: Sequence[list[FileTurn]]) -> tuple[bytes, Ints, Bools]:
    """`SessionFile.text`, `span` and `extends`."""
    parts: list[bytes] = []
    spans: list[tuple[int, int]] = []
    extends: list[bool] = []
    end = 0
    for session in sessions:
        before: tuple[str, ...] = ()
        begins = end
        for turn in session:
            goes_on = bool(before) and turn.messages[: len(before)] == before
            if not goes_on:
                begins = end
            added = turn.messages[len(before) :] if goes_on else turn.messages
            piece = ",".join(added).encode()
            if goes_on and added:
                piece = b"," + piece
            parts.append(piece)
            end += len(piece)
            spans.append((begins, end))
            extends.append(goes_on)
            before = turn.messages
        if end > MOST_KEPT:
            raise RequirementError(
                f"{shown_path(path)}: a file may have {MOST_KEPT // MIB} MiB of messages; {_TAKE_A_PART}"
            )
    return b"".join(parts), np.array(spans, np.int64).reshape(-1, 2), np.array(extends, np.bool_)
