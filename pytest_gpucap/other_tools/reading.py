"""A file or folder of another tool -> its points. The tool is told by what a document holds, never by a file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_gpucap.other_tools import aiperf, guidellm, inference_perf, sglang_bench, vllm_bench
from pytest_gpucap.other_tools.documents import GZIP, read_documents
from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.other_tools.point import Point, Tool
from pytest_gpucap.user_files import UserFileError, is_folder

MOST_FILES: Final = 2_000
"""Files, and folders, in a folder and those below it: more than any sweep has."""
_DEEPEST: Final = 4
_READ: Final = tuple(f"{kind}{packed}" for kind in (".json", ".jsonl") for packed in ("", GZIP))
_BESIDE: Final = re.compile(
    # vLLM: a warm-up, a failed run, a second form of a result. AIPerf: prompts, single requests, slices of time, what
    # the server and its GPUs told. inference-perf: all stages together, single requests, adapters, a check.
    r"warmup\.json|.*\.failure\.json|.*-failure\.json|.*\.pytorch\.json|inputs\.json|profile_export(?:_raw)?\.jsonl"
    r"|profile_export_aiperf_timeslices\.json|server_metrics_export\.jsonl?|gpu_telemetry_export\.jsonl"
    r"|summary_lifecycle_metrics\.json|per_request_lifecycle_metrics\.json|adapter_.*\.json|validation\.json|\..*"
)
"""Files that the tools write beside their results."""
_ONE_RUN: Final = re.compile(r"run=\d{1,9}\.json")
_ALL_RUNS: Final = "summary.json"
"""Of a sweep of vLLM: it holds the runs of its folder once more."""

TOOLS: Final = ", ".join(Tool)


@dataclass(frozen=True, slots=True)
class FilePoints:
    """The points of one file.

    Attributes:
        path, sha256: of the file.
        points: in its order.
    """

    path: Path
    sha256: str
    points: tuple[Point, ...]


def read_points(path: Path) -> tuple[list[FilePoints], list[str]]:
    """The points in a file, or in the files of a folder and those below it.

    Args:
        path: of the file or folder.

    Returns:
        The points by file; and one line for each file of a folder that is no result, with the reason.

    Raises:
        UserFileError: if the file is no result of a known tool or damaged, or the folder holds none.
    """
    if not is_folder(path):
        return [_of_file(path)], []
    found: list[FilePoints] = []
    skipped: list[str] = []
    for each in _files(path):
        try:
            found.append(_of_file(each))
        except UserFileError as error:
            skipped.append(str(error))
    if not found:
        why = f"; {skipped[0]}" if skipped else ""
        raise UserFileError(path, f"holds no result of {TOOLS}{why}")
    return found, skipped


def _files(folder: Path) -> list[Path]:
    """The files that may be results, in the order of their paths.

    Raises:
        UserFileError: if there are too many.
    """
    found: list[Path] = []
    for folders, (place, below, names) in enumerate(os.walk(folder), 1):
        if len(Path(place).relative_to(folder).parts) >= _DEEPEST:
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            twice = _ONE_RUN.fullmatch(name) and _ALL_RUNS in names
            if name.endswith(_READ) and not twice and not _BESIDE.fullmatch(name.removesuffix(GZIP)):
                found.append(Path(place) / name)
        if max(len(found), folders) > MOST_FILES:
            raise UserFileError(
                folder, f"holds more than {MOST_FILES} files or folders: name a folder of one tool's results"
            )
    return sorted(found)


def _of_file(path: Path) -> FilePoints:
    file = read_documents(path)
    return FilePoints(path, file.sha256, tuple(point for each in file.documents for point in _points(each, path)))


def _points(document: Fields, path: Path) -> Iterator[Point]:
    if vllm_bench.is_result(document):
        yield vllm_bench.point_of(document)
    elif guidellm.is_result(document):
        yield from guidellm.points_of(document)
    elif aiperf.is_result(document):
        yield aiperf.point_of(document)
    elif inference_perf.is_result(document):
        yield inference_perf.point_of(document, path)
    elif sglang_bench.is_result(document):
        yield sglang_bench.point_of(document)
    elif aiperf.is_records(document):
        raise UserFileError(
            path, "holds AIPerf's single requests, without their load: import the profile_export_aiperf.json beside it"
        )
    else:
        where = f"{document.place} is" if document.place else "is"
        raise UserFileError(path, f"{where} no result of {TOOLS}")
