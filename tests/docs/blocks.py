"""The fenced blocks of the pages, and the commands of a shell script."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/**/*.md")])
_FENCE = re.compile(r"^( *)(```+)([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_APART = re.compile(r"[;&|(){}<>]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, without their indentation."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[3].strip(), textwrap.dedent(match[4]))


def script(block: Block) -> str:
    """What a user types: of a console, the lines behind its prompt and those that continue them."""
    if block.language != "console":
        return block.text
    lines, continues = [], False
    for line in block.text.splitlines():
        if continues or line.startswith("$ "):
            lines.append(line.removeprefix("$ "))
            continues = line.endswith("\\")
    return "\n".join(lines)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as words; control words and redirections stand apart."""
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        command: list[str] = []
        for word in reader:
            if _APART.fullmatch(word):
                yield command
                command = []
            else:
                command.append(word)
        yield command


def arguments(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program in a shell script."""
    for words in commands(text):
        names = [Path(word).name for word in words]
        if program in names and "install" not in names:
            yield words[names.index(program) + 1 :]
