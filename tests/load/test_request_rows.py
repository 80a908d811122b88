"""Single requests as rows: the percentiles that a result states are those of the rows, whatever the workload."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.estimate.samples import quantile
from pytest_gpucap.load.adapters import draw_of
from pytest_gpucap.load.request_rows import request_rows
from pytest_gpucap.measure.procedure import check, sample
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement, Workload
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Sample
from pytest_gpucap.results.requests import MOST_ROWS, RequestRow, read_requests, write_requests
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.user_files import UserFileError

FAST = profiles.load("fast")
REQUIREMENT = Requirement("chat", Fraction(20), gpus=1, workload=FAST.workload, slo=FAST.slo)
SETTINGS = Settings(max_num_seqs=FAST.engine.max_num_seqs, kv_tokens=FAST.engine.kv_tokens)


def percentiles(rows: list[RequestRow], found: Sample) -> dict[str, list[float]]:
    """Those of the rows that belong to a window, by nearest rank."""
    text = found.window.text
    whole = [row for row in rows if not row.mid_life]
    values = {
        "ttft": [row.ttft_s for row in whole if row.first_token_window == text],
        "tpot": [row.tpot_s for row in whole if row.end_window == text],
        "e2e": [row.e2e_s for row in whole if row.end_window == text],
    }
    known = {metric: np.sort([each for each in of if each is not None]) for metric, of in values.items()}
    return {
        metric: [float(of.size), *(quantile(of, percent / 100) for percent in KEPT_PERCENTILES)]
        for metric, of in known.items()
        if of.size
    }


def stated(found: Sample) -> dict[str, list[float]]:
    """Those that the result has."""
    return {
        metric: [latency.count, *map(latency.percentile, KEPT_PERCENTILES)]
        for metric, latency in found.latencies.items()
        if metric != "itl"
    }


def test_the_percentiles_of_a_check_are_those_of_its_rows(tmp_path: Path) -> None:
    runner = SimRunner(FAST.engine, 3)
    measurement = check(runner, REQUIREMENT, SETTINGS).measurement
    path = tmp_path / "kept" / "chat.jsonl.gz"
    journal = runner.journal()
    write_requests(path, request_rows(journal, measurement.samples, (), MOST_ROWS))
    rows = list(read_requests(path))
    assert len(rows) == journal.due_s.size
    texts = [each.window.text for each in measurement.samples]
    assert len(texts) > 6
    for each in measurement.samples:
        assert texts.count(each.window.text) == 1
        assert percentiles(rows, each) == stated(each)
        # What was sent in a window is said by its phase.
        due = [row for row in rows if row.window == each.window.whole.text and row.scheduled_s >= each.start_s]
        assert sum(row.scheduled_s < each.end_s for row in due) == each.requests
        assert {row.phase for row in due} == {each.window.phase.value}
    assert {row.status for row in rows} <= {"ok", "cancelled"}
    assert any(row.mid_life for row in rows)
    assert any(row.window is None for row in rows)  # the lead of a hold
    # Every line is plain JSON, which other programs read.
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert json.loads(lines[0])["scheduled_s"] == rows[0].scheduled_s


@pytest.mark.parametrize(
    ("workload", "seen"),
    [
        (replace(FAST.workload, adapters={"sql": 0.5, "base": 0.5}), lambda rows: {row.adapter for row in rows}),
        (FAST.workload, lambda rows: {row.replica for row in rows}),
    ],
    ids=["adapters", "replicas"],
)
def test_rows_say_whose_request_it_was(workload: Workload, seen: Callable[[list[RequestRow]], set[object]]) -> None:
    runner = (
        SimRunner(FAST.engine, 1, adapters=draw_of(workload.adapters, 1))
        if workload.adapters
        else FleetSimRunner([FAST.engine] * 2, "round_robin", 1)
    )
    found = sample(runner, replace(REQUIREMENT, workload=workload), SETTINGS, rate_rps=10, duration_s=20)
    rows = list(request_rows(runner.journal(), (found,), tuple(workload.adapters), MOST_ROWS))
    assert percentiles(rows, found) == stated(found)
    assert seen(rows) == ({"sql", "base"} if workload.adapters else {0, 1})
    assert len(list(request_rows(runner.journal(), (found,), tuple(workload.adapters), 7))) == 7


def test_what_is_no_file_of_requests_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    row = RequestRow(scheduled_s=1.0, prompt_tokens=3, asked_output_tokens=4, status="ok")
    write_requests(path, [row, row])
    assert list(read_requests(path)) == [row, row]
    packed = path.read_bytes()
    for content, why in (
        (packed[:-9], "the gzip file is damaged or cut off"),
        (b'{"scheduled_s": 1}\n', "x.jsonl.gz:1: is no request: Object missing required field"),
        (gzip.compress(b"{}\n[]\n"), ":1: is no request"),
        (b'{"scheduled_s": 1e300, "prompt_tokens": 3, "asked_output_tokens": 4, "status": "ok"}', "is no request"),
        (b"\xff\xfe\n", ":1: is no request"),
        (gzip.compress(bytes(64 << 20)), "a line is longer than 1 MiB"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserFileError, match=why) as caught:
            list(read_requests(path))
        assert "\n" not in str(caught.value)
