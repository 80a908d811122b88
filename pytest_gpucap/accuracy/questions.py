"""Questions whose answers are known: JSON Lines of ``{"question": ..., "answer": ...}``.

``answer`` is the result alone: a number, or, with the ``accuracy`` extra installed, any mathematical expression in
LaTeX or plain notation. Other keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from pytest_gpucap.accuracy.grading import exact_number, has_maths_parser
from pytest_gpucap.errors import told
from pytest_gpucap.installing import pip_install
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.user_files import UserFileError, is_file, lines_of, shown_path, status

SHIPPED: Final = {"arithmetic": "arithmetic.jsonl"}
"""Questions that come with the plugin, by the name that ``questions=`` takes."""
MAX_QUESTIONS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its right result, without any words around it."""

    text: str
    answer: str


def questions_file(given: str, folder: Path) -> Path:
    """The file behind ``questions=``: one of ours by its name, or a path relative to the test file.

    Raises:
        RequirementError: if there is no such file.
    """
    if given in SHIPPED:
        return Path(str(files("pytest_gpucap.accuracy").joinpath(SHIPPED[given])))
    path = folder / given
    if not is_file(path):
        raise RequirementError(f"questions: there is no file {shown_path(path)}, and of ours only {', '.join(SHIPPED)}")
    return path


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a file of questions.

    Raises:
        RequirementError: if the file cannot be read, a line is malformed, or grading an answer needs a maths parser
            that is not installed; names the file and the line.
    """
    try:
        changed = status(path)
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the questions cannot be read: {error.why}") from None
    return _read(path, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, _changed_ns: int, _size: int) -> tuple[Question, ...]:
    try:
        with lines_of(path) as lines:
            found = tuple(_rows(path, lines))
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the questions cannot be read: {error.why}") from None
    if not found:
        raise RequirementError(f"{shown_path(path)}: the file has no question")
    return found


def _rows(path: Path, lines: Iterable[str]) -> Iterator[Question]:
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{shown_path(path)}:{number}"
        count += 1
        if count > MAX_QUESTIONS:
            raise RequirementError(f"{where}: more than {MAX_QUESTIONS} questions; give a part of them")
        try:
            row = json.loads(line)
            text, answer = row["question"], row["answer"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RequirementError(f'{where}: not a JSON object with "question" and "answer"') from None
        if not isinstance(text, str) or not text.strip():
            raise RequirementError(f"{where}: question must be text and not empty")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            raise RequirementError(f"{where}: answer must be a number, or text that is not empty, not {told(answer)}")
        if exact_number(str(answer)) is None and not has_maths_parser():
            raise RequirementError(
                f"{where}: the answer {told(answer)} is not a plain number, and grading it needs a maths parser: "
                f"{pip_install('accuracy')}"
            )
        yield Question(text, str(answer))
