"""A file that an option asks for and that could not be written makes the session fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("no_gpu")

SUITE = """
    import pytest

    @pytest.mark.gpucap(qps=5, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    def test_it(gpucap):
        gpucap.check()
"""
LIMITED = """
    import resource
    import sys
    import pytest

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish():
        sys.dont_write_bytecode = True  # Python would keep what it could not write whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return (yield)
"""
"""From here on no file of this process may have more bytes."""
FORMS = {"html": "html", "markdown": "md", "json": "json"}


def run(suite: pytest.Pytester, *options: str) -> subprocess.CompletedProcess[str]:
    """A run that writes its output to a pipe, and captures none in files."""
    suite.makeconftest(LIMITED)
    command = [sys.executable, "-m", "pytest", "-s", "-pno:cacheprovider", "--gpu-class=sim:fast", *options]
    return subprocess.run(command, cwd=suite.path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--gpucap-html=/dev/full", "/dev/full could not be written: *No space left*"),
        ("--gpucap-markdown=/dev/full", "/dev/full could not be written: *No space left*"),
        ("--gpucap-json=/dev/full", "/dev/full could not be written: *No space left*"),
    ],
)
def test_a_report_on_a_full_device(suite: pytest.Pytester, option: str, words: str) -> None:
    result = suite.runpytest("--gpu-class=sim:fast", option)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*{words}", "a file that was asked for is missing, so the session has failed"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    if "json" not in option:
        content = json.loads((suite.path / ".gpucap" / "result.json").read_text())
        assert content["exit_status"] == pytest.ExitCode.TESTS_FAILED
        assert any("No space left" in problem for problem in content["problems"])


@pytest.mark.parametrize(
    "asked",
    [
        {"--gpucap-save=main": ("gpucap-baselines/main.json", "baseline main ")},
        {f"--gpucap-{form}=p.{end}": (f"p.{end}", f"p.{end} ") for form, end in FORMS.items()},
    ],
)
def test_a_disk_that_fills_up(suite: pytest.Pytester, asked: dict[str, tuple[str, str]]) -> None:
    """The option -> the file that it asks for, and what that is called."""
    done = run(suite, *asked)
    assert "1 passed" in done.stdout
    assert "missing, so the session has failed" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    for file, called in asked.values():
        assert [line for line in done.stdout.splitlines() if called in line and "File too large" in line], done.stdout
        path = suite.path / file
        if path.exists():  # the result file is written while there is still room
            assert json.loads(path.read_text())["results"]
        assert not list(path.parent.glob(".*.tmp"))


def test_the_usual_result_file_is_asked_for_by_nobody(suite: pytest.Pytester) -> None:
    done = run(suite)
    assert "result.json could not be written: [Errno 27] File too large" in done.stdout
    assert done.returncode == pytest.ExitCode.OK


def test_a_session_that_fails_anyway_keeps_its_exit_code(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_suite=SUITE.replace("qps=5", "qps=500"))
    result = suite.runpytest("--gpu-class=sim:fast", "--gpucap-save=main")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["baseline main was NOT saved:*", "a file that was asked for is missing"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
