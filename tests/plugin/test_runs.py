"""Whole runs of pytest with the plugin, against a simulated server: what a user sees, and what is left behind."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.simulator.serve import SimulatedServer

SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

    @pytest.mark.gpucap(name="fits", qps=10, gpus=1)
    def test_fits(gpucap):
        verdict = gpucap.check()
        assert verdict.outcome == "PASS"
        assert verdict.gpus_required == 1
        assert verdict.slack.low > 0

    @pytest.mark.gpucap(name="does not fit", qps=100, gpus=2)
    def test_does_not_fit(gpucap):
        gpucap.check()
"""


def test_a_budget_that_holds_passes_and_one_that_does_not_fails_with_the_arithmetic(suite: pytest.Pytester) -> None:
    result = suite.runpytest("--gpu-class=sim:fast")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "FAIL: does not fit needs [5-7] GPUs, budget 2: 100 req/s x 1.3 / * req/s = *",
            "SIMULATED: no GPU and no server was measured",
            "*= GPU capacity =*",
            "FAIL * does not fit *",
            "PASS * fits *",
            "SIMULATED*",
            "result file: *result.json",
        ]
    )
    # Where CI is set pytest repeats the whole text in its short summary, uncut; ours fits a terminal.
    start = next(number for number, line in enumerate(result.outlines) if line.startswith("FAIL: does not fit"))
    assert max(map(len, result.outlines[start : result.outlines.index("", start)])) <= 100


def test_no_server_starts_where_load_runs_in_virtual_time(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process takes longer to start than many a check takes."""
    started: list[SimulatedServer] = []

    def noted(server: SimulatedServer) -> str:
        started.append(server)
        return "http://127.0.0.1:9/v1"

    monkeypatch.setattr(SimulatedServer, "_start", noted)
    pytester.makepyfile(SAMPLED)
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=1)
    assert len(result_file.read(pytester.path / ".gpucap" / "result.json").results[0].samples) > 0
    assert started == []


def test_the_result_file_holds_every_measurement(suite: pytest.Pytester) -> None:
    suite.runpytest("--gpu-class=sim:fast", "--gpucap-json=out/mine.json")
    path = suite.path / "out" / "mine.json"
    assert path.read_bytes() == (suite.path / ".gpucap" / "result.json").read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.json"]
    content = result_file.read(path)
    assert [(each.name, each.outcome) for each in content.results] == [
        ("fits", Outcome.PASS),
        ("does not fit", Outcome.FAIL),
    ]
    assert content.simulated is True
    for each in content.results:
        rate = each.sustainable_rate
        assert rate is not None
        assert rate.low < rate.value < rate.high
        assert len(each.samples) >= 5


def test_junit_leads_with_the_verdict(suite: pytest.Pytester) -> None:
    suite.runpytest("--gpu-class=sim:fast", "--junit-xml=out.xml")
    cases = {case.get("name"): case for case in ET.parse(suite.path / "out.xml").iter("testcase")}
    properties = {entry.get("name"): entry.get("value") for entry in cases["test_does_not_fit"].iter("property")}
    assert properties["gpucap_verdict"] == "FAIL"
    failure = cases["test_does_not_fit"].find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("Failed: FAIL: does not fit needs")


def test_the_same_seed_gives_the_same_result(suite: pytest.Pytester) -> None:
    def rates(name: str) -> list[object]:
        suite.runpytest("--gpu-class=sim:fast", f"--gpucap-json={name}", "--gpucap-seed=5")
        return [each.sustainable_rate for each in result_file.read(suite.path / name).results]

    assert rates("one.json") == rates("two.json")


@pytest.mark.usefixtures("few_cycles")
def test_measure_sweep_and_sample(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

        def test_figures(gpucap):
            found = gpucap.measure()
            assert found.sustainable_rate.low < found.sustainable_rate.value < found.sustainable_rate.high
            curve = gpucap.sweep()
            assert len(curve.points) >= 5
            assert curve.sustainable_rate.low > 2.5
            window = gpucap.sample(rate=5, duration="20s")
            assert window.offered_rps == pytest.approx(5, rel=0.5)
            held = gpucap.sample(concurrency=4, duration="20s")
            assert held.concurrency == 4

        def test_mistakes(gpucap):
            with pytest.raises(ValueError, match="either rate= or concurrency="):
                gpucap.sample()
            with pytest.raises(ValueError, match="rate must be above 0"):
                gpucap.sample(rate=-1)
            with pytest.raises(pytest.fail.Exception, match="check\\\\(\\\\) needs a rate"):
                gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    result.assert_outcomes(passed=2)
    kinds = [each.kind for each in result_file.read(pytester.path / ".gpucap" / "result.json").results]
    assert kinds == ["measure", "sweep", "sample", "sample"]


SAMPLED = """
    import pytest

    @pytest.mark.gpucap(input_tokens=256, output_tokens=64)
    def test_it(gpucap):
        gpucap.sample(rate=5, duration="10s")
"""

UNDECIDED = """
    import pytest

    @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s", max_time="2s")
    def test_it(gpucap):
        gpucap.check()
"""


@pytest.mark.parametrize(("setting", "outcome"), [("fail", "failed"), ("skip", "skipped"), ("pass", "passed")])
def test_an_undecided_verdict_does_what_the_option_says(pytester: pytest.Pytester, setting: str, outcome: str) -> None:
    pytester.makepyfile(UNDECIDED)
    result = pytester.runpytest("--gpu-class=sim:fast", f"--gpucap-inconclusive={setting}")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["INCONCLUSIVE *"])


def test_live_lines_are_plain_where_there_is_no_terminal(suite: pytest.Pytester) -> None:
    shown = suite.runpytest("--gpu-class=sim:fast", "-s").stdout.str()
    assert "does not fit: " in shown
    assert "\r" not in shown


def test_without_the_plugin_nothing_of_it_is_left(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): ...")
    result = pytester.runpytest_subprocess("-p", "no:gpucap", "--markers")
    assert "gpucap" not in result.stdout.str()
    assert pytester.runpytest_subprocess("-p", "no:gpucap", "--gpu-class=cpu").ret == pytest.ExitCode.USAGE_ERROR
    pytester.runpytest_subprocess("-p", "no:gpucap").assert_outcomes(passed=1)


@pytest.mark.parametrize("arguments", [("-p", "no:benchmark"), ("-p", "no:xdist"), ("-p", "no:cacheprovider")])
def test_other_plugins_may_be_off(suite: pytest.Pytester, arguments: Sequence[str]) -> None:
    suite.runpytest_subprocess("--gpu-class=sim:fast", *arguments).assert_outcomes(passed=1, failed=1)


def test_xdist_workers_report_to_one_file_and_one_table(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = suite.runpytest_subprocess("--gpu-class=sim:fast", "-n2")
    result.assert_outcomes(passed=1, failed=1)
    results = result_file.read(suite.path / ".gpucap" / "result.json").results
    assert {each.name for each in results} == {"fits", "does not fit"}
    result.stdout.fnmatch_lines(["*= GPU capacity =*", "FAIL * does not fit *", "PASS * fits *"])


def test_a_mistake_under_xdist_stops_the_run_and_names_itself(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=-1)
        def test_it(gpucap): ...
        """
    )
    result = pytester.runpytest_subprocess("--gpu-class=sim:fast", "-n1")
    assert result.ret != 0
    assert "qps must be above 0, not -1" in result.stdout.str() + result.stderr.str()


def test_results_survive_a_crash_in_the_next_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        SUITE.replace(
            "def test_does_not_fit(gpucap):\n        gpucap.check()",
            "def test_dies(gpucap):\n        import os\n        os._exit(3)",
        )
    )
    assert pytester.runpytest_subprocess("--gpu-class=sim:fast").ret == 3
    results = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert [each.name for each in results] == ["fits"]


def test_what_could_not_be_measured_is_no_expected_failure(pytester: pytest.Pytester) -> None:
    """Unless the test names such an error itself: else a kept failure would hide that the server never started."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_gpucap.engines.errors import ServerError

        pytestmark = [pytest.mark.vllm(model="synthetic:tiny"), pytest.mark.gpucap(qps=300, gpus=1)]

        @pytest.mark.xfail(reason="too much for one GPU", strict=True)
        def test_budget(gpucap):
            gpucap.check()

        @pytest.mark.xfail(reason="too much for one GPU", strict=True)
        def test_fixture(vllm_server):
            pass

        @pytest.mark.xfail(raises=ServerError, strict=True)
        def test_named(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={sys.executable}")
    result.assert_outcomes(failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines(["the vLLM server did not start: the interpreter has no vLLM*"])
