"""Publishes reports: to a file, GitHub's step summary, Buildkite's page."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pytest_gpucap.report.annotations import annotations_of, workflow_commands
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.report.headline import Tone, session_headlines, worst_first
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results.result import ResultFile
from pytest_gpucap.results.whole_file import append_text, write_text
from pytest_gpucap.user_files import UserFileError

_AGENT: Final = "buildkite-agent"
_AGENT_S: Final = 30.0
"""How long the agent may take. A failed annotation must not delay the end of the tests."""


class Published(NamedTuple):
    """What came of the reports.

    Attributes:
        lines: for the terminal: where the reports are, what could not be written, and GitHub's annotations.
        missing: why a report that an option asks for could not be written, a line each.
    """

    lines: list[str]
    missing: list[str]


def publish(
    content: ResultFile,
    *,
    markdown_file: Path | None,
    root: Path,
    environ: Mapping[str, str],
    html_file: Path | None = None,
) -> Published:
    """Write the reports to all requested places. A job's page has nothing about a session that measured nothing.

    Args:
        content: of the result file.
        markdown_file: from ``--gpucap-markdown``.
        root: pytest's rootdir, which the tests' paths are relative to.
        environ: tells where we run: ``GITHUB_STEP_SUMMARY``, ``GITHUB_ACTIONS``, ``BUILDKITE``.
        html_file: from ``--gpucap-html``.

    Returns:
        What to tell the user.
    """
    lines: list[str] = []
    missing: list[str] = []

    def asked(name: str, path: Path, text: str) -> None:
        failed = _written(path, text, append=False)
        missing.extend(filter(None, [failed]))
        lines.append(failed or f"{name} report: {shown(path)}")

    measured = bool(content.results)
    summary = environ.get("GITHUB_STEP_SUMMARY") if measured else None
    buildkite = measured and environ.get("BUILDKITE") == "true"
    agent = shutil.which(_AGENT, path=environ.get("PATH")) if buildkite else None
    if markdown_file or summary or agent:
        page = pull_request_page(content)
        if markdown_file:
            asked("Markdown", markdown_file, page)
        if summary:
            # Appended: the step may have written other text there.
            lines.append(_written(Path(summary), f"{page}\n", append=True))
        if agent:
            lines.append(_annotated(agent, page, content, environ))
    if html_file:
        from pytest_gpucap.report import html

        asked("HTML", html_file, html.render(content))
    if measured and environ.get("GITHUB_ACTIONS") == "true":
        lines += workflow_commands(annotations_of(content, _folder(root, environ.get("GITHUB_WORKSPACE"))))
    return Published([line for line in lines if line], missing)


def _written(path: Path, page: str, *, append: bool) -> str:
    """Write a file; returns an empty text, or why it could not be written."""
    try:
        (append_text if append else write_text)(path, page)
    except (OSError, ValueError) as error:
        failed = UserFileError.of(path, error)
        return f"{failed.path} could not be written: {failed.why}"
    return ""


def _annotated(agent: str, page: str, content: ResultFile, environ: Mapping[str, str]) -> str:
    """Annotate the build; returns an empty text, or why Buildkite's agent failed."""
    # One annotation per step. A retry of the job replaces it; jobs of other GPU classes do not.
    parts = (environ.get("BUILDKITE_STEP_ID"), environ.get("BUILDKITE_PARALLEL_JOB"))
    context = "-".join(["gpucap", *filter(None, parts)])
    command = [agent, "annotate", "--style", _style(content), "--context", context]
    try:
        done = subprocess.run(command, input=page.encode(), capture_output=True, timeout=_AGENT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{_AGENT} annotate: {error}"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"{_AGENT} annotate: exit {done.returncode}{f': {said[-1]}' if said else ''}"


def _style(content: ResultFile) -> str:
    """The colour of the page, which its headline has."""
    tone = session_headlines(worst_first(content.results), content.problems)[0].standing.tone
    return {Tone.FAIL: "error", Tone.INVALID: "error", Tone.INCONCLUSIVE: "warning", Tone.PASS: "success"}.get(
        tone, "info"
    )


def _folder(root: Path, workspace: str | None) -> str:
    """Where the tests' paths start inside the repository."""
    if workspace and root.is_relative_to(workspace):
        return root.relative_to(workspace).as_posix()
    return ""
