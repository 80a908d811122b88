"""Whole runs in which answers count: a simulated server that is right at a known rate, and a real vLLM that is not."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import pytest

from pytest_gpucap.accuracy.measurement import ANSWER_ROUNDS, measure_accuracy
from pytest_gpucap.accuracy.questions import questions_file
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.load.trace import read_trace
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.waiting import FOREVER_S

CHECKED = """
    import pytest

    @pytest.mark.gpucap(
        name="maths", workload="deepseek-r1", qps=10, gpus=1, e2e_p95="4s", questions="arithmetic", min_accuracy="90%"
    )
    def test_it(gpucap):
        gpucap.check()
"""

Serve = Callable[[float], SimulatedServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts simulated servers that answer right at a rate; ten times as fast as the profile says."""
    with ExitStack() as running:
        yield lambda accuracy: running.enter_context(start_simulator("fast", time_scale=0.1, accuracy=accuracy))


def only_result(pytester: pytest.Pytester) -> Result:
    (result,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    return result


def test_a_server_that_is_fast_and_right_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CHECKED)
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=1)
    found = only_result(pytester)
    accuracy, rate = found.accuracy, found.sustainable_rate
    assert accuracy is not None
    assert accuracy.share is not None
    assert accuracy.good_rps is not None
    assert rate is not None
    assert (accuracy.share.value, accuracy.answers, accuracy.right, accuracy.questions) == (1.0, 480, 480, 96)
    assert len(accuracy.samples) == ANSWER_ROUNDS
    assert accuracy.min_accuracy == 0.9
    assert accuracy.share.low > 0.9
    assert accuracy.decided is False
    assert accuracy.good_rps.value == pytest.approx(rate.value)
    assert found.spent_s["answers"] > 0
    assert found.workload.preset == "deepseek-r1"
    assert found.workload.sampling == {"temperature": 0.6}


def test_a_server_that_is_fast_and_wrong_fails_and_says_so(pytester: pytest.Pytester) -> None:
    """As a build is that quantisation made faster, and spoiled."""
    fast = (Path(str(files("pytest_gpucap.simulator"))) / "profiles" / "fast.toml").read_text()
    hasty = re.sub(r"(?m)^((?:base|per_\w+)_s) = (.*)$", lambda time: f"{time[1]} = {float(time[2]) / 2}", fast)
    (pytester.path / "hasty.toml").write_text(f"accuracy = 0.61\n{hasty}")
    pytester.makepyfile(CHECKED)
    result = pytester.runpytest("--gpu-class=sim:hasty.toml")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"FAIL: maths answers right [\d.]+% \([\d.]+-[\d.]+%\), needs 90%: fast enough, at least .*",
            r"accuracy +[\d.]+% .* of 480 answers right, at least 90\.0%",
            r"good +\d+.* right answers a second per replica",
            r"FAIL +maths .*",
        ]
    )
    found = only_result(pytester)
    accuracy, rate = found.accuracy, found.sustainable_rate
    assert accuracy is not None
    assert accuracy.share is not None
    assert accuracy.good_rps is not None
    assert accuracy.min_accuracy is not None
    assert rate is not None
    assert found.outcome is Outcome.FAIL
    assert found.gpus_required == 1, "capacity alone would have been enough"
    assert rate.low > tomllib.loads(fast)["true_rate_rps"], "it is faster than the build that is right"
    assert accuracy.share.low <= 0.61 <= accuracy.share.high < accuracy.min_accuracy
    assert accuracy.good_rps.value == pytest.approx(rate.value * accuracy.share.value, rel=1e-5)


def test_the_share_found_is_the_share_served(pytester: pytest.Pytester, serve: Serve) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(workload="deepseek-r1", questions="arithmetic")
        def test_it(gpucap):
            found = gpucap.accuracy()
            assert found.share.low <= 0.8 <= found.share.high
            assert found.share.high - found.share.low < 0.09
            assert found.answers == 480
            assert found.skipped == found.ungraded == found.cut == found.failed == 0
        """
    )
    pytester.runpytest(f"--gpucap-url={serve(0.8).base_url}").assert_outcomes(passed=1)


def test_nothing_is_asked_unless_a_test_asks_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        CHECKED.replace(', min_accuracy="90%"', "")
        + """
        import sys
        assert "pytest_gpucap.accuracy.measurement" not in sys.modules
        assert "pytest_gpucap.accuracy.chat_client" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("--gpu-class=sim:fast").assert_outcomes(passed=1)
    found = only_result(pytester)
    assert found.accuracy is None
    assert "answers" not in found.spent_s


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ('workload="raag"', "workload='raag': there is no such workload preset; did you mean rag?"),
        ('min_accuracy="90%"', 'min_accuracy needs questions whose answers are known: questions=FILE, or questions="a'),
        ('questions="none.jsonl"', "none.jsonl, and of ours only arithmetic"),
        ('questions="arithmetic", min_accuracy=90', "min_accuracy must lie between 0 and 1 (0% and 100%), not 90"),
        ('questions="arithmetic", endpoint="completions"', 'questions needs endpoint="chat"'),
        ('system="Be brief.", endpoint="completions"', 'system needs endpoint="chat"'),
        ("system=3", "system must be a text, not 3"),
        ('workload="mine"', "workload preset mine: gpucap has no keyword 'inputs_tokens'; did you mean input_tokens"),
    ],
)
def test_a_mistake_stops_the_run_before_anything_starts(pytester: pytest.Pytester, keywords: str, message: str) -> None:
    (pytester.path / "own.toml").write_text("[mine]\ninputs_tokens = 3\n")
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.gpucap(qps=1, {keywords})
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-workload-file=own.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_*.py:3: *{message.replace('[', '[[]')}*"])


def test_a_preset_comes_from_marker_option_or_ini_and_keywords_override_it(pytester: pytest.Pytester) -> None:
    (pytester.path / "own.toml").write_text('[desk]\nextends = "chat"\ninput_tokens = 300\ntop_p = 0.9\n')
    pytester.makeini("[pytest]\ngpucap_workload = desk\ngpucap_workload_file = own.toml\n")
    pytester.makepyfile(
        """
        import pytest

        def test_session_preset(gpucap):
            gpucap.sample(rate=1, duration="5s")

        @pytest.mark.gpucap(output_tokens=64)
        def test_overridden(gpucap):
            gpucap.sample(rate=1, duration="5s")

        @pytest.mark.gpucap(workload="code")
        def test_marker(gpucap):
            gpucap.sample(rate=1, duration="5s")
        """
    )
    found = []
    for options in ([], ["--gpucap-workload=chat"]):
        pytester.runpytest("--gpu-class=sim:fast", *options).assert_outcomes(passed=3)
        content = result_file.read(pytester.path / ".gpucap" / "result.json")
        found += [result.workload for result in content.results]
    assert [(each.preset, each.input_tokens, each.output_tokens) for each in found] == [
        ("desk", 300, 512),
        ("desk", 300, 64),
        ("code", "lognormal:mean=2048,cv=0.97,low=64,high=7437", "lognormal:mean=28,cv=1.91,low=2,high=1024"),
        ("chat", 256, 512),
        ("chat", 256, 64),
        ("code", "lognormal:mean=2048,cv=0.97,low=64,high=7437", "lognormal:mean=28,cv=1.91,low=2,high=1024"),
    ]
    assert found[0].sampling == {"top_p": 0.9}


def test_a_trace_is_read_before_anything_starts_and_describes_the_workload(pytester: pytest.Pytester) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = [f"2023-11-16 18:15:{second:02d}.6805900,{200 + second},{10 + second % 5}\n" for second in range(60)]
    trace = pytester.path / "azure.csv"
    trace.write_text(header + "".join(rows))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=2, gpus=1, trace="azure.csv", e2e_p95="4s")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=1)
    workload = only_result(pytester).workload
    assert (workload.arrivals, workload.trace) == ("trace", "azure.csv")
    assert workload.trace_sha256 == read_trace(trace).sha256()
    assert str(workload.input_tokens).startswith("lognormal:mean=229.5,cv=0.07")
    trace.write_text(header + rows[0] + rows[1].replace("2023", "when"))
    result = pytester.runpytest("--gpu-class=sim:fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *azure.csv:3: TIMESTAMP must be a date and time, not 'when-11-16*"])


@pytest.mark.vllm_cpu
def test_a_real_vllm_with_dummy_weights_answers_and_is_not_right(vllm_cpu_server: VllmServer) -> None:
    workload = Workload(questions=questions_file("arithmetic", Path()), answer_tokens=12, sampling={"temperature": 0.6})
    found = measure_accuracy(
        vllm_cpu_server,
        workload,
        min_accuracy=Fraction(9, 10),
        max_error_rate=Fraction(1, 100),
        seed=0,
        time_s=FOREVER_S,
    )
    assert found.problem == ""
    assert found.failed == 0
    assert found.answers == 480
    assert found.share is not None
    assert found.share.high < 0.1


def test_a_server_that_refuses_every_question_is_no_accuracy(serve: Serve) -> None:
    server = serve(1.0)
    workload = Workload(questions=questions_file("arithmetic", Path()), answer_tokens=10**9)
    found = measure_accuracy(
        server, workload, min_accuracy=None, max_error_rate=Fraction(1, 100), seed=0, time_s=FOREVER_S
    )
    assert found.share is None
    assert found.problem.startswith("480 of 480 questions got no answer: HTTP 400")


def test_a_long_file_is_asked_in_parts_and_time_that_runs_out_is_told(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    known = questions_file("arithmetic", Path()).read_text()
    path.write_text(known * 2)
    workload = Workload(questions=path)
    found = measure_accuracy(
        serve(1.0), workload, min_accuracy=None, max_error_rate=Fraction(1, 100), seed=0, time_s=FOREVER_S
    )
    assert (found.answers, found.questions, found.problem) == (500, 192, "")
    slow = start_simulator("fast", time_scale=20.0)
    with slow:
        found = measure_accuracy(slow, workload, min_accuracy=None, max_error_rate=Fraction(1, 100), seed=0, time_s=4.0)
    assert found.answers < 500
    assert f"of {ANSWER_ROUNDS} samples were answered within 4 s" in found.problem
