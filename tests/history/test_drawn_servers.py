"""The study of regression gates on drawn servers: the slower servers, how comparisons are drawn, and its page."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.results.measured import Interval

VERDICT = Path(__file__).parents[2] / "benchmarks" / "verdict"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(VERDICT), *sys.path])
        import regression_tables  # type: ignore[import-not-found,unused-ignore]
    found: ModuleType = regression_tables
    return found


@pytest.fixture(scope="module")
def slower(tables: ModuleType) -> ModuleType:
    found: ModuleType = tables.slower
    return found


def server(tables: ModuleType, rates: dict[float, Sequence[float]], half: float = 0.02) -> Any:
    runs = [(loss, interval(rate, half)) for loss, found in rates.items() for rate in found]
    return tables.Server("seen-calm", 20.0, tuple(runs), 60.0)


def interval(rate: float, half: float) -> Interval:
    return Interval(rate, rate * math.exp(-half), rate * math.exp(half))


def test_a_slower_server_sustains_less_by_its_loss(slower: ModuleType) -> None:
    profile = slower.profiles.load(slower.servers.path_of("seen-calm"))
    for loss in (0.10, 0.20):
        log_factor = math.log(slower.engine_of(profile.name, loss).base_s / profile.engine.base_s)
        for off in (-0.015, 0.015):
            log_rate = math.log((1 - loss + off) * profile.true_rate_rps)
            # Seeds that the search has not seen.
            assert (slower.worst(profile, log_factor, log_rate, 13) > 0) == (off > 0)


def test_every_drawn_server_has_its_slower_ones(slower: ModuleType) -> None:
    names = [name for half in slower.servers.KINDS for name in slower.servers.names(half)]
    assert set(slower.known()) == {(name, loss) for name in names for loss in slower.LOSSES}
    for (name, loss), (factor, lost) in slower.known().items():
        assert 1 < factor < 1 / (1 - loss) * 1.02, name
        assert math.isnan(lost) or lost == pytest.approx(loss, abs=0.05), name


def test_no_measurement_is_compared_with_itself(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, ...]] = []

    def look(base: Any, head: Any, *_: object, **__: object) -> str:
        seen.append((base.rate.value, head().value, head().value))
        return "SAME"

    monkeypatch.setattr(tables.regression, "decided", look)
    monkeypatch.setattr(tables, "START_SD", 0.0)
    once = server(tables, {0.0: (20.0, 20.5, 21.0), 0.1: (17.0, 18.0, 19.0)})
    rng = np.random.default_rng(0)
    for loss, heads in ((0.0, {20.0, 20.5, 21.0}), (0.1, {17.0, 18.0, 19.0})):
        seen.clear()
        for _ in range(50):
            once.drawn(rng, loss)
        assert all(len(set(each)) == 3 and each[0] >= 20 and {*each[1:]} <= heads for each in seen)
    assert len({each[0] for each in seen}) == 3


def test_a_server_is_no_regression_of_itself_and_a_slower_one_is(tables: ModuleType) -> None:
    losses = tables.LOSSES
    alike = server(tables, {loss: [20.0 * (1 - loss)] * 4 for loss in losses})
    rng = np.random.default_rng(0)
    for nights in (1, 10):
        same = [alike.drawn(rng, 0.0, nights) for _ in range(200)]
        assert same.count("REGRESSED") == 0
        assert same.count("SAME") > 120
        assert [alike.drawn(rng, 0.15, nights) for _ in range(100)].count("REGRESSED") > 95
    assert [alike.sides(rng, 0.0) for _ in range(30)].count("SAME") > 25
    assert [alike.sides(rng, 0.20) for _ in range(30)].count("REGRESSED") > 25


def test_a_head_without_a_rate_decides_nothing(tables: ModuleType) -> None:
    runs = [(0.0, interval(20.0, 0.02))] * 3 + [(0.1, None)] * 2
    assert tables.Server("seen-calm", 20.0, tuple(runs), 60.0).drawn(np.random.default_rng(0), 0.1) == "no rate"


def test_the_page_of_a_few_results(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TIMES", 20)
    monkeypatch.setattr(tables, "IDEAL_TIMES", 20)

    def cell(name: str, rows: Sequence[tuple[str, float, float]]) -> None:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("rep", "outcome", "gpu_s", "rate", "low", "high"))
            writer.writerows([i, o, s, r, 0.98 * r, 1.02 * r] for i, (o, s, r) in enumerate(rows))

    truth, _ = tables.tables.truths(tables.tables.SERVERS)["seen-calm"]
    cell("measure-seen-calm-0.70.csv", [("OK", 60.0, truth)] * 4)
    for loss in tables.LOSSES:
        if loss:
            cell(f"slower-seen-calm-{loss:.2f}.csv", [("OK", 60.0, (1 - loss) * truth)] * 2)
        cell(f"paired-seen-calm-{loss:.2f}.csv", [("REGRESSED" if loss > 0.05 else "SAME", 120.0, 1 - loss)] * 2)
    cell("measure-unseen-few-0.70.csv", [("OK", 60.0, 1.0)] * 4)  # has no slower ones, so it is left out
    tables.write(tmp_path, tmp_path / "page.md", "a machine")
    text = (tmp_path / "page.md").read_text()
    lines = text.splitlines()
    assert "unseen-few" not in text
    assert any(line.startswith("| one run | all (1) | 20% | 100% (100 to 100) |") for line in lines)
    assert any(line.startswith("| all (1) | 10% | 2 | 100% (100 to 100) |") and "-10.0%" in line for line in lines)
    assert any(line.startswith("| seen-calm | 4 + 2 a loss | 0.0% | 2.0% |") for line in lines)
    assert any("inference-doctor" in line and "0%, 65%" in line for line in lines)
    assert all(line.count("|") == lines[i - 1].count("|") for i, line in enumerate(lines) if line.startswith("| -"))
