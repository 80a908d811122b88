"""Where reports go at the end of a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.report.publish import publish
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from tests.results import made

FAILED = made.session(made.check())
PAGE = pull_request_page(FAILED)


def agent(folder: Path, *, exit_code: int = 0) -> dict[str, str]:
    """An environment of a Buildkite job, with an agent that writes down what it was given."""
    script = folder / "buildkite-agent"
    script.write_text(
        f'#!/bin/sh\necho "$@" > "{folder}/arguments"\ncat > "{folder}/body"\necho no token >&2\nexit {exit_code}\n'
    )
    script.chmod(0o755)
    return {"BUILDKITE": "true", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_nowhere_special_nothing_happens(tmp_path: Path) -> None:
    assert publish(FAILED, markdown_file=None, root=tmp_path, environ={"PATH": os.environ["PATH"]}).lines == []


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.md"
    path.parent.mkdir()
    path.write_text("of an older run")
    (line,) = publish(FAILED, markdown_file=path, root=tmp_path, environ={}).lines
    assert line == f"Markdown report: {path}"
    assert path.read_text() == PAGE


def test_the_step_summary_keeps_what_the_step_wrote_before(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("## Mine\n")
    assert publish(FAILED, markdown_file=None, root=tmp_path, environ={"GITHUB_STEP_SUMMARY": str(summary)}).lines == []
    assert summary.read_text() == f"## Mine\n{PAGE}\n"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ = {"GITHUB_STEP_SUMMARY": str(tmp_path / "file" / "summary.md")}
    lines, missing = publish(FAILED, markdown_file=tmp_path, root=tmp_path, environ=environ)
    assert [line.partition(" could not be written: ")[0] for line in lines] == [
        str(tmp_path),
        environ["GITHUB_STEP_SUMMARY"],
    ]
    assert missing == lines[:1]  # no option asks for the step's summary


def test_annotations_only_for_github(tmp_path: Path) -> None:
    root = tmp_path / "services" / "chat"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(tmp_path)}
    (line,) = publish(FAILED, markdown_file=None, root=root, environ=github).lines
    assert line.startswith("::error file=services/chat/tests/test_chat.py,line=12,title=")
    elsewhere = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/somewhere/else"}
    (line,) = publish(FAILED, markdown_file=None, root=root, environ=elsewhere).lines
    assert line.startswith("::error file=tests/test_chat.py,line=12,")


@pytest.mark.parametrize(
    ("results", "style"),
    [
        ([made.check(), made.check(Outcome.PASS)], "error"),
        ([made.check(Outcome.INVALID)], "error"),
        ([made.check(Outcome.INCONCLUSIVE)], "warning"),
        ([made.compared(made.check(Outcome.PASS))], "error"),
        ([made.check(Outcome.PASS), replace(made.check(), expected_failure=True)], "success"),
        ([made.measured()], "info"),
    ],
)
def test_buildkite_gets_the_page_through_its_agent(tmp_path: Path, results: list[Result], style: str) -> None:
    document = made.session(*results)
    assert publish(document, markdown_file=None, root=tmp_path, environ=agent(tmp_path)).lines == []
    assert (tmp_path / "arguments").read_text() == f"annotate --style {style} --context gpucap\n"
    assert (tmp_path / "body").read_text() == pull_request_page(document)


def test_each_step_of_a_build_has_an_annotation_of_its_own(tmp_path: Path) -> None:
    environ = {**agent(tmp_path), "BUILDKITE_STEP_ID": "018f-a10g", "BUILDKITE_PARALLEL_JOB": "1"}
    assert publish(FAILED, markdown_file=None, root=tmp_path, environ=environ).lines == []
    assert (tmp_path / "arguments").read_text() == "annotate --style error --context gpucap-018f-a10g-1\n"


def test_an_agent_that_refuses_is_said_and_fails_nothing(tmp_path: Path) -> None:
    environ = agent(tmp_path, exit_code=7)
    lines, _ = publish(FAILED, markdown_file=None, root=tmp_path, environ=environ)
    assert lines == ["buildkite-agent annotate: exit 7: no token"]


def test_no_agent_no_call(tmp_path: Path) -> None:
    environ = {"BUILDKITE": "true", "PATH": str(tmp_path)}
    assert publish(FAILED, markdown_file=None, root=tmp_path, environ=environ).lines == []
    assert (
        publish(FAILED, markdown_file=None, root=tmp_path, environ={**agent(tmp_path), "BUILDKITE": "false"}).lines
        == []
    )
    assert not (tmp_path / "arguments").exists()
