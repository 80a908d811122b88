"""What the readers find in files that the tools themselves wrote (``recorded/README.md``)."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_gpucap.other_tools.point import Point, Tool, latency_of
from pytest_gpucap.other_tools.reading import read_points
from pytest_gpucap.requirement import ApiKind, ArrivalKind
from tests.other_tools.recordings import RECORDED


def points(name: str) -> list[Point]:
    files, skipped = read_points(RECORDED / name)
    assert skipped == []
    return [point for file in files for point in file.points]


@pytest.mark.parametrize(
    ("name", "tool", "version", "loads"),
    [
        ("vllm-0.32.0", Tool.VLLM, None, ["8 in flight", "20 req/s"]),
        ("vllm-sweep-0.32.0", Tool.VLLM, None, ["10 req/s", "10 req/s", "20 req/s", "20 req/s"]),
        ("vllm-sweep-0.32.0/summary.csv", Tool.VLLM, None, ["10 req/s", "10 req/s", "20 req/s", "20 req/s"]),
        ("aiperf-0.13.0", Tool.AIPERF, "0.13.0", ["8 in flight", "20 req/s"]),
        ("guidellm-0.8.1", Tool.GUIDELLM, "0.8.1", ["8 in flight", "10 req/s", "20 req/s"]),
        ("inference-perf-0.7.0", Tool.INFERENCE_PERF, None, ["8 in flight", "10 req/s", "20 req/s"]),
        ("sglang-0.5.23", Tool.SGLANG, None, ["20 req/s", "8 in flight"]),
    ],
)
def test_every_point_of_a_tool(name: str, tool: Tool, version: str | None, loads: list[str]) -> None:
    found = points(name)
    assert [point.load.text for point in found] == loads
    for point in found:
        assert (point.tool, point.version, point.failed, point.spoilt) == (tool, version, 0, "")
        assert point.model == (None if tool is Tool.SGLANG else "simulated-fast")
        # The figures fit together, whatever unit and name each tool has for them.
        assert point.completed_rps == pytest.approx(point.completed / point.duration_s, rel=0.03)
        assert point.output_tokens_per_s >= point.completed_rps * 15
        ttft, tpot, e2e = (point.latencies[metric] for metric in ("ttft", "tpot", "e2e"))
        assert ttft.p50_s + tpot.p50_s < e2e.p50_s
        decoded = point.output_tokens_per_s / point.completed_rps - 1
        assert ttft.mean_s + tpot.mean_s * decoded == pytest.approx(e2e.mean_s, rel=0.02)
        assert point.in_flight_mean == pytest.approx(point.completed_rps * e2e.mean_s, rel=0.12)
        if point.load.rate_rps is None:
            assert point.in_flight_mean < 8.01
        assert ("itl" in point.latencies) == (tool is not Tool.GUIDELLM)


def test_a_result_of_vllm_has_what_its_file_says() -> None:
    point = points("vllm-0.32.0/open.json")[0]
    document = json.loads((RECORDED / "vllm-0.32.0" / "open.json").read_bytes())
    assert (point.completed, point.endpoint) == (40, ApiKind.COMPLETIONS)
    assert point.started == datetime(2026, 11, 30, 3, 23, 22, tzinfo=UTC)
    assert point.latencies["ttft"].p99_s == pytest.approx(document["p99_ttft_ms"] / 1e3)
    assert math.isnan(point.latencies["ttft"].p95_s)  # vLLM writes the percentiles that it is asked for
    # The file has no percentile of E2E, and the latency of every request.
    assert "p99_e2el_ms" not in document
    assert point.latencies["e2e"] == latency_of(document["latencies"])
    assert (point.lengths.input_tokens, point.lengths.output_tokens) == (562 / 40, 16)
    assert point.lengths.observed


def test_what_the_user_had_vllm_write_down_is_a_label_and_what_a_sweep_varied_a_parameter(tmp_path: Path) -> None:
    closed = points("vllm-0.32.0/closed.json")[0]
    assert (closed.labels, closed.parameters) == ({"gpu": "none", "tag": "a"}, {})
    run = json.loads((RECORDED / "vllm-0.32.0" / "closed.json").read_bytes())
    (tmp_path / "summary.json").write_text(json.dumps([{**run, "run_number": 0, "max_num_seqs": 64}]))
    swept = read_points(tmp_path)[0][0].points[0]
    assert (swept.labels, swept.parameters) == ({}, {"gpu": "none", "tag": "a", "max_num_seqs": "64"})


def test_the_folder_and_the_csv_of_a_sweep_hold_the_same_points() -> None:
    sweep = points("vllm-sweep-0.32.0")
    for one, other in zip(sweep, points("vllm-sweep-0.32.0/summary.csv"), strict=True):
        assert one.started == other.started
        assert one.completed_rps == pytest.approx(other.completed_rps)
        for metric, latency in one.latencies.items():
            assert latency.p99_s == pytest.approx(other.latencies[metric].p99_s)


def test_the_runs_of_a_sweep_that_is_not_over_are_read_one_by_one(tmp_path: Path) -> None:
    folder = "BENCH--request_rate=10-num_prompts=20"
    (tmp_path / folder).mkdir()
    run = (RECORDED / "vllm-sweep-0.32.0" / folder / "run=0.json").read_bytes()
    for name in ("run=0.json", "warmup.json", "run=1.failure.json"):
        (tmp_path / folder / name).write_bytes(run)
    files, skipped = read_points(tmp_path)
    assert [file.path.name for file in files] == ["run=0.json"]
    assert skipped == []


def test_results_that_vllm_appended_to_one_file(tmp_path: Path) -> None:
    result = (RECORDED / "vllm-0.32.0" / "open.json").read_text()
    path = tmp_path / "all.json"
    path.write_text(f"{result}\n{result}\n")
    assert len(read_points(path)[0][0].points) == 2


@pytest.mark.parametrize(
    ("name", "arrivals"),
    [
        ("vllm-0.32.0/open.json", ArrivalKind.POISSON),
        ("aiperf-0.13.0/open", ArrivalKind.POISSON),
        ("guidellm-0.8.1/open.json", ArrivalKind.CONSTANT),
        ("inference-perf-0.7.0/open", ArrivalKind.CONSTANT),
        ("sglang-0.5.23", ArrivalKind.POISSON),
    ],
)
def test_when_requests_were_due(name: str, arrivals: ArrivalKind) -> None:
    assert {point.load.arrivals for point in points(name) if point.load.rate_rps} == {arrivals}


@pytest.mark.parametrize("name", ["aiperf-0.13.0", "guidellm-0.8.1", "sglang-0.5.23"])
def test_lengths_that_were_asked_for_stand_before_those_that_were_seen(name: str) -> None:
    for point in points(name):
        lengths = point.lengths
        assert (lengths.input_tokens, lengths.output_tokens, lengths.observed) == (64, 16, False)


def test_bursts_of_vllm(tmp_path: Path) -> None:
    """Its burstiness is the shape of a gamma distribution, whose gaps vary by 1/sqrt(shape)."""
    document = json.loads((RECORDED / "vllm-0.32.0" / "open.json").read_bytes())
    (tmp_path / "a.json").write_text(json.dumps({**document, "burstiness": 0.25}))
    load = read_points(tmp_path / "a.json")[0][0].points[0].load
    assert (load.arrivals, load.burstiness) == (ArrivalKind.GAMMA, 2.0)


def test_percentiles_of_values() -> None:
    found = latency_of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found is not None
    assert (found.count, found.mean_s, found.p50_s) == (5, 3.0, 3.0)
    assert [found.p90_s, found.p99_s] == pytest.approx([4.6, 4.96])  # as numpy.percentile has them
    assert latency_of([]) is None


def test_a_run_of_aiperf_that_is_not_complete_says_so(tmp_path: Path) -> None:
    path = RECORDED / "aiperf-0.13.0" / "open" / "profile_export_aiperf.json"
    document = json.loads(path.read_bytes()) | {"is_complete": False, "incomplete_reason": "records stalled"}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert read_points(tmp_path / "a.json")[0][0].points[0].spoilt == "the run is not complete: records stalled"
