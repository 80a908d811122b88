"""GuideLLM's ``benchmarks.json``: a benchmark per load.

Format: ``guidellm/benchmark/schemas/`` (`GenerativeBenchmarksReport`, version 2) of GuideLLM 0.8. Request latencies are
seconds, the others milliseconds. GuideLLM's inter-token latency is one figure per request, which is TPOT here; it keeps
no gap.

Version 1 of the report (GuideLLM 0.4 to 0.6) has ``args`` in place of ``config``. Before it (0.2 and 0.3), a report had
its benchmarks alone, each with its strategy in ``args`` and its server in ``worker``.
"""

from __future__ import annotations

from typing import Final

from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.other_tools.point import MS, Lengths, Load, Point, Tool, latency
from pytest_gpucap.requirement import ApiKind, ArrivalKind

_METRICS: Final = {
    "ttft": ("time_to_first_token_ms", MS),
    "tpot": ("inter_token_latency_ms", MS),
    "e2e": ("request_latency", 1.0),
}
_RATES: Final = {"constant": ArrivalKind.CONSTANT, "poisson": ArrivalKind.POISSON}


def is_result(document: Fields) -> bool:
    """Whether a document is a result of this tool."""
    if {"benchmarks", "metadata"} <= document.values.keys():
        return "guidellm_version" in document.part("metadata")
    benchmarks = document.values.get("benchmarks")
    return isinstance(benchmarks, list) and any(isinstance(each, dict) and "run_stats" in each for each in benchmarks)


def points_of(document: Fields) -> list[Point]:
    """The points of a report, in its order.

    Raises:
        UserFileError: if it is damaged, or holds no benchmark.
    """
    version = document.part("metadata").text("guidellm_version")
    lengths = _declared(document)
    arguments = document.part("args")
    found = [_point(each, version, lengths, arguments) for each in document.parts("benchmarks")]
    if not found:
        raise document.wrong("benchmarks", "is empty: no load was measured")
    return found


def _point(benchmark: Fields, version: str | None, declared: Lengths | None, arguments: Fields) -> Point:
    metrics, backend, worker = benchmark.part("metrics"), benchmark.part("config", "backend"), benchmark.part("worker")
    totals = metrics.part("request_totals")
    if "successful" not in totals:
        totals = benchmark.part("run_stats", "requests_made")
    completed = totals.needed_count("successful")
    latencies = {}
    for metric, (name, unit_s) in _METRICS.items():
        part = metrics.part(name, "successful")
        kept = part.part("percentiles")
        percentiles = {percent: kept.number(f"p{percent}") for percent in (50, 90, 95, 99)}
        count = part.count("count")
        if (
            found := latency(completed if count is None else count, part.number("mean"), percentiles, unit_s)
        ) is not None:
            latencies[metric] = found
    return Point(
        tool=Tool.GUIDELLM,
        version=version,
        started=benchmark.seconds_since_epoch("start_time"),
        model=backend.text("model") or arguments.text("model") or worker.text("backend_model"),
        url=backend.text("target") or arguments.text("target") or worker.text("backend_target"),
        endpoint=ApiKind.CHAT if "chat" in (backend.text("request_format") or "") else ApiKind.COMPLETIONS,
        load=_load(_strategy(benchmark), totals),
        lengths=declared or _observed(metrics, completed),
        duration_s=_duration_s(benchmark),
        completed=completed,
        failed=totals.count("errored") or 0,
        completed_rps=metrics.part("requests_per_second", "successful").needed("mean") if completed else 0.0,
        output_tokens_per_s=metrics.part("output_tokens_per_second", "successful").number("mean") or 0.0,
        in_flight=metrics.part("request_concurrency", "successful").number("mean"),
        latencies=latencies,
    )


def _strategy(benchmark: Fields) -> Fields:
    found = benchmark.part("config", "strategy")
    return found if found.values else benchmark.part("args", "strategy")


def _duration_s(benchmark: Fields) -> float:
    told = benchmark.number("duration")
    start_s, end_s = benchmark.number("start_time"), benchmark.number("end_time")
    if told is None and start_s is not None and end_s is not None and end_s >= start_s:
        return end_s - start_s
    return benchmark.needed("duration") if told is None else told


def _load(strategy: Fields, totals: Fields) -> Load:
    kind = strategy.text("type_") or strategy.text("kind")  # a report of 0.8 has both names, each in its places
    if kind in _RATES and (rate := strategy.number("rate")):
        # Its limit on requests in flight is that of its client, and far above what is seen.
        return Load(rate, arrivals=_RATES[kind])
    if kind == "synchronous":
        return Load(concurrency=1)
    if kind == "concurrent" and (streams := strategy.count("streams")):
        return Load(concurrency=streams)
    if kind == "throughput":
        limit = strategy.count("max_concurrency")
        return Load(concurrency=limit, at_once=None if limit else totals.count("total"))
    raise strategy.wrong("type_", "must be constant, poisson, concurrent, synchronous or throughput, with its figure")


def _declared(document: Fields) -> Lengths | None:
    """As asked for, where all requests are synthetic and of one length."""
    data = document.part("config", "spec").parts("data")
    if len(data) != 1 or data[0].text("kind") != "synthetic_text":
        return None
    spread = [f"{side}_tokens_{name}" for side in ("prompt", "output") for name in ("stdev", "min", "max")]
    read, written = data[0].number("prompt_tokens"), data[0].number("output_tokens")
    if read is None or written is None or any(data[0].number(name) for name in spread):
        return None
    return Lengths(read, written, observed=False)


def _observed(metrics: Fields, completed: int) -> Lengths:
    read, written = (metrics.part(name, "successful") for name in ("prompt_token_count", "output_token_count"))
    if completed and not read.number("mean"):
        raise read.wrong("mean", "is missing, so nobody knows how long the prompts were")
    return Lengths(read.number("mean") or 0.0, written.number("mean") or 0.0, observed=True)
