"""inference-perf's ``stage_N_lifecycle_metrics.json``: a file per load.

Format: ``inference_perf/reportgen/base.py`` (`summarize_requests`) of inference-perf 0.7; the first versions have no
duration, and call the lengths ``prompt_len`` and ``output_len``. All times are seconds. TPOT is one figure per request
and ITL one per gap, as here. The model and the address stand in ``config.yaml`` beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pytest_gpucap.other_tools.fields import LONGEST_TEXT, Fields
from pytest_gpucap.other_tools.point import Lengths, Load, Point, Tool, latency
from pytest_gpucap.requirement import ApiKind, ArrivalKind
from pytest_gpucap.user_files import MOST_TOML, is_file, read_text

_METRICS: Final = {
    "ttft": "time_to_first_token",
    "tpot": "time_per_output_token",
    "itl": "inter_token_latency",
    "e2e": "request_latency",
}
_CONFIG: Final = "config.yaml"
_SECTION: Final = re.compile(r"(?P<name>\w{1,50}):[ \t]*")
_SETTING: Final = re.compile(r"  (?P<name>\w{1,50}): (?P<value>.{1,1000})")


def is_result(document: Fields) -> bool:
    """Whether a document is a result of this tool."""
    return {"load_summary", "successes", "failures"} <= document.values.keys()


def point_of(document: Fields, path: Path) -> Point:
    """The point of one stage.

    Args:
        document: of the stage.
        path: of its file.

    Raises:
        UserFileError: if it is damaged, or not of one stage.
    """
    summary, successes = document.part("load_summary"), document.part("successes")
    settings = _settings(path.with_name(_CONFIG))
    completed = successes.needed_count("count")
    latencies = {}
    for metric, name in _METRICS.items():
        part = successes.part("latency", name)
        percentiles = {50: part.number("median"), **{percent: part.number(f"p{percent}") for percent in (90, 95, 99)}}
        if (found := latency(completed, part.number("mean"), percentiles, 1.0)) is not None:
            latencies[metric] = found
    throughput = successes.part("throughput")
    rate_rps = throughput.needed("requests_per_sec") if completed else 0.0
    return Point(
        tool=Tool.INFERENCE_PERF,
        model=settings.get("server.model_name"),
        url=settings.get("server.base_url"),
        endpoint=ApiKind.CHAT if settings.get("api.type") == "chat" else ApiKind.COMPLETIONS,
        load=_load(summary, settings.get("load.type")),
        lengths=Lengths(
            _length(successes, "prompt_tokens", "prompt_len"),
            _length(successes, "output_tokens", "output_len"),
            observed=True,
        ),
        duration_s=_duration_s(document, completed, rate_rps),
        completed=completed,
        failed=document.part("failures").count("count") or 0,
        completed_rps=rate_rps,
        output_tokens_per_s=throughput.number("output_tokens_per_sec") or 0.0,
        latencies=latencies,
    )


def _length(successes: Fields, *names: str) -> float:
    """The mean of what was seen, under the first of the names that the file has.

    Raises:
        UserFileError: if it has none, though requests were answered.
    """
    found = next((mean for name in names if (mean := successes.part(name).number("mean")) is not None), None)
    if found is None and successes.count("count"):
        raise successes.wrong(names[0], "is missing")
    return found or 0.0


def _duration_s(document: Fields, completed: int, rate_rps: float) -> float:
    told = document.number("benchmark_time_seconds")
    if told is None and rate_rps:
        return completed / rate_rps
    return document.needed("benchmark_time_seconds") if told is None else told


def _load(summary: Fields, kind: str | None) -> Load:
    if limit := summary.count("concurrency"):
        return Load(concurrency=limit)
    rate = summary.number("requested_rate")
    if not rate:
        raise summary.wrong(
            "requested_rate",
            "is missing, so this is no single stage: import the stage_N_lifecycle_metrics.json files, or their folder",
        )
    return Load(rate, arrivals=ArrivalKind.CONSTANT if kind == "constant" else ArrivalKind.POISSON)


def _settings(path: Path) -> dict[str, str]:
    """The plain values of the configuration's sections, as ``section.name``; empty where there is no such file.

    The tool writes this file itself, a value a line. So no YAML needs to be read.

    Raises:
        UserFileError: if it cannot be read.
    """
    found: dict[str, str] = {}
    section = ""
    for line in read_text(path, MOST_TOML).splitlines() if is_file(path) else ():
        if match := _SECTION.fullmatch(line):
            section = match["name"]
        elif (match := _SETTING.fullmatch(line)) and match["value"] != "null":
            found[f"{section}.{match['name']}"] = match["value"].strip("'\"")[:LONGEST_TEXT]
    return found
