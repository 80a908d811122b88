"""Files that are no results, or damaged: one line that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.other_tools import reading
from pytest_gpucap.other_tools.reading import read_points
from pytest_gpucap.user_files import UserFileError
from tests.fuzz.inputs import trimmed
from tests.other_tools.recordings import AIPERF, GUIDELLM, RECORDED, SGLANG, STAGE, VLLM


def refused(path: Path) -> str:
    with pytest.raises(UserFileError) as caught:
        read_points(path)
    said = str(caught.value)
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds nothing"),
        ("[]", "holds nothing"),
        ("7", "the document must be an object, not 7"),
        ("{} 7", "document 2 must be an object, not 7"),
        ("[{}, 7]", "[1] must be an object, not 7"),
        ('{"a": ', "not JSON (Expecting value: line 1 column 7 (char 6))"),
        ("[" * 100_000, "not JSON that can be read: too deeply nested"),
        ("9" * 5_000, "not JSON (Exceeds the limit (4300 digits) for integer string conversion"),
        ('{"a": 1}', f"is no result of {reading.TOOLS}"),
        ('[{"schema": "pytest-gpucap"}]', f"[0] is no result of {reading.TOOLS}"),
    ],
    ids=["empty", "no entry", "number", "second", "entry", "cut", "deep", "digits", "foreign", "ours"],
)
def test_what_is_no_result(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert refused(path).startswith(said)


Change = Callable[[Any], object]


def _set(*way: str | int) -> Callable[[object], Change]:
    def to(value: object) -> Change:
        def change(document: Any) -> None:
            for key in way[:-1]:
                document = document[key]
            document[way[-1]] = value

        return change

    return to


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (VLLM, _set("duration")("x"), "duration must be a number, not 'x'"),
        (VLLM, _set("duration")(None), "duration is missing"),
        (VLLM, _set("completed")(1.5), "completed must be a whole number, not 1.5"),
        (VLLM, _set("request_throughput")(-1), "request_throughput must lie between 0 and 1e+20, not -1"),
        (VLLM, _set("request_throughput")(10**400), "request_throughput must lie between 0 and 1e+20, not 1000"),
        (VLLM, _set("date")("soon"), "date must be a time, not 'soon'"),
        (VLLM, _set("request_rate")(0), "request_rate must be above 0"),
        (VLLM, _set("burstiness")(0), "burstiness must be above 0"),
        (VLLM, _set("model_id")([]), "model_id must be a text, not []"),
        (VLLM, lambda each: each.pop("total_output_tokens"), "total_output_tokens is missing: only benchmarks of gen"),
        (AIPERF, _set("input_config")([]), "input_config must be an object, not []"),
        (AIPERF, _set("input_config", "phases")([]), "input_config.phases must have one profiling phase, not 0"),
        (
            AIPERF,
            _set("input_config", "phases", 0, "type")("fixed_schedule"),
            "input_config.phases[0].type must be con",
        ),
        (AIPERF, _set("request_latency", "unit")("fortnights"), "request_latency.unit must be one of ms, sec"),
        (AIPERF, _set("request_throughput")(None), "request_throughput.avg is missing"),
        (GUIDELLM, _set("benchmarks")([]), "benchmarks is empty: no load was measured"),
        (GUIDELLM, _set("benchmarks", 1)(7), "benchmarks[1] must be an object, not 7"),
        (GUIDELLM, _set("benchmarks", 0, "start_time")(1e19), "benchmarks[0].start_time must be seconds since 1970"),
        (
            GUIDELLM,
            _set("benchmarks", 0, "config", "strategy", "type_")("trace"),
            "benchmarks[0].config.strategy.type_",
        ),
        (STAGE, _set("load_summary", "requested_rate")(None), "load_summary.requested_rate is missing, so this is no"),
        (STAGE, _set("successes", "latency")(1), "successes.latency must be an object, not 1"),
    ],
)
def test_what_is_damaged(tmp_path: Path, name: str, change: Change, said: str) -> None:
    document = json.loads((RECORDED / name).read_bytes())
    change(document)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert refused(path).startswith(said)


def _ways(value: Any, *way: str | int) -> Iterator[tuple[str | int, ...]]:
    """To every value inside, once for the entries of a list."""
    if way:
        yield way
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value[:1])):
        yield from _ways(each, *way, key) if isinstance(each, dict | list) else [(*way, key)]


@pytest.mark.parametrize("value", [[], {}, [1], {"a": 1}])
@pytest.mark.parametrize("name", [VLLM, SGLANG, AIPERF, GUIDELLM, STAGE])
def test_any_value_may_be_a_list_or_an_object(tmp_path: Path, name: str, value: object) -> None:
    document = trimmed(json.JSONDecoder().raw_decode((RECORDED / name).read_text(encoding="utf-8"))[0])
    refusals = []
    for number, way in enumerate(_ways(document)):
        changed = deepcopy(document)
        _set(*way)(value)(changed)
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(changed))
        try:
            read_points(path)
        except UserFileError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in said for said in refusals)


def test_all_stages_together_are_no_point() -> None:
    path = RECORDED / "inference-perf-0.7.0" / "open" / "summary_lifecycle_metrics.json"
    assert "import the stage_N_lifecycle_metrics.json files, or their folder" in refused(path)


def test_single_requests_of_aiperf_are_no_point() -> None:
    said = refused(RECORDED / "aiperf-0.13.0" / "open" / "profile_export.jsonl")
    assert said.endswith("import the profile_export_aiperf.json beside it")


def test_figures_that_are_not_finite_are_unknown(tmp_path: Path) -> None:
    """vLLM writes NaN where no request was answered, which JSON does not have."""
    text = (RECORDED / VLLM).read_text()
    path = tmp_path / "a.json"
    path.write_text(text.replace('"mean_ttft_ms": ', '"mean_ttft_ms": NaN, "was": '))
    latency = read_points(path)[0][0].points[0].latencies["ttft"]
    assert latency.mean_s != latency.mean_s
    assert latency.p99_s > 0


def test_a_folder_without_results_says_what_is_in_it(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"holds no result of {reading.TOOLS}"
    (tmp_path / "a.json").write_text("{}")
    assert refused(tmp_path).endswith(f"; {tmp_path}/a.json: is no result of {reading.TOOLS}")


def test_other_files_of_a_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text((RECORDED / VLLM).read_text())
    (tmp_path / "b.json").write_text("{}")
    files, skipped = read_points(tmp_path)
    assert [file.path.name for file in files] == ["a.json"]
    assert skipped == [f"{tmp_path}/b.json: is no result of {reading.TOOLS}"]


def test_a_folder_of_anything_is_not_searched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_FILES", 3)
    for number in range(5):
        (tmp_path / f"{number}.json").write_text("{}")
    assert refused(tmp_path) == "holds more than 3 files or folders: name a folder of one tool's results"


def test_a_file_of_brackets_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b"{}," * 6_000_000 + b"{}]")
    assert "of memory, and at most 1024 are allowed" in refused(path)


def test_a_cell_of_csv_that_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    path.write_text("model_id,request_throughput\n" + "x" * 2_000_000 + ",1\n")
    assert refused(path).startswith("not CSV: field larger than field limit")
