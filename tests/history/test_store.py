"""Saved runs: what is kept, what is refused, and what nobody else's repository should hold."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_gpucap
from pytest_gpucap.history import store
from pytest_gpucap.history.store import scrubbed
from pytest_gpucap.results import result_file
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.result import Result, ResultKind
from pytest_gpucap.results.result_file import ResultFileError
from tests.history.made import STARTED, named, result, session

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"
VERSION_1 = '"schema": "pytest-gpucap", "schema_version": 1, "started": "2026-11-20T03:00:00Z"'
SCHEMA = json.loads((Path(pytest_gpucap.__file__).parent / "results" / "result.schema.json").read_text())


def saved(folder: Path, name: str, *results: Result, simulated: bool = False, **settings: Any) -> Path:
    path = store.path_of(folder, name)
    store.save_run(path, session(*results, **settings), simulated=simulated)
    return path


def test_a_run_is_read_as_it_was_saved_and_keeps_the_schema(tmp_path: Path) -> None:
    path = saved(tmp_path / "new", "main", result(25.0))
    run = store.read_run(path)
    assert (run.name, run.started, run.simulated) == ("main", STARTED, False)
    assert run.results[0].sustainable_rate == result(25.0).sustainable_rate
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert [each.name for each in path.parent.iterdir()] == ["main.json"]


def test_runs_of_a_folder_come_in_the_order_of_their_time(tmp_path: Path) -> None:
    for name, day in (("b", 2), ("a", 3), ("c", 1)):
        saved(tmp_path, name, result(), started=STARTED + timedelta(days=day))
    (tmp_path / ".a.json.123.tmp").write_text("{")  # somebody is writing
    (tmp_path / "notes.txt").write_text("not a run")
    assert [run.name for run in store.read_runs(tmp_path)] == ["c", "b", "a"]
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        store.read_runs(tmp_path / "gone")


def test_two_saved_runs_differ_where_they_measured_something_else_and_nowhere_else(tmp_path: Path) -> None:
    two = [result(25.0, requirement=named("a"), test="t.py::a"), result(30.0, requirement=named("b"), test="t.py::b")]
    forms = [store.saved_form(session(*order), simulated=False) for order in (two, two[::-1])]
    assert forms[0].results == forms[1].results
    path = saved(tmp_path, "main", *two)
    # A line for every value: a change of one figure is a change of one line.
    assert sum('"value": 25.0' in line for line in path.read_text().splitlines()) == 1


def test_nothing_of_the_user_or_the_machine_is_saved(tmp_path: Path) -> None:
    environment: dict[str, Any] = {
        "command": "/home/ann/venv/bin/python3 -m vllm.entrypoints.openai.api_server --model /data/models/my-model "
        "--hf-token hf_abcdefghijklmnopqrstuvwxyz --max-num-batched-tokens 8192 --host 127.0.0.1",
        "model": "/data/models/my-model",
        "url": "http://ann:secret@gpu-17.corp.example:8000/v1",
        "server_args": {"hf_token": "hf_abcdefghijklmnopqrstuvwxyz", "max_num_batched_tokens": 8192},
    }
    arguments = ["/home/ann/project/tests", "--api-key", "hunter2", "--gpucap-dir=~/results/x"]
    path = saved(tmp_path, "main", result(**environment), arguments=arguments)
    text = path.read_text()
    for private in ("ann", "/home", "/data", "secret", "hf_abc", "gpu-17", "hunter2", ".log"):
        assert private not in text, private
    kept = json.loads(text)
    assert kept["results"][0]["environment"]["command"] == (
        "python3 -m vllm.entrypoints.openai.api_server --model my-model --hf-token *** "
        "--max-num-batched-tokens 8192 --host 127.0.0.1"
    )
    assert kept["results"][0]["environment"]["url"] == "http://HOST/v1"
    assert kept["results"][0]["environment"]["server_args"] == {"hf_token": "***", "max_num_batched_tokens": 8192}
    assert kept["arguments"] == ["tests", "--api-key", "***", "--gpucap-dir=x"]
    assert kept["results"][0]["test"] == "tests/test_chat.py::test_chat"


@pytest.mark.parametrize(
    "text",
    [
        "25.1 req/s per replica, bound by p95 E2E",
        "http://127.0.0.1:8000/v1",
        "hold 1 (1/3)",
        "Qwen/Qwen2-1.5B",
        "tests/test_chat.py::test_chat[a/b]",
        "benchmarks/h200",
        "/metrics gives no Prometheus metrics",
        "NVIDIA H100 80GB HBM3, 1 of 2/4 slices",
    ],
)
def test_what_is_no_path_and_no_secret_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_what_can_say_nothing_is_left_out(tmp_path: Path) -> None:
    invalid = result(None, problems=("GPU 0 is shared",), test="t.py::b")
    path = saved(tmp_path, "main", result(), invalid, result(None, kind=ResultKind.MEASURE, test="t.py::c"))
    assert [each.test for each in store.read_run(path).results] == ["tests/test_chat.py::test_chat"]
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="there is no result to save"):
        saved(tmp_path, "main", invalid)
    assert path.read_bytes() == before


def test_simulated_and_measured_results_never_meet(tmp_path: Path) -> None:
    measured, simulated = result(), result(simulated=True, test="t.py::sim")
    path = saved(tmp_path, "main", measured, simulated)
    assert [each.simulated for each in store.read_run(path).results] == [False]
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="holds measured results and is not overwritten by simulated ones"):
        saved(tmp_path, "main", simulated, simulated=True)
    assert path.read_bytes() == before
    other = saved(tmp_path, "sim", simulated, simulated=True)
    with pytest.raises(ResultFileError, match="holds simulated results and is not overwritten by measured ones"):
        saved(tmp_path, "sim", measured)
    saved(tmp_path, "sim", simulated, simulated=True)
    assert store.read_run(other).simulated


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"version": "pytest-benchmark"}', "not a result of pytest-gpucap"),
        ('{"schema": "pytest-gpucap", "schema_version": 99, "results": []}', "newer than this plugin's"),
        ('{"schema": "pytest-gpucap", "schema_version": 0, "results": []}', "never written by any"),
        ('{"schema": "pytest-gpucap", "schema_version": true, "results": []}', "schema version True does not exist"),
        (f"{{{VERSION_1}}}", "results (is missing|must be array)"),
        (f'{{{VERSION_1}, "results": [3]}}', r"results\[0\] must be object"),
        (f'{{{VERSION_1}, "results": [{{"kind": "check"}}]}}', r"results\[0\].test is missing"),
        ('{"schema": "pytest-gpucap", "schema_version": 1, "results": []}', "started is missing"),
    ],
)
def test_a_file_that_is_not_ours_to_read_is_refused_and_never_overwritten(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "main.json"
    path.write_text(content)
    with pytest.raises(ResultFileError, match=f"main.json: .*{message}"):
        store.read_run(path)
    with pytest.raises(ResultFileError, match="it is not overwritten"):
        saved(tmp_path, "main", result())
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["", "a/b", "../main", ".hidden", "latest", "main.json", "a b"])
def test_names_that_cannot_be_meant(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a name|means the newest"):
        store.check_name(name)


@pytest.mark.parametrize("name", ["main", "nightly-2026-11-22", "v0.26.0+cu13", "A_b"])
def test_names_that_can(name: str) -> None:
    assert store.check_name(name) == name


def test_files_of_early_builds_are_read_in_todays_form() -> None:
    """Two builds of version 1 described their surroundings differently; one folder may hold both."""
    early, later = store.read_run(H200 / "loose-slo.json"), store.read_run(H200 / "suite.json")
    for run in (early, later):
        for each in run.results:
            assert each.environment.driver == "580.159.04"
            assert each.environment.cuda == "13.0"
            assert each.environment.server_args == {
                "max_model_len": "4096",
                "gpu_memory_utilization": "0.8",
                "load_format": "dummy",
            }
            assert each.comparison is None
    assert (len(early.results), len(later.results)) == (2, 5)


def test_results_of_real_runs_are_saved_without_their_telemetry_and_fit_the_schema(tmp_path: Path) -> None:
    content = result_file.read(H200 / "suite.json")
    form = store.save_run(tmp_path / "h200.json", content, simulated=False)
    jsonschema.validate(to_builtins(form), SCHEMA)
    assert all(each.telemetry is None and each.samples for each in form.results)
    assert "/root/" not in (tmp_path / "h200.json").read_text()
