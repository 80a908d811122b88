"""Makes reports from result files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import STDOUT, report_skipped, trends_in, write_out
from pytest_gpucap.installing import pip_install
from pytest_gpucap.report.columns import NARROW, terminal_columns, wrapped
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import ResultFile
from pytest_gpucap.user_files import exists, is_file, real_path, shown_path

if TYPE_CHECKING:
    from pytest_gpucap.results.trend import Trend

HELP = "make reports from result files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and the reports to make from them."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files, such as .gpucap/result.json")
    parser.add_argument("--text", metavar="FILE", help="the terminal's report; the default")
    parser.add_argument("--markdown", metavar="FILE", help="for a pull request, at most 64 KB")
    parser.add_argument("--html", metavar="FILE", help="one page that opens offline (pytest-gpucap[html])")
    parser.add_argument("--history", type=Path, metavar="DIR", help="earlier result files, whose trend --html draws")
    parser.add_argument("--junit", metavar="FILE", help="JUnit XML, one suite per result")
    parser.add_argument("--code-quality", metavar="FILE", help="GitLab's code quality report")
    parser.add_argument("--metrics", metavar="FILE", help="GitLab's metrics report, in OpenMetrics text")
    parser.epilog = "FILE may be - for standard output."


def run(options: argparse.Namespace) -> int:
    """Write the requested reports.

    Raises:
        CommandError: if a file cannot be read or written, or a report needs an extra that is not installed.
    """
    if options.history is not None and options.html is None:
        raise CommandError("--history is for the HTML report: name its file with --html")
    _check_outputs(options)
    content = _together([_read(path) for path in options.files])
    renderers = _RENDERERS
    if options.history is not None:
        trends, skipped = trends_in(options.history)
        trends = [trend for trend in trends if trend.figure is None]  # the page's charts are of rates
        report_skipped(skipped)
        renderers = {**_RENDERERS, "html": partial(_html, history=trends)}
    asked = [(render, target) for name, render in renderers.items() if (target := getattr(options, name)) is not None]
    for render, target in asked or [(_text, STDOUT)]:
        on_screen = render is _text and target == STDOUT
        write_out(target, _text(content, terminal_columns()) if on_screen else render(content))
    return 0


def _check_outputs(options: argparse.Namespace) -> None:
    """Check that no report would replace a result file that it is made from, or another report."""
    taken = {real_path(path): "is one of the result files" for path in options.files}
    for name in _RENDERERS:
        target = getattr(options, name)
        if target is None or target == STDOUT or "\0" in target or (exists(target) and not is_file(target)):
            continue  # several reports may go to one pipe
        flag = f"--{name.replace('_', '-')}"
        if (place := real_path(target)) in taken:
            raise CommandError(f"{flag} {shown_path(target)}: {taken[place]}, and would be replaced")
        taken[place] = f"is the file of {flag}"


def _read(path: Path) -> ResultFile:
    try:
        return result_file.read(path)
    except result_file.ResultFileError as error:
        raise CommandError(str(error)) from None


def _together(files: Sequence[ResultFile]) -> ResultFile:
    """One file with the results of all files and the session of the first."""
    return msgspec.structs.replace(
        files[0],
        simulated=any(file.simulated for file in files),
        results=tuple(result for file in files for result in file.results),
    )


def _text(content: ResultFile, width: int = NARROW) -> str:
    from pytest_gpucap.report import terminal
    from pytest_gpucap.report.comparison import comparison_summary, regression_failure
    from pytest_gpucap.report.escape import cleaned
    from pytest_gpucap.report.headline import session_headlines, standing, worst_first

    results = worst_first(content.results)
    summary = terminal.summary(results, width) if results else session_headlines(results)[0].text
    early = [line for problem in cleaned(content.problems) for line in wrapped(problem, "! ", "  ", width)]
    parts = ["\n".join([summary, *comparison_summary(results, width), *early])]
    for result in results:
        if result.failed:
            parts.append(terminal.failure(result, width))
        elif result.regressed:
            parts.append(regression_failure(result, width))
        elif standing(result).bad:
            parts.append(terminal.section(result, width))
    return "\n\n\n".join(parts) + "\n"


def _markdown(content: ResultFile) -> str:
    from pytest_gpucap.report.markdown import pull_request_page

    return pull_request_page(content)


def _junit(content: ResultFile) -> str:
    from pytest_gpucap.report.junit import junit

    return junit(content)


def _code_quality(content: ResultFile) -> str:
    from pytest_gpucap.report.annotations import annotations_of, code_quality

    return code_quality(annotations_of(content))


def _metrics(content: ResultFile) -> str:
    from pytest_gpucap.report.metrics import openmetrics

    return openmetrics(content)


def _html(content: ResultFile, history: Sequence[Trend] = ()) -> str:
    try:
        from pytest_gpucap.report import html
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pytest_gpucap"):
            raise
        raise CommandError(f"--html needs {error.name}: {pip_install('html')}") from None
    return html.render(content, history)


_RENDERERS: dict[str, Callable[[ResultFile], str]] = {
    "text": _text,
    "markdown": _markdown,
    "html": _html,
    "junit": _junit,
    "code_quality": _code_quality,
    "metrics": _metrics,
}
