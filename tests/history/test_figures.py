"""The trends of limits beside the rate: levels, changes to the worse, and starts told apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.history import trend_report
from pytest_gpucap.history.figures import figures_of
from pytest_gpucap.history.nightly import read_folder
from pytest_gpucap.history.trend import trends_of
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval, Outcome, SecondaryResult
from pytest_gpucap.results.trend import Trend
from pytest_gpucap.secondary import METRICS, SecondaryName
from tests.history.made import STARTED, result, session

NIGHTS = 40
CHANGED = 25


def limited(name: SecondaryName, value: float, half: float = 0.0) -> SecondaryResult:
    metric = METRICS[name]
    measured = Interval(value, value - half, value + half)
    return SecondaryResult(name, metric.unit, metric.bound, 1.0, measured, Outcome.PASS)


def noise(count: int = NIGHTS, sd: float = 0.01, seed: int = 1) -> list[float]:
    return [math.exp(each) for each in np.random.default_rng(seed).normal(0, sd, count)]


def write(
    folder: Path,
    figures: Sequence[tuple[SecondaryResult, ...]],
    environment: Callable[[int], dict[str, Any]] = lambda _: {},
) -> None:
    for number, each in enumerate(figures):
        found = msgspec.structs.replace(result(25.0 + 0.01 * number, **environment(number)), secondary=each)
        path = folder / f"night-{number:03}.json"
        result_file.write(path, session(found, started=STARTED + timedelta(days=number)))


def trends(folder: Path) -> dict[str, Trend]:
    runs, skipped = read_folder(folder)
    assert not skipped
    return {each.what: each for each in trends_of(runs)}


@pytest.mark.parametrize(
    ("name", "unit", "before", "factor", "verdict"),
    [
        (SecondaryName.JOULES_PER_1K_TOKENS, "J per 1,000 output tokens", 50.0, 1.2, "RISE of"),
        (SecondaryName.JOULES_PER_1K_TOKENS, "J per 1,000 output tokens", 50.0, 0.8, "no rise"),
        (SecondaryName.KV_TOKENS, "tokens", 120_000.0, 0.9, "DROP of"),
        (SecondaryName.KV_TOKENS, "tokens", 120_000.0, 1.1, "no drop"),
        (SecondaryName.USD_PER_1M_TOKENS, "USD per 1,000,000 output tokens", 0.4, 1.2, "RISE of"),
        (SecondaryName.ACCEPTANCE, "acceptance", 0.6, 0.8, "DROP from 60"),
        (SecondaryName.PREFIX_HIT_RATE, "prefix hit rate", 0.5, 0.5, "DROP from 50"),
    ],
)
def test_a_change_to_the_worse_is_named(
    tmp_path: Path, name: SecondaryName, unit: str, before: float, factor: float, verdict: str
) -> None:
    spread = noise(sd=0.0005 if name is SecondaryName.KV_TOKENS else 0.01)
    values = [before * each * (factor if night >= CHANGED else 1) for night, each in enumerate(spread)]
    newer = {True: "vLLM 0.27.0", False: "vLLM 0.26.0"}
    write(tmp_path, [(limited(name, each),) for each in values], lambda night: {"server": newer[night >= CHANGED]})
    found = trends(tmp_path)[METRICS[name].title]
    (change,) = found.changes
    assert change.earliest <= CHANGED <= change.latest
    assert change.changed == ("server: vLLM 0.26.0 -> vLLM 0.27.0",)
    assert [each.rate.value for each in found.segments] == pytest.approx([before, before * factor], rel=0.02)
    said = trend_report.trends_text([found])
    assert said.startswith(f"{METRICS[name].title} in tests/test_chat.py::test_chat (h200, ")
    assert f"{unit} (95%)" in said
    assert said.splitlines()[-1].startswith(verdict)
    assert (found.standing is None) is verdict.startswith("no ")


def test_a_share_may_be_nothing(tmp_path: Path) -> None:
    values = [0.0] * CHANGED + [0.03] * (NIGHTS - CHANGED)
    write(tmp_path, [(limited(SecondaryName.PREEMPTIONS, each),) for each in values])
    found = trends(tmp_path)["preemptions"]
    assert [each.rate.value for each in found.segments] == pytest.approx([0.0, 0.03], abs=1e-6)
    assert "RISE from 0% to 3% since" in trend_report.trends_text([found])
    assert "rise from 0% to 3%" in " ".join(trend_report.trends_text([found]).split())


def test_cold_and_warm_starts_are_two_series(tmp_path: Path) -> None:
    """A cache that is lost every fifth night is no change of level."""
    values = [(60.0 if night % 5 == 0 else 25.0) * each for night, each in enumerate(noise())]
    starts = {0: "cold"}
    write(
        tmp_path,
        [(limited(SecondaryName.STARTUP, each),) for each in values],
        lambda night: {"start": starts.get(night % 5, "warm")},
    )
    found = trends(tmp_path)
    cold, warm = found["cold start-up"], found["warm start-up"]
    assert (len(cold.points), len(warm.points)) == (8, 32)
    assert cold.changes == warm.changes == ()
    assert warm.segments[0].rate.value == pytest.approx(25, rel=0.02)
    assert "start-up" not in found


def test_the_rate_keeps_its_series_whatever_is_limited_beside_it(tmp_path: Path) -> None:
    limits = [(limited(SecondaryName.KV_TOKENS, 1000.0),) if night % 2 else () for night in range(10)]
    write(tmp_path, limits)
    found = trends(tmp_path)
    assert len(found["sustainable rate"].points) == 10
    assert found["sustainable rate"].figure is None
    assert len(found["KV cache"].points) == 5


def test_what_is_no_figure_is_left_out(tmp_path: Path) -> None:
    name = SecondaryName.USD_PER_1M_TOKENS
    bound = msgspec.structs.replace(limited(name, 1.0), measured=Interval(1.0, 0.0, 1.0))
    open_ended = msgspec.structs.replace(limited(name, 1.0), measured=Interval(1.0, 0.5, math.inf))
    nothing = msgspec.structs.replace(limited(name, 1.0), measured=None, outcome=Outcome.INVALID)
    write(tmp_path, [(bound,), (open_ended,), (nothing,)])
    runs, _ = read_folder(tmp_path)
    assert figures_of(runs) == []


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    write(tmp_path, [(limited(SecondaryName.KV_TOKENS, 1000.0),)])
    (tmp_path / "copy.json").write_bytes((tmp_path / "night-000.json").read_bytes())
    runs, _ = read_folder(tmp_path)
    (series,) = figures_of(runs)
    assert len(series.points) == 1


def test_the_command_shows_them_and_fails_for_rates_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [50.0 * each * (1.3 if night >= CHANGED else 1) for night, each in enumerate(noise())]
    write(tmp_path, [(limited(SecondaryName.JOULES_PER_1K_TOKENS, each, half=1.0),) for each in values])
    assert main(["history", str(tmp_path), "--fail-on-drop"]) == 0
    assert "energy in tests/test_chat.py::test_chat" in capsys.readouterr().out
    assert main(["history", str(tmp_path), "--format", "json"]) == 0
    told = {each["figure"]: each for each in json.loads(capsys.readouterr().out)["trends"]}
    assert told.keys() == {None, "joules_per_1k_tokens"}
    assert told["joules_per_1k_tokens"]["standing"] == 0
    assert main(["history", str(tmp_path), "--format", "markdown"]) == 0
    assert "| ❌" in capsys.readouterr().out
