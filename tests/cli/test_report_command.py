"""``gpucap report``: every report from the file alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.installing import pip_install
from pytest_gpucap.report import terminal
from pytest_gpucap.report.comparison import regression_failure
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.measured import Outcome
from tests.results import made

FAILED = made.session(made.check())
RECORDED = sorted((Path(__file__).parents[2] / "benchmarks" / "results" / "h200").glob("*.json"))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    result_file.write(path, FAILED)
    return path


def test_text_is_what_is_made_when_nothing_is_named(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(result)]) == 0
    made_so = made.check()
    assert capsys.readouterr().out == f"{terminal.summary([made_so])}\n\n\n{terminal.failure(made_so)}\n"


def test_a_regression_is_told_even_where_the_budget_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    slower = made.compared(made.check(Outcome.PASS))
    result_file.write(path, made.session(slower))
    assert main(["report", str(path)]) == 0
    told = capsys.readouterr().out
    assert "against baseline main: 1 REGRESSED" in told
    assert told.endswith(regression_failure(slower) + "\n")


def test_every_report_at_once(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "--markdown": "r.md", "--junit": "r.xml", "--text": "r.txt", "--code-quality": "q.json", "--metrics": "m.txt"
    }  # fmt: skip
    arguments = [argument for option, name in names.items() for argument in (option, str(tmp_path / name))]
    assert main(["report", str(result), *arguments]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "r.md").read_text() == pull_request_page(FAILED)
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "1"
    assert (tmp_path / "r.txt").read_text().startswith("verdict")
    assert len(json.loads((tmp_path / "q.json").read_text())) == 1
    assert "gpucap_gpus_required" in (tmp_path / "m.txt").read_text()


def test_several_files_make_one_report(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    result_file.write(other, made.session(made.check(Outcome.INVALID, "shared")))
    assert main(["report", str(result), str(other), "--markdown", "-"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("⚠️ **shared was not measured**")
    assert "chat needs 3 GPUs" in page


DAMAGED = json.dumps(to_builtins(FAILED)).replace('"FAIL"', '"<b>"')


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "pytest-gpucap", "schema_version": 99}', DAMAGED])
def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["report", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpucap report: {path}: ")


def test_a_report_that_cannot_be_written_is_one_line(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(result), "--junit", f"{result}/all.xml"]) == 2
    assert capsys.readouterr().err == f"gpucap report: {result}/all.xml: Not a directory\n"


def test_without_the_extra_the_html_report_says_what_to_install(result: Path) -> None:
    without = "import sys; sys.modules['jinja2'] = None; from pytest_gpucap.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", without, "report", str(result), "--html", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    expected = f"gpucap report: --html needs jinja2: {pip_install('html')}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_the_html_report(result: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    assert main(["report", str(result), "--html", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "chat" in page


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_files_recorded_on_a_gpu_make_every_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--text", "--markdown", "--junit", "--code-quality", "--metrics"):
        assert main(["report", str(path), option, "-"]) == 0
        assert "H200" in capsys.readouterr().out or option in {"--code-quality", "--metrics"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_its_escape(result: Path, encoding: str) -> None:
    name = "größer 👍"
    result_file.write(result, made.session(made.check(name=name)))
    command = [sys.executable, "-m", "pytest_gpucap", "report", str(result), "--markdown", "-"]
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environ, timeout=60, check=True)
    shown = done.stdout.decode(encoding)
    assert name.encode(encoding, errors="backslashreplace").decode(encoding) in shown


def test_a_reader_that_has_seen_enough_is_no_error(result: Path) -> None:
    command = f"{sys.executable} -m pytest_gpucap report {result} --text - | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_results_of_these_tests_keep_the_schema() -> None:
    schema = json.loads((Path(result_file.__file__).parent / "result.schema.json").read_text())
    decisions = (RegressionDecision.REGRESSED, RegressionDecision.NOT_COMPARABLE)
    compared = [made.compared(made.check(), decision) for decision in decisions]
    expected = msgspec.structs.replace(made.check(), expected_failure=True)
    results = [*map(made.check, Outcome), *compared, made.measured(), made.swept(), expected]
    jsonschema.validate(to_builtins(made.session(*results)), schema)


def commands_of_the_documentation() -> list[tuple[str, str]]:
    root = Path(__file__).parents[2]
    files = [root / "docs" / "reports.md", *sorted((root / "examples" / "ci").rglob("*.yml"))]
    found = []
    for path in files:
        # A command goes on over YAML's folded lines, and ends where a shell would go on to the next thing.
        text = re.sub(r"\n +--", " --", path.read_text())
        found += [(path.name, match[1]) for match in re.finditer(r"\bgpucap (report [^\n|#`;]*)", text)]
    return found


@pytest.mark.parametrize(("place", "command"), commands_of_the_documentation())
def test_every_command_that_is_documented_works(
    place: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--html" in command:
        pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json", ".gpucap/result.json"):
        result_file.write(tmp_path / name, FAILED)
    assert main(shlex.split(command)) == 0, place
    assert capsys.readouterr().err == ""


def test_the_documentation_shows_the_command() -> None:
    assert len(commands_of_the_documentation()) >= 4
