"""Earlier runs -> the lines and tables of the page's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.report.formatting import percent, significant
from pytest_gpucap.report.html.hero import moment
from pytest_gpucap.report.html.view import Fact

_FEW: Final = 4
"""Changed versions named for one change; a change whose place is unsure may have seen many."""


@dataclass(frozen=True, slots=True)
class TrendPanel:
    """One requirement over its runs: what the page says and what it draws."""

    name: str
    test: str
    place: str
    note: str
    simulated: bool
    changes: tuple[Fact, ...]
    chart: Mapping[str, Any]


def trends(history: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]] = ()) -> list[TrendPanel]:
    """A chart for each trend that has points, those of the page's own tests first.

    Args:
        history: each as `history.trend.record` gives it: ``name``, ``test``, ``gpu_class``, ``model``, ``workload``,
            ``simulated``, ``run_sd``, ``points`` (``when``, ``rate``, ``judged``, ``versions``), ``segments`` (points
            ``start`` to ``stop - 1`` and their ``rate``) and ``changes`` (``index``, ``ratio``, ``changed``).
        records: the page's own results; the design rate is theirs.
    """
    designs = {(record["test"], record["name"]): record.get("design_rate_rps") for record in records}
    found = [_trend(each, designs.get((each["test"], each["name"]))) for each in history if each["points"]]
    return sorted(found, key=lambda trend: (trend.test, trend.name) not in designs)


def _trend(history: Mapping[str, Any], design: float | None) -> TrendPanel:
    points, name = history["points"], str(history["name"])
    last = points[-1]
    runs = f"{len(points)} run{'' if len(points) == 1 else 's'}"
    latest = f"the latest {significant(last['rate']['value'])} req/s on {moment(last['when'])}"
    return TrendPanel(
        name=name,
        test=str(history["test"]),
        place=", ".join(str(history[key]) for key in ("gpu_class", "model", "workload")),
        note=f"{runs}, run-to-run standard deviation {percent(history['run_sd'])}, {latest}",
        simulated=bool(history["simulated"]),
        changes=tuple(Fact(moment(points[each["index"]]["when"]), _sentence(each)) for each in history["changes"]),
        chart={
            "name": name,
            "t": [point["when"] for point in points],
            **{end: [_short(point["rate"][end]) for point in points] for end in ("value", "low", "high")},
            "judged": [bool(point["judged"]) for point in points],
            "label": [", ".join(f"{what} {which}" for what, which in point["versions"].items()) for point in points],
            "levels": [
                [each["start"], each["stop"] - 1, _short(each["rate"]["value"])] for each in history["segments"]
            ],
            "changes": [[each["index"], _step(each), _kind(each)] for each in history["changes"]],
            "design": _short(design),
        },
    )


def _kind(change: Mapping[str, Any]) -> str:
    return "down" if change["ratio"]["value"] < 1 else "up"


def _step(change: Mapping[str, Any]) -> str:
    return percent(change["ratio"]["value"] - 1, signed=True)


def _sentence(change: Mapping[str, Any]) -> str:
    """``-12.1% (-14.0% to -10.2%); changed there: vLLM 0.26.0 -> 0.27.0``."""
    low, high = (percent(change["ratio"][end] - 1, signed=True) for end in ("low", "high"))
    line = f"{_step(change)} ({low} to {high})"
    if not change["changed"]:
        return f"{line}; nothing else is known to have changed there"
    more = len(change["changed"]) - _FEW
    return f"{line}; changed there: {', '.join(change['changed'][:_FEW])}{f' and {more} more' if more > 0 else ''}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
