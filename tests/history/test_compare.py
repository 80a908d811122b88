"""Results against baselines: which may be compared, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

import pytest_gpucap
from pytest_gpucap.history import store
from pytest_gpucap.history.baseline import MEDIAN_RUNS, Baseline, open_baseline
from pytest_gpucap.history.compare import against, compare, precise
from pytest_gpucap.history.store import Run, read_run
from pytest_gpucap.requirement import ArrivalKind, Arrivals, LatencyLimit, Length, Slo
from pytest_gpucap.results import result_file
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.record import Record
from pytest_gpucap.results.result_file import ResultFileError
from tests.history.made_records import ENVIRONMENT, REQUIREMENT, STARTED, document, named, record, windows

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"
SCHEMA = json.loads((Path(pytest_gpucap.__file__).parent / "results" / "result.schema.json").read_text())
ALLOWED = 0.05


def run_of(*records: Record, name: str = "main", days: int = 0) -> Run:
    return Run(Path(f"{name}.json"), STARTED + timedelta(days=days), "0.1.0", records[0]["simulated"], records)


def baseline(*records: Record) -> Baseline:
    return Baseline("main", (run_of(*records),))


def compared(base: Record, head: Record, again: Callable[[str], Record] | None = None) -> dict[str, Any]:
    return compare(head, baseline(base), ALLOWED, again)


def test_the_comparison_has_the_documented_form() -> None:
    head = record(24.9, server="vLLM 0.27.0", driver="590.1", seed=5)
    head["comparison"] = compared(record(25.0), head)
    jsonschema.validate(to_builtins(result_file.from_document(document(head))), SCHEMA)
    found = head["comparison"]
    assert found["decision"] == "SAME"
    assert found["baseline"] == {
        "name": "main", "path": "main.json", "started": "2026-11-20T03:00:00+00:00", "plugin_version": "0.1.0",
    }  # fmt: skip
    assert found["ratio"]["value"] == pytest.approx(0.996)
    assert found["ratio"]["low"] < 0.96
    assert found["ratio"]["high"] > 1.03
    assert (found["base_rate"]["value"], found["head_rate"]["value"]) == (25.0, 24.9)
    assert found["changed"] == ["server: vLLM 0.26.0 -> vLLM 0.27.0", "driver: 580.1 -> 590.1", "seed: 0 -> 5"]
    assert (found["differs"], found["confirmed"], found["more_gpu_s"]) == ([], None, None)


def never(why: str) -> Record:
    raise AssertionError(f"nothing is to be measured again: {why}")


@pytest.mark.parametrize(
    ("head", "differs"),
    [
        ({"gpu_class": "h100"}, "GPU class: h200 -> h100"),
        ({"model": "Qwen/Qwen2-7B"}, "model: Qwen/Qwen2-1.5B -> Qwen/Qwen2-7B"),
        ({"quantization": "fp8"}, "quantisation: none -> fp8"),
        ({"dtype": "float16"}, "dtype: bfloat16 -> float16"),
        ({"server_args": {"max_model_len": 8192}}, "server argument max_model_len: 4096 -> 8192"),
        (
            {"server_args": {"max_model_len": 4096, "enforce_eager": True}},
            "server argument enforce_eager: none -> true",
        ),
        ({"devices": [{"mig_profile": "1g.18gb"}]}, "MIG profile: none -> 1g.18gb"),
        ({"simulated": True}, "measured or SIMULATED: measured -> SIMULATED"),
        (
            {"requirement": replace(REQUIREMENT, slo=Slo((LatencyLimit.parse("e2e_p95", "4s"),)))},
            "limit ttft_p95: 0.5 -> none",
        ),
        (
            {"requirement": replace(REQUIREMENT, slo=replace(REQUIREMENT.slo, max_error_rate=Fraction(1, 20)))},
            "limit max_error_rate: 0.01 -> 0.05",
        ),
        (
            {
                "requirement": replace(
                    REQUIREMENT, workload=replace(REQUIREMENT.workload, output_tokens=Length.fixed(64))
                )
            },
            "workload output_tokens: 512 -> 64",
        ),
        ({"requirement": replace(REQUIREMENT, gpus_per_replica=2)}, "GPUs a replica: 1 -> 2"),
    ],
)
def test_what_must_be_equal_is_named_where_it_is_not(head: dict[str, Any], differs: str) -> None:
    found = compared(record(25.0), record(10.0, **head), never)
    assert found["decision"] == "NOT COMPARABLE"
    assert found["reason"] == "no comparable baseline"
    assert found["differs"] == [differs]
    assert found["ratio"] is found["base_rate"] is found["head_rate"] is None


def test_what_may_differ_or_is_the_same_in_other_words() -> None:
    cheaper = replace(REQUIREMENT, qps=Fraction(20), gpus=2, headroom=Fraction(2))
    head = record(25.0, requirement=cheaper, server_args={"max_model_len": "4096"}, host="another", kv_tokens=100)
    del head["environment"]["dtype"], head["environment"]["quantization"]  # an early build did not tell
    assert compared(record(25.0, kv_tokens=1000), head)["decision"] == "SAME"
    assert "KV cache tokens: 1000 -> 100" in compared(record(25.0, kv_tokens=1000), head)["changed"]
    moved = record(25.0, model="/srv/models/x", log="/other/place")
    assert compared(record(25.0, model="/home/ann/models/x"), moved)["decision"] == "SAME"


def traced(name: str, contents: str | None) -> Record:
    arrivals = Arrivals(ArrivalKind.TRACE, trace=Path(name), trace_sha256=contents)
    found = record(25.0, requirement=replace(REQUIREMENT, workload=replace(REQUIREMENT.workload, arrivals=arrivals)))
    if contents is None:
        del found["workload"]["trace_sha256"]  # as an early build wrote it
    return found


def test_traces_are_compared_by_what_they_hold() -> None:
    june, july = "6" * 64, "7" * 64
    assert compared(traced("june.csv", june), traced("renamed.csv", june))["decision"] == "SAME"
    changed = compared(traced("june.csv", june), traced("june.csv", july))
    assert (changed["decision"], changed["differs"]) == (
        "NOT COMPARABLE",
        ["workload trace's contents: 666666666666... -> 777777777777..."],
    )
    # Of an early file only the name is known.
    assert compared(traced("june.csv", None), traced("june.csv", june))["decision"] == "SAME"
    assert compared(traced("june.csv", june), traced("june.csv", None))["decision"] == "SAME"
    renamed = compared(traced("june.csv", None), traced("renamed.csv", june))
    assert renamed["differs"] == ["workload trace: june.csv -> renamed.csv"]


def test_on_a_cpu_the_processor_is_the_device() -> None:
    base = record(25.0, gpu_class="cpu", gpu="CPU only, Intel Xeon")
    found = compared(base, record(25.0, gpu_class="cpu", gpu="CPU only, AMD EPYC"))
    assert found["differs"] == ["processor: CPU only, Intel Xeon -> CPU only, AMD EPYC"]


def test_early_files_of_one_machine_can_be_compared_but_not_across_limits() -> None:
    suite, loose = read_run(H200 / "suite.json"), read_run(H200 / "loose-slo.json")
    checks = [found for each, found in against(suite, Baseline("suite", (suite,)), ALLOWED) if each["kind"] == "check"]
    assert all(found["ratio"]["value"] == 1.0 and found["decision"] != "REGRESSED" for found in checks)
    across = [found for _, found in against(loose, Baseline("suite", (suite,)), ALLOWED)]
    assert {found["decision"] for found in across} == {"NOT COMPARABLE"}
    assert across[0]["differs"] == ["limit e2e_p95: 4 -> 20", "limit ttft_p95: 0.5 -> 1"]


def test_a_regression_is_confirmed_by_a_second_measurement_or_it_is_none() -> None:
    base, head = record(25.0), record(22.0)
    why: list[str] = []

    def again(rate: float) -> Callable[[str], Record]:
        def measure(reason: str) -> Record:
            why.append(reason)
            return record(rate)

        return measure

    confirmed = compared(base, head, again(22.2))
    assert (confirmed["decision"], confirmed["confirmed"]) == ("REGRESSED", True)
    assert confirmed["reason"] == "more than 5.0% lost; a second measurement from a fresh start bears it out"
    assert confirmed["head_rate"]["value"] == pytest.approx((22.0 * 22.2) ** 0.5, rel=1e-6)
    assert confirmed["second_rate"]["value"] == pytest.approx(22.2)
    assert why == ["-12.0% against main"]
    refuted = compared(base, head, again(24.8))
    assert (refuted["decision"], refuted["confirmed"]) == ("INCONCLUSIVE", False)
    assert "does not bear the loss out (-12.0%, then -0.8%)" in refuted["reason"]
    assert refuted["more_gpu_s"] == 100.0
    alone = compared(base, head)
    assert (alone["decision"], alone["confirmed"]) == ("REGRESSED", None)
    # A rate that is no worse costs no second measurement.
    assert compared(base, record(25.5), never)["decision"] == "SAME"
    assert compared(base, record(28.0), never)["decision"] == "IMPROVED"
    same_server = compare(head, baseline(base), ALLOWED, again(22.2), fresh=False)
    assert same_server["reason"] == "more than 5.0% lost; a second measurement of the same server bears it out"


def test_an_undecided_comparison_says_what_would_settle_it() -> None:
    found = compared(record(25.0, own_sd=0.001), record(23.6, own_sd=0.03))
    assert found["decision"] == "INCONCLUSIVE"
    assert found["more_gpu_s"] is not None
    assert found["more_gpu_s"] % 100 == 0  # whole measurements of 50 s of start, 30 of hold and 20 of open loop
    assert f"about {found['more_gpu_s']:.0f} more GPU seconds" in found["reason"]
    hopeless = compared(record(25.0, own_sd=0.2), record(23.6))
    assert (hopeless["decision"], hopeless["more_gpu_s"]) == ("INCONCLUSIVE", None)
    assert "the baseline would have to be measured better" in hopeless["reason"]


def test_without_a_rate_there_is_nothing_to_compare() -> None:
    assert compared(record(25.0), record(None))["reason"] == "this run found no sustainable rate"
    found = compared(record(None), record(25.0))
    assert (found["decision"], found["reason"]) == ("NOT COMPARABLE", "main found no sustainable rate for this test")


def test_a_check_far_from_its_requirement_is_compared_by_a_sharper_result_of_its_test() -> None:
    vague, sharp = record(30.0, own_sd=0.15), record(25.0, kind="measure")
    assert not precise(vague)
    assert precise(sharp)
    found = compare(record(28.0, own_sd=0.15), baseline(vague, sharp), ALLOWED, sharper=record(24.9, kind="measure"))
    assert (found["base_rate"]["value"], found["head_rate"]["value"]) == (25.0, 24.9)
    assert found["decision"] == "SAME"


def test_tests_are_found_by_node_id_and_then_by_a_name_that_is_theirs_alone() -> None:
    base = record(25.0, test="old.py::test_chat")
    assert compared(base, record(25.0, test="new.py::test_chat"))["decision"] == "SAME"
    twice = baseline(base, record(25.0, test="other.py::test_chat"))
    found = compare(record(25.0, test="new.py::test_chat"), twice, ALLOWED)
    assert (found["decision"], found["reason"]) == ("NOT COMPARABLE", "main has no result of this test")
    renamed = record(25.0, test="new.py::test_chat", requirement=named("other"))
    assert compare(renamed, baseline(base), ALLOWED)["decision"] == "NOT COMPARABLE"


def saved(folder: Path, name: str, *records: Record, days: int = 0) -> None:
    store.save(store.path_of(folder, name), document(*records, started=STARTED + timedelta(days=days)), simulated=False)


def test_latest_is_the_newest_comparable_run(tmp_path: Path) -> None:
    saved(tmp_path, "monday", record(25.0), days=1)
    saved(tmp_path, "tuesday", record(20.0), days=2)
    saved(tmp_path, "wednesday", record(9.0, gpu_class="t4"), days=3)
    latest = open_baseline("latest", tmp_path, tmp_path)
    found = compare(record(20.1), latest, ALLOWED)
    assert (found["decision"], found["baseline"]["name"]) == ("SAME", "tuesday")
    other = compare(record(20.1, gpu_class="a10g"), latest, ALLOWED)
    assert (other["baseline"]["name"], other["differs"]) == ("wednesday", ["GPU class: t4 -> a10g"])
    nothing = compare(record(20.1), open_baseline("latest", tmp_path / "gone", tmp_path), ALLOWED)
    assert nothing["decision"] == "NOT COMPARABLE"
    assert "nothing is saved in" in nothing["reason"]


def test_a_folder_is_the_median_of_its_last_comparable_runs(tmp_path: Path) -> None:
    rates = [10.0, *(25.0 + step / 10 for step in (-2, -1, 0, 0, 0, 1, 2, 1, -1)), 19.0]
    for day, rate in enumerate(rates):
        saved(tmp_path, f"night-{day}", record(rate), days=day)
    saved(tmp_path, "other", record(9.0, gpu_class="t4"), days=99)
    nights = open_baseline(str(tmp_path), tmp_path, tmp_path)
    found = compare(record(25.0), nights, ALLOWED)
    assert found["baseline"]["name"] == f"the median of {MEDIAN_RUNS} runs in {tmp_path}"
    assert found["base_rate"]["value"] == pytest.approx(25.0)
    assert found["decision"] == "SAME"
    one = compare(record(25.0), Baseline("main", (run_of(record(25.0)),)), ALLOWED)
    assert found["ratio"]["high"] - found["ratio"]["low"] < 0.85 * (one["ratio"]["high"] - one["ratio"]["low"])


def test_names_and_paths_of_baselines(tmp_path: Path) -> None:
    saved(tmp_path / "baselines", "main", record(25.0))
    folder = tmp_path / "baselines"
    assert open_baseline("main", folder, tmp_path).runs[0].name == "main"
    assert open_baseline("baselines/main.json", tmp_path / "elsewhere", tmp_path).runs[0].name == "main"
    with pytest.raises(ResultFileError, match=r"no baseline 'mian' is saved in .*; save one with --gpucap-save mian"):
        open_baseline("mian", folder, tmp_path)
    assert open_baseline("first", folder, tmp_path, required=False).missing
    with pytest.raises(ResultFileError, match=r"gone.json: No such file"):
        open_baseline("gone.json", folder, tmp_path)
    with pytest.raises(ResultFileError, match="must be a name"):
        open_baseline(".hidden", folder, tmp_path)
    (folder / "broken.json").write_text("{")
    with pytest.raises(ResultFileError, match=r"broken.json: not JSON"):
        open_baseline("latest", folder, tmp_path)


def test_latencies_at_equal_load_are_compared_and_fail_nothing() -> None:
    slower = record(25.0, samples=windows(slower=1.3))
    found = compared(record(25.0), slower)
    assert found["decision"] == "SAME"
    by_limit = {each["limit"]: each for each in found["latencies"]}
    for limit, base_s in (("e2e_p95", 2.5), ("ttft_p95", 0.05)):
        each = by_limit[limit]
        assert (each["load"], each["decision"]) == ("16.2 req/s", "REGRESSED")
        assert each["base_s"] == pytest.approx(base_s, rel=0.01)
        assert each["head_s"] == pytest.approx(1.3 * base_s, rel=0.01)
        assert each["ratio"]["low"] < 1.3 < each["ratio"]["high"]
    same = {each["limit"]: each["decision"] for each in compared(record(25.0), record(25.0))["latencies"]}
    assert set(same.values()) <= {"SAME", "INCONCLUSIVE"}


def test_latencies_of_other_loads_are_not_compared() -> None:
    closed = [each for each in windows() if each.kind == "closed"]
    only_closed = compared(record(25.0), record(25.0, samples=closed))["latencies"]
    # TTFT in a full closed loop is the time until another request ends.
    assert [(each["limit"], each["load"]) for each in only_closed] == [("e2e_p95", "70 in flight")]
    elsewhere = [msgspec.structs.replace(each, concurrency=71) for each in closed]
    assert compared(record(25.0), record(25.0, samples=elsewhere))["latencies"] == []
    assert compared(record(25.0), record(25.0, samples=closed[:2]))["latencies"] == []


def test_the_environment_made_for_these_tests_is_what_a_session_records() -> None:
    """These tests speak of the sessions' own form: every name that decides is in a real file."""
    real = read_run(H200 / "suite.json").results[0]["environment"]
    assert {"gpu_class", "driver", "cuda", "devices", "server", "model", "server_args", "host", "plugin"} <= set(real)
    assert set(ENVIRONMENT) - set(real) <= {"quantization", "dtype"}
