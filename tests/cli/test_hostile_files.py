"""Result files from elsewhere, such as a fork's: every command and report shows their texts and obeys none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import ResultFile
from tests.history.made import STARTED, result, session
from tests.report.gfm import rendered
from tests.test_foreign_text import obeyed

HOSTILE = (
    "\n::error file=x::pwned\r\n::stop-commands::t ::add-mask::e ##[add-mask]x ##vso[task.setvariable]y "
    "\x1b]0;title\x07\x9b31m\u202e @octocat #1 https://evil.example [a](http://b) <img src=x> `"
)
_CODES = frozenset({"kind", "binding", "metric", "trace_sha256", "schema", "gpu_class"})
"""Texts by which reports look things up."""


def poisoned(value: Any) -> Any:
    """The same with hostile text in every text that is none of the file's own words."""
    match value:
        case Enum():
            return value
        case str():
            return value + HOSTILE
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in _CODES}
            return msgspec.structs.replace(value, **{name: poisoned(each) for name, each in fields.items()})
        case Mapping():
            return {key: poisoned(each) for key, each in value.items()}
        case tuple() | list():
            return type(value)(map(poisoned, value))
    return value


def hostile_file(path: Path, rate: float = 25.0, nights: int = 0) -> Path:
    """A result file with one failed check, poisoned."""
    content: ResultFile = session(result(rate, test="t.py::chat"), started=STARTED + timedelta(days=nights))
    path.parent.mkdir(parents=True, exist_ok=True)
    result_file.write(path, poisoned(content))
    return path


FORMATS = ("text", "markdown", "json")
COMMANDS = [
    *(["show", "a.json", "--format", form] for form in FORMATS),
    *(["compare", "a.json", "b.json", "--format", form] for form in FORMATS),
    *(["history", "nights", "--format", form] for form in FORMATS),
    *(["plan", "--result", "a.json", "--qps", "10", "--format", form] for form in FORMATS),
    *(["report", "a.json", f"--{form}", "-"] for form in ("text", "markdown", "junit", "code-quality", "metrics")),
    ["report", "a.json"],
    ["compare", "a.json", "b.json", "--variants", HOSTILE.replace("\0", ""), "x"],
    ["show", "none.json" + HOSTILE],
    ["show", "damaged.json"],
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    hostile_file(tmp_path / "a.json")
    hostile_file(tmp_path / "b.json", 21.0, 1)
    for night in range(12):
        hostile_file(tmp_path / "nights" / f"{night:02}.json", 25.0 - 8 * (night > 5), night)
    (tmp_path / "nights" / "bad \x1b[31m.json").write_text("{")
    (tmp_path / "damaged.json").write_text(json.dumps({"schema_version": HOSTILE, "results": HOSTILE}))
    return tmp_path


@pytest.fixture
def printed(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command; what it writes to standard output and error."""
    monkeypatch.chdir(project)

    def run(*command: str) -> str:
        main(command)
        said = capsys.readouterr()
        return said.out + said.err

    return run


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(command)[:40].encode("unicode_escape").decode()
)
def test_no_command_prints_what_is_obeyed(printed: Callable[..., str], command: list[str]) -> None:
    output = printed(*command)
    assert output.strip()
    assert obeyed(output) == []
    if "json" in command:
        json.loads(output)
    if "markdown" in command or "--markdown" in command:
        page = re.sub(r"(?s)<pre.*?</pre>", "", rendered(output))
        assert not re.findall(r"<(?:a|img|script)\b", page)
        assert not re.search(r"@octocat|https?://evil", re.sub(r"<[^>]*>|&#\d+;", "", page))


def test_files_of_reports(printed: Callable[..., str], project: Path) -> None:
    kinds = {"--markdown": "r.md", "--junit": "r.xml", "--metrics": "r.txt", "--code-quality": "r.json"}
    printed("report", "a.json", *(word for pair in kinds.items() for word in pair))
    written: Callable[[str], str] = lambda name: (project / name).read_text(encoding="utf-8")  # noqa: E731
    assert not [name for name in kinds.values() if obeyed(written(name))]
