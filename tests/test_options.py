"""Options are stated once: parser, ini keys, attributes and documentation follow from the rows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_gpucap.gpu.occupancy import IdleMemory
from pytest_gpucap.options.table import Option, Options, all_options
from pytest_gpucap.plugin import OPTIONS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("row", list(all_options()), ids=lambda row: row.flag)
def test_an_ini_key_and_an_attribute_are_named_as_the_option(row: Option[Any]) -> None:
    assert row.flag.startswith("--gpu") or row.flag == "--target-qps"
    assert row.ini == f"gpucap_{row.name.removesuffix('_s')}"
    assert row.ini.removeprefix("gpucap_").replace("_", "-") in row.flag


@pytest.mark.parametrize("row", [row for row in all_options() if row.default], ids=lambda row: row.flag)
def test_the_default_is_the_one_that_is_documented(row: Option[Any]) -> None:
    root = cast("pytest.Config", SimpleNamespace(rootpath=Path()))
    assert row.parse(row.otherwise, row.name, root) == row.default


def test_settings_are_frozen_and_known() -> None:
    options = Options(gpus=2)
    assert (options.gpus, options.seed) == (2, 0)
    with pytest.raises(AttributeError, match="do not change: gpus"):
        options.gpus = 3
    with pytest.raises(TypeError, match="no such setting: gpu"):
        Options(gpu=1)


def test_the_documented_table_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_options.py"))["page"]()
    assert (DOCS / "options.md").read_text() == page, "run: python docs/make_options.py"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("2GiB", IdleMemory(bytes=2 * 2**30)),
        ("1500 MB", IdleMemory(bytes=1_500_000_000)),
        ("0.5g", IdleMemory(bytes=2**29)),
        ("512m", IdleMemory(bytes=2**29)),
        ("5%", IdleMemory(share=0.05)),
        ("0%", IdleMemory(share=0.0)),
        *((wrong, None) for wrong in ("2", "two GiB", "-1GiB", "100%", "2GiB 3", "nan%", "5\u212a", "5M\u0130B")),
    ],
)
def test_an_amount_of_idle_memory_has_its_unit(given: str, found: IdleMemory | None) -> None:
    root = cast("pytest.Config", SimpleNamespace(rootpath=Path()))
    if found is None:
        with pytest.raises(ValueError, match=r"^gpu idle must be "):
            Options.gpu_idle.parse(given, "gpu idle", root)
        return
    assert Options.gpu_idle.parse(given, "gpu idle", root) == found


@pytest.fixture
def projects(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two projects with an ini file each, ``own``, where pytest starts, and ``base``; and one without, ``bare``."""
    for name in ("own", "base", "bare"):
        (pytester.path / name / "tests").mkdir(parents=True)
        (pytester.path / name / "tests" / "test_it.py").touch()
        (pytester.path / name / "bin").mkdir()
        (pytester.path / name / "bin" / "python").symlink_to(sys.executable)
    (pytester.path / "own" / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (pytester.path / "base" / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(pytester.path / "own")
    return pytester.path


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        ("own", ["--gpucap-base-python", "../base/bin/python"]),
        ("own", ["--gpucap-vllm-python", "../base/bin/python"]),
        ("own", ["--gpucap-base-python", "../base/bin/python", "tests"]),
        ("own", ["--gpucap-baselines", "../base"]),
        ("own", ["--gpucap-base-python", "../bare/bin/python"]),
        ("bare", ["--gpucap-base-python", "../base/bin/python"]),
        ("bare", ["--gpucap-dir", "../own/tests"]),
    ],
)
def test_a_root_folder_from_the_value_of_an_option_is_refused(
    pytester: pytest.Pytester, projects: Path, monkeypatch: pytest.MonkeyPatch, start: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(projects / start)
    with pytest.raises(pytest.UsageError, match=r"pytest took its value for a test path.*: write --gpucap-[a-z-]+="):
        pytester.parseconfigure(*arguments)


@pytest.mark.parametrize(
    ("start", "arguments", "root"),
    [
        ("own", ["--gpucap-base-python=../base/bin/python"], "own"),
        ("own", ["--gpucap-base-python=../base/bin/python", "tests"], "own"),
        ("own", ["--gpucap-base-python", "bin/python"], "own"),
        ("own", ["--gpucap-base-python", "bin/python", "tests/test_it.py::test_x"], "own"),
        ("own", ["tests", "--gpucap-vllm-python", "../base/bin/python"], "own"),
        ("own", ["--gpucap-vllm-python", "../base/bin/python", "--rootdir", "."], "own"),
        ("own", ["--gpucap-vllm-python", "../base/bin/python", "-c", "pyproject.toml"], "own"),
        ("own", ["--gpucap-vllm-python", "../base/bin/python", "../base/tests"], "base"),
        ("bare", ["--gpucap-vllm-python=../base/bin/python"], "bare"),
        ("bare", ["--gpucap-vllm-python", "bin/python"], "bare"),
    ],
)
def test_a_root_folder_of_the_tests_is_taken(
    pytester: pytest.Pytester,
    projects: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    arguments: list[str],
    root: str,
) -> None:
    monkeypatch.chdir(projects / start)
    assert pytester.parseconfigure(*arguments).rootpath == projects / root


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--gpucap-base-args", "--no-enable-prefix-caching"], "--no-enable-prefix-caching"),
        (["--gpucap-base-args=--no-enable-prefix-caching"], "--no-enable-prefix-caching"),
        (["--gpucap-base-args", "-tp=2"], "-tp=2"),
        (["--gpucap-base-args", "--max-num-seqs 64"], "--max-num-seqs 64"),
        (["--gpucap-base-args", "--x", "--gpu-class", "cpu"], "--x"),
    ],
)
def test_server_arguments_may_begin_with_dashes(pytester: pytest.Pytester, words: list[str], value: str) -> None:
    assert pytester.parseconfigure(*words).stash[OPTIONS].base_args == value


def test_server_arguments_that_are_missing(pytester: pytest.Pytester) -> None:
    with pytest.raises(pytest.UsageError, match="--gpucap-base-args: needs arguments"):
        pytester.parseconfigure("--gpucap-base-args", "--gpu-class", "cpu")


@pytest.mark.parametrize("source", ["--gpucap-gpu-file", "--gpucap-workload-file", "--gpucap-compare", "ini"])
def test_a_report_that_would_replace_what_the_session_reads_is_refused(pytester: pytest.Pytester, source: str) -> None:
    file = pytester.makeini("[pytest]\n") if source == "ini" else pytester.maketxtfile(kept="")
    before = file.read_bytes()
    arguments = [] if source == "ini" else [f"{source}={file}"]
    for report in ("--gpucap-markdown", "--gpucap-json"):
        result = pytester.runpytest(*arguments, f"{report}={file}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        name = "the ini file" if source == "ini" else source
        if source != "--gpucap-compare":  # an empty file is no baseline, which is told first
            result.stderr.fnmatch_lines([f"*{report}: {file} is the file of {name}, and would be replaced*"])
        assert file.read_bytes() == before
