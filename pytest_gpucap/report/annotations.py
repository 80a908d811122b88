"""What a pull request's lines are marked with: GitHub annotations, GitLab code quality."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from pytest_gpucap.report import comparison, rows
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.escape import command_data, command_property
from pytest_gpucap.report.formatting import headline

MOST: Final = 10
"""Annotations of one kind that GitHub shows of a step."""
_SEVERITY: Final = {"error": "critical", "warning": "minor"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """One thing wrong, and where it was declared.

    Attributes:
        level: ``error`` or ``warning``.
        file: of the test, relative to the repository; its `line` counts from 1, and is 1 where unknown.
        title: the verdict.
        message: a few lines: the arithmetic, the limit that binds, the bottleneck, what to try.
    """

    level: str
    file: str
    line: int
    title: str
    message: str
    test: str


def findings(document: Mapping[str, Any], folder: str = "") -> list[Annotation]:
    """The findings of a document, the worst first; a failure that was expected is none.

    Args:
        document: of a result file.
        folder: of pytest's rootdir inside the repository.
    """
    records = rows.worst_first([cleaned(record) for record in document["results"]])
    return [_finding(record, folder) for record in records if _level(record) and not rows.expected(record)]


def _level(record: Mapping[str, Any]) -> str:
    if record["outcome"] in {"FAIL", "INVALID"} or rows.regressed(record):
        return "error"
    return "warning" if record["outcome"] == "INCONCLUSIVE" else ""


def _finding(record: Mapping[str, Any], folder: str) -> Annotation:
    failed = record["outcome"] not in {"PASS", None}
    word, head = (record["outcome"], headline(record)) if failed else ("REGRESSED", comparison.headline(record))
    details = [f"{name}: {value}" if name else value for name, value in rows.reasons(record)]
    return Annotation(
        level=_level(record),
        file=str(PurePosixPath(folder) / record["test"].partition("::")[0]),
        line=record.get("line") or 1,
        title=f"GPU capacity {word}: {record['name']}",
        message="\n".join([head, *details]),
        test=record["test"],
    )


def workflow_commands(found: Sequence[Annotation]) -> list[str]:
    """GitHub workflow commands, one a line; at most `MOST` of a level, the last of which counts the rest."""
    lines: list[str] = []
    for level in ("error", "warning"):
        own = [finding for finding in found if finding.level == level]
        for number, finding in enumerate(own[:MOST], 1):
            rest = len(own) - MOST
            more = f"\n... and {rest} more, see the result file" if number == MOST and rest > 0 else ""
            lines.append(
                f"::{level} file={command_property(finding.file)},line={finding.line},"
                f"title={command_property(finding.title)}::{command_data(finding.message + more)}"
            )
    return lines


def code_quality(found: Sequence[Annotation]) -> str:
    """GitLab's code quality report (a JSON list), which marks the lines of a merge request."""
    issues = []
    seen: Counter[tuple[str, str]] = Counter()
    for finding in found:
        # The same finding keeps its fingerprint from run to run, so figures and lines stay out of it; of two with one
        # fingerprint GitLab shows the first alone.
        seen[finding.test, finding.title] += 1
        again = seen[finding.test, finding.title]
        identity = "\0".join([finding.test, finding.title, *([str(again)] if again > 1 else [])])
        issues.append(
            {
                "description": f"{finding.title}: {finding.message.splitlines()[0]}",
                "check_name": "gpucap",
                "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
                "severity": _SEVERITY[finding.level],
                "location": {"path": finding.file, "lines": {"begin": finding.line}},
            }
        )
    return json.dumps(issues, indent=1) + "\n"
