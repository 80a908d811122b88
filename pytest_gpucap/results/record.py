"""Results as dicts of schema version 1, for the readers that do not take types yet. It goes with the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from pytest_gpucap.requirement import Requirement, Slo
from pytest_gpucap.results import build
from pytest_gpucap.results.build import Context
from pytest_gpucap.results.encoding import from_builtins, to_builtins
from pytest_gpucap.results.measured import Curve, Measurement, Sample, Verdict
from pytest_gpucap.results.migrate import STEPS
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.results.result_file import from_document, read, session_file, write
from pytest_gpucap.results.windows import WindowId

Record = dict[str, Any]
plain = to_builtins


def as_document(result_file: ResultFile) -> dict[str, Any]:
    """The plain form of a result file."""
    return {
        **to_builtins(msgspec.structs.replace(result_file, results=())),
        "schema_version": 1,
        "results": [as_record(result) for result in result_file.results],
    }


def as_record(result: Result) -> Record:
    """The plain form of a result."""
    record: Record = to_builtins(result)
    for key, kind in _OF_ONE_KIND.items():
        if result.kind is not kind:
            del record[key]
    if not result.expected_failure:
        del record["expected_failure"]
    for part in ("samples", "points"):
        record.get(part, [])[:] = map(as_plain_sample, record.get(part, []))
    record["problems"] = [problem.text for problem in result.problems]
    if record.get("accuracy"):
        share = record["accuracy"].pop("share") or dict.fromkeys(("value", "low", "high", "confidence"))
        record["accuracy"] = {**share, **record["accuracy"]}
    return record


_OF_ONE_KIND = {
    **dict.fromkeys(("reason", "slack"), ResultKind.CHECK),
    **dict.fromkeys(("points", "knee_rps", "batching_gain"), ResultKind.SWEEP),
}


def as_plain_sample(sample: dict[str, Any]) -> dict[str, Any]:
    """The plain form of a sample's builtins."""
    window = sample.pop("window")
    problems = [problem["text"] for problem in sample["problems"]]
    return {"label": from_builtins(window, WindowId).text, **sample, "problems": problems}


def sample_of(sample: dict[str, Any]) -> Sample:
    """The sample of a plain form."""
    (result,) = STEPS[1]({"results": [{"samples": [sample]}]})["results"]
    return from_builtins(result["samples"][0], Sample)


def verdict_record(verdict: Verdict, context: Context) -> Record:
    """The record of one `check`."""
    return as_record(build.check_result(verdict, context))


def measurement_record(measurement: Measurement, context: Context) -> Record:
    """The record of one `measure`."""
    return as_record(build.measure_result(measurement, context))


def curve_record(curve: Curve, context: Context) -> Record:
    """The record of one `sweep`."""
    return as_record(build.sweep_result(curve, context))


def sample_record(sample: Sample, requirement: Requirement, context: Context, *, simulated: bool, seed: int) -> Record:
    """The record of one window of `sample`."""
    return as_record(build.sample_result(sample, requirement, context, simulated=simulated, seed=seed))


def slo_record(slo: Slo) -> Record:
    """Limits by the name that declares them, in seconds."""
    return {**to_builtins(build.declared_slo(slo))}


def document_of(records: Sequence[Record], *, started: datetime, arguments: Sequence[str]) -> dict[str, Any]:
    """The plain form of one session."""
    simulated = any(record["simulated"] for record in records)
    content = as_document(session_file((), started=started, arguments=arguments))
    return {**content, "results": list(records), "simulated": simulated}


def as_result_file(content: dict[str, Any]) -> ResultFile:
    """The result file of a plain form."""
    return from_document(content)


def read_document(path: Path) -> dict[str, Any]:
    """The plain form of what a file holds."""
    return as_document(read(path))


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Write the result file of a plain form."""
    write(path, from_document(content))
