"""Make every report anew from result files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytest_gpucap.cli import CommandError
from pytest_gpucap.results import result_file
from pytest_gpucap.results.record import read_document

HELP = "make reports anew from result files"

_STDOUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and which reports to make of them."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files, such as .gpucap/result.json")
    parser.add_argument("--text", metavar="FILE", help="the terminal's report; what is made when nothing is named")
    parser.add_argument("--markdown", metavar="FILE", help="for a pull request, at most 64 KB")
    parser.add_argument("--html", metavar="FILE", help="one page that opens offline (pytest-gpucap[html])")
    parser.add_argument("--history", type=Path, metavar="DIR", help="earlier result files, whose trend --html draws")
    parser.add_argument("--junit", metavar="FILE", help="JUnit XML, a suite for every result")
    parser.add_argument("--code-quality", metavar="FILE", help="GitLab's code quality report")
    parser.add_argument("--metrics", metavar="FILE", help="GitLab's metrics report, in OpenMetrics text")
    parser.epilog = "FILE may be - for standard output."


def run(options: argparse.Namespace) -> int:
    """Write what was asked for.

    Raises:
        CommandError: if a file cannot be read or written, or a report needs an extra that is not installed.
    """
    if options.history is not None and options.html is None:
        raise CommandError("--history is for the HTML report: name its file with --html")
    document = _together([_read(path) for path in options.files])
    renderers = _RENDERERS
    if options.history is not None:
        from pytest_gpucap.cli._past import past

        renderers = {**_RENDERERS, "html": partial(_html, history=past(options.history))}
    asked = [(render, target) for name, render in renderers.items() if (target := getattr(options, name)) is not None]
    for render, target in asked or [(_text, _STDOUT)]:
        _write(target, render(document))
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_document(path)
    except result_file.ResultFileError as error:
        raise CommandError(str(error)) from None


def _together(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """One document with the results of all of them; the first one's session stands for the rest."""
    return {
        **documents[0],
        "simulated": any(document["simulated"] for document in documents),
        "results": [record for document in documents for record in document["results"]],
    }


def _text(document: Mapping[str, Any]) -> str:
    from pytest_gpucap.report import comparison, rows, terminal

    records = rows.worst_first(document["results"])
    parts = ["\n".join([terminal.summary(records), *comparison.summary(records)])]
    for record in records:
        if record["outcome"] not in {"PASS", None}:
            parts.append(terminal.failure(record))
        elif rows.regressed(record):
            parts.append(comparison.failure(record))
    return "\n\n\n".join(parts) + "\n"


def _markdown(document: Mapping[str, Any]) -> str:
    from pytest_gpucap.report import markdown

    return markdown.render(document)


def _junit(document: Mapping[str, Any]) -> str:
    from pytest_gpucap.report import junit

    return junit.render(document)


def _code_quality(document: Mapping[str, Any]) -> str:
    from pytest_gpucap.report.annotations import code_quality, findings

    return code_quality(findings(document))


def _metrics(document: Mapping[str, Any]) -> str:
    from pytest_gpucap.report import metrics

    return metrics.render(document)


def _html(document: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    try:
        from pytest_gpucap.report import html
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pytest_gpucap"):
            raise
        raise CommandError(f'--html needs {error.name}: pip install "pytest-gpucap[html]"') from None
    return html.render(document, history)


_RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "text": _text,
    "markdown": _markdown,
    "html": _html,
    "junit": _junit,
    "code_quality": _code_quality,
    "metrics": _metrics,
}


def _write(target: str, content: str) -> None:
    if target == _STDOUT:
        # A terminal that cannot show a character gets its escape, not a traceback.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(content.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
        return
    try:
        Path(target).write_text(content, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{target}: {error.strerror or error}") from None
