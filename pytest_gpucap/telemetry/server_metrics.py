"""The few figures that telemetry needs, out of a server's ``/metrics``, by the names that its engine gives them.

A page of vLLM is mostly histograms, and a parser that builds an object for every line of it takes most of the processor
time that telemetry may use (`benchmarks/telemetry.py` measures both). Only the lines of the wanted names are looked at
here; they are found by search, so their order and whatever else is on the page do not matter.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields

from pytest_gpucap.engines.protocol import MetricNames

NAN = float("nan")

_MEAN = {"kv_use"}  # a share; the others add up over engines


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One reading; NaN for what the server does not tell. Summed over the server's engines, KV use averaged.

    Attributes:
        running, waiting: requests being decoded, and queued inside the server.
        kv_use: share of the KV cache in use, 0 to 1.
        preemptions, prompt_tokens, output_tokens, prefix_queries, prefix_hits: counters since the server started;
            the last two in tokens.
    """

    running: float = NAN
    waiting: float = NAN
    kv_use: float = NAN
    preemptions: float = NAN
    prompt_tokens: float = NAN
    output_tokens: float = NAN
    prefix_queries: float = NAN
    prefix_hits: float = NAN


_FIELDS = tuple(field.name for field in fields(ServerFigures))


def read_figures(page: str, names: MetricNames) -> ServerFigures:
    """The figures of one page in the Prometheus text format. Lines that cannot be read count as absent."""
    text = "\n" + page
    return ServerFigures(**{field: _figure(text, getattr(names, field), mean=field in _MEAN) for field in _FIELDS})


def _figure(text: str, names: tuple[str, ...], *, mean: bool) -> float:
    for name in names:
        values = _values(text, name)
        if values:
            return sum(values) / len(values) if mean else sum(values)
    return NAN


def _values(text: str, name: str) -> list[float]:
    """The values of every line ``name{labels} value [timestamp]``, and of no longer name that starts the same."""
    values = []
    start = f"\n{name}"
    at = text.find(start)
    while at >= 0:
        end = text.find("\n", at + 1)
        line = text[at + len(start) : end if end >= 0 else None]
        if line[:1] == "{":
            # A label's value may hold any character but an unescaped quote, so the last "}" closes the labels.
            line = line[line.rfind("}") + 1 :]
        elif line[:1] not in {" ", "\t"}:
            line = ""  # a longer name
        with suppress(IndexError, ValueError):
            values.append(float(line.split()[0]))
        at = text.find(start, at + 1)
    return values
