"""One rule for each source of a path, whatever the option: the command line, an ini file, a default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.options import values
from pytest_gpucap.options.reading import parse_options
from pytest_gpucap.options.table import Option, Options, all_options
from pytest_gpucap.results import result_file
from pytest_gpucap.results.ending import Ending

PATHS = [row for row in all_options() if row.parse in values.PATHS]


@pytest.fixture
def below(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where pytest is started, below the root folder."""
    folder = pytester.mkdir("below")
    monkeypatch.chdir(folder)
    return folder


def settings(pytester: pytest.Pytester, *arguments: str) -> Options:
    return parse_options(pytester.parseconfig(f"--rootdir={pytester.path}", *arguments))


def given(row: Option[Any], folder: Path) -> str:
    """A relative path that the option takes. Only an interpreter and a checkout must exist."""
    if row.parse is values.base_folder:
        (folder / "base").mkdir(exist_ok=True)
        return "base"
    if row.parse is values.interpreter:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "python").touch()
        return "bin/python"
    return "deep/mine.json"


@pytest.mark.parametrize("row", PATHS, ids=lambda row: row.flag)
def test_on_the_command_line_it_starts_where_pytest_was_started(
    pytester: pytest.Pytester, below: Path, row: Option[Any]
) -> None:
    named = given(row, below)
    (below / "deep").mkdir()
    if row is Options.compare:  # a baseline inside the root folder is named from there
        assert settings(pytester, f"{row.flag}={named}").compare == f"below/{named}"
        return
    assert Path(getattr(settings(pytester, f"{row.flag}={named}"), row.name)) == below / named


@pytest.mark.parametrize("row", PATHS, ids=lambda row: row.flag)
def test_in_an_ini_file_it_starts_in_the_folder_of_the_file(
    pytester: pytest.Pytester, below: Path, row: Option[Any]
) -> None:
    ini = pytester.mkdir("config") / "pytest.ini"
    named = given(row, ini.parent)
    ini.write_text(f"[pytest]\n{row.ini} = {named}\n")
    found = Path(getattr(settings(pytester, f"-c{ini}"), row.name))
    assert pytester.path / found == ini.parent / named


def test_a_default_starts_at_the_root_folder(pytester: pytest.Pytester, below: Path) -> None:
    found = settings(pytester)
    assert (found.dir, found.baselines) == (pytester.path / ".gpucap", pytester.path / "gpucap-baselines")


def test_a_name_is_no_path(pytester: pytest.Pytester, below: Path) -> None:
    found = settings(pytester, "--gpucap-vllm-python=python3")
    assert found.vllm_python == "python3"
    assert values.PATHS[values.baseline]("latest", below) == "latest"


def test_home_is_home(pytester: pytest.Pytester, below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pytester.path / "home"))
    assert settings(pytester, "--gpucap-json=~/r.json").json == pytester.path / "home" / "r.json"


OUTPUTS = [row for row in PATHS if row.parse in {values.output_file, values.html_path}]


@pytest.mark.parametrize("row", OUTPUTS, ids=lambda row: row.flag)
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("folder", "is a folder: name a file in it"),
        ("file/r.json", "is a file"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_anything_starts(
    pytester: pytest.Pytester, row: Option[Any], named: str, said: str
) -> None:
    pytester.mkdir("folder")
    pytester.path.joinpath("file").touch()
    pytester.path.joinpath("loop").symlink_to("loop")
    pytester.makepyfile("def test_it(): ...")
    result = pytester.runpytest(f"{row.flag}={named}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (each for each in result.errlines if each.startswith("ERROR"))
    assert line.startswith(f"ERROR: {row.flag}: {pytester.path}")
    assert said in line


@pytest.mark.parametrize("flag", ["--gpucap-dir", "--gpucap-baselines"])
def test_a_file_in_place_of_a_folder_is_refused(pytester: pytest.Pytester, flag: str) -> None:
    pytester.path.joinpath("file").touch()
    result = pytester.runpytest(f"{flag}=file")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {flag}: " in result.stderr.str()


@pytest.mark.parametrize("other", ["--gpucap-json", "--junit-xml"])
def test_two_reports_need_two_files(pytester: pytest.Pytester, other: str) -> None:
    result = pytester.runpytest(f"{other}=r", "--gpucap-markdown=./r")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {other} and --gpucap-markdown name the same file, *"])


def test_a_folder_whose_name_is_no_utf_8(pytester: pytest.Pytester) -> None:
    """Its tests' ids have halves of surrogate pairs, which no file can hold."""
    folder = pytester.path / os.fsdecode(b"d\xff")
    folder.mkdir()
    (folder / "test_it.py").write_text("def test_it(gpucap): gpucap.sample(rate=20, duration='2s')\n")
    reports = ["--gpucap-json=r.json", "--gpucap-html=r.html", "--gpucap-markdown=r.md"]
    # pytest's own cache cannot hold the ids.
    result = pytester.runpytest("--gpu-class=sim:fast", "-p", "no:cacheprovider", *reports)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    content = result_file.read(pytester.path / "r.json")
    assert [(each.test, each.ending) for each in content.results] == [("d\\udcff/test_it.py::test_it", Ending.PASSED)]
    assert "test_it" in (pytester.path / "r.html").read_text()
    assert "test_it" in (pytester.path / "r.md").read_text()
