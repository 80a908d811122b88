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
from pytest_gpucap.history.compare import compare_result, compare_runs, is_precise
from pytest_gpucap.history.store import MEDIAN_RUNS, Baseline, Run, open_baseline, read_run
from pytest_gpucap.requirement import (
    ArrivalKind,
    Arrivals,
    ImageSize,
    LatencyLimit,
    Length,
    OwnPrompts,
    Requirement,
    Slo,
    declared_limits,
)
from pytest_gpucap.results.comparison import ComparedBaseline, Comparison, RegressionDecision
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.environment import DeviceState, Environment
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.result import DeclaredAdapter, Result, ResultKind
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.results.windows import Phase, WindowId
from tests.history.made import ENVIRONMENT, REQUIREMENT, STARTED, named, result, session, windows

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"
SCHEMA = json.loads((Path(pytest_gpucap.__file__).parent / "results" / "result.schema.json").read_text())
ALLOWED = 0.05


def run_of(*results: Result, name: str = "main") -> Run:
    return Run(Path(f"{name}.json"), session(*results))


def baseline(*results: Result) -> Baseline:
    return Baseline("main", (run_of(*results),))


def compared(base: Result, head: Result, again: Callable[[str], Result] | None = None) -> Comparison:
    return compare_result(head, baseline(base), ALLOWED, again)


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def test_the_comparison_has_the_documented_form() -> None:
    head = result(24.9, server="vLLM 0.27.0", driver="590.1", seed=5)
    found = compared(result(25.0), head)
    jsonschema.validate(to_builtins(session(msgspec.structs.replace(head, comparison=found))), SCHEMA)
    assert found.decision == RegressionDecision.SAME
    assert found.baseline == ComparedBaseline("main", "main.json", "2026-11-20T03:00:00+00:00", "0.1.0")
    assert known(found.ratio).value == pytest.approx(0.996)
    assert known(found.ratio).low < 0.96
    assert known(found.ratio).high > 1.03
    assert (known(found.base_rate).value, known(found.head_rate).value) == (25.0, 24.9)
    assert found.changed == ("server: vLLM 0.26.0 -> vLLM 0.27.0", "driver: 580.1 -> 590.1", "seed: 0 -> 5")
    assert (found.differs, found.confirmed, found.more_gpu_s) == ((), None, None)


def never(why: str) -> Result:
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
        ({"devices": (DeviceState(mig_profile="1g.18gb"),)}, "MIG profile: none -> 1g.18gb"),
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
        ({"requirement": replace(REQUIREMENT, gpus_per_replica=2)}, "GPUs per replica: 1 -> 2"),
    ],
)
def test_what_must_be_equal_is_named_where_it_is_not(head: dict[str, Any], differs: str) -> None:
    found = compared(result(25.0), result(10.0, **head), never)
    assert found.decision == RegressionDecision.NOT_COMPARABLE
    assert found.reason == "no comparable baseline"
    assert found.differs == (differs,)
    assert found.ratio is found.base_rate is found.head_rate is None


def goodput(share: str) -> Requirement:
    return replace(REQUIREMENT, slo=Slo(declared_limits({"goodput": share, "ttft": "500ms", "e2e": "4s"})))


def test_goodput_and_its_thresholds_must_be_equal() -> None:
    found = compared(result(25.0, requirement=goodput("95%")), result(10.0, requirement=goodput("99%")), never)
    assert found.decision == RegressionDecision.NOT_COMPARABLE
    assert found.differs == ("limit goodput: 0.95 -> 0.99",)
    from_percentiles = compared(result(25.0), result(10.0, requirement=goodput("95%")), never)
    assert {"limit goodput: none -> 0.95", "limit ttft: none -> 0.5"} <= set(from_percentiles.differs)


def test_latencies_under_goodput_are_compared_at_the_percentile_that_it_asks_for() -> None:
    of = goodput("95%")
    found = compared(result(25.0, requirement=of), result(25.0, requirement=of, samples=windows(slower=1.3)))
    assert found.decision == RegressionDecision.SAME
    assert {each.limit for each in found.latencies} == {"ttft_p95", "e2e_p95"}


def test_what_may_differ_or_is_the_same_in_other_words() -> None:
    cheaper = replace(REQUIREMENT, qps=Fraction(20), gpus=2, headroom=Fraction(2))
    head = result(25.0, requirement=cheaper, server_args={"max_model_len": "4096"}, host="another", kv_tokens=100)
    untold = msgspec.structs.replace(head.environment, dtype=msgspec.UNSET, quantization=msgspec.UNSET)
    head = msgspec.structs.replace(head, environment=untold)  # as an early build wrote it
    assert compared(result(25.0, kv_tokens=1000), head).decision == RegressionDecision.SAME
    assert "KV cache tokens: 1000 -> 100" in compared(result(25.0, kv_tokens=1000), head).changed
    slow = result(25.0, startup_s=95.0)
    assert compared(result(25.0, startup_s=41.0), slow).changed == ("start-up s: 41 -> 95",)
    assert compared(result(25.0, startup_s=90.0), slow).changed == ()
    moved = result(25.0, model="/srv/models/x", log="/other/place")
    assert compared(result(25.0, model="/home/ann/models/x"), moved).decision == RegressionDecision.SAME


def traced(name: str, contents: str | None) -> Result:
    arrivals = Arrivals(ArrivalKind.TRACE, trace=Path(name), trace_sha256=contents)
    return result(25.0, requirement=replace(REQUIREMENT, workload=replace(REQUIREMENT.workload, arrivals=arrivals)))


def test_traces_are_compared_by_what_they_hold() -> None:
    june, july = "6" * 64, "7" * 64
    assert compared(traced("june.csv", june), traced("renamed.csv", june)).decision == RegressionDecision.SAME
    changed = compared(traced("june.csv", june), traced("june.csv", july))
    assert (changed.decision, changed.differs) == (
        RegressionDecision.NOT_COMPARABLE,
        ("workload trace's contents: 666666666666... -> 777777777777...",),
    )
    # Of an early file only the name is known.
    assert compared(traced("june.csv", None), traced("june.csv", june)).decision == RegressionDecision.SAME
    assert compared(traced("june.csv", june), traced("june.csv", None)).decision == RegressionDecision.SAME
    renamed = compared(traced("june.csv", None), traced("renamed.csv", june))
    assert renamed.differs == ("workload trace: june.csv -> renamed.csv",)


def test_prompts_are_compared_by_what_they_send() -> None:
    def own(name: str, contents: str, low: int = 5, **more: Any) -> Result:
        prompts = OwnPrompts(Path(name), contents, 40)
        workload = replace(REQUIREMENT.workload, prompts=prompts, input_tokens=Length.fixed(low), **more)
        return result(25.0, requirement=replace(REQUIREMENT, workload=workload))

    june, july = "6" * 64, "7" * 64
    assert compared(own("june.jsonl", june), own("june.gz", june, low=6)).decision == RegressionDecision.SAME
    changed = compared(own("june.jsonl", june), own("june.jsonl", july))
    assert (changed.decision, changed.differs) == (
        RegressionDecision.NOT_COMPARABLE,
        ("workload prompts' contents: 666666666666... -> 777777777777...",),
    )
    assert compared(result(25.0), own("june.jsonl", june)).decision == RegressionDecision.NOT_COMPARABLE
    think, long = {"reasoning_effort": "low"}, {"tools": ["x" * 9_000, "y"]}
    (said,) = compared(own("a", june, extra_body=think), own("a", june, extra_body=long)).differs
    assert said.startswith('workload extra_body: {"reasoning_effort": "low"} -> sha256 ')
    other = {"tools": ["x" * 9_000, "z"]}  # alike as far as a result keeps it
    found = compared(own("a", june, extra_body=long), own("a", june, extra_body=other))
    assert found.decision == RegressionDecision.NOT_COMPARABLE
    assert (
        compared(own("a", june, extra_body=long), own("a", june, extra_body=long)).decision == RegressionDecision.SAME
    )


def test_prompts_with_other_images_are_another_workload() -> None:
    def seen(*sizes: ImageSize) -> Result:
        workload = replace(REQUIREMENT.workload, images=sizes)
        return result(25.0, requirement=replace(REQUIREMENT, workload=workload))

    small, large = ImageSize(64, 48), ImageSize(512, 512)
    assert compared(seen(small), seen(small)).decision == RegressionDecision.SAME
    assert compared(seen(), result(25.0)).decision == RegressionDecision.SAME
    found = compared(seen(small), seen(small, large))
    assert (found.decision, found.differs) == (
        RegressionDecision.NOT_COMPARABLE,
        ("workload images: 64x48 -> 64x48 512x512",),
    )


def test_prompts_with_other_audio_are_another_workload() -> None:
    def heard(*lengths_s: float) -> Result:
        workload = replace(REQUIREMENT.workload, audio_s=lengths_s)
        return result(25.0, requirement=replace(REQUIREMENT, workload=workload))

    assert compared(heard(10.0), heard(10.0)).decision == RegressionDecision.SAME
    assert compared(heard(), result(25.0)).decision == RegressionDecision.SAME
    found = compared(heard(10.0), heard(10.0, 0.5))
    assert found.decision == RegressionDecision.NOT_COMPARABLE
    assert found.differs == ("workload audio_s: 10 -> 10 0.5",)


def test_another_mix_of_adapters_is_another_workload() -> None:
    def mixed(*adapters: DeclaredAdapter, rank: int | None = None) -> Result:
        found = result(25.0)
        workload = msgspec.structs.replace(found.workload, adapters=adapters, adapter_rank=rank)
        return msgspec.structs.replace(found, workload=workload)

    even, uneven = (
        (DeclaredAdapter("a", 0.5), DeclaredAdapter("b", 0.5)),
        (DeclaredAdapter("a", 0.7), DeclaredAdapter("b", 0.3)),
    )
    assert compared(mixed(*even), mixed(*reversed(even))).decision == RegressionDecision.SAME
    assert compared(mixed(*even), mixed(*uneven)).differs == (
        "workload adapters: a 50.0000%, b 50.0000% -> a 70.0000%, b 30.0000%",
    )
    assert compared(result(25.0), mixed(*even)).decision == RegressionDecision.NOT_COMPARABLE
    (said,) = compared(mixed(*even, rank=8), mixed(*even, rank=16)).differs
    assert said == "workload adapter_rank: 8 -> 16"


def test_on_a_cpu_the_processor_is_the_device() -> None:
    base = result(25.0, gpu_class="cpu", gpu="CPU only, Intel Xeon")
    found = compared(base, result(25.0, gpu_class="cpu", gpu="CPU only, AMD EPYC"))
    assert found.differs == ("processor: CPU only, Intel Xeon -> CPU only, AMD EPYC",)


def test_early_files_of_one_machine_can_be_compared_but_not_across_limits() -> None:
    suite, loose = read_run(H200 / "suite.json"), read_run(H200 / "loose-slo.json")
    results = compare_runs(suite, Baseline("suite", (suite,)), ALLOWED)
    checks = [each.comparison for each in results if each.comparison and each.kind is ResultKind.CHECK]
    assert len(checks) == 2
    assert all(known(each.ratio).value == 1.0 and each.decision != RegressionDecision.REGRESSED for each in checks)
    loosened = compare_runs(loose, Baseline("suite", (suite,)), ALLOWED)
    across = [each.comparison for each in loosened if each.comparison]
    assert {each.decision for each in across} == {RegressionDecision.NOT_COMPARABLE}
    assert across[0].differs == ("limit e2e_p95: 4 -> 20", "limit ttft_p95: 0.5 -> 1")


def test_a_regression_is_confirmed_by_a_second_measurement_or_it_is_none() -> None:
    base, head = result(25.0), result(22.0)
    why: list[str] = []

    def again(rate: float) -> Callable[[str], Result]:
        def measure(reason: str) -> Result:
            why.append(reason)
            return result(rate)

        return measure

    confirmed = compared(base, head, again(22.2))
    assert (confirmed.decision, confirmed.confirmed) == (RegressionDecision.REGRESSED, True)
    assert confirmed.reason == "more than 5.0% lost; a second measurement from a fresh start confirms it"
    assert known(confirmed.head_rate).value == pytest.approx((22.0 * 22.2) ** 0.5, rel=1e-6)
    assert known(confirmed.second_rate).value == pytest.approx(22.2)
    assert why == ["-12.0% against main"]
    refuted = compared(base, head, again(24.8))
    assert (refuted.decision, refuted.confirmed) == (RegressionDecision.INCONCLUSIVE, False)
    assert "does not confirm the loss (-12.0%, then -0.8%)" in refuted.reason
    assert refuted.more_gpu_s == 100.0
    alone = compared(base, head)
    assert (alone.decision, alone.confirmed) == (RegressionDecision.REGRESSED, None)
    # A rate that is no worse costs no second measurement.
    assert compared(base, result(25.5), never).decision == RegressionDecision.SAME
    assert compared(base, result(28.0), never).decision == RegressionDecision.IMPROVED
    same_server = compare_result(head, baseline(base), ALLOWED, again(22.2), fresh=False)
    assert same_server.reason == "more than 5.0% lost; a second measurement of the same server confirms it"


def test_an_undecided_comparison_says_what_would_settle_it() -> None:
    found = compared(result(25.0, own_sd=0.001), result(23.6, own_sd=0.03))
    assert found.decision == RegressionDecision.INCONCLUSIVE
    assert found.more_gpu_s is not None
    assert found.more_gpu_s % 100 == 0  # whole measurements of 50 s of start, 30 of hold and 20 of open loop
    assert f"about {found.more_gpu_s:.0f} more GPU seconds" in found.reason
    hopeless = compared(result(25.0, own_sd=0.2), result(23.6))
    assert (hopeless.decision, hopeless.more_gpu_s) == (RegressionDecision.INCONCLUSIVE, None)
    assert "the baseline must be measured more precisely" in hopeless.reason


def test_without_a_rate_there_is_nothing_to_compare() -> None:
    assert compared(result(25.0), result(None)).reason == "this run found no sustainable rate"
    found = compared(result(None), result(25.0))
    assert (found.decision, found.reason) == (
        RegressionDecision.NOT_COMPARABLE,
        "main found no sustainable rate for this test",
    )


def test_a_check_far_from_its_requirement_is_compared_by_a_sharper_result_of_its_test() -> None:
    vague, sharp = result(30.0, own_sd=0.15), result(25.0, kind=ResultKind.MEASURE)
    assert not is_precise(vague)
    assert is_precise(sharp)
    found = compare_result(
        result(28.0, own_sd=0.15), baseline(vague, sharp), ALLOWED, sharper=result(24.9, kind=ResultKind.MEASURE)
    )
    assert (known(found.base_rate).value, known(found.head_rate).value) == (25.0, 24.9)
    assert found.decision == RegressionDecision.SAME


def test_tests_are_found_by_node_id_and_then_by_a_name_that_is_theirs_alone() -> None:
    base = result(25.0, test="old.py::test_chat")
    assert compared(base, result(25.0, test="new.py::test_chat")).decision == RegressionDecision.SAME
    twice = baseline(base, result(25.0, test="other.py::test_chat"))
    found = compare_result(result(25.0, test="new.py::test_chat"), twice, ALLOWED)
    assert (found.decision, found.reason) == (RegressionDecision.NOT_COMPARABLE, "main has no result of this test")
    renamed = result(25.0, test="new.py::test_chat", requirement=named("other"))
    assert compare_result(renamed, baseline(base), ALLOWED).decision == RegressionDecision.NOT_COMPARABLE


def saved(folder: Path, name: str, *results: Result, days: int = 0) -> None:
    content = session(*results, started=STARTED + timedelta(days=days))
    store.save_run(store.path_of(folder, name), content, simulated=False)


def test_latest_is_the_newest_comparable_run(tmp_path: Path) -> None:
    saved(tmp_path, "monday", result(25.0), days=1)
    saved(tmp_path, "tuesday", result(20.0), days=2)
    saved(tmp_path, "wednesday", result(9.0, gpu_class="t4"), days=3)
    latest = open_baseline("latest", tmp_path, tmp_path)
    found = compare_result(result(20.1), latest, ALLOWED)
    assert (found.decision, found.baseline.name) == (RegressionDecision.SAME, "tuesday")
    other = compare_result(result(20.1, gpu_class="a10g"), latest, ALLOWED)
    assert (other.baseline.name, other.differs) == ("wednesday", ("GPU class: t4 -> a10g",))
    nothing = compare_result(result(20.1), open_baseline("latest", tmp_path / "gone", tmp_path), ALLOWED)
    assert nothing.decision == RegressionDecision.NOT_COMPARABLE
    assert "nothing is saved in" in nothing.reason


def test_a_folder_is_the_median_of_its_last_comparable_runs(tmp_path: Path) -> None:
    rates = [10.0, *(25.0 + step / 10 for step in (-2, -1, 0, 0, 0, 1, 2, 1, -1)), 19.0]
    for day, rate in enumerate(rates):
        saved(tmp_path, f"night-{day}", result(rate), days=day)
    saved(tmp_path, "other", result(9.0, gpu_class="t4"), days=99)
    nights = open_baseline(str(tmp_path), tmp_path, tmp_path)
    found = compare_result(result(25.0), nights, ALLOWED)
    assert found.baseline.name == f"the median of {MEDIAN_RUNS} runs in {tmp_path}"
    assert known(found.base_rate).value == pytest.approx(25.0)
    assert found.decision == RegressionDecision.SAME
    one = compare_result(result(25.0), Baseline("main", (run_of(result(25.0)),)), ALLOWED)
    assert known(found.ratio).high - known(found.ratio).low < 0.85 * (known(one.ratio).high - known(one.ratio).low)


def test_names_and_paths_of_baselines(tmp_path: Path) -> None:
    saved(tmp_path / "baselines", "main", result(25.0))
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
    slower = result(25.0, samples=windows(slower=1.3))
    found = compared(result(25.0), slower)
    assert found.decision == RegressionDecision.SAME
    by_limit = {each.limit: each for each in found.latencies}
    for limit, base_s in (("e2e_p95", 2.5), ("ttft_p95", 0.05)):
        each = by_limit[limit]
        assert (each.load, each.decision) == ("16.2 req/s", RegressionDecision.REGRESSED)
        assert each.base_s == pytest.approx(base_s, rel=0.01)
        assert each.head_s == pytest.approx(1.3 * base_s, rel=0.01)
        assert known(each.ratio).low < 1.3 < known(each.ratio).high
    same = {each.limit: each.decision for each in compared(result(25.0), result(25.0)).latencies}
    assert set(same.values()) <= {RegressionDecision.SAME, RegressionDecision.INCONCLUSIVE}


def test_latencies_of_other_loads_are_not_compared() -> None:
    closed = [each for each in windows() if each.kind == "closed"]
    only_closed = compared(result(25.0), result(25.0, samples=closed)).latencies
    # TTFT in a full closed loop is the time until another request ends.
    assert [(each.limit, each.load) for each in only_closed] == [("e2e_p95", "70 in flight")]
    elsewhere = [msgspec.structs.replace(each, concurrency=71) for each in closed]
    assert compared(result(25.0), result(25.0, samples=elsewhere)).latencies == ()
    assert compared(result(25.0), result(25.0, samples=closed[:2])).latencies == ()


def test_windows_of_early_files_pair_with_todays_though_their_rates_have_three_figures() -> None:
    def swept(rate_rps: float) -> Result:
        named_by_rate = [
            msgspec.structs.replace(each, window=WindowId(Phase.POINT, rate_rps=rate_rps).part(number, 3))
            for number, each in enumerate((each for each in windows() if each.kind == "open"), 1)
        ]
        return result(25.0, samples=named_by_rate)

    found = compared(swept(16.2), swept(16.25))
    assert [(each.limit, each.load) for each in found.latencies] == [
        ("e2e_p95", "16.2 req/s"),
        ("ttft_p95", "16.2 req/s"),
    ]


def test_the_environment_made_for_these_tests_is_what_a_session_records() -> None:
    """These tests use the sessions' own form: a real file tells every part that decides."""

    def told(environment: Environment) -> set[str]:
        return set(to_builtins(environment))

    real = told(read_run(H200 / "suite.json").results[0].environment)
    assert {"gpu_class", "driver", "cuda", "devices", "server", "model", "server_args", "host", "plugin"} <= real
    assert told(ENVIRONMENT) - real <= {"quantization", "dtype"}
