"""Whole runs with limits beside the rate, against a simulated server in virtual time that has a figure for each."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome, SecondaryResult
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.secondary import METRICS, SecondaryName

KEPT = (
    'startup="60s", kv_tokens=100_000, joules_per_1k_tokens=150, usd_per_1m_tokens=1, acceptance=0.3, '
    "prefix_hit_rate=0.4, preemptions=0"
)
BROKEN = (
    'startup="30s", kv_tokens=10_000_000, joules_per_1k_tokens=20, usd_per_1m_tokens=1e-6, acceptance=0.5, '
    "prefix_hit_rate=0.6, preemptions=0"
)
SUITE = f"""
    import pytest

    pytestmark = pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=256, e2e_p95="4s")

    @pytest.mark.gpucap(name="kept", {KEPT})
    def test_kept(gpucap):
        verdict = gpucap.check()
        assert [each.outcome for each in verdict.secondary] == ["PASS"] * 7

    @pytest.mark.gpucap(name="broken", {BROKEN})
    def test_broken(gpucap):
        gpucap.check()

    @pytest.mark.gpucap(name="measured", startup="30s", usd_per_1m_tokens=1)
    def test_measured(gpucap):
        gpucap.measure()

    @pytest.mark.gpucap(name="swept", startup="30s")
    def test_swept(gpucap):
        gpucap.sample(rate=5, duration="5s")
"""


def rich(folder: Path) -> None:
    """A profile with everything that a limit needs, and the price of its GPU."""
    fast = (Path(str(files("pytest_gpucap.simulator"))) / "profiles" / "fast.toml").read_text()
    traits = "idle_w = 100\nbusy_w = 400\nspec_tokens = 3\nspec_accept = 0.6\nprefix_share = 0.5\nkv_tokens = 200000\n"
    (folder / "rich.toml").write_text("startup_s = 45\n" + fast.replace("[engine]\n", f"[engine]\n{traits}"))
    (folder / "prices.toml").write_text('currency = "USD"\n[per_hour]\n"sim:rich" = 2.5\n')


def by_name(result: Result) -> dict[SecondaryName, SecondaryResult]:
    return {each.name: each for each in result.secondary}


def value(result: SecondaryResult) -> float:
    assert result.measured is not None
    return result.measured.value


def test_limits_are_kept_broken_and_told_in_every_report(suite: pytest.Pytester) -> None:
    rich(suite.path)
    ran = suite.runpytest(
        "--gpu-class=sim:rich.toml",
        "--gpucap-prices=prices.toml",
        "--gpucap-markdown=report.md",
        "--gpucap-html=report.html",
        "--junitxml=junit.xml",
    )
    ran.assert_outcomes(passed=2, failed=2)
    kept, broken, measured, swept = result_file.read(suite.path / ".gpucap" / "result.json").results
    assert kept.outcome is Outcome.PASS
    figures = {name: value(each) for name, each in by_name(kept).items()}
    assert list(figures) == list(METRICS)
    assert figures[SecondaryName.STARTUP] == kept.environment.startup_s == 45
    assert figures[SecondaryName.KV_TOKENS] == 200_000
    # Of three drafts 0.6 + 0.36 + 0.216 are accepted; a request's last step makes what is left.
    assert figures[SecondaryName.ACCEPTANCE] == pytest.approx(1.176 / 3, abs=0.01)
    assert figures[SecondaryName.PREFIX_HIT_RATE] == pytest.approx(0.5)
    assert figures[SecondaryName.PREEMPTIONS] == 0
    # At 13 req/s of 256 tokens the device takes between 100 and 500 W.
    assert 100 / 3.328 < figures[SecondaryName.JOULES_PER_1K_TOKENS] < 500 / 3.328
    steady = [each for each in kept.samples if each.window.phase is Phase.STEADY]
    assert sum(each.end_s - each.start_s for each in steady) == pytest.approx(48)
    # The goodput of a server that is far from its limits; the steady window counts.
    assert steady[0].goodput == 1.0

    assert broken.outcome is Outcome.FAIL
    outcomes = {name: each.outcome for name, each in by_name(broken).items()}
    assert outcomes.pop(SecondaryName.PREEMPTIONS) is Outcome.PASS
    # Only a bound of the rate was shown, so more may be sustained, for less.
    assert outcomes.pop(SecondaryName.USD_PER_1M_TOKENS) is Outcome.INCONCLUSIVE
    assert set(outcomes.values()) == {Outcome.FAIL}
    assert broken.gpus_required == kept.gpus_required == 1
    assert [each.name for each in broken.secondary if each.decided] == [SecondaryName.STARTUP]
    ran.stdout.fnmatch_lines(
        [
            "FAIL: broken: start-up 45 s, at most 30 s allowed: fast enough, at least * req/s per replica, *",
            "KV cache *200,000 tokens, at least 10,000,000 required: FAIL; 391*",
            "FAIL: measured: start-up 45 s, at most 30 s allowed",
        ]
    )
    # A measurement has no verdict: its test fails, and the rate is known well enough for the cost.
    assert (measured.outcome, measured.ending) == (None, "failed")
    assert by_name(measured)[SecondaryName.USD_PER_1M_TOKENS].outcome is Outcome.PASS
    assert not [each for each in measured.samples if each.window.phase is Phase.STEADY]
    assert swept.environment.remarks == ("sample() does not judge startup: check() and measure() do",)

    page = (suite.path / "report.md").read_text()
    assert "❌ **broken: start-up 45 s, at most 30 s allowed**" in page
    assert "| prefix hit rate | 50%, at least 60% required: FAIL" in page
    assert "| goodput | 100.0% of " in page
    assert "Limits beside the rate" in (suite.path / "report.html").read_text()
    cases = ET.parse(suite.path / "junit.xml").iter("testcase")
    pairs = {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")} for case in cases
    }
    assert pairs["test_broken"]["gpucap_startup"] == "45.0"
    assert pairs["test_broken"]["gpucap_startup_limit"] == "30.0"
    assert pairs["test_kept"]["gpucap_goodput"] == "1.0"


def test_preemptions_of_a_small_cache_break_their_limit(pytester: pytest.Pytester) -> None:
    rich(pytester.path)
    small = (pytester.path / "rich.toml").read_text().replace("kv_tokens = 200000", "kv_tokens = 8000")
    (pytester.path / "small.toml").write_text(small)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(name="small", qps=10, gpus=1, input_tokens=256, output_tokens=512, preemptions="0.1%")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    pytester.runpytest("--gpu-class=sim:small.toml").assert_outcomes(failed=1)
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    (preempted,) = found.secondary
    assert (found.outcome, preempted.outcome, preempted.decided) == (Outcome.FAIL, Outcome.FAIL, True)
    assert value(preempted) > 0.001
