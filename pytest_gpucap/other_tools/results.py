"""Points of another tool -> results, as the result file holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from pytest_gpucap import __version__
from pytest_gpucap.other_tools.point import Point
from pytest_gpucap.other_tools.reading import FilePoints
from pytest_gpucap.requirement import LARGEST, MOST_TOKENS, Slo
from pytest_gpucap.results.build import declared_slo
from pytest_gpucap.results.encoding import normalised, without_secrets
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.imported import ImportedFrom
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import DeclaredBudget, DeclaredWorkload, Result, ResultFile, ResultKind
from pytest_gpucap.results.result_file import session_file
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.user_files import UserFileError, status
from pytest_gpucap.vllm_arguments import VllmArguments

_HEADROOM: Final = 1.3
"""What a requirement has by default; a point declares none."""
_SIMULATED: Final = "simulated-"
"""The names of the models that this plugin's simulator serves begin so."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the user says of the imported runs, because no tool's file does.

    Attributes:
        gpu_class: the servers ran on; None where it is not said.
        server_args: arguments of the servers, by name with underscores.
        model: of the servers, in place of the files'; None: as in the files.
        name: of the results, before their load; None: the model's name.
        slo: the limits that the points are held against.
    """

    gpu_class: str | None = None
    server_args: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    name: str | None = None
    slo: Slo = field(default_factory=Slo)


def imported_file(files: Iterable[FilePoints], told: Told) -> ResultFile:
    """One result file with a result for each point.

    Args:
        files: with at least one point.
        told: what the user says of them.

    Raises:
        UserFileError: if a point's figures cannot be those of a run.
    """
    results = [_result(point, file, told) for file in files for point in file.points]
    starts = [each.imported.started for each in results if each.imported is not None and each.imported.started]
    return session_file(
        results, started=min(starts, default=datetime.now(UTC)), arguments=("gpucap", "import"), exit_status=0
    )


def _result(point: Point, file: FilePoints, told: Told) -> Result:
    model = told.model or point.model
    # The load comes first: where a name is cut, it is what tells the points of one model apart.
    of_what = told.name or (model or "").rpartition("/")[2]
    name = f"{point.load.text} of {of_what}" if of_what else point.load.text
    started = point.started or datetime.fromtimestamp(status(file.path).st_mtime, UTC)
    imported = ImportedFrom(
        tool=point.tool.value,
        file=file.path.name,
        sha256=file.sha256,
        load=point.load.text,
        version=point.version,
        started=started.replace(microsecond=0),
        observed_lengths=point.lengths.observed,
        parameters=dict(point.parameters),
        labels=dict(point.labels),
    )
    found = Result(
        kind=ResultKind.IMPORTED,
        test=f"{point.tool}::{name}",
        name=name,
        simulated=(model or "").startswith(_SIMULATED),
        requirement=DeclaredBudget(1.0, 1, _HEADROOM, VllmArguments(told.server_args).gpus_per_replica),
        workload=_workload(point, file),
        slo=declared_slo(told.slo),
        sustainable_rate=None,
        samples=(_sample(point, file),),
        spent_s={},
        problems=tuple(
            Problem(ProblemSource.LOAD_GENERATOR, ProblemKind.OTHER, f"{point.tool}: {text}") for text in _spoilt(point)
        ),
        environment=_environment(point, told, model),
        imported=imported,
    )
    return without_secrets(normalised(found))


def _spoilt(point: Point) -> Iterable[str]:
    if point.spoilt:
        yield point.spoilt
    elif not point.completed:
        yield "no request was answered"


def _workload(point: Point, file: FilePoints) -> DeclaredWorkload:
    lengths = point.lengths
    if max(lengths.input_tokens, lengths.output_tokens) > MOST_TOKENS:
        raise UserFileError(file.path, f"a request has more than {MOST_TOKENS} tokens")
    return DeclaredWorkload(
        input_tokens=max(round(lengths.input_tokens), 1),
        output_tokens=max(round(lengths.output_tokens), 1),
        arrivals=point.load.arrivals,
        burstiness=point.load.burstiness,
        endpoint=point.endpoint,
    )


def _sample(point: Point, file: FilePoints) -> Sample:
    load = point.load
    held = load.concurrency or load.at_once or 0
    figures = (point.completed_rps, point.output_tokens_per_s, point.in_flight_mean, load.burstiness)
    if any(figure > LARGEST for figure in figures):  # each was read within bounds, and these are made of several
        raise UserFileError(file.path, f"holds figures that no run has: {max(figures):g}")
    open_loop = load.rate_rps is not None
    return Sample(
        kind="open" if open_loop else "closed",
        window=WindowId(Phase.SAMPLE, rate_rps=load.rate_rps, concurrency=None if open_loop else held),
        start_s=0.0,
        end_s=point.duration_s,
        offered_rps=load.rate_rps,
        concurrency=0 if open_loop else held,
        requests=point.completed,
        completed_rps=point.completed_rps,
        output_tokens_per_s=point.output_tokens_per_s,
        in_flight_mean=point.in_flight_mean,
        in_flight_end=0,
        latencies=point.latencies,
        errors={"failed": point.failed} if point.failed else {},
    )


def _environment(point: Point, told: Told, model: str | None) -> Environment:
    found = Environment(
        gpu_class=told.gpu_class,
        server=point.server,
        model=model,
        server_args=dict(told.server_args) or None,
        command=point.command,
        url=point.url,
        plugin=f"imported by pytest-gpucap {__version__}",
    )
    return msgspec.structs.replace(found, quantization=msgspec.UNSET, dtype=msgspec.UNSET)
