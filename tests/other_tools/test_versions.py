"""Files of other versions of the tools than those that were recorded, and what a file leaves out or writes as 0."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.other_tools.point import Point, Tool
from pytest_gpucap.other_tools.reading import read_points
from pytest_gpucap.requirement import ApiKind, ArrivalKind
from pytest_gpucap.user_files import UserFileError
from tests.other_tools.recordings import AIPERF, GUIDELLM, RECORDED, SGLANG, STAGE, VLLM


def document(name: str) -> Any:
    return json.JSONDecoder().raw_decode((RECORDED / name).read_text(encoding="utf-8"))[0]


@pytest.fixture
def point(tmp_path: Path) -> Callable[[Any], Point]:
    """Reads a document's first point."""

    def read(content: Any) -> Point:
        path = tmp_path / "result.json"
        path.write_text(json.dumps(content))
        return read_points(path)[0][0].points[0]

    return read


def same(one: Point, other: Point, *but: str) -> None:
    """The points are equal, but for the attributes that are named."""
    for name in Point.__slots__:
        if name not in but:
            assert repr(getattr(one, name)) == repr(getattr(other, name)), name


Read = Callable[[Any], Point]


def test_the_script_that_vllm_had_before_its_command(point: Read) -> None:
    now = document(VLLM)
    then = {name: value for name, value in now.items() if name not in {"endpoint_type", "label", "failed"}}
    script = point({**then, "backend": "openai-chat", "request_goodput:": None, "best_of": None})
    assert script.endpoint is ApiKind.CHAT
    same(script, point({**now, "backend": "openai-chat"}), "endpoint")
    assert point({**then, "backend": "vllm", "request_goodput:": 3.5}).labels == {}


def test_the_first_versions_of_the_command_of_vllm_name_the_type_of_the_endpoint_alone(point: Read) -> None:
    now = document(VLLM)
    del now["backend"]
    assert point({**now, "endpoint_type": "openai-chat"}).endpoint is ApiKind.CHAT
    assert point({**now, "endpoint_type": "openai-comp"}).endpoint is ApiKind.COMPLETIONS


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"failed": 3}, 3),
        ({"failed": None, "num_prompts": 45}, 5),
        ({"failed": None, "num_prompts": 45, "errors": ["", "refused", "late"]}, 2),
        ({"failed": None, "num_prompts": None}, 0),
    ],
)
def test_requests_of_vllm_that_failed(point: Read, changes: dict[str, Any], failed: int) -> None:
    assert point({**document(VLLM), **changes}).failed == failed


def test_requests_of_sglang_that_failed(point: Read) -> None:
    assert point({**document(SGLANG), "errors": ["", "x", ""]}).failed == 1


def _before_aiperf_wrote_phases(now: dict[str, Any], loadgen: dict[str, Any]) -> dict[str, Any]:
    config = {
        "endpoint": {"model_names": ["simulated-fast"], "type": "chat", "streaming": True, "url": "127.0.0.1:8000"},
        "input": {"prompt": {"input_tokens": {"mean": 64}}},
        "loadgen": loadgen,
        "cli_command": "aiperf profile -m simulated-fast",
    }
    left_out = {"run_info", "schema_version", "is_complete", "benchmark_id"}
    return {**{name: value for name, value in now.items() if name not in left_out}, "input_config": config}


@pytest.mark.parametrize(
    ("loadgen", "text", "arrivals"),
    [
        ({"concurrency": 8, "request_rate_mode": "concurrency_burst"}, "8 in flight", ArrivalKind.POISSON),
        ({"request_rate": 20.0}, "20 req/s", ArrivalKind.POISSON),
        ({"request_rate": 20, "request_rate_mode": "constant"}, "20 req/s", ArrivalKind.CONSTANT),
        (
            {"request_rate": 20, "concurrency": 5, "request_rate_mode": "gamma", "arrival_smoothness": 4},
            "20 req/s and at most 5 in flight",
            ArrivalKind.GAMMA,
        ),
    ],
)
def test_aiperf_before_it_wrote_phases(point: Read, loadgen: Any, text: str, arrivals: ArrivalKind) -> None:
    now = document(AIPERF)
    found = point(_before_aiperf_wrote_phases(now, loadgen))
    assert (found.tool, found.load.text, found.load.arrivals) == (Tool.AIPERF, text, arrivals)
    assert found.load.burstiness == (0.5 if arrivals is ArrivalKind.GAMMA else 1.0)
    assert (found.model, found.url, found.command) == (
        "simulated-fast",
        "127.0.0.1:8000",
        "aiperf profile -m simulated-fast",
    )
    same(found, point(now), "load", "lengths", "url", "command")
    assert found.lengths.observed


@pytest.mark.parametrize(
    ("loadgen", "said"),
    [
        ({"request_count": 9}, "loadgen.concurrency is missing, and so is request_rate: the load is not known"),
        ({"request_rate": 2, "request_rate_mode": "tidal"}, "loadgen.request_rate_mode must be poisson, constant or"),
    ],
)
def test_a_load_of_aiperf_that_is_not_known(point: Read, loadgen: Any, said: str) -> None:
    with pytest.raises(UserFileError, match=said):
        point(_before_aiperf_wrote_phases(document(AIPERF), loadgen))


def test_requests_of_aiperf_that_failed_are_summed_where_nobody_counted_them(point: Read) -> None:
    told = {"error_request_count": None, "error_summary": [{"count": 81}, {"error_details": {}, "count": 3}]}
    assert point({**document(AIPERF), **told}).failed == 84
    assert point({**document(AIPERF), **told, "error_request_count": {"avg": 80.0}}).failed == 80


def test_an_export_of_aiperf_where_every_request_failed(point: Read) -> None:
    now = {
        name: value
        for name, value in document(AIPERF).items()
        if not isinstance(value, dict) or name in {"input_config", "run_info"}
    }
    now["input_config"]["datasets"] = [{"type": "file"}]
    found = point({**now, "error_request_count": {"unit": "requests", "avg": 9.0}})
    assert (found.completed, found.failed, found.completed_rps, found.latencies) == (0, 9, 0.0, {})


def test_a_report_of_guidellm_of_version_1(point: Read) -> None:
    now = document(GUIDELLM)
    then = deepcopy(now)
    del then["config"]
    then["metadata"] = {"version": 1, "guidellm_version": "0.5.0"}
    then["args"] = {"target": "http://127.0.0.1:8000", "model": "simulated-fast", "data": ["prompt_tokens=64"]}
    for benchmark in then["benchmarks"]:
        del benchmark["config"]["backend"]
        strategy = benchmark["config"]["strategy"]
        strategy["kind"] = strategy.pop("type_")
    same(point(then), point(now), "version", "lengths", "endpoint")
    assert point(then).version == "0.5.0"


def test_a_report_of_guidellm_before_it_had_a_version(point: Read) -> None:
    now = document(GUIDELLM)
    benchmarks = deepcopy(now["benchmarks"])
    for benchmark in benchmarks:
        benchmark["args"] = {"strategy": benchmark.pop("config")["strategy"]}
        benchmark["worker"] = {"backend_target": "http://127.0.0.1:8000", "backend_model": "simulated-fast"}
        benchmark["run_stats"] = {"requests_made": benchmark["metrics"].pop("request_totals")}
        benchmark["start_time"], benchmark["end_time"] = 1_700_000_000.0, 1_700_000_003.5
        del benchmark["duration"]
    found = point({"benchmarks": benchmarks})
    assert (found.duration_s, found.version) == (3.5, None)
    same(found, point(now), "version", "lengths", "endpoint", "duration_s", "started")


def test_a_stage_of_the_first_versions_of_inference_perf(point: Read) -> None:
    now = document(STAGE)
    then = deepcopy(now)
    del then["benchmark_time_seconds"]
    for name in ("prompt", "output"):
        then["successes"].pop(f"{name}_len", None)
        then["successes"][f"{name}_len"] = then["successes"].pop(f"{name}_tokens")
    same(point(then), point(now), "duration_s")
    assert point(then).duration_s == pytest.approx(point(now).duration_s)
    del then["successes"]["prompt_len"]
    with pytest.raises(UserFileError, match=r"successes\.prompt_tokens is missing"):
        point(then)


def _all_zero(part: dict[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _all_zero(value)
        elif isinstance(value, int | float):
            part[name] = 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (VLLM, lambda each: each.update({name: 0.0 for name in each if "_ttft_" in name}, ttfts=[])),
        (SGLANG, lambda each: each.update({name: 0.0 for name in each if "_ttft_" in name})),
        (AIPERF, lambda each: _all_zero(each["time_to_first_token"])),
        (
            GUIDELLM,
            lambda each: _all_zero(
                {str(i): one["metrics"]["time_to_first_token_ms"] for i, one in enumerate(each["benchmarks"])}
            ),
        ),
        (
            GUIDELLM,
            lambda each: [
                one["metrics"]["time_to_first_token_ms"]["successful"].update(count=0) for one in each["benchmarks"]
            ],
        ),
        (STAGE, lambda each: _all_zero(each["successes"]["latency"]["time_to_first_token"])),
    ],
    ids=["vllm", "sglang", "aiperf", "guidellm", "guidellm, a count of none", "inference-perf"],
)
def test_a_latency_of_0_was_not_measured(point: Read, name: str, change: Callable[[Any], object]) -> None:
    """Tools write 0 where answers were not streamed. A limit must not be kept by it."""
    content = document(name)
    assert "ttft" in point(content).latencies
    change(content)
    found = point(content)
    assert "ttft" not in found.latencies
    assert found.latencies["e2e"].mean_s > 0


@pytest.mark.parametrize("name", ["result.json.gz", "result.json", "runs.jsonl.gz", "summary.csv.gz"])
def test_a_file_may_be_packed(tmp_path: Path, name: str) -> None:
    source = RECORDED / ("vllm-sweep-0.32.0/summary.csv" if "csv" in name else VLLM)
    path = tmp_path / name
    path.write_bytes(gzip.compress(source.read_bytes()))
    plain, packed = read_points(source)[0][0], read_points(path)[0][0]
    assert packed.sha256 == plain.sha256
    for one, other in zip(packed.points, plain.points, strict=True):
        same(one, other)


def test_a_cell_may_hold_what_ends_lines(tmp_path: Path) -> None:
    source = RECORDED / "vllm-sweep-0.32.0/summary.csv"
    header, *rows = source.read_text().splitlines()
    path = tmp_path / "summary.csv"
    path.write_text("\n".join([f"{header},note", *(f'{row},"a\u2028b\x0cc\n\r\nd"' for row in rows)]) + "\n")
    found, known = read_points(path)[0][0].points, read_points(source)[0][0].points
    for one, other in zip(found, known, strict=True):
        same(one, other, "parameters")
        assert one.parameters["note"].startswith("a\u2028b")


def test_packed_files_of_a_folder_are_read_and_those_beside_results_are_not(tmp_path: Path) -> None:
    content = gzip.compress((RECORDED / VLLM).read_bytes())
    for name in ("a.json.gz", "inputs.json.gz", "profile_export.jsonl.gz", "profile_export_raw.jsonl"):
        (tmp_path / name).write_bytes(content)
    files, skipped = read_points(tmp_path)
    assert ([file.path.name for file in files], skipped) == (["a.json.gz"], [])


def test_a_packed_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress((RECORDED / VLLM).read_bytes())[:-20])
    with pytest.raises(UserFileError, match="the gzip file is damaged or cut off"):
        read_points(path)
