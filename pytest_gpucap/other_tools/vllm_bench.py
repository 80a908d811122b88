"""``vllm bench serve --save-result``, and ``vllm bench sweep``, whose files hold such results.

Format: ``vllm/benchmarks/serve.py`` (`benchmark`, `main_async`) and ``vllm/benchmarks/sweep/serve.py`` of vLLM 0.32.
What its predecessor ``benchmarks/benchmark_serving.py`` and the first versions of the command wrote is read as well:
they name either the endpoint's type or the backend, and count no failed request.
Latencies are milliseconds; TPOT is one figure per request and ITL one per gap, as here.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Final

from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.other_tools.point import MS, Lengths, Load, Point, Tool, latency, latency_of
from pytest_gpucap.requirement import ApiKind, ArrivalKind
from pytest_gpucap.results.measured import Latency

_METRICS: Final = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}
_EACH: Final = {"ttft": "ttfts", "e2e": "latencies"}
"""Latencies of every request, in seconds."""
_OWN: Final = frozenset(
    {
        *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
        *("burstiness", "max_concurrency", "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "duration"),
        *("completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "run_number"),
        *("request_goodput", "request_goodput:", "output_throughput", "total_token_throughput", "input_lens"),
        *("output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors"),
        *("max_output_tokens_per_s", "max_concurrent_requests", "rtfx", "rps_change_events", ""),
    }
)
_FIGURE: Final = re.compile(r"(?:mean|median|std|p[\d.]{1,9})_\w{1,40}_ms$|spec_decode_|diffusion_|probe_")
_SWEEP: Final = "run_number"
"""`vllm bench sweep` adds it, and what it varied."""
_MOST_NAMED, _LONGEST_NAMED = 50, 200
_ENDPOINT: Final = ("backend", "endpoint_type")
"""One of both, or both with the same value."""
_CHAT: Final = frozenset({"openai-chat", "openai-audio"})


def is_result(document: Fields) -> bool:
    """Whether a document is a result of this tool."""
    names = document.values.keys()
    return {"model_id", "request_throughput"} <= names and not names.isdisjoint(_ENDPOINT)


def point_of(document: Fields) -> Point:
    """The point of one result.

    Raises:
        UserFileError: if it is damaged, or of embeddings, which have no tokens to answer with.
    """
    if "total_output_tokens" not in document:
        raise document.wrong("total_output_tokens", "is missing: only benchmarks of generated text are read")
    completed = document.needed_count("completed")
    failed = _failed(document, completed)
    labels = _named(document)
    swept = _SWEEP in document
    return Point(
        tool=Tool.VLLM,
        started=document.when("date", "%Y%m%d-%H%M%S"),
        model=document.text("model_id"),
        load=_load(document),
        lengths=Lengths(
            document.needed("total_input_tokens") / max(completed, 1),
            document.needed("total_output_tokens") / max(completed, 1),
            observed=True,
        ),
        duration_s=document.needed("duration"),
        completed=completed,
        failed=failed,
        completed_rps=document.needed("request_throughput"),
        output_tokens_per_s=document.needed("output_throughput"),
        latencies=_latencies(document, completed, failed),
        endpoint=ApiKind.CHAT if _CHAT & {document.text(name) for name in _ENDPOINT} else ApiKind.COMPLETIONS,
        parameters=labels if swept else {},
        labels={} if swept else labels,
        spoilt="its rate was ramped up while it ran" if document.text("ramp_up_strategy") else "",
    )


def _failed(document: Fields, completed: int) -> int:
    """As the file says; by the errors of its requests; else what is left of the prompts that were to be sent."""
    for told in (document.count("failed"), document.filled("errors")):
        if told is not None:
            return told
    return max((document.count("num_prompts") or 0) - completed, 0)


def _load(document: Fields) -> Load:
    limit = document.count("max_concurrency")
    if document.values.get("request_rate") in ("inf", "Infinity", None):
        return Load(concurrency=limit, at_once=None if limit else document.count("num_prompts"))
    rate = document.number("request_rate")
    # vLLM's burstiness is the shape of a gamma distribution: 1 is Poisson, and less comes in bursts.
    shape = 1.0 if (given := document.number("burstiness")) is None else given
    if rate and shape > 0:
        kind = ArrivalKind.POISSON if shape == 1 else ArrivalKind.GAMMA
        return Load(rate, limit, arrivals=kind, burstiness=1 / math.sqrt(shape))
    raise document.wrong("request_rate" if not rate else "burstiness", "must be above 0")


def _latencies(document: Fields, completed: int, failed: int) -> Mapping[str, Latency]:
    found: dict[str, Latency] = {}
    for metric, name in _METRICS.items() if completed else ():
        told = latency(
            completed,
            document.number(f"mean_{name}_ms"),
            {
                50: _first(document.number(f"p50_{name}_ms"), document.number(f"median_{name}_ms")),
                **{percent: document.number(f"p{percent}_{name}_ms") for percent in (90, 95, 99)},
            },
            MS,
        )
        # Of every request, where the file has them; a request that failed has no latency.
        each = document.numbers(_EACH[metric]) if metric in _EACH and not failed else []
        exact = latency_of(each) if len(each) == completed else None
        if (latest := exact or told) is not None:
            found[metric] = latest
    return found


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _named(document: Fields) -> Mapping[str, str]:
    """What is not the tool's own: what the user had written down with ``--metadata``, or what a sweep varied."""
    named = (
        (name[:_LONGEST_NAMED], f"{value:g}" if isinstance(value, float) else str(value)[:_LONGEST_NAMED])
        for name, value in document.values.items()
        if name not in _OWN and not _FIGURE.match(name) and isinstance(value, str | int | float)
    )
    return dict(itertools.islice(named, _MOST_NAMED))
