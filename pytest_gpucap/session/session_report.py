"""The session's results: written down as they come, summed up at the end."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from pytest_gpucap.access import masked_words
from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.masking import masked
from pytest_gpucap.report import terminal as text
from pytest_gpucap.report.columns import wrapped
from pytest_gpucap.report.comparison import comparison_summary
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.report.headline import Tone
from pytest_gpucap.report.publish import publish
from pytest_gpucap.results.ending import Ending, worse
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.result_file import GrowingResultFile, session_file
from pytest_gpucap.session.screen import columns

_COLOURS: Final[dict[Tone, dict[str, bool]]] = {
    Tone.PASS: {"green": True},
    Tone.FAIL: {"red": True},
    Tone.INVALID: {"red": True},
    Tone.INCONCLUSIVE: {"yellow": True},
}
"""By what a line states; its words say the same."""
_LONGEST_REASON: Final = 300
_PARTIAL: Final[dict[int | None, str]] = {
    None: "the session had not ended when this was written: it was killed, or still runs",
    int(pytest.ExitCode.INTERRUPTED): "the session was interrupted",
}
"""By the exit status, why results may be missing. Whoever reads such a file must not take it for a whole session's."""


class _Attempt:
    """One run of one test: which of the results are its own, and how it ended so far."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.ending: Ending | None = None
        self.reason = ""


class SessionReport:
    """Collects results, keeps the result files up to date, writes the terminal summary.

    A file is written as soon as it is wanted, and whenever it changes: when something was measured, when a test
    ended, when the session ended. So it is there, and whole, whatever ends the process.

    Args:
        asked: the file that exists even if nothing is measured; None: there is none.
        config: of the session.

    Attributes:
        usual: the file that is written once there is a result; None until the session's options are known.
    """

    def __init__(self, asked: Path | None, config: pytest.Config) -> None:
        self._asked = [] if asked is None else [GrowingResultFile(asked)]
        self.usual: GrowingResultFile | None = None
        self._config = config
        self._started = datetime.now(UTC)
        self._arguments = masked_words([str(argument) for argument in config.invocation_params.args])
        self._results: list[Result] = []
        self._running: dict[str, list[Result]] = {}
        self._attempts: dict[Hashable, _Attempt] = {}
        self._problems: list[str] = []
        self._exit_status: int | None = None
        self._unwritten: dict[Path, str] = {}
        self._notes: list[str] = []
        self._missing: list[str] = []
        self._published: list[str] = []
        self._shown = False
        self._write()

    @property
    def results(self) -> Sequence[Result]:
        """Of the tests that have ended, in that order."""
        return self._results

    def measured(self, test: str, results: Sequence[Result]) -> None:
        """Write down what a running test has measured so far."""
        self._running[test] = [msgspec.structs.replace(each, ending=Ending.UNFINISHED) for each in results]
        self._write()

    def ended(self, report: pytest.TestReport, results: Sequence[Result]) -> None:
        """A phase of a test ended: keep the results that came with it, and how the test ended so far."""
        # Workers of xdist may run the same test.
        attempt_of = (report.nodeid, id(getattr(report, "node", None)))
        if report.when == "setup":
            self._attempts[attempt_of] = _Attempt()
        attempt = self._attempts.setdefault(attempt_of, _Attempt())
        if results:
            self._running.pop(report.nodeid, None)
        for lost in (each.missing for result in results for each in result.requests if each.missing):
            self.note(lost, missing=True)
        attempt.places += range(len(self._results), len(self._results) + len(results))
        self._results += results
        found = ending_of(report)
        ending = worse(attempt.ending, found)
        if ending is not attempt.ending and ending is not Ending.PASSED:
            attempt.reason = _reason(report)
        changed = bool(results) or (ending is not attempt.ending and bool(attempt.places))
        attempt.ending = ending
        if found is Ending.CRASHED:
            self._problems.append(f"{report.nodeid}: {_reason(report)}")
            changed = True
        for place in attempt.places:
            self._results[place] = _ended(self._results[place], attempt)
        if changed:
            self._write()

    def left_out(self, report: pytest.TestReport, why: str) -> None:
        """The session's limit left no time for a test. A failure of a test with a result says that by itself."""
        line = f"{report.nodeid}: {why}"
        measured = self._attempts[report.nodeid, id(getattr(report, "node", None))].places
        if report.skipped or not measured:
            self.problem(line)
        if not measured:
            self.note(line)

    def problem(self, text: str) -> None:
        """Something that ended tests or the session early, a line each."""
        self._problems += filter(None, map(str.strip, masked(text).splitlines()))
        self._write()

    def finish(self, exit_status: int) -> None:
        """The session ended so."""
        if exit_status != self._exit_status:
            self._exit_status = int(exit_status)
            self._write()

    def content(self) -> ResultFile:
        """The result file of the session so far."""
        running = [result for results in self._running.values() for result in results]
        return session_file(
            [*self._results, *running],
            started=self._started,
            arguments=self._arguments,
            exit_status=self._exit_status,
            problems=[*self._problems, *filter(None, [_PARTIAL.get(self._exit_status)])],
        )

    def note(self, line: str, *, missing: bool = False) -> None:
        """A line for the end of the summary; `missing`: on a file that an option asks for and that was not written."""
        self._notes.append(harmless(masked(line)))
        if missing:
            self._missing.append(line)

    @property
    def missing(self) -> Sequence[str]:
        """Why files that options ask for were not written, a line each: a session that lacks one is no success."""
        asked = [self._unwritten[file.path] for file in self._asked if file.path in self._unwritten]
        return [*asked, *self._missing]

    def _write(self) -> None:
        content = self.content()
        for file in self._files(content):
            try:
                file.write(content)
            except OSError as error:
                # A full disk must not lose the verdicts that follow. The summary reports it.
                self._unwritten[file.path] = f"{file.path} could not be written: {error}"
            else:
                self._unwritten.pop(file.path, None)

    def _files(self, content: ResultFile) -> list[GrowingResultFile]:
        return [*([self.usual] if self.usual is not None and content.results else []), *self._asked]

    def publish(self, *, markdown: Path | None, html: Path | None) -> None:
        """Write the reports to their files and places, whether the terminal shows a summary or not."""
        published = publish(
            self.content(),
            markdown_file=markdown,
            html_file=html,
            root=self._config.rootpath,
            environ=os.environ,
        )
        self._published += published.lines
        self._missing += published.missing

    def summarise(self, terminal: Any) -> None:
        """Write the summary to pytest's terminal reporter."""
        width = columns(self._config)
        content = self.content()
        results = content.results
        self._shown = True
        terminal.section("GPU capacity")
        if results:
            for line, tone in text.summary_lines(results, width):
                terminal.write_line(line, **_COLOURS.get(tone, {}))
            for line in comparison_summary(results, width):
                terminal.write_line(line)
        else:
            terminal.write_line("nothing was measured")
        files = [f"result file: {shown(file.path)}" for file in self._files(content)[-1:]]
        for line in self._unwritten.values() or files:
            terminal.write_line(line)
        for note in self._notes:
            for line in wrapped(note, hang="  ", width=width):
                terminal.write_line(line)
        for line in self._published:
            terminal.write_line(line)

    @property
    def untold(self) -> Sequence[str]:
        """What `missing` says, if no summary has said it."""
        return [] if self._shown else [harmless(masked(line)) for line in self.missing]


def ending_of(report: pytest.TestReport) -> Ending:
    """How a phase of a test ended. An outcome that is not pytest's own is a plugin's word for running it again."""
    expected = hasattr(report, "wasxfail")
    if report.failed:
        # Who reports a crash names no phase.
        phases = {"call": Ending.FAILED, "setup": Ending.ERROR, "teardown": Ending.ERROR}
        return phases.get(str(report.when), Ending.CRASHED)
    if report.skipped:
        return Ending.XFAILED if expected else Ending.SKIPPED
    if report.passed:
        return Ending.XPASSED if expected else Ending.PASSED
    return Ending.RERUN


def _ended(result: Result, attempt: _Attempt) -> Result:
    """The result with how its test ended; the same object if nothing changes."""
    failed = result.failed or result.regressed
    # What was expected stays so, even if the teardown fails afterwards.
    expected = result.expected_failure or (attempt.ending is Ending.XFAILED and failed)
    if (result.ending, result.ending_reason, result.expected_failure) == (attempt.ending, attempt.reason, expected):
        return result
    return msgspec.structs.replace(
        result, ending=attempt.ending, ending_reason=attempt.reason, expected_failure=expected
    )


def _reason(report: pytest.TestReport) -> str:
    """One line on why a phase did not pass."""
    found: Any = report.longrepr
    crash = getattr(found, "reprcrash", None)
    if crash is not None:
        said = str(crash.message)
    elif isinstance(found, tuple):  # of a skip: file, line, reason
        said = str(found[-1])
    else:
        said = str(found or getattr(report, "wasxfail", ""))
    lines = masked(said).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else ""
