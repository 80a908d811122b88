"""A test that declares a capacity and measures none: refused at collection if it shows there, else named at the end."""

from __future__ import annotations

import textwrap

import pytest

SIM = "--gpu-class=sim:fast"
MEASURES = "gpucap.sample(rate=20, duration='2s')"
MARK = "pytest.mark.gpucap(qps=1, gpus=1)"


def run(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it="import pytest\n" + textwrap.dedent(suite))
    return pytester.runpytest(SIM, *options)


@pytest.mark.parametrize(
    "suite",
    [
        f"@{MARK}\ndef test_a(): ...",
        f"@{MARK}\ndef test_a(vllm_server): ...",
        f"@{MARK}\ndef test_a(tmp_path): ...\ndef test_b(gpucap): {MEASURES}",
        f"@pytest.mark.parametrize('n', [1, pytest.param(2, marks={MARK})])\ndef test_a(n): ...",
        f"class TestIt:\n    @{MARK}\n    def test_a(self): ...",
        f"@{MARK}\ndef test_a(request): request.getfixturevalue('gpucap')",
        f"import unittest\nclass TestIt(unittest.TestCase):\n    @{MARK}\n    def test_a(self): ...",
    ],
)
def test_a_marker_on_a_test_without_the_fixture_is_refused(pytester: pytest.Pytester, suite: str) -> None:
    result = run(pytester, suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = result.stderr.str().strip().splitlines()
    assert line.startswith("ERROR: test_it.py:")
    assert "gpucap(...) declares a capacity, but the test does not use the gpucap fixture: call " in line


FINE = {
    "asks": f"@{MARK}\ndef test_a(gpucap): {MEASURES}",
    "through a fixture": f"@pytest.fixture\ndef g(gpucap): return gpucap\n@{MARK}\ndef test_a(g): g{MEASURES[6:]}",
    "through a fixture that asks": f"@pytest.fixture\ndef s(gpucap): return {MEASURES}\n@{MARK}\ndef test_a(s): ...",
    "module": f"pytestmark = {MARK}\ndef test_a(gpucap): {MEASURES}\ndef test_b(): ...",
    "class": f"@{MARK}\nclass TestIt:\n    def test_a(self, gpucap): {MEASURES}\n    def test_b(self): ...",
    "skipped": f"@{MARK}\n@pytest.mark.skip\ndef test_a(): ...",
    "skipped, with the fixture": f"@{MARK}\n@pytest.mark.skip\ndef test_a(gpucap): ...",
    "skips, and declares nothing": "def test_a(): pytest.skip('not here')",
    "skips, having measured": f"@{MARK}\ndef test_a(gpucap):\n    {MEASURES}\n    pytest.skip('enough')",
    "not run": f"@pytest.mark.xfail(run=False)\ndef test_a(gpucap): {MEASURES}",
    "is expected to fail": f"@pytest.mark.xfail\ndef test_a(gpucap):\n    {MEASURES}\n    pytest.xfail('known')",
    "about another class": f"@{MARK}\n@pytest.mark.gpu_class('h200')\ndef test_a(gpucap): {MEASURES}",
    "fails first": f"@{MARK}\ndef test_a(gpucap): raise OSError",
    "no marker": "def test_a(): ...",
}


@pytest.mark.parametrize("suite", FINE.values(), ids=FINE)
def test_what_measures_or_does_not_pass_is_not_named(pytester: pytest.Pytester, suite: str) -> None:
    result = run(pytester, suite, "--gpucap-require")
    result.stdout.no_fnmatch_line("*never measured*")
    assert result.ret in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
    assert result.ret == pytest.ExitCode.OK or "raise OSError" in suite


NEVER = {
    "never asks": ("def test_a(gpucap): ...", 1),
    "with a marker": (f"@{MARK}\ndef test_a(gpucap): assert gpucap", 1),
    "through a fixture": (f"@pytest.fixture\ndef mine(gpucap): return gpucap\n@{MARK}\ndef test_a(mine): ...", 1),
    "some parameters": (
        f"@{MARK}\n@pytest.mark.parametrize('n', [1, 2])\ndef test_a(gpucap, n):\n    if n == 1: {MEASURES}", 1
    ),
    "a module": (f"pytestmark = {MARK}\ndef test_a(): ...\ndef test_b(): ...", 2),
    "a class": (f"@{MARK}\nclass TestIt:\n    def test_a(self): ...\ndef test_b(): ...", 1),
    "not skipped": (f"@{MARK}\n@pytest.mark.skipif(False, reason='never')\ndef test_a(): ...", 1),
}  # fmt: skip


@pytest.mark.parametrize(("suite", "count"), NEVER.values(), ids=NEVER)
def test_what_passes_without_measuring_is_named_and_an_error_if_measuring_is_required(
    pytester: pytest.Pytester, suite: str, count: int
) -> None:
    result = run(pytester, suite)
    assert result.ret == pytest.ExitCode.OK
    said = [line for line in result.outlines if line.startswith("declared, never measured: test_it.py::")]
    assert len(said) == count
    required = run(pytester, suite, "--gpucap-require")
    assert required.ret == pytest.ExitCode.TESTS_FAILED
    assert required.parseoutcomes()["failed"] == count
    required.stdout.fnmatch_lines(["declared, never measured: *"])


SKIPS = {
    "in the test": f"@{MARK}\ndef test_a(gpucap): pytest.skip('not here')",
    "by a condition": f"@{MARK}\n@pytest.mark.skipif(True, reason='not here')\ndef test_a(gpucap): {MEASURES}",
    "by a condition of the class": (
        f"@pytest.mark.skipif('True', reason='not here')\nclass TestIt:\n    def test_a(self, gpucap): {MEASURES}"
    ),
    "by a missing module": f"def test_a(gpucap):\n    pytest.importorskip('no', reason='not here')\n    {MEASURES}",
    "in a fixture": f"@pytest.fixture\ndef off(): pytest.skip('not here')\ndef test_a(off, gpucap): {MEASURES}",
    "by an imperative xfail": "def test_a(gpucap): pytest.xfail('not here')",
    "by unittest": "import unittest\ndef test_a(gpucap): raise unittest.SkipTest('not here')",
    "after an error": (
        "def test_a(gpucap):\n    with pytest.raises(ValueError): gpucap.sample()\n    pytest.skip('not here')"
    ),
}  # fmt: skip


@pytest.mark.parametrize("suite", SKIPS.values(), ids=SKIPS)
def test_a_skip_on_this_machine_is_an_error_if_measuring_is_required(pytester: pytest.Pytester, suite: str) -> None:
    run(pytester, suite).assert_outcomes(**{"xfailed" if "pytest.xfail" in suite else "skipped": 1})
    required = pytester.runpytest(SIM, "--gpucap-require")
    assert required.ret == pytest.ExitCode.TESTS_FAILED
    required.stdout.fnmatch_lines(
        ["declared, never measured: skipped on this machine, and --gpucap-require is set: not here"]
    )


def test_a_part_of_a_file_says_nothing_of_its_marker(pytester: pytest.Pytester) -> None:
    suite = f"pytestmark = {MARK}\ndef test_a(gpucap): {MEASURES}\ndef test_b(): ..."
    run(pytester, suite, "--gpucap-require", "-k", "test_b").assert_outcomes(passed=1, deselected=1)
    pytester.runpytest(SIM, "--gpucap-require", "test_it.py::test_b").assert_outcomes(passed=1)


def test_xdist_tells_as_well(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_a(gpucap): ...\n")
    result = pytester.runpytest_subprocess(SIM, "-n1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*GPU capacity*", "declared, never measured: test_it.py::test_a: *"])


def test_a_fixture_that_collection_cannot_see_is_one_line(pytester: pytest.Pytester) -> None:
    for suite in ("", "def test_b(gpucap): ...\n"):
        result = run(pytester, suite + "def test_a(request): request.getfixturevalue('gpucap')")
        result.stdout.fnmatch_lines(["*::test_a: request.getfixturevalue('gpucap') is too late: name the fixture as *"])
        assert "KeyError" not in result.stdout.str()


@pytest.mark.usefixtures("no_gpu")
def test_a_test_that_is_skipped_for_want_of_a_gpu_is_named_with_what_to_do(pytester: pytest.Pytester) -> None:
    """pytest itself shows the reason under -rs alone."""
    suite = f"@pytest.mark.vllm('synthetic:tiny')\n@{MARK}\ndef test_a(gpucap): gpucap.check()\n"
    pytester.makepyfile(test_it=f"import pytest\n{suite}")
    shown = " ".join(pytester.runpytest().stdout.str().split())
    assert "= GPU capacity =" in shown
    assert "skipped, not measured: test_it.py::test_a: no GPU here" in shown
    assert "; to try the suite without one, say --gpu-class sim:fast or cpu" in shown
    pytester.makepyfile(test_it=f"import pytest\n{suite}{suite.replace('test_a', 'test_b')}")
    result = pytester.runpytest()
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["skipped, not measured: 2 tests: no GPU here*"])
    required = pytester.runpytest("--gpucap-require")
    required.assert_outcomes(failed=2)
    required.stdout.no_fnmatch_line("*not measured: *")
