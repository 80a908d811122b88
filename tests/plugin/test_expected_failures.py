"""What ``xfail`` may hide: the verdict FAIL, and what the test itself asserts of a measurement. Nothing else."""

from __future__ import annotations

import pytest

from tests.plugin.measured_once import ONCE

pytestmark = pytest.mark.usefixtures("no_gpu")

HEAD = """
    import asyncio, os, sys
    import pytest
    import openai
    from pytest_gpucap import EndpointError, GpuCapError, MeasurementInvalid, ServerError
    from pytest_gpucap.session.gpucap import GpuCap

    pytestmark = pytest.mark.gpucap(qps=300, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    fits = pytest.mark.gpucap(qps=5)

    @pytest.fixture
    def breaks():
        raise RuntimeError("set-up broke")

    @pytest.fixture
    def breaks_late():
        yield
        raise AssertionError("teardown broke")

    @pytest.fixture
    def checked(gpucap):
        gpucap.check()

    @pytest.fixture
    def asserts():
        assert not "a fixture's own"
"""

EXPECTED = {
    "the verdict": "def test_it(gpucap): gpucap.check()",
    "the verdict in a fixture": "def test_it(checked): pass",
    "the verdict, named": "@pytest.mark.xfail(raises=pytest.fail.Exception)\ndef test_it(gpucap): gpucap.check()",
    "an assertion on a figure": "@fits\ndef test_it(gpucap):\n    assert gpucap.check().outcome == 'FAIL'",
    "the test's own fail": "@fits\ndef test_it(gpucap):\n    gpucap.check()\n    pytest.fail('too slow')",
    "nothing raised": "@fits\ndef test_it(gpucap):\n    gpucap.check()\n    with pytest.raises(ValueError): pass",
    "an assertion on an answer": "def test_it(vllm_server): assert vllm_server.model == 'another'",
    "an imperative one": "@fits\ndef test_it(gpucap):\n    gpucap.check()\n    pytest.xfail('known')",
    "not run": "@pytest.mark.xfail(run=False)\ndef test_it(gpucap): os._exit(3)",
    "an error that is named": (
        "@pytest.mark.xfail(raises=MeasurementInvalid)\n"
        "def test_it(gpucap): raise MeasurementInvalid('this server answers no load')"
    ),
}
"""Code under ``xfail`` that ends as expected."""

BROKEN = {
    "any error": "def test_it(gpucap): raise RuntimeError('x')",
    "division": "def test_it(gpucap):\n    gpucap.check() if 0 else 1 / 0",
    "an error after a verdict": "@fits\ndef test_it(gpucap):\n    gpucap.check()\n    raise OSError('disk gone')",
    "an exit": "def test_it(gpucap): sys.exit(0)",
    "a cancellation": "def test_it(gpucap): raise asyncio.CancelledError",
    "a group": "def test_it(gpucap): raise ExceptionGroup('several', [AssertionError('x')])",
    "the client's error": "def test_it(vllm_server): raise openai.OpenAIError('connection refused')",
    "an error of ours": "def test_it(gpucap): raise EndpointError('gone')",
    "a measurement that is invalid": "def test_it(gpucap): raise MeasurementInvalid('late')",
    "a wrong call": "def test_it(gpucap): gpucap.sample()",
    "a fixture that is asked for late": "def test_it(request): request.getfixturevalue('gpucap')",
    "a set-up that broke": "def test_it(breaks, gpucap): gpucap.check()",
    "an assertion of a fixture": "def test_it(asserts, gpucap): gpucap.check()",
    "an assertion without a measurement": "def test_it(gpucap): assert not 'nothing was measured'",
    "anything is named": "@pytest.mark.xfail(raises=Exception)\ndef test_it(gpucap): raise ServerError('dead')",
    "all of ours are named": "@pytest.mark.xfail(raises=GpuCapError)\ndef test_it(gpucap): raise ServerError('dead')",
    "a timeout": (
        "@fits\n@pytest.mark.timeout(0.5, method='signal')\ndef test_it(gpucap):\n"
        "    gpucap.check()\n    while True: pass"
    ),
    "undecided": ("@pytest.mark.gpucap(max_time='1s', qps=30)\ndef test_it(gpucap): gpucap.check()"),
    "invalid, and then an assertion": (
        "def test_it(gpucap, monkeypatch):\n"
        "    monkeypatch.setattr(GpuCap, '_checked', lambda *_, **__: 1 / 0)\n"
        "    try:\n        gpucap.check()\n    except GpuCapError:\n        assert not 'measured'"
    ),
    "invalid, and then xfail": (
        "def test_it(gpucap, monkeypatch):\n"
        "    monkeypatch.setattr(GpuCap, '_checked', lambda *_, **__: 1 / 0)\n"
        "    try:\n        gpucap.check()\n    except GpuCapError:\n        pytest.xfail('known')"
    ),
}
"""Code under ``xfail`` that breaks the run."""


either_way = pytest.mark.parametrize(
    "decorator", ["@pytest.mark.xfail(strict=True)", "@pytest.mark.xfail(True, reason='x', strict=False)"]
)


def _suite(cases: dict[str, str], decorator: str) -> dict[str, str]:
    """A file for each case: pytest stops at nothing in another one."""
    import textwrap

    files = {}
    for number, code in enumerate(cases.values()):
        mark = "" if "xfail(" in code and "pytest.mark.xfail" in code else f"{decorator}\n"
        files[f"test_{number:02}"] = f"{textwrap.dedent(HEAD)}\n{mark}{code}\n"
    return files


@either_way
def test_what_is_expected_keeps_the_run_green(pytester: pytest.Pytester, decorator: str) -> None:
    pytester.makeconftest(ONCE)
    pytester.makepyfile(**_suite(EXPECTED, decorator))
    result = pytester.runpytest("--gpu-class=sim:fast", "-rA")
    result.assert_outcomes(xfailed=len(EXPECTED))
    assert result.ret == pytest.ExitCode.OK


@either_way
def test_everything_else_breaks_the_run(pytester: pytest.Pytester, decorator: str) -> None:
    pytester.makeconftest(ONCE)
    pytester.makepyfile(**_suite(BROKEN, decorator))
    result = pytester.runpytest("--gpu-class=sim:fast", "-rA")
    outcomes = result.parseoutcomes()
    assert not outcomes.keys() & {"xfailed", "xpassed", "passed", "skipped"}, result.stdout.str()
    assert outcomes["failed"] + outcomes["errors"] == len(BROKEN)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*xfail expects the verdict FAIL, or an assertion of the test*"])


UNITTEST = (
    HEAD
    + """
    import unittest

    class Capacity(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def _ask_for_gpucap(self, gpucap):
            self.gpucap = gpucap

    class TestExpected(Capacity):
        @unittest.expectedFailure
        def test_verdict(self): self.gpucap.check()

        @fits
        @unittest.expectedFailure
        def test_assertion(self): self.assertEqual(self.gpucap.check().outcome, "FAIL")

        @fits
        @unittest.expectedFailure
        def test_fail(self):
            self.gpucap.check()
            self.fail("too slow")

    class TestBroken(Capacity):
        @unittest.expectedFailure
        def test_any_error(self): raise RuntimeError("x")

        @unittest.expectedFailure
        def test_ours(self): raise MeasurementInvalid("late")

        @unittest.expectedFailure
        def test_nothing_measured(self): self.fail("x")

        @unittest.expectedFailure
        @pytest.mark.gpucap(max_time="1s", qps=30)
        def test_undecided(self): self.gpucap.check()

        @fits
        @unittest.expectedFailure
        def test_passes(self): self.gpucap.check()
"""
)


def test_unittest_expects_what_xfail_may(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(ONCE)
    pytester.makepyfile(UNITTEST)
    result = pytester.runpytest("--gpu-class=sim:fast", "-rA")
    result.assert_outcomes(xfailed=3, failed=5)
    assert all("::TestExpected::" in line for line in result.outlines if line.startswith("XFAIL "))


def test_a_teardown_that_breaks_is_an_error_beside_the_expected_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HEAD + "\n    @pytest.mark.xfail\n    def test_it(breaks_late, gpucap): gpucap.check()\n")
    result = pytester.runpytest("--gpu-class=sim:fast")
    result.assert_outcomes(xfailed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_interrupt_ends_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HEAD + "\n    @pytest.mark.xfail\n    def test_it(gpucap): raise KeyboardInterrupt\n")
    assert pytester.runpytest_subprocess("--gpu-class=sim:fast").ret == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("mark", "code", "outcome"),
    [
        ("xfail(False, reason='not here')", "gpucap.check()", "failed"),
        ("xfail(True, reason='here')", "gpucap.check()", "xfailed"),
        ("skip(reason='not today')", "gpucap.check()", "skipped"),
        ("xfail", "pytest.skip('not today')", "skipped"),
    ],
)
def test_conditions_and_skips_mean_what_pytest_means(
    pytester: pytest.Pytester, mark: str, code: str, outcome: str
) -> None:
    pytester.makepyfile(HEAD + f"\n    @pytest.mark.{mark}\n    def test_it(gpucap): {code}\n")
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(**{outcome: 1})


def test_tests_that_use_nothing_of_ours_keep_their_xfail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.xfail\ndef test_it(): raise RuntimeError('x')\n")
    pytester.runpytest().assert_outcomes(xfailed=1)


def test_without_xfail_the_option_changes_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HEAD + "\n    @pytest.mark.xfail\n    def test_it(gpucap): raise RuntimeError('x')\n")
    pytester.runpytest("--gpu-class=sim:fast", "--runxfail").assert_outcomes(failed=1)
