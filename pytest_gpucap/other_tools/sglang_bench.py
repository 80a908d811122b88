"""SGLang's ``python -m sglang.bench_serving``: JSON Lines, a line per run.

Format: ``sglang/benchmark/serving.py`` of SGLang 0.5.23. Latencies are milliseconds; TPOT is one figure per request and
ITL one per gap, as here. A line has no date and no model. What failed, it tells only with ``--output-details``.
"""

from __future__ import annotations

from typing import Final

from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.other_tools.point import MS, Lengths, Load, Point, Tool, latency
from pytest_gpucap.requirement import ApiKind

_METRICS: Final = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2e_latency"}
_WHOLE: Final = 1.0
"""The range ratio at which all lengths are as asked for."""


def is_result(document: Fields) -> bool:
    """Whether a document is a result of this tool."""
    return {"dataset_name", "request_throughput", "mean_e2e_latency_ms"} <= document.values.keys()


def point_of(document: Fields) -> Point:
    """The point of one line.

    Raises:
        UserFileError: if it is damaged.
    """
    completed = document.needed_count("completed")
    info = document.part("server_info")
    version = info.text("version")
    return Point(
        tool=Tool.SGLANG,
        model=info.text("model_path"),
        load=_load(document, completed),
        lengths=_lengths(document, completed),
        duration_s=document.needed("duration"),
        completed=completed,
        failed=document.filled("errors") or 0,
        completed_rps=document.needed("request_throughput"),
        output_tokens_per_s=document.needed("output_throughput"),
        in_flight=document.number("concurrency"),
        latencies={
            metric: found
            for metric, name in _METRICS.items()
            if completed
            and (
                found := latency(
                    completed,
                    document.number(f"mean_{name}_ms"),
                    {
                        50: document.number(f"median_{name}_ms"),
                        **{percent: document.number(f"p{percent}_{name}_ms") for percent in (90, 95, 99)},
                    },
                    MS,
                )
            )
            is not None
        },
        endpoint=ApiKind.CHAT if (document.text("backend") or "").endswith("-chat") else ApiKind.COMPLETIONS,
        labels={"tag": tag} if (tag := document.text("tag")) else {},
        server=None if version is None else f"SGLang {version}",
    )


def _load(document: Fields, completed: int) -> Load:
    limit = document.count("max_concurrency")
    if document.values.get("request_rate") == "trace":
        raise document.wrong("request_rate", "is a trace: only runs at one rate or concurrency are read")
    rate = document.number("request_rate")  # infinite: all at once
    if rate is None:
        return Load(concurrency=limit, at_once=None if limit else completed)
    if not rate:
        raise document.wrong("request_rate", "must be above 0")
    return Load(rate, limit)


def _lengths(document: Fields, completed: int) -> Lengths:
    asked = document.number("random_input_len"), document.number("random_output_len")
    if (document.text("dataset_name") or "").startswith("random") and document.number("random_range_ratio") == _WHOLE:
        read, written = asked
        if read is not None and written is not None:
            return Lengths(read, written, observed=False)
    runs = max(completed, 1)
    return Lengths(
        document.needed("total_input_tokens") / runs, document.needed("total_output_tokens") / runs, observed=True
    )
