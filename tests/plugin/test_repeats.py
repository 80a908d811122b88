"""Whole runs of pytest with several starts of the server for one result."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result, ResultKind

SERVER = Path(__file__).with_name("fast_vllm.py")
PROFILE = Path(str(files("pytest_gpucap.simulator") / "profiles" / "fast.toml")).read_text()
SIM = "--gpu-class=sim:mine.toml"
SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

    @pytest.mark.gpucap(name="chat", qps=16, gpus=1)
    def test_chat(gpucap):
        verdict = gpucap.check()
        assert len(verdict.measurement.starts) == 3

    @pytest.mark.gpucap(name="too much", qps=100, gpus=2)
    def test_too_much(gpucap):
        gpucap.check()

    def test_rate(gpucap):
        assert gpucap.measure().sustainable_rate.low > 20
"""


def spreading(path: Path, scale: float = 1.0) -> None:
    """A profile whose starts differ: its drift is so slow that a start keeps the pace that it begins with."""
    text = PROFILE.replace("base_s = 0.00300", f"base_s = {0.003 * scale:.6f}")
    text = text.replace("per_seq_s = 0.0000340", f"per_seq_s = {0.000034 * scale:.9f}")
    path.write_text(text.replace("[engine]", "[engine]\ndrift_sd = 0.015\ndrift_tau_s = 100000.0"))


@pytest.fixture
def suite(pytester: pytest.Pytester, few_cycles: None) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    spreading(pytester.path / "mine.toml")
    return pytester


def results(pytester: pytest.Pytester) -> tuple[Result, ...]:
    return result_file.read(pytester.path / ".gpucap" / "result.json").results


def test_there_is_one_result_from_all_starts_in_every_report(suite: pytest.Pytester) -> None:
    run = suite.runpytest(
        SIM, "--gpucap-repeat=3", "--gpucap-markdown=r.md", "--gpucap-html=r.html", "--junit-xml=out.xml"
    )
    run.assert_outcomes(passed=2, failed=1)
    run.stdout.fnmatch_lines(
        [
            "one replica sustains * req/s over 3 starts (95% interval *",
            "GPUs needed  [45] *",
            "starts       * req/s FAIL, * req/s FAIL, * req/s FAIL; *",
            "*windows, telemetry and bottleneck are those of start [123]",
        ]
    )
    chat, too_much, rate = results(suite)
    assert [each.outcome for each in (chat, too_much, rate)] == [Outcome.PASS, Outcome.FAIL, None]
    for each in (chat, too_much, rate):
        assert len(each.starts) == 3
        assert sum(start.detailed for start in each.starts) == 1
        assert len({start.seed for start in each.starts}) == 3
        assert each.total_spent_s == pytest.approx(sum(start.spent_s for start in each.starts), rel=1e-3)
        assert sum(sample.end_s - sample.start_s for sample in each.samples) < each.total_spent_s / 2
    assert too_much.start_spread is not None
    own = [start.sustainable_rate for start in too_much.starts]
    found = too_much.sustainable_rate
    assert found is not None
    assert min(each.value for each in own if each) < found.value < max(each.value for each in own if each)
    assert found.high - found.low > min(each.high - each.low for each in own if each)
    assert "| starts |" in (suite.path / "r.md").read_text()
    assert "3 starts of the server" in (suite.path / "r.html").read_text()
    cases = {case.get("name"): case for case in ET.parse(suite.path / "out.xml").iter("testcase")}
    told = {entry.get("name"): entry.get("value") for entry in cases["test_too_much"].iter("property")}
    assert str(told["gpucap_starts"]).count("FAIL") == 3
    assert float(str(told["gpucap_start_spread"])) == pytest.approx(too_much.start_spread)


def test_an_ini_key_sets_it_and_one_start_is_as_without(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\ngpucap_repeat = 2\n")
    suite.runpytest(SIM, "-k", "rate").assert_outcomes(passed=1)
    assert len(results(suite)[0].starts) == 2
    suite.runpytest(SIM, "-k", "rate", "--gpucap-repeat=1").assert_outcomes(passed=1)
    assert results(suite)[0].starts == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("--gpucap-url=http://127.0.0.1:9", "--gpucap-repeat=3"),
            "ERROR: --gpucap-repeat=3: a server behind --gpucap-url cannot be started afresh: give --gpucap-repeat=1,*",
        ),
        ((SIM, "--gpucap-repeat=0"), "ERROR: --gpucap-repeat: repeat must be a whole number of at least 1, not '0'"),
        ((SIM, "--gpucap-repeat=21"), "ERROR: --gpucap-repeat: repeat must be a whole number from 1 to 20, not '21'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(suite: pytest.Pytester, arguments: tuple[str, ...], told: str) -> None:
    run = suite.runpytest(*arguments)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([told])
    assert len([line for line in run.errlines if line.strip()]) == 1


def test_an_engine_that_cannot_restart_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_gpucap.engines.protocol import Engine

        class Fixed(Engine):
            name = "fixed"
            restarts = False

            def start(self, devices, on_wait):
                raise AssertionError

        def pytest_gpucap_engines():
            return [Fixed]
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.engine("fixed", model="m")
        @pytest.mark.gpucap(qps=1, gpus=1, e2e_p95="4s")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    run = pytester.runpytest("--gpu-class=cpu", "--gpucap-repeat=2")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(
        ["*--gpucap-repeat=2: engine fixed cannot start its server afresh: give --gpucap-repeat=1"]
    )


def test_saved_and_compared(suite: pytest.Pytester) -> None:
    suite.runpytest(SIM, "-k", "rate", "--gpucap-repeat=3", "--gpucap-save=main").assert_outcomes(passed=1)
    (saved,) = result_file.read(suite.path / "gpucap-baselines" / "main.json").results
    assert len(saved.starts) == 3
    suite.runpytest(SIM, "-k", "rate", "--gpucap-repeat=3", "--gpucap-compare=main").assert_outcomes(passed=1)
    spreading(suite.path / "mine.toml", 1.25)
    suite.makepyfile(test_suite=SUITE.replace("low > 20", "low > 2"))
    run = suite.runpytest(SIM, "-k", "rate", "--gpucap-repeat=3", "--gpucap-compare=main")
    run.assert_outcomes(failed=1)
    (found,) = results(suite)
    assert found.comparison is not None
    assert found.comparison.decision is RegressionDecision.REGRESSED
    assert found.comparison.confirmed is True
    assert len(found.starts) == 3
    confirmation_s = found.spent_s["confirmation"]
    assert confirmation_s > 0.8 * sum(start.spent_s for start in found.starts)  # three starts more


def test_a_check_far_from_its_budget_is_measured_on_all_starts(suite: pytest.Pytester) -> None:
    suite.runpytest(SIM, "-k", "chat", "--gpucap-repeat=3", "--gpucap-save=main").assert_outcomes(passed=1)
    assert {(each.kind, len(each.starts)) for each in results(suite)} >= {(ResultKind.CHECK, 3)}
    assert all(len(each.starts) == 3 for each in results(suite))


INTERRUPTED = """
    from pytest_gpucap.session.gpucap import GpuCap

    once = GpuCap._checked_once

    def checked(self, requirement, start, **asks):
        if start == 2:
            raise {error}
        return once(self, requirement, start, **asks)

    GpuCap._checked_once = checked
"""


def test_an_interrupt_keeps_what_the_starts_before_showed(suite: pytest.Pytester) -> None:
    suite.makeconftest(INTERRUPTED.format(error="KeyboardInterrupt"))
    run = suite.runpytest_inprocess(SIM, "-k", "chat", "--gpucap-repeat=3", no_reraise_ctrlc=True)
    assert run.ret == pytest.ExitCode.INTERRUPTED
    (found,) = results(suite)
    assert (found.outcome, found.ending) == (Outcome.INCONCLUSIVE, Ending.UNFINISHED)
    assert len(found.starts) == 2
    assert "2 of 3 starts were measured" in found.reason


def test_an_error_in_a_start_is_named_and_leaves_no_verdict(suite: pytest.Pytester) -> None:
    suite.makeconftest(INTERRUPTED.format(error="MemoryError('no room')"))
    run = suite.runpytest(SIM, "-k", "chat", "--gpucap-repeat=3")
    run.assert_outcomes(failed=1)
    (found,) = results(suite)
    assert found.outcome is Outcome.INVALID
    assert found.reason.startswith("start 3 of 3: ")
    assert "no room" in found.problems[0].text
    assert found.sustainable_rate is None
    assert len(found.starts) == 2


STARTS = """
    import pytest

    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
    @pytest.mark.gpucap(qps=2, gpus=1, input_tokens=32, output_tokens=32, endpoint="completions", e2e_p95="1500ms")
    def test_chat(gpucap):
        gpucap.measure()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("lateness_forgiven")
@pytest.mark.parametrize("fails", [False, True], ids=["both start", "the second does not start"])
def test_each_start_is_a_server_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    for name in ("WARM_UP_S", "SEARCH_HOLD_S", "HOLD_S", "OPEN_S"):
        monkeypatch.setattr(constants, name, 2.0)
    monkeypatch.setattr(constants, "SEARCH_MOVES", 2)
    monkeypatch.setattr(constants, "MEASURE_CYCLES", 1)
    monkeypatch.setattr(constants, "LEAST_PHASE_S", 1.0)
    profile = pytester.path / "steady.toml"
    engine = "base_s = 0.02\nper_seq_s = 0.002\nper_prompt_token_s = 0.00001\nwarm_extra = 0.0"
    profile.write_text(f"[engine]\n{engine}\n[workload]\ninput_tokens = 32\noutput_tokens = 32\n")
    monkeypatch.setenv("FAST_VLLM_PROFILE", str(profile))
    python = pytester.path / "python"
    count = "echo start >> starts; test $(wc -l < starts) -lt 2 || { echo 'out of luck' >&2; exit 3; }"
    server = f'exec {sys.executable} {SERVER} "$@"'
    told = "echo 'Model loading took 0.10 GiB memory and 0.010000 seconds'"
    python.write_text(f"#!/bin/sh\ncd {pytester.path}\n{told}\n{count if fails else ''}\n{server}\n")
    python.chmod(0o755)
    pytester.makepyfile(test_suite=STARTS)
    run = pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={python}", "--gpucap-repeat=2")
    logs = list(pytester.path.glob(".gpucap/logs/*.log"))
    assert len(logs) == 2
    (found,) = results(pytester)
    if fails:
        run.assert_outcomes(failed=1)
        assert found.problems[0].text.startswith("start 2 of 2: ")
        assert found.sustainable_rate is None
    else:
        run.assert_outcomes(passed=1)
        assert len(found.starts) == 2
        assert found.spent_s["start-up"] > 0
        assert found.start_phases_s == {"weights": pytest.approx(0.02)}  # of both
    ours = psutil.Process(os.getpid()).children(recursive=True)
    assert not [process for process in ours if str(SERVER) in " ".join(process.cmdline())]
