"""GuideLLM's ``benchmarks.json``: a benchmark per load.

Format: ``guidellm/benchmark/schemas/`` (`GenerativeBenchmarksReport`, version 2) of GuideLLM 0.8. Request latencies are
seconds, the others milliseconds. GuideLLM's inter-token latency is one figure per request, which is TPOT here; it keeps
no gap.
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
    return {"benchmarks", "metadata"} <= document.values.keys() and "guidellm_version" in document.part("metadata")


def points_of(document: Fields) -> list[Point]:
    """The points of a report, in its order.

    Raises:
        UserFileError: if it is damaged, or holds no benchmark.
    """
    version = document.part("metadata").text("guidellm_version")
    lengths = _declared(document)
    found = [_point(each, version, lengths) for each in document.parts("benchmarks")]
    if not found:
        raise document.wrong("benchmarks", "is empty: no load was measured")
    return found


def _point(benchmark: Fields, version: str | None, declared: Lengths | None) -> Point:
    metrics, backend = benchmark.part("metrics"), benchmark.part("config", "backend")
    totals = metrics.part("request_totals")
    completed = totals.needed_count("successful")
    latencies = {}
    for metric, (name, unit_s) in _METRICS.items():
        part = metrics.part(name, "successful")
        kept = part.part("percentiles")
        percentiles = {percent: kept.number(f"p{percent}") for percent in (50, 90, 95, 99)}
        count = part.count("count")
        if completed and (found := latency(count or completed, part.number("mean"), percentiles, unit_s)) is not None:
            latencies[metric] = found
    return Point(
        tool=Tool.GUIDELLM,
        version=version,
        started=benchmark.seconds_since_epoch("start_time"),
        model=backend.text("model"),
        url=backend.text("target"),
        endpoint=ApiKind.CHAT if "chat" in (backend.text("request_format") or "") else ApiKind.COMPLETIONS,
        load=_load(benchmark.part("config", "strategy"), totals),
        lengths=declared or _observed(metrics),
        duration_s=benchmark.needed("duration"),
        completed=completed,
        failed=totals.count("errored") or 0,
        completed_rps=metrics.part("requests_per_second", "successful").needed("mean"),
        output_tokens_per_s=metrics.part("output_tokens_per_second", "successful").number("mean") or 0.0,
        in_flight=metrics.part("request_concurrency", "successful").number("mean"),
        latencies=latencies,
    )


def _load(strategy: Fields, totals: Fields) -> Load:
    kind = strategy.text("type_")
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


def _observed(metrics: Fields) -> Lengths:
    read, written = (
        metrics.part(name, "successful").number("mean") for name in ("prompt_token_count", "output_token_count")
    )
    return Lengths(read or 0.0, written or 0.0, observed=True)
