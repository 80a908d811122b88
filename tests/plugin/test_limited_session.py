"""``--gpucap-max-total`` and ``gpucap(priority=)``: whole sessions whose server time is limited, in virtual time."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.report.headline import verdict_word
from pytest_gpucap.results import result_file
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.session import costing, session_time

SERVER = Path(__file__).with_name("fast_vllm.py")
SIM = "--gpu-class=sim:fast"
WINDOWS = """
    import pytest

    def window(gpucap):
        gpucap.sample(rate=20, duration="2s")  # with its lead-in 15 s

    @pytest.mark.gpucap(qps=1, gpus=1, name="one")
    def test_one(gpucap):
        window(gpucap)

    @pytest.mark.gpucap(qps=1, gpus=1, name="two")
    def test_two(gpucap):
        window(gpucap)

    @pytest.mark.vllm("m", max_num_seqs=64)
    @pytest.mark.gpucap(name="other")
    def test_other(gpucap):
        window(gpucap)

    def test_plain(): ...
"""
CHECK = """
    import pytest

    @pytest.mark.gpucap(qps=16, gpus=1, name="chat", input_tokens=256, output_tokens=512, e2e_p95="4s", priority={})
    def test_chat(gpucap):
        gpucap.check()
"""


def content(pytester: pytest.Pytester) -> ResultFile:
    return result_file.read(pytester.path / ".gpucap" / "result.json")


def by_name(pytester: pytest.Pytester) -> dict[str, Result]:
    return {result.name: result for result in content(pytester).results}


def test_what_does_not_fit_is_an_error_and_every_report_says_what_it_needs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=WINDOWS)
    reports = ("--gpucap-markdown=r.md", "--gpucap-html=r.html", "--junit-xml=r.xml")
    run = pytester.runpytest(SIM, "--gpucap-max-total=80s", *reports)
    run.assert_outcomes(passed=2, errors=2)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            "two was not measured: --gpucap-max-total=80s leaves 65 s of server time",
            "NOT MEASURED  two *",
            "- NOT MEASURED: other was not measured: --gpucap-max-total=80s leaves 65 s of*",
            "*it needs about 137 s, starts included",
            "ERROR test_it.py::test_two - *NotMeasured: two was not *",
        ]
    )
    found = by_name(pytester)
    assert [found[name].ending for name in ("one", "two", "other")] == [Ending.PASSED, Ending.ERROR, Ending.ERROR]
    two, other = found["two"], found["other"]
    assert (two.kind, two.outcome, other.kind, other.outcome) == (
        ResultKind.CHECK,
        Outcome.INVALID,
        ResultKind.MEASURE,
        None,
    )
    for each, needs_s in ((two, 68.0), (other, 137.0)):
        assert each.left_unmeasured
        assert each.simulated
        assert not each.trusted
        assert [problem.kind for problem in each.problems] == [ProblemKind.NO_TIME]
        assert each.more_time is not None
        assert each.more_time.seconds == needs_s
        assert verdict_word(each) == "NOT MEASURED"
    page = (pytester.path / "r.md").read_text()
    assert "❔ **two was not measured**: --gpucap-max-total=80s leaves 65 s of server time; it needs about 68 s" in page
    assert "| ❔ NOT MEASURED | other |" in page
    assert "NOT MEASURED" in (pytester.path / "r.html").read_text()
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "r.xml").iter("testcase")}
    told = {entry.get("name"): entry.get("value") for entry in cases["test_two"].iter("property")}
    assert (told["gpucap_verdict"], told["gpucap_needs_s"]) == ("NOT MEASURED", "68.0")
    assert cases["test_two"].find("error") is not None


@pytest.mark.parametrize("word", ["skip", "pass"])
def test_it_may_be_skipped_and_is_never_passed(pytester: pytest.Pytester, word: str) -> None:
    pytester.makepyfile(test_it=WINDOWS)
    allowed = (SIM, "--gpucap-max-total=1m", f"--gpucap-inconclusive={word}")
    run = pytester.runpytest(*allowed, "--gpucap-markdown=r.md", "-rs", "-k", "one or two or plain")
    run.assert_outcomes(passed=1, skipped=2, deselected=1)
    run.stdout.fnmatch_lines(["SKIPPED *: one was not measured: --gpucap-max-total=1m leaves 60 s of server time"])
    assert [result.ending for result in content(pytester).results] == [Ending.SKIPPED, Ending.SKIPPED]
    one, two = content(pytester).problems
    assert one == "test_it.py::test_one: one was not measured: --gpucap-max-total=1m leaves 60 s of server time"
    assert two.startswith("test_it.py::test_two: ")
    page = (pytester.path / "r.md").read_text()
    assert page.startswith("⚠️ **Not all was measured**: ")
    assert "PASS" not in page
    pytester.runpytest(*allowed, "--gpucap-require", "-k", "one").assert_outcomes(errors=1, deselected=3)


def test_a_priority_orders_servers_and_their_tests_and_keeps_a_servers_tests_together(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        small, large = pytest.mark.vllm("m", max_num_seqs=8), pytest.mark.vllm("m", max_num_seqs=64)

        @small
        def test_a(gpucap): ...
        @large
        def test_b(gpucap): ...
        @small
        @pytest.mark.gpucap(priority=-1)
        def test_c(gpucap): ...
        @large
        @pytest.mark.gpucap(priority=2)
        def test_d(gpucap): ...
        @small
        def test_e(gpucap): ...
        def test_plain(): ...
        @large
        @pytest.mark.gpucap(priority="1")
        def test_f(gpucap): ...
        """
    )
    run = pytester.runpytest(SIM, "--collect-only", "-q")
    order = [line.rpartition("_")[2] for line in run.outlines if "::" in line]
    assert order == ["d", "f", "b", "a", "e", "c", "plain"]


@pytest.mark.parametrize(
    ("given", "told"),
    [("1.5", "priority must be a whole number, not 1.5"), ("'high'", "priority must be a number, not 'high'")],
)
def test_a_wrong_priority_is_one_line(pytester: pytest.Pytester, given: str, told: str) -> None:
    pytester.makepyfile(test_it=CHECK.format(given))
    run = pytester.runpytest(SIM)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: test_it.py:*: {told}"])


def test_time_is_kept_for_a_more_important_test_on_a_later_server(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        def window(gpucap):
            gpucap.sample(rate=20, duration="2s")

        @pytest.mark.gpucap(qps=1, gpus=1, priority=5)
        def test_first(gpucap): window(gpucap)
        @pytest.mark.gpucap(qps=1, gpus=1)
        def test_least(gpucap): window(gpucap)
        @pytest.mark.vllm("m", max_num_seqs=64)
        @pytest.mark.gpucap(qps=1, gpus=1, priority=1)
        def test_later(gpucap): window(gpucap)
        """
    )
    # 68 s each are taken to be needed, and 14.5 s are.
    run = pytester.runpytest(SIM, "--gpucap-max-total=100s", "--gpucap-inconclusive=skip", "-v")
    run.assert_outcomes(passed=2, skipped=1)
    assert [result.name for result in content(pytester).results if not result.left_unmeasured] == [
        "test_first",
        "test_later",
    ]
    # Now it is known that they take less.
    pytester.runpytest(SIM, "--gpucap-max-total=100s").assert_outcomes(passed=3)


def test_a_measurement_ends_with_the_sessions_time(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=CHECK.format(0))
    pytester.runpytest(SIM, "--gpucap-max-time=20s", "--gpucap-inconclusive=skip").assert_outcomes(skipped=1)
    known = by_name(pytester)["chat"]
    assert known.outcome is Outcome.INCONCLUSIVE
    assert known.reason.startswith("the GPU-time limit of 20 s ended before the evidence separated")
    # By that result it needs 20 s, so it begins, and may take what the session has.
    run = pytester.runpytest(SIM, "--gpucap-max-total=21s")
    run.assert_outcomes(failed=1)
    cut = by_name(pytester)["chat"]
    assert cut.outcome is Outcome.INCONCLUSIVE
    assert not cut.left_unmeasured
    assert cut.reason.startswith("what --gpucap-max-total left (21 s) ended before the evidence separated")
    assert cut.more_time is not None
    assert cut.more_time.text.partition(": ")[2].startswith("allow the session so much more")
    assert 16.0 < cut.total_spent_s <= 21.5


def test_the_time_ends_within_a_test_that_measures_again_and_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        from pytest_gpucap import NotMeasured

        @pytest.mark.gpucap(qps=1, gpus=1)
        def test_it(gpucap):
            for _ in range(20):
                gpucap.sample(rate=20, duration="10s")
        """
    )
    run = pytester.runpytest(SIM, "--gpucap-max-total=80s")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["test_it was not measured: --gpucap-max-total=80s leaves * of server time"])
    *measured, last = content(pytester).results
    assert [each.kind for each in measured] == [ResultKind.SAMPLE] * len(measured)
    assert 70.0 < sum(each.total_spent_s for each in measured) <= 81.0
    assert (last.left_unmeasured, last.ending) == (True, Ending.FAILED)


def test_repeats_are_broken_off_where_the_time_ends(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=CHECK.format(0))
    pytester.runpytest(SIM, "--gpucap-max-time=20s", "--gpucap-inconclusive=skip").assert_outcomes(skipped=1)
    # By that result three starts need 60 s. In fact the first alone takes 35 s.
    run = pytester.runpytest(SIM, "--gpucap-repeat=3", "--gpucap-max-total=61s")
    run.assert_outcomes(failed=1)
    found = by_name(pytester)["chat"]
    assert len(found.starts) == 2
    assert (found.left_unmeasured, found.sustainable_rate) == (True, None)
    assert found.reason.startswith("start 3 of 3: --gpucap-max-total=61s leaves ")
    assert 50.0 < found.total_spent_s <= 61.5


def test_an_expected_failure_does_not_hide_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=WINDOWS.replace("def test_one", "def test_plainer"))
    source = (
        (pytester.path / "test_it.py").read_text().replace("@pytest.mark.vllm", "@pytest.mark.xfail\n@pytest.mark.vllm")
    )
    (pytester.path / "test_it.py").write_text(source)
    run = pytester.runpytest(SIM, "--gpucap-max-total=30s", "-k", "other")
    run.assert_outcomes(errors=1, deselected=3)


def test_a_server_without_a_measurement_is_not_started_either(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_gpucap.engines.protocol import Engine

        class Slow(Engine):
            name = "slow"
            leases_devices = False

            def start(self, devices, on_wait):
                raise AssertionError("started")

        def pytest_gpucap_engines():
            return [Slow]
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.engine("slow", model="m")
        def test_it(vllm_server): ...
        """
    )
    run = pytester.runpytest("--gpucap-max-total=1m")
    run.assert_outcomes(errors=1)
    line = "test_it was not measured: --gpucap-max-total=1m leaves 60 s of server time"
    run.stdout.fnmatch_lines([line, "nothing was measured", "test_*::test_it: test_it*"])


def test_a_start_ends_with_the_sessions_time(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "START_UP_S", 0.01)
    monkeypatch.setattr(session_time, "LEAST_S", 0.01)
    pytester.makeconftest(
        """
        from pytest_gpucap.engines.protocol import Engine

        class Slow(Engine):
            name = "slow"
            leases_devices = False

            def start(self, devices, on_wait):
                while True:
                    on_wait("loading")

        def pytest_gpucap_engines():
            return [Slow]
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.engine("slow", model="m")
        def test_it(vllm_server): ...
        """
    )
    run = pytester.runpytest("--gpucap-max-total=50ms")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["the server was not ready in time: --gpucap-max-total=0.05s leaves 0 ms of server time"])


def test_the_time_of_a_real_server_counts_from_its_start(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, lateness_forgiven: None
) -> None:
    monkeypatch.setattr(costing, "START_UP_S", 1.0)
    monkeypatch.setattr(costing, "CHECK_S", 1.0)
    monkeypatch.setattr(constants, "WARM_UP_S", 1.0)
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\ncd {pytester.path}\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny")
        @pytest.mark.gpucap(qps=1, gpus=1, output_tokens=8)
        def test_it(gpucap):
            for _ in range(20):
                gpucap.sample(rate=5, duration="2s")
        """
    )
    run = pytester.runpytest(
        "--gpu-class=cpu", f"--gpucap-vllm-python={python}", "--gpucap-max-total=10s", "--gpucap-host-check=off"
    )
    run.assert_outcomes(failed=1)
    *measured, last = content(pytester).results
    # On a busy machine the start alone may take it all.
    assert (len(measured) < 4, last.left_unmeasured, last.ending) == (True, True, Ending.FAILED)
    assert not last.simulated
    ours = psutil.Process(os.getpid()).children(recursive=True)
    assert not [process for process in ours if str(SERVER) in " ".join(process.cmdline())]


def test_the_estimate_says_what_will_not_fit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=WINDOWS)
    run = pytester.runpytest(SIM, "--collect-only", "--gpucap-estimate", "--gpucap-max-total=150s")
    run.stdout.fnmatch_lines(
        [
            "  68 s[*] test_it.py::test_two",
            "  137 s[*] test_it.py::test_other (does NOT fit)",
            "--gpucap-max-total allows 2.5 minutes: 1 test will NOT be measured",
        ]
    )


def test_the_commands_read_such_results(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    from pytest_gpucap.__main__ import main

    pytester.makepyfile(test_it=WINDOWS)
    pytester.runpytest(SIM, "--gpucap-max-total=80s", "-k", "one or two")
    file = str(pytester.path / ".gpucap" / "result.json")
    for words, told in (
        (["show", file], "NOT MEASURED: two (test_it.py::test_two)"),
        (["show", file, "--format", "markdown"], "| ❔ NOT MEASURED | two |"),
        (["report", file], "NOT MEASURED  two"),
        (["report", file, "--junit", "-"], 'type="gpucap.NOT_MEASURED"'),
        (["report", file, "--code-quality", "-"], "GPU capacity NOT MEASURED: two"),
        (["compare", file, file], "two"),
    ):
        capsys.readouterr()
        assert main(words) == 0
        assert told in capsys.readouterr().out
