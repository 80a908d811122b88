"""Reports as whole runs of pytest make them: assertion texts, CI pages, colour, xdist."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_gpucap.report.junit import junit
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results import result_file

SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

    @pytest.mark.gpucap(name="fits", qps=10, gpus=1)
    def test_fits(gpucap):
        gpucap.check()

    @pytest.mark.xfail(strict=True)
    @pytest.mark.gpucap(name="some day", qps=300, gpus=2)
    def test_some_day(gpucap):
        gpucap.check()

    @pytest.mark.gpucap(name="does not fit", qps=100, gpus=2)
    def test_does_not_fit(gpucap):
        gpucap.check()
"""


def test_an_assertion_on_a_measured_figure_explains_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

        @pytest.mark.gpucap(name="chat", qps=100, gpus=2)
        def test_gpus(gpucap):
            capacity = gpucap.measure()
            assert capacity.gpus_required <= 2

        @pytest.mark.gpucap(name="chat", qps=10, gpus=1)
        def test_verdict(gpucap):
            assert gpucap.check().gpus_required > 1

        def test_curve(gpucap):
            curve = gpucap.sweep()
            assert curve.sustainable_rate.low >= 250

        def test_other(gpucap):
            window = gpucap.sample(rate=5, duration="5s")
            assert len(str(window)) == 7000
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", "--color=no", "--junit-xml=out.xml")
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "E       assert [4-6] <= 2: gpus_required of chat (SIMULATED): 100 req/s x 1.3 / * req/s = *",
            "E         sustainable rate * req/s per replica (95% interval)",
            "E         bound by: p95 E2E, limit 4 s",
            "*- GPU capacity -*",
            "measure: chat: one replica sustains * req/s",
            "E       assert 1 > 1: gpus_required of chat (SIMULATED): at least * req/s per replica, *",
            "E       assert * >= 250: sustainable_rate.low of test_curve (SIMULATED)",
            "E       AssertionError: assert * == 7000",
        ]
    )
    failure = next(ET.parse(pytester.path / "out.xml").iter("failure"))
    assert "gpus_required of chat" in failure.get("message", "")[:100]


def test_a_figure_without_a_requirement_says_what_is_missing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_gpus(gpucap):
            assert gpucap.measure().gpus_required <= 2
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    result.stdout.fnmatch_lines(
        ["E*RequirementError: test_gpus: gpus_required needs a rate: gpucap(qps=...) or --target-qps"]
    )


def test_assertions_of_tests_without_the_fixture_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): assert 1.5 <= 1.0")
    result = pytester.runpytest("--color=no")
    result.stdout.fnmatch_lines(["E   assert 1.5 <= 1.0"])


@pytest.mark.parametrize("xdist", [False, True])
def test_the_page_of_a_pull_request(suite: pytest.Pytester, xdist: bool) -> None:
    arguments = ["--gpu-class=sim:fast", "--gpucap-markdown=out/report.md"]
    if xdist:
        pytest.importorskip("xdist")
        result = suite.runpytest_subprocess(*arguments, "-n1")
        # Workers say where they are in plain lines.
        assert re.search(r"\[gw0\] does not fit: hold", result.stderr.str())
    else:
        result = suite.runpytest(*arguments)
    result.stdout.fnmatch_lines(["Markdown report: *report.md"])
    page = (suite.path / "out" / "report.md").read_text()
    assert re.match(r"❌ \*\*does not fit needs [4-6] GPUs, budget 2\*\*: 100 req/s x 1\.3 / ", page)
    assert "❌ FAIL (expected) | some day" in page
    assert page == pull_request_page(result_file.read(suite.path / ".gpucap" / "result.json"))


def test_github_gets_a_summary_and_annotations(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = suite.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suite.path.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = suite.runpytest("--gpu-class=sim:fast")
    commands = [line for line in result.outlines if line.startswith("::")]
    line = 1 + next(
        number
        for number, text in enumerate((suite.path / "test_suite.py").read_text().splitlines())
        if "does not" in text
    )
    (command,) = commands
    assert command.startswith(
        f"::error file={suite.path.name}/test_suite.py,line={line},title=GPU capacity FAIL%3A does"
    )
    assert summary.read_text().startswith("❌ **does not fit needs")


def test_outside_ci_nothing_is_said_or_written(suite: pytest.Pytester) -> None:
    result = suite.runpytest("--gpu-class=sim:fast")
    assert "::error" not in result.stdout.str()
    assert not list(suite.path.glob("*.md"))


def test_a_session_that_measures_nothing_writes_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makepyfile("def test_it(): ...")
    pytester.runpytest("--gpucap-markdown=report.md").assert_outcomes(passed=1)
    assert not list(pytester.path.glob("*.md"))


def test_the_ini_key_names_the_file_too(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\ngpucap_markdown = from-ini.md\n")
    suite.runpytest("--gpu-class=sim:fast", "-k", "test_fits")
    assert (suite.path / "from-ini.md").read_text().startswith("✅ **1 of 1 GPU budgets hold**")


def test_the_result_says_where_the_test_is_and_what_was_expected(suite: pytest.Pytester) -> None:
    suite.runpytest("--gpu-class=sim:fast")
    results = {each.name: each for each in result_file.read(suite.path / ".gpucap" / "result.json").results}
    source = (suite.path / "test_suite.py").read_text().splitlines()
    assert '@pytest.mark.gpucap(name="fits"' in source[(results["fits"].line or 0) - 1]
    assert {name: each.expected_failure for name, each in results.items()} == {
        "fits": False,
        "some day": True,
        "does not fit": False,
    }


def test_colour_follows_pytest(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = suite.runpytest("--gpu-class=sim:fast", "--color=yes").stdout.str()
    assert re.search(r"\x1b\[31mFAIL +does not fit", coloured)
    assert re.search(r"\x1b\[32mPASS +fits", coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in suite.runpytest("--gpu-class=sim:fast").stdout.str()


def test_quiet_runs_have_plain_lines_and_very_quiet_ones_none(suite: pytest.Pytester) -> None:
    quiet = suite.runpytest("--gpu-class=sim:fast", "-q").stdout.str()
    assert re.search(r"^does not fit: hold.* in flight", quiet, re.MULTILINE)
    assert "\r" not in quiet
    assert "does not fit: hold" not in suite.runpytest("--gpu-class=sim:fast", "-qq").stdout.str()


def test_junit_of_pytest_and_ours_tell_the_same(suite: pytest.Pytester) -> None:
    suite.runpytest("--gpu-class=sim:fast", "--junit-xml=theirs.xml")
    ours = ET.fromstring(junit(result_file.read(suite.path / ".gpucap" / "result.json")))
    assert _verdicts(ET.parse(Path(suite.path) / "theirs.xml").getroot(), "testcase") == _verdicts(ours, "testsuite")


def _verdicts(root: ET.Element, holder: str) -> list[str]:
    return sorted(
        str(entry.get("value"))
        for element in root.iter(holder)
        for entry in element.findall("properties/property")
        if entry.get("name") == "gpucap_headline"
    )
