"""Whole runs with a base beside the head: options, decisions, what a user reads and what the result file holds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.engines.protocol import ServerRequest
from pytest_gpucap.engines.vllm_engine import VllmEngine, VllmPair
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.options.table import Options
from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import Comparison, RegressionDecision
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.secondary import SecondaryName
from pytest_gpucap.session.base_and_head import base_of
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.vllm_arguments import VllmArguments
from tests.plugin.test_secondary import KEPT, rich

SUITE = """
    import pytest

    @pytest.mark.gpucap(name="chat", qps=16, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    def test_it(gpucap):
        gpucap.check()
"""
SIMULATED = "--gpu-class=sim:fast"
USUAL = [f"{metric}_p{percent}" for metric in ("ttft", "tpot", "itl", "e2e") for percent in (50, 95)]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def results(folder: Path) -> tuple[Result, ...]:
    return result_file.read(folder / ".gpucap" / "result.json").results


def comparison(folder: Path) -> Comparison:
    [result] = results(folder)
    assert result.comparison is not None
    assert result.comparison.baseline.name == "base"
    return result.comparison


def test_a_confirmed_regression_fails_a_test_whose_budget_holds(suite: pytest.Pytester) -> None:
    result = suite.runpytest(SIMULATED, "--gpucap-base-args=--time-scale 0.9")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*measuring both again from fresh servers",
            "REGRESSED: chat sustains * req/s, * base * req/s: -1*% (*), 5.0% allowed",
        ]
    )
    [entry] = results(suite.path)
    assert entry.outcome is Outcome.PASS
    found = comparison(suite.path)
    assert found.confirmed is True
    assert found.ratio is not None
    assert found.ratio.high < 0.95
    assert found.paired is not None
    assert len(found.paired.pairs) >= 4
    assert [latency.limit for latency in found.latencies] == ["e2e_p95", *(each for each in USUAL if each != "e2e_p95")]
    [load] = {latency.load for latency in found.latencies}
    for latency in found.latencies:
        if latency.limit in {"e2e_p95", "e2e_p50", "tpot_p50"}:
            assert latency.decision is RegressionDecision.REGRESSED
            assert latency.ratio is not None
            assert latency.ratio.low > 1
    # In the failure, and in the summary.
    table = [f"*at {load} * base * head * change (95% interval) * decision"]
    table += [f"*{name} * +*% (+*% to +*%) * REGRESSED" for name in ("p95 E2E", "p50 TPOT", "p50 E2E")]
    result.stdout.fnmatch_lines([*table, "chat: latencies of base and head, which fail no test:", *table])
    assert entry.spent_s["comparison with base"] > 60
    assert entry.spent_s["confirmation"] > 60


@pytest.mark.parametrize(
    ("args", "decision", "latencies"),
    [
        ("--time-scale 1", "SAME", {"SAME", "INCONCLUSIVE"}),
        ("--time-scale=1.15", "IMPROVED", {"IMPROVED"}),
        ("--profile slow", "IMPROVED", set()),
        # Below the rate at which its few sequences run out, the base is as quick as the head.
        ("--max-num-seqs 20", "IMPROVED", {"SAME", "INCONCLUSIVE"}),
    ],
)
def test_other_decisions_let_the_test_pass(
    suite: pytest.Pytester, args: str, decision: str, latencies: set[str]
) -> None:
    ran = suite.runpytest(SIMULATED, f"--gpucap-base-args={args}")
    ran.assert_outcomes(passed=1)
    found = comparison(suite.path)
    assert found.decision == decision
    assert found.confirmed is None
    decided = {latency.limit: latency.decision for latency in found.latencies}
    # A base that meets its limits at no rate worth the name has no latencies to show.
    assert set(decided) == (set(USUAL) if latencies else set())
    assert {decided[limit] for limit in ("e2e_p95",) if decided} <= latencies
    assert all(latency.load.endswith(" req/s") for latency in found.latencies)
    assert ("chat: latencies of base and head, which fail no test:" in ran.stdout.str()) == bool(latencies)
    why = "" if latencies else "fewer than 20 requests would come"
    assert why in found.no_latencies
    assert bool(found.no_latencies) == bool(why)
    assert ("latencies of base and head were not compared: " in ran.stdout.str()) == bool(why)
    assert found.ratio is not None
    assert found.ratio.low < found.ratio.value < found.ratio.high


def test_a_loss_within_what_is_allowed_is_none(suite: pytest.Pytester) -> None:
    options = ("--gpucap-base-args=--time-scale 0.9", "--gpucap-max-regression=30%")
    suite.runpytest(SIMULATED, *options).assert_outcomes(passed=1)
    assert comparison(suite.path).decision is RegressionDecision.SAME


@pytest.mark.usefixtures("few_cycles")
def test_measure_is_compared_and_a_failing_budget_as_well(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s", gpus=1)

        def test_measured(gpucap):
            gpucap.measure()

        @pytest.mark.gpucap(qps=60)
        def test_too_much(gpucap):
            gpucap.check()

        def test_one_window(gpucap):
            gpucap.sample(rate=5, duration="5s")
        """
    )
    result = pytester.runpytest(SIMULATED, "--gpucap-base-args=--time-scale 1")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAIL: test_too_much needs *"])
    decisions = [each.comparison and each.comparison.decision for each in results(pytester.path)]
    assert decisions == [RegressionDecision.SAME, RegressionDecision.SAME, None]


def test_a_base_that_cannot_be_measured_never_hides_a_failing_budget(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
        from pytest_gpucap.session import base_and_head
        from pytest_gpucap.session.harness import settings_on

        SHARED = Problem(ProblemSource.HOST, ProblemKind.SHARED, "the GPU was shared")

        # The machine turns out not to be ours alone once the alternation begins.
        base_and_head.settings_on = lambda server, settings, _: settings_on(
            server, settings, lambda *_: [SHARED])
        """
    )
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s", gpus=1)

        @pytest.mark.gpucap(qps=10)
        def test_enough(gpucap):
            gpucap.check()

        @pytest.mark.gpucap(qps=60)
        def test_too_much(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest(SIMULATED, "--gpucap-base-args=--time-scale 1")
    result.assert_outcomes(failed=2)
    shared = "base and head could not be compared: base: the GPU was shared"
    result.stdout.fnmatch_lines(
        [f"test_too_much: test_too_much: {shared}", f"test_enough: {shared}", "FAIL: test_too_much needs *"]
    )
    entries = results(pytester.path)
    assert [entry.outcome for entry in entries] == [Outcome.PASS, Outcome.FAIL]
    assert all(entry.comparison is None for entry in entries)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            [SIMULATED, "--gpucap-base-args=--max-model-len 4096"],
            "*: --gpucap-base-args: --max-model-len: a simulated base knows --profile, --time-scale, --max-num-seqs, *",
        ),
        ([SIMULATED, "--gpucap-base-args=--profile no-such"], "*--gpucap-base-args: no simulator profile 'no-such'*"),
        ([SIMULATED, "--gpucap-base-args=64"], "*--gpucap-base-args: '64' follows no --argument"),
        ([SIMULATED, "--gpucap-base-args=--a 'b"], "*--gpucap-base-args: No closing quotation"),
        (
            [SIMULATED, "--gpucap-base-python=/no/such/python"],
            "*--gpucap-base-python: there is no interpreter at /no/such/python",
        ),
        (
            [SIMULATED, "--gpucap-base-args=--time-scale 1", "--gpucap-compare=x", "--gpucap-save=x"],
            "*--gpucap-compare and --gpucap-base-*: a result holds one comparison, so give one of them",
        ),
        (
            ["--gpucap-url=http://127.0.0.1:1/v1", "--gpucap-base-args=--time-scale 1"],
            "*--gpucap-base-... needs servers that the plugin starts, but --gpucap-url names a running one",
        ),
        (
            ["--gpu-class=cpu", "--gpucap-model=synthetic:tiny", "--gpucap-base-args=--port 1"],
            "*--gpucap-base-args: vllm: port cannot be set: the kernel chooses a free port",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_mistakes_cost_one_line_and_no_server_time(suite: pytest.Pytester, options: list[str], line: str) -> None:
    result = suite.runpytest(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def vllm(**args: Any) -> VllmEngine:
    return VllmEngine(ServerRequest(model="m", arguments=VllmArguments(args).values, python=sys.executable))


def test_a_front_end_that_does_not_ask_for_the_key_everywhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "0")
    assert vllm().spec.model == "m"
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="sets VLLM_USE_RUST_FRONTEND, and that front end does not ask for the key on"):
        vllm()


def test_the_base_has_the_heads_arguments_but_for_those_given() -> None:
    engine = vllm(max_num_seqs=128, enable_prefix_caching=True, dtype="half")
    head = Placement(engine, find_class("h200"))
    options = Options(base_args="--max-num-seqs=64 --no-enable-prefix-caching --dtype=", base_python=sys.executable)
    pair = base_of(head, options)
    assert isinstance(pair, VllmPair)
    assert pair.head is engine
    assert pair.base.spec.args.flags() == ["--max-num-seqs", "64", "--no-enable-prefix-caching"]
    assert pair.base.spec.python == sys.executable
    assert base_of(head, Options()) is None
    assert base_of(replace(head, skip="another class"), options) is None


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ({"gpu_memory_utilization": 0.4}, {"gpu_memory_utilization": 0.5}, (0.4, 0.5)),
        ({}, {}, (0.46, 0.46)),
        ({"gpu_memory_utilization": "0.9"}, {"gpu_memory_utilization": 0.3}, (0.69, 0.23)),
        ({"gpu-memory-utilization": 0.8}, {"gpu_memory_utilization": 0.8}, (0.46, 0.46)),
    ],
)
def test_both_servers_fit_one_gpu(base: dict[str, Any], head: dict[str, Any], expected: tuple[float, float]) -> None:
    pair = VllmPair(vllm(**base), vllm(**head))
    fitted = pair.fitted()
    shares = [engine.spec.args.gpu_memory_utilization for engine in (fitted.base, fitted.head)]
    assert tuple(shares) == expected
    assert sum(filter(None, shares)) <= 0.95
    scaled = sum(expected) == pytest.approx(0.92)
    assert (fitted is not pair) == scaled
    assert any("for this comparison only" in change for change in fitted.changes()) == scaled
    assert bool(fitted.remark()) == scaled


@pytest.mark.vllm_cpu
@pytest.mark.slow
@pytest.mark.usefixtures("short_phases")
def test_two_real_servers_in_alternation(pytester: pytest.Pytester, vllm_python: str) -> None:
    # The base is held to two sequences at a time: whatever else this machine does, the head must come out far ahead. So
    # phases may be short, and the loss that is allowed large, which few pairs decide: what is looked at here is that
    # both servers come, are measured in turn, and go. The head's sequences are few too, since the base must drain what
    # the head can hold before every block.
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs=8)
        @pytest.mark.gpucap(name="pull request", qps=0.5, gpus=1, input_tokens=32, output_tokens=16, e2e_p95="10s")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    options = (f"--gpucap-vllm-python={vllm_python}", "--gpucap-base-args=--max-num-seqs 2")
    loose = ("--gpucap-inconclusive=pass", "--gpucap-max-regression=50%")
    result = pytester.runpytest_subprocess("--gpu-class=cpu", *loose, *options)
    result.assert_outcomes(passed=1)
    found = comparison(pytester.path)
    # On a busy machine the interval of so few short pairs may be so wide that it does not show the gain.
    assert found.decision in {RegressionDecision.SAME, RegressionDecision.IMPROVED}
    assert found.ratio is not None
    assert found.paired is not None
    assert found.ratio.value > 1.05
    assert [pair.base_first for pair in found.paired.pairs][:4] == [True, False, True, False]
    assert found.changed == ("arguments: --max-model-len 512 --max-num-seqs 2 -> --max-model-len 512 --max-num-seqs 8",)
    logs = list(pytester.path.glob(".gpucap/logs/*"))
    assert len([log for log in logs if "startup complete" in log.read_text()]) == 2


def test_limits_beside_the_rate_are_shown_side_by_side(pytester: pytest.Pytester) -> None:
    rich(pytester.path)
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.gpucap(name="chat", qps=10, gpus=1, input_tokens=256, output_tokens=256, e2e_p95="4s", {KEPT})
        def test_it(gpucap):
            gpucap.check()
        """
    )
    options = ("--gpu-class=sim:rich.toml", "--gpucap-prices=prices.toml")
    ran = pytester.runpytest(*options, "--gpucap-base-args=--num-gpu-blocks-override 10000 --time-scale 1")
    ran.assert_outcomes(passed=1)
    found = {each.name: each for each in comparison(pytester.path).figures}
    assert found.keys() == set(SecondaryName)
    kept = found[SecondaryName.KV_TOKENS]
    assert kept.base is not None
    assert kept.head is not None
    assert (kept.base.value, kept.head.value) == (160_000, 200_000)
    for name in (SecondaryName.JOULES_PER_1K_TOKENS, SecondaryName.ACCEPTANCE, SecondaryName.PREFIX_HIT_RATE):
        each = found[name]
        assert each.ratio is not None
        # The same server at the same rate.
        assert each.ratio.low <= 1.05
        assert each.ratio.high >= 0.95
    assert found[SecondaryName.PREEMPTIONS].ratio is None
    said = " ".join(ran.stdout.str().split())
    assert "chat: KV cache 160,000 tokens -> 200,000 tokens, +25.0% (read from the servers: no sampling error)" in said
    assert main(["report", ".gpucap/result.json", "--html", "page.html"]) == 0
    assert "no sampling error" in (pytester.path / "page.html").read_text()
