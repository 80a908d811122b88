"""Checks of a result document that types cannot express: ranges, orders, and lengths that belong together.

Reports compute with what a file holds, and a file may come from anywhere. It is checked once, when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from pytest_gpucap.errors import shortened, told
from pytest_gpucap.requirement import LARGEST

_LARGEST: Final = float(LARGEST)
"""Far above every measured figure too: a GPU has 10^16 operations a second."""
_FIRST_EDGE_S, _LAST_EDGE_S, _LEAST_STEP = 1e-9, 1e9, 1.001
"""A chart has a place for every bin between the lowest and the highest, so these bound its size."""
_LEAST_CONFIDENCE: Final = 0.01
"""An interval of less says nothing, and nobody could tell its standard error."""
LONGEST_TEXT: Final = 2**20
MOST_RESULTS: Final = 20_000

_SIGNED: Final = frozenset(
    {
        "slack",  # below 0 where the rate is too low
        "sampling",
        "server_args",
        "checks",
        "exit_status",
        "temperature_c",
        "temperature_max_c",
        "paired",
        "telemetry",  # differences of counters, which a restart sets back
        "series",
    }
)
"""Names of values that may be below 0, with all that stands in them."""
_SEEDS: Final = frozenset({"seed"})
"""Names of whole numbers that stand for themselves and are not computed with."""


def check(document: Mapping[str, Any]) -> None:
    """Check a document whose types are right.

    Raises:
        ValueError: one line, the place and what is wrong there.
    """
    if len(document["results"]) > MOST_RESULTS:
        raise ValueError(f"results has more than {MOST_RESULTS} entries")
    for place, why in _faults(document, "", signed=False):
        raise ValueError(f"{place} {why}")


Fault = tuple[str, str]
"""A place in the document, and what is wrong there."""


def _faults(value: Any, place: str, *, signed: bool) -> Iterator[Fault]:
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            yield place, f"is longer than {LONGEST_TEXT} characters"
    elif isinstance(value, Mapping):
        yield from _together(value, place)
        for key, each in value.items():
            if key not in _SEEDS:
                inside = f"{place}.{shortened(key)}" if place else key
                yield from _faults(each, inside, signed=signed or key in _SIGNED)
    elif isinstance(value, Sequence):
        for number, each in enumerate(value):
            yield from _faults(each, f"{place}[{number}]", signed=signed)
    elif value is not None and not isinstance(value, bool):
        yield from _number(value, place, signed=signed)


def _number(value: float, place: str, *, signed: bool) -> Iterator[Fault]:
    if not -_LARGEST <= value <= _LARGEST:
        yield place, f"must lie within {_LARGEST:g}, not {told(value)}"
    elif value < 0 and not signed:
        yield place, f"must not be below 0, but is {told(value)}"


def _together(values: Mapping[str, Any], place: str) -> Iterator[Fault]:
    """What is wrong among the values of one object."""
    if values.keys() >= {"value", "low", "high"}:
        known = [values[name] for name in ("low", "value", "high") if isinstance(values[name], int | float)]
        if known != sorted(known):
            yield place, "must have low <= value <= high"
        if not _LEAST_CONFIDENCE <= values.get("confidence", 1.0) <= 1.0:
            yield place, f"must have a confidence from {_LEAST_CONFIDENCE:g} to 1"
    if values.keys() >= {"edges_s", "counts"}:
        yield from _histogram(values["edges_s"], values["counts"], place)
    if values.keys() >= {"start_s", "end_s"} and values["end_s"] < values["start_s"]:
        yield place, "must not end before it starts"
    columns = {"t_s": values["t_s"], **values.get("columns", values)} if "t_s" in values else {}
    if len({len(column) for column in columns.values() if isinstance(column, Sequence)}) > 1:
        yield place, "must have columns of one length"


def _histogram(edges: Sequence[float], counts: Sequence[int], place: str) -> Iterator[Fault]:
    if len(edges) != len(counts) + 1 or not any(counts):
        yield place, "must count something, with one of edges_s more than counts"
    elif not all(_FIRST_EDGE_S <= edge <= _LAST_EDGE_S for edge in edges[1:]):
        yield place, f"must have edges_s from {_FIRST_EDGE_S:g} to {_LAST_EDGE_S:g}"
    elif any(high < low * _LEAST_STEP for low, high in pairwise(edges)):
        yield place, f"must have edges_s that rise by a factor of at least {_LEAST_STEP}"
