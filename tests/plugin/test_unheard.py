"""What came of a measurement is not lost on the way to pytest: in a thread, in an error that is passed over."""

from __future__ import annotations

import textwrap

import pytest

from tests.plugin.measured_once import ONCE

pytestmark = pytest.mark.usefixtures("no_gpu")

HEAD = """
    import contextlib, threading
    from concurrent.futures import ThreadPoolExecutor
    import pytest
    from pytest_gpucap import GpuCapError
    from pytest_gpucap.session.gpucap import GpuCap

    pytestmark = pytest.mark.gpucap(qps=300, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    fits = pytest.mark.gpucap(qps=5)
    later = []

    def in_a_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    @pytest.fixture
    def invalid(monkeypatch):
        monkeypatch.setattr(GpuCap, "_checked", lambda *_, **__: 1 / 0)

    @pytest.fixture
    def held(monkeypatch):
        "A check that runs until it is let go."
        begun, go, checked = threading.Event(), threading.Event(), GpuCap._checked
        def waiting(*args, **named):
            begun.set()
            go.wait()
            return checked(*args, **named)
        monkeypatch.setattr(GpuCap, "_checked", waiting)
        yield begun, go
        go.set()
"""

RED = {
    "FAIL in a thread": "def test_it(gpucap): in_a_thread(gpucap.check)",
    "FAIL in a future that nobody asks": (
        "def test_it(gpucap):\n    with ThreadPoolExecutor() as pool: pool.submit(gpucap.check)"
    ),
    "FAIL in a thread of a fixture": (
        "@pytest.fixture\ndef checked(gpucap): in_a_thread(gpucap.check)\ndef test_it(checked): pass"
    ),
    "FAIL in a thread that is expected": "@pytest.mark.xfail\ndef test_it(gpucap): in_a_thread(gpucap.check)",
    "FAIL in a thread, and then a skip": (
        "def test_it(gpucap):\n    in_a_thread(gpucap.check)\n    pytest.skip('enough')"
    ),
    "INVALID in a thread": "def test_it(gpucap, invalid): in_a_thread(gpucap.check)",
    "a check that still runs": (
        "@fits\ndef test_it(held, gpucap):\n"
        "    threading.Thread(target=gpucap.check).start()\n    assert held[0].wait(60)"
    ),
    "two at once": (
        "@fits\ndef test_it(held, gpucap):\n    thread = threading.Thread(target=gpucap.check)\n    thread.start()\n"
        "    assert held[0].wait(60)\n    in_a_thread(gpucap.sample)\n    held[1].set()\n    thread.join()"
    ),
    "the fixture of a test that has ended": (
        "@fits\ndef test_before(gpucap): later.append(gpucap)\ndef test_it(): later[0].check()"
    ),
}
"""Code whose test must not pass."""


def _run(pytester: pytest.Pytester, cases: dict[str, str], *options: str) -> pytest.RunResult:
    pytester.makeconftest(ONCE)
    files = {f"test_{number:02}": f"{textwrap.dedent(HEAD)}\n{code}\n" for number, code in enumerate(cases.values())}
    pytester.makepyfile(**files)
    return pytester.runpytest("--gpu-class=sim:fast", "-rA", "-W", "ignore", *options)


def test_what_goes_wrong_where_pytest_does_not_see_it_fails_the_test(pytester: pytest.Pytester) -> None:
    result = _run(pytester, RED)
    result.assert_outcomes(failed=len(RED), passed=1)
    result.stdout.fnmatch_lines(
        [
            "*a measurement ended so in another thread than the test's, where pytest cannot tell whether*",
            "*FAIL: test_it needs 13 GPUs, budget 1:*",
            "*a measurement still runs in another thread, and the test has ended: wait for it*",
            "*another measurement of this test still runs, and two at once would measure each other*",
            "*the test that this gpucap fixture belongs to has ended: use the fixture of the test that runs*",
        ]
    )


GREEN = {
    "a thread": "@fits\ndef test_it(gpucap): in_a_thread(gpucap.check)",
    "one after the other, in threads": "@fits\ndef test_it(gpucap):\n    for _ in 'ab': in_a_thread(gpucap.check)",
    "a future that is asked": (
        "@fits\ndef test_it(gpucap):\n"
        "    with ThreadPoolExecutor() as pool: assert pool.submit(gpucap.check).result().outcome == 'PASS'"
    ),
    "a verdict that is caught": "def test_it(gpucap):\n    with pytest.raises(pytest.fail.Exception): gpucap.check()",
    "an error, and then a measurement": (
        "@fits\ndef test_it(gpucap):\n    with pytest.raises(ValueError): gpucap.sample()\n    gpucap.check()"
    ),
    "in the teardown": (
        "@pytest.fixture\ndef last(gpucap):\n    yield\n    gpucap.check()\n@fits\ndef test_it(last): pass"
    ),
}


def test_what_is_seen_passes(pytester: pytest.Pytester) -> None:
    # A teardown comes after the test has passed without a measurement.
    result = _run(pytester, GREEN)
    result.assert_outcomes(passed=len(GREEN))
    assert [line for line in result.outlines if line.startswith("declared, never measured")] == [
        line for line in result.outlines if line.startswith("declared, never measured: test_05.py::test_it:")
    ]


PASSED_OVER = {
    "INVALID": "def test_it(gpucap, invalid):\n    with contextlib.suppress(GpuCapError): gpucap.check()",
    "a wrong call": "def test_it(gpucap):\n    with pytest.raises(ValueError): gpucap.sample()",
    "the attempt before": (
        "@pytest.mark.flaky(reruns=1)\ndef test_it(gpucap):\n"
        "    if not later:\n        later.append(1)\n        gpucap.check()"
    ),
}
"""Code whose test passes without a measurement."""


def test_an_error_that_is_passed_over_is_no_measurement(pytester: pytest.Pytester) -> None:
    result = _run(pytester, PASSED_OVER)
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == len(PASSED_OVER)
    said = [line for line in result.outlines if line.startswith("declared, never measured: ")]
    assert len(said) == len(PASSED_OVER)
    result.stdout.fnmatch_lines(["*test_00.py::test_it: nothing that the test asked for*"])
    required = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-require")
    assert required.parseoutcomes()["failed"] == len(PASSED_OVER)
