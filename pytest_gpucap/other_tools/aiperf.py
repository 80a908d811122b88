"""AIPerf's ``profile_export_aiperf.json``: one run.

Format: ``aiperf/common/models/export_models.py`` (`JsonExportData`, schema 1.4) of AIPerf 0.13. Every metric has a
unit of its own. AIPerf's inter-token latency is one figure per request, which is TPOT here; its inter-chunk latency is
each gap, which is ITL here. Up to version 0.7 or so, ``input_config`` holds what the command line said: the load is in
``loadgen``, and the models are in ``endpoint``.
"""

from __future__ import annotations

from typing import Final

from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.other_tools.point import MS, Lengths, Load, Point, Tool, latency
from pytest_gpucap.requirement import ApiKind, ArrivalKind
from pytest_gpucap.results.measured import KEPT_PERCENTILES

_METRICS: Final = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
    "e2e": "request_latency",
}
_SECONDS: Final = {"ms": MS, "sec": 1.0, "s": 1.0, "us": 1e-6, "ns": 1e-9}
_RATES: Final = frozenset({"poisson", "constant", "gamma"})


def is_result(document: Fields) -> bool:
    """Whether a document is a result of this tool."""
    names = document.values.keys()
    return "input_config" in names and ("aiperf_version" in names or "loadgen" in document.part("input_config"))


def is_records(document: Fields) -> bool:
    """Whether a document is one request of ``profile_export.jsonl``, which does not say what load was offered."""
    return {"metadata", "metrics"} <= document.values.keys() and "credit_issued_ns" in document.part("metadata")


def point_of(document: Fields) -> Point:
    """The point of one run.

    Raises:
        UserFileError: if it is damaged, or its load is neither a rate nor a concurrency.
    """
    config = document.part("input_config")
    completed = int(_figure(document, "request_count") or 0)  # missing where none was answered
    endpoint = config.part("endpoint")
    latencies = {}
    for metric, name in _METRICS.items():
        part = document.part(name)
        percentiles = {percent: part.number(f"p{percent}") for percent in KEPT_PERCENTILES}
        count = part.count("count")
        found = latency(completed if count is None else count, part.number("avg"), percentiles, _unit_s(part))
        if found is not None:
            latencies[metric] = found
    return Point(
        tool=Tool.AIPERF,
        version=document.text("aiperf_version"),
        started=document.when("start_time"),
        model=_model(config),
        url=endpoint.text("url") or _first_text(endpoint, "urls"),
        endpoint=ApiKind.CHAT if endpoint.text("type") == "chat" else ApiKind.COMPLETIONS,
        load=_load(config),
        lengths=_lengths(document, config, completed),
        duration_s=_figure(document, "benchmark_duration") or 0.0,
        completed=completed,
        failed=_failed(document),
        completed_rps=_needed(document, "request_throughput") if completed else 0.0,
        output_tokens_per_s=_figure(document, "output_token_throughput") or 0.0,
        latencies=latencies,
        command=document.part("run_info").text("cli_command") or config.text("cli_command"),
        spoilt=_spoilt(document),
    )


def _spoilt(document: Fields) -> str:
    if document.values.get("was_cancelled") is True:
        return "the run was cancelled"
    if document.values.get("is_complete") is False:
        return f"the run is not complete: {document.text('incomplete_reason') or 'AIPerf does not say why'}"
    return ""


def _failed(document: Fields) -> int:
    """As the file says, else the sum of its errors by kind."""
    told = _figure(document, "error_request_count")
    if told is not None:
        return int(told)
    return sum(each.count("count") or 0 for each in document.parts("error_summary"))


def _model(config: Fields) -> str | None:
    models = config.part("models").parts("items")
    return models[0].text("name") if models else _first_text(config.part("endpoint"), "model_names")


def _first_text(part: Fields, name: str) -> str | None:
    texts = [each for each in part.entries(name) if isinstance(each, str)]
    return texts[0] if texts else None


def _load(config: Fields) -> Load:
    if "loadgen" in config:
        return _load_of_command(config.part("loadgen"))
    phases = [each for each in config.parts("phases") if each.text("kind") in {"profiling", None}]
    if len(phases) != 1:
        raise config.wrong("phases", f"must have one profiling phase, not {len(phases)}")
    phase = phases[0]
    kind, limit = phase.text("type"), phase.count("concurrency")
    if kind == "concurrency" and limit:
        return Load(concurrency=limit)
    if kind in _RATES and (rate := phase.number("rate")):
        smooth = phase.number("smoothness") or 1.0
        return Load(rate, limit, arrivals=ArrivalKind(kind or ""), burstiness=smooth**-0.5 if kind == "gamma" else 1.0)
    raise phase.wrong("type", "must be concurrency, poisson, constant or gamma, with its figure")


def _load_of_command(loadgen: Fields) -> Load:
    limit, rate = loadgen.count("concurrency"), loadgen.number("request_rate")
    if not rate:
        if not limit:
            raise loadgen.wrong("concurrency", "is missing, and so is request_rate: the load is not known")
        return Load(concurrency=limit)
    mode = loadgen.text("request_rate_mode") or "poisson"
    if mode not in _RATES:
        raise loadgen.wrong("request_rate_mode", f"must be poisson, constant or gamma, not {mode}")
    smooth = loadgen.number("arrival_smoothness") or 1.0
    return Load(rate, limit, arrivals=ArrivalKind(mode), burstiness=smooth**-0.5 if mode == "gamma" else 1.0)


def _lengths(document: Fields, config: Fields, completed: int) -> Lengths:
    """As asked for, where all requests are synthetic and of one kind; else the mean of what was seen."""
    datasets = config.parts("datasets")
    if len(datasets) == 1 and datasets[0].text("type") == "synthetic":
        prompts = datasets[0].part("prompts")
        read, written = prompts.part("isl").number("mean"), prompts.part("osl").number("mean")
        if read is not None and written is not None:
            return Lengths(read, written, observed=False)
    read = _needed(document, "input_sequence_length") if completed else 0.0
    return Lengths(read, _figure(document, "output_sequence_length") or 0.0, observed=True)


def _figure(document: Fields, name: str) -> float | None:
    return document.part(name).number("avg")


def _needed(document: Fields, name: str) -> float:
    return document.part(name).needed("avg")


def _unit_s(part: Fields) -> float:
    unit = part.text("unit")
    if unit is None:
        return MS
    if unit not in _SECONDS:
        raise part.wrong("unit", f"must be one of {', '.join(_SECONDS)}")
    return _SECONDS[unit]
