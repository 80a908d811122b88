"""Annotations on the lines of a pull request: GitHub annotations, GitLab code quality."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned, command_data, command_property
from pytest_gpucap.report.headline import Tone, result_headline, standing, worst_first
from pytest_gpucap.results.result import Result, ResultFile

MOST: Final = 10
"""How many annotations of one level GitHub shows per step."""
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


def annotations_of(content: ResultFile, folder: str = "") -> list[Annotation]:
    """What is wrong in a result file, the worst first. An expected failure is not wrong.

    Args:
        content: of a result file.
        folder: of pytest's rootdir inside the repository.
    """
    results = worst_first(map(cleaned, content.results))
    return [_annotation(result, folder) for result in results if standing(result).bad]


def _annotation(result: Result, folder: str) -> Annotation:
    found, line = standing(result), result_headline(result)
    details = [f"{name}: {value}" if name else value for name, value in rows.reasons(result)]
    return Annotation(
        level="warning" if found.tone is Tone.INCONCLUSIVE else "error",
        file=str(PurePosixPath(folder) / result.test.partition("::")[0]),
        line=result.line or 1,
        title=f"GPU capacity {found.word}: {result.name}",
        message="\n".join([line.text, *details]),
        test=result.test,
    )


def workflow_commands(found: Sequence[Annotation]) -> list[str]:
    """GitHub workflow commands, one per line. There are at most `MOST` of a level; the last one counts the rest."""
    lines: list[str] = []
    for level in ("error", "warning"):
        own = [annotation for annotation in found if annotation.level == level]
        for number, annotation in enumerate(own[:MOST], 1):
            rest = len(own) - MOST
            more = f"\n... and {rest} more, see the result file" if number == MOST and rest > 0 else ""
            lines.append(
                f"::{level} file={command_property(annotation.file)},line={annotation.line},"
                f"title={command_property(annotation.title)}::{command_data(annotation.message + more)}"
            )
    return lines


def code_quality(found: Sequence[Annotation]) -> str:
    """GitLab's code quality report (a JSON list), which marks the lines of a merge request."""
    issues = []
    seen: Counter[tuple[str, str]] = Counter()
    for annotation in found:
        # An annotation keeps its fingerprint from run to run, so it contains no figures or lines. Of two annotations
        # with the same fingerprint GitLab shows only the first.
        seen[annotation.test, annotation.title] += 1
        again = seen[annotation.test, annotation.title]
        identity = "\0".join([annotation.test, annotation.title, *([str(again)] if again > 1 else [])])
        issues.append(
            {
                "description": f"{annotation.title}: {annotation.message.splitlines()[0]}",
                "check_name": "gpucap",
                "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
                "severity": _SEVERITY[annotation.level],
                "location": {"path": annotation.file, "lines": {"begin": annotation.line}},
            }
        )
    return json.dumps(issues, indent=1) + "\n"
