"""Files that options ask for: written without a summary, and never missing in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file

pytestmark = pytest.mark.usefixtures("no_gpu")

SUITE = """
    import pytest

    @pytest.mark.gpucap(qps=5, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    def test_it(gpucap):
        gpucap.check()
"""
SKIPPED = """
    import pytest

    @pytest.mark.skip(reason="not today")
    @pytest.mark.gpucap(qps=5, gpus=1, e2e_p95="4s")
    def test_it(gpucap):
        gpucap.check()
"""
ASKED = ("--gpucap-html=p.html", "--gpucap-markdown=p.md")


@pytest.mark.parametrize("quiet", ["--no-summary", "-pno:terminal"])
def test_reports_need_no_summary(suite: pytest.Pytester, quiet: str) -> None:
    result = suite.runpytest("--gpu-class=sim:fast", "--gpucap-save=main", *ASKED, quiet)
    assert result.ret == pytest.ExitCode.OK
    assert "test_it" in (suite.path / "p.md").read_text()
    assert "test_it" in (suite.path / "p.html").read_text()
    assert result_file.read(suite.path / "gpucap-baselines" / "main.json").results


@pytest.mark.parametrize("quiet", ["--no-summary", "-pno:terminal", "-q"])
def test_a_report_that_is_missing_is_told_once(suite: pytest.Pytester, quiet: str) -> None:
    result = suite.runpytest("--gpu-class=sim:fast", "--gpucap-html=/dev/full", quiet)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = result.stdout.str() + result.stderr.str()
    assert told.count("/dev/full could not be written: No space left on device") == 1


def test_an_internal_error_costs_no_report(suite: pytest.Pytester) -> None:
    suite.makeconftest("def pytest_runtest_logfinish(): raise OSError('x')")
    result = suite.runpytest("--gpu-class=sim:fast", *ASKED)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "test_it" in (suite.path / "p.md").read_text()
    assert "INTERNALERROR: OSError: x" in (suite.path / "p.html").read_text()


@pytest.mark.parametrize(
    ("ending", "workers"),
    [("skipped", ()), ("no GPU", ()), ("failed", ("-n1",))],
    ids=["skipped", "no GPU", "failed under xdist"],
)
def test_a_baseline_of_nothing_is_not_saved_and_said(
    pytester: pytest.Pytester, ending: str, workers: tuple[str, ...]
) -> None:
    """Whoever compares with it next would take an older one for this session's. So the session is no success."""
    suite = {"skipped": SKIPPED, "no GPU": SUITE, "failed": SUITE.replace("gpucap.check()", "assert not 'here'")}
    pytester.makepyfile(test_suite=suite[ending])
    model = ["--gpucap-model=synthetic:tiny", f"--gpucap-vllm-python={sys.executable}"]
    classes = model if ending == "no GPU" else ["--gpu-class=sim:fast"]
    result = pytester.runpytest("--gpucap-save=main", *ASKED, *classes, *workers)
    result.stdout.fnmatch_lines(["nothing was measured", "baseline main was NOT saved: nothing was measured"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not (pytester.path / "gpucap-baselines" / "main.json").exists()
    # A report of before would be taken for this session's, too.
    for page in ("p.html", "p.md"):
        assert "othing was measured" in (pytester.path / page).read_text()


@pytest.mark.parametrize("arguments", [("-k", "others"), ("--collect-only",), ("-k", "nobody")])
def test_a_session_without_tests_of_ours_touches_nothing(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """The options may stand in an ini file, for every run."""
    pytester.makepyfile(test_suite=SUITE + "\n    def test_others(): pass\n")
    pytester.makeini("[pytest]\ngpucap_save = main\ngpucap_html = p.html\ngpucap_markdown = p.md\n")
    (pytester.path / "p.html").write_text("of before")
    result = pytester.runpytest("--gpu-class=sim:fast", *arguments)
    assert result.ret == (pytest.ExitCode.NO_TESTS_COLLECTED if "nobody" in arguments else pytest.ExitCode.OK)
    assert "GPU capacity" not in result.stdout.str()
    assert (pytester.path / "p.html").read_text() == "of before"
    assert not (pytester.path / "p.md").exists()


def test_a_session_without_a_measurement_is_in_no_job_page(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    pytester.makepyfile(test_suite=SKIPPED)
    assert pytester.runpytest("--gpu-class=sim:fast", *ASKED).ret == pytest.ExitCode.OK
    assert not (tmp_path / "summary.md").exists()


def test_the_oldest_pytest_gives_no_summary_hook_without_a_summary(pytester: pytest.Pytester) -> None:
    """Reports that hung on that hook were not written there."""
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(tryfirst=True, wrapper=True)
        def pytest_terminal_summary(terminalreporter):
            raise RuntimeError("not called there")
            yield
        """
    )
    command = [sys.executable, "-m", "pytest", "--gpu-class=sim:fast", *ASKED, "-pno:cacheprovider"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=False)
    assert "not called there" in done.stdout + done.stderr
    assert "test_it" in (pytester.path / "p.md").read_text()
