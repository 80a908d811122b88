"""The commands of the pages: their fenced `console` and `sh` blocks, and the files that they have one write."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("rules.toml").read_text(encoding="utf-8"))
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NAMED_FILE = re.compile(r"\b(?:into|in|as) `([\w./-]+\.\w+)`")
_PROMPT = "$ "


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a page.

    Attributes:
        page: its path in the repository.
        line: where it stands, from 1.
        text: the command, a whole script of an `sh` block, or the content of a file.
        file: the path of the file that is written; empty for a command.
        script: it is a whole script.
    """

    page: str
    line: int
    text: str
    file: str = ""
    script: bool = False

    @property
    def left_out(self) -> str:
        """Why it is not run; empty if it is."""
        if self.file:
            return ""
        for rule in RULES["left_out"]:
            if re.search(rule["command"], self.text, re.MULTILINE) and rule.get("page", self.page) == self.page:
                return str(rule["reason"])
        return ""

    @property
    def needs_vllm(self) -> bool:
        """Whether it needs the CPU build of vLLM."""
        return not self.file and any(re.search(rule["command"], self.text) for rule in RULES["needs_vllm"])

    @property
    def advice(self) -> tuple[str, str]:
        """What it may say where it fails, and the command that the page advises then; empty without such advice."""
        for rule in RULES["advice"]:
            if rule["page"] == self.page and re.search(rule["command"], self.text):
                return str(rule["said"]), f"{self.text} {rule['add']}"
        return "", ""

    @property
    def exits(self) -> set[int]:
        """The exit codes that the page leads one to expect."""
        for rule in RULES["exits"]:
            if rule["page"] == self.page and re.search(rule["command"], self.text):
                return {*rule["codes"]}
        return {0}


def pages() -> list[str]:
    """The README, and every page of the docs that has steps, the tutorial first."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    docs.sort(key=lambda page: page != "docs/tutorial.md")
    return [page for page in ("README.md", *docs) if any(not step.file for step in steps(page))]


def steps(page: str) -> Iterator[Step]:
    """The steps of one page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        kind, content = block[2], textwrap.dedent(block[3])
        if kind == "sh":
            yield Step(page, line, content, script=True)
        elif kind == "console":
            yield from _prompted(page, line, content)
        elif named := _NAMED_FILE.findall(text[: block.start()].rstrip().rpartition("\n\n")[2]):
            yield Step(page, line, content, file=named[-1])


def _prompted(page: str, first: int, content: str) -> Iterator[Step]:
    """The lines after a prompt; a line that ends in a backslash goes on. Everything else is output."""
    lines = iter(enumerate(content.splitlines(), first))
    for number, line in lines:
        if not line.startswith(_PROMPT):
            continue
        command = line.removeprefix(_PROMPT)
        while command.endswith("\\"):
            command += "\n" + next(lines)[1].removeprefix("> ")
        yield Step(page, number, command)
