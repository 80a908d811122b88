"""Folders of nightly result files -> series, levels, changes, and what is said about them."""

from __future__ import annotations

import html
import json
import math
import re
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pytest_gpucap.history import trend_report
from pytest_gpucap.history.detection import change_points, change_range, despiked, run_sd
from pytest_gpucap.history.nightly import NightlySeries, read_folder, series_of
from pytest_gpucap.history.trend import trend_of, trends_of
from pytest_gpucap.installing import pip_install
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.encoding import from_builtins, normalised
from pytest_gpucap.results.result import ResultKind
from pytest_gpucap.results.trend import AlarmState, Trend
from tests.history.made import REQUIREMENT, STARTED, result, session
from tests.history.nightly import rates, write_nights


def upgraded(at: int) -> Any:
    """The environment of a night: a newer server from night `at` on."""
    return lambda night: {"server": "vLLM 0.27.0" if night >= at else "vLLM 0.26.0"}


def read(folder: Path) -> list[NightlySeries]:
    runs, skipped = read_folder(folder)
    series, unused = series_of(runs)
    assert not skipped + unused
    return series


def one(folder: Path) -> Trend:
    (series,) = read(folder)
    return trend_of(series)


def test_a_small_drop_is_named_with_its_run_its_date_and_what_changed_there(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(75, drop=0.03, at=60, seed=1), upgraded(60))
    found = one(tmp_path)
    (change,) = found.changes
    assert change.earliest <= 60 <= change.latest
    assert change.ratio.low <= 0.97 <= change.ratio.high
    assert change.ratio.high < 1
    assert change.confirmed is not None
    assert 60 < change.confirmed <= 72
    assert change.changed == ("server: vLLM 0.26.0 -> vLLM 0.27.0",)
    assert found.standing_drop is change
    assert [(segment.start, segment.stop) for segment in found.segments] == [(0, change.index), (change.index, 75)]
    assert found.segments[0].rate.low <= 30 <= found.segments[0].rate.high
    said = trend_report.trends_text([found])
    assert f"from night-{change.index:03}.json ({found.points[change.index].when.date()})" in said
    assert "server: vLLM 0.26.0 -> vLLM 0.27.0" in " ".join(said.split())


def test_a_steady_history_has_one_level_and_no_drop(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(80, seed=15), upgraded(40))
    found = one(tmp_path)
    assert (found.changes, found.standing, len(found.segments)) == ((), None, 1)
    assert found.state is AlarmState.QUIET
    assert found.run_sd == pytest.approx(0.017, rel=0.3)
    assert trend_report.trends_text([found]).endswith("no drop")


def test_a_drop_that_was_made_good_no_longer_stands(tmp_path: Path) -> None:
    values = rates(60, drop=0.06, at=25, seed=6)
    write_nights(tmp_path, [*values[:40], *(value / 0.94 for value in values[40:])])
    found = one(tmp_path)
    assert [change.ratio.value < 1 for change in found.changes] == [True, False]
    assert found.changes[0].confirmed is not None
    assert found.standing is None


def test_a_false_alarm_is_taken_back_when_the_runs_since_do_not_bear_it_out(tmp_path: Path) -> None:
    values = rates(250, seed=6)  # one of the few steady histories that raise an alarm, at run 111
    write_nights(tmp_path / "then", values[:112])
    then = one(tmp_path / "then")
    assert then.state is AlarmState.DROP
    assert then.standing_drop is not None
    assert then.standing_drop.confirmed == 111
    write_nights(tmp_path / "now", values)
    now = one(tmp_path / "now")
    assert (now.changes, now.standing, len(now.segments)) == ((), None, 1)


def test_single_bad_nights_are_no_levels(tmp_path: Path) -> None:
    values = rates(60, seed=7)
    for night in (12, 30, 44):
        values[night] *= 0.85
    write_nights(tmp_path, values)
    assert one(tmp_path).changes == ()


def test_each_test_model_workload_and_limit_has_a_series_of_its_own(tmp_path: Path) -> None:
    other = replace(REQUIREMENT, workload=Workload(Length.fixed(1024), Length.fixed(512)))
    results = [
        result(30.0),
        result(31.0, test="tests/test_chat.py::test_other"),
        result(32.0, model="Qwen/Qwen2-7B"),
        result(33.0, gpu_class="h100"),
        result(34.0, requirement=other),
        result(35.0, simulated=True),
        result(36.0, kind=ResultKind.MEASURE),
    ]
    for night in range(2):
        result_file.write(tmp_path / f"{night}.json", session(*results, started=STARTED + timedelta(days=night)))
    series = read(tmp_path)
    assert [len(each.points) for each in series] == [2] * 7
    assert sorted(each.points[0].rate.value for each in series) == [30, 31, 32, 33, 34, 35, 36]
    assert [each.simulated for each in series] == [False] * 6 + [True], "simulated ones are never mixed with measured"
    assert trend_of(series[-1]).title.startswith("SIMULATED ")


def test_a_trace_that_changed_under_its_name_begins_a_series(tmp_path: Path) -> None:
    for night, (name, contents) in enumerate([("june.csv", "6" * 64), ("moved.csv", "6" * 64), ("june.csv", "7" * 64)]):
        arrivals = Arrivals(ArrivalKind.TRACE, trace=Path(name), trace_sha256=contents)
        measured = result(30.0, requirement=replace(REQUIREMENT, workload=Workload(arrivals=arrivals)))
        result_file.write(tmp_path / f"{night}.json", session(measured, started=STARTED + timedelta(days=night)))
    assert sorted(len(each.points) for each in read(tmp_path)) == [1, 2]


def test_versions_may_differ_within_a_series(tmp_path: Path) -> None:
    write_nights(tmp_path, [30.0, 31.0], lambda night: {"driver": f"58{night}.1", "server": f"vLLM {night}"})
    (series,) = read(tmp_path)
    assert [point.versions["driver"] for point in series.points] == ["580.1", "581.1"]


def test_files_that_are_no_results_cost_one_line_each_and_nothing_else(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(30, seed=8))
    good = (tmp_path / "night-000.json").read_text()
    (tmp_path / "cut.json").write_text(good[: len(good) // 2])
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "foreign.json").write_text('{"benchmarks": []}')
    (tmp_path / "newer.json").write_text(json.dumps({**json.loads(good), "schema_version": 99}))
    (tmp_path / "undated.json").write_text(json.dumps({**json.loads(good), "started": "yesterday"}))
    (tmp_path / "bare.json").write_text(json.dumps({**json.loads(good), "results": [{"kind": "check"}]}))
    (tmp_path / "results.json").write_text(json.dumps({**json.loads(good), "results": 7}))
    broken = json.loads(good)
    broken["results"][0]["sustainable_rate"] = {"value": "fast", "low": 1, "high": 2, "confidence": 0.95}
    broken["started"] = "2026-12-30T00:00:00+00:00"
    (tmp_path / "words.json").write_text(json.dumps(broken))
    (tmp_path / ".night-031.json.77.tmp").write_text("{")
    (tmp_path / "folder.json").mkdir()
    runs, skipped = read_folder(tmp_path)
    series, unused = series_of(runs)
    lines = [*skipped, *unused]
    bad = {"cut", "empty", "binary", "list", "foreign", "newer", "undated", "bare", "results", "words"}
    assert {Path(line.split(":")[0]).stem for line in lines} == bad
    assert len(lines) == len(bad)
    assert not [line for line in lines if "\n" in line]
    assert [len(each.points) for each in series] == [30]


def test_results_that_say_nothing_of_capacity_are_left_out(tmp_path: Path) -> None:
    results = [result(30.0), result(None), result(25.0, problems=("the GPU was shared",))]
    result_file.write(tmp_path / "night.json", session(*results))
    (series,) = read(tmp_path)
    assert [point.rate.value for point in series.points] == [30.0]


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    write_nights(tmp_path, [30.0, 31.0])
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "main.json").write_text((tmp_path / "night-001.json").read_text())
    runs, _ = read_folder(tmp_path)
    (series,), unused = series_of(runs)
    assert len(series.points) == 2
    assert len(unused) == 1
    assert "is also in" in unused[0]


def test_the_confirming_run_of_a_night_belongs_to_it(tmp_path: Path) -> None:
    for number, hours in enumerate([0, 1, 24, 30, 48]):
        started = STARTED + timedelta(hours=hours)
        result_file.write(tmp_path / f"{number}.json", session(result(30.0 + number), started=started))
    (series,) = read(tmp_path)
    assert [point.night for point in series.points] == [0, 0, 1, 1, 2]


def test_a_run_with_a_useless_interval_is_shown_and_not_judged(tmp_path: Path) -> None:
    paths = write_nights(tmp_path, rates(40, seed=9))
    for path in paths[20:23]:
        content = json.loads(path.read_text())
        content["results"][0]["sustainable_rate"] = {"value": 60.0, "low": 20.0, "high": 180.0, "confidence": 0.95}
        path.write_text(json.dumps(content))
    found = one(tmp_path)
    assert [index for index, point in enumerate(found.points) if not point.judged] == [20, 21, 22]
    assert found.changes == ()
    assert "3 runs with too wide an interval" in trend_report.trends_text([found])


def test_indices_count_all_points_where_some_are_not_judged(tmp_path: Path) -> None:
    paths = write_nights(tmp_path, rates(60, drop=0.08, at=45, seed=10), upgraded(45))
    for path in paths[10:14]:
        content = json.loads(path.read_text())
        content["results"][0]["sustainable_rate"] |= {"low": 3.0, "high": 300.0}
        path.write_text(json.dumps(content))
    found = one(tmp_path)
    (change,) = found.changes
    assert change.index == 45
    assert change.changed == ("server: vLLM 0.26.0 -> vLLM 0.27.0",)
    assert [(segment.start, segment.stop) for segment in found.segments] == [(0, 45), (45, 60)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11])
def test_short_histories_are_shown(tmp_path: Path, count: int) -> None:
    write_nights(tmp_path, rates(count))
    found = one(tmp_path)
    assert found.segments[0].stop == count
    assert f"{count} run" in trend_report.trends_text([found])


def test_levels_cover_every_point_and_changes_stand_between_them(tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    values: list[float] = []
    for level in (30, 27, 28.5, 31, 26):
        values += [level * math.exp(random.normal(0, 0.017)) for _ in range(30)]
    write_nights(tmp_path, values)
    found = one(tmp_path)
    starts = [segment.start for segment in found.segments]
    assert [0, *(change.index for change in found.changes)] == starts
    assert [segment.stop for segment in found.segments] == [*starts[1:], len(values)]
    for true, change in zip((30, 60, 90, 120), found.changes, strict=True):
        assert abs(change.index - true) <= 3


def test_the_search_finds_nothing_in_noise_most_of_the_time() -> None:
    random = np.random.default_rng(13)
    wrong = sum(bool(change_points(np.log(rates(200, seed=int(random.integers(1 << 30)))))) for _ in range(60))
    assert wrong <= 6


def test_places_hold_the_true_one_as_often_as_they_say() -> None:
    held = counted = 0
    for seed in range(200):
        logs = np.log(rates(75, drop=0.04, at=60, seed=1000 + seed))
        for index in change_points(logs):
            if abs(index - 60) < 8:
                low, high = change_range(despiked(logs), index, 0, 75, run_sd(logs), 0.95)
                counted += 1
                held += low <= 60 <= high
    assert counted >= 190
    # 0.1% bound of a binomial count at 95%.
    assert held / counted > 0.89


def test_a_thousand_runs_take_a_moment(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(1000, drop=0.03, at=700, seed=14))
    begun = time.process_time()
    found = one(tmp_path)
    # Seconds here mean something grew quadratically; it takes about one.
    assert time.process_time() - begun < 20
    assert any(change.earliest <= 700 <= change.latest for change in found.changes)


def test_json_holds_everything_and_reads_back(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(75, drop=0.05, at=60, seed=1), upgraded(60))
    found = one(tmp_path)
    plain = json.loads(trend_report.trends_json([found], ["x.json: not JSON"]))
    assert plain["skipped"] == ["x.json: not JSON"]
    (back,) = plain["trends"]
    assert from_builtins(back, Trend) == normalised(found)
    assert set(back["points"][0]) == {"when", "file", "night", "rate", "judged", "versions"}
    assert back["changes"][0]["file"].endswith(f"night-{found.changes[0].index:03}.json")
    assert back["standing"] == 0
    assert len(back["points"]) == 75


def test_markdown_stays_in_its_table(tmp_path: Path) -> None:
    write_nights(tmp_path, rates(75, drop=0.05, at=60, seed=1), test="tests/test_x.py::test_x[a|b<c>]")
    shown = trend_report.trends_markdown(trends_of(read_folder(tmp_path)[0]))
    row = next(line for line in shown.splitlines() if "test" in line and line.startswith("| ❌"))
    assert row.count("|") == shown.splitlines()[0].count("|")
    assert "test_x[a|b<c>]" in html.unescape(row)


def test_a_title_leaves_out_what_nothing_tells(tmp_path: Path) -> None:
    write_nights(tmp_path, [30.0, 31.0])
    found = one(tmp_path)
    assert f"({found.gpu_class}, {found.model}, {found.workload})" in found.title
    assert msgspec.structs.replace(found, model="?").title == found.title.replace(f"{found.model}, ", "")


def test_a_sparkline_is_as_wide_as_its_runs_or_as_it_may_be(tmp_path: Path) -> None:
    write_nights(tmp_path, [30.0, 31.0, 32.0, 33.0])
    found = one(tmp_path)
    assert trend_report.sparkline(found) == "▁▃▆█"
    assert trend_report.sparkline(found, width=2) == "▁█"
    assert trend_report.sparkline(found, heights=trend_report.ASCII) == "_-+#"


@pytest.mark.parametrize(("suffix", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_plots_are_written(tmp_path: Path, suffix: str, head: bytes) -> None:
    pytest.importorskip("matplotlib")
    write_nights(tmp_path / "runs", rates(75, drop=0.05, at=60, seed=1))
    path = tmp_path / "out" / f"trend{suffix}"
    trend_report.plot_trends([one(tmp_path / "runs")], path)
    assert path.read_bytes().startswith(head)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(trend_report.MissingLibraryError, match=re.escape(pip_install("history"))):
        trend_report.plot_trends([], Path("trend.svg"))
