"""``--gpucap-base-dir``: the base's server is what the same test's markers say in the base checkout."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import Comparison, RegressionDecision

SUITE = """
import pytest

pytestmark = pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
"""
MARKED = """
@pytest.mark.vllm(model="synthetic:tiny", max_num_seqs={seqs})
def test_marked(gpucap):
    gpucap.check()
"""
MORE = """
@pytest.mark.parametrize("seqs", [20, 64])
def test_by_case(gpucap, seqs):
    gpucap.check()
"""
SIMULATED = "--gpu-class=sim:fast"
BASE = "--gpucap-base-dir=../base"


class Checkouts:
    """The folders ``head``, where pytest starts, and ``base`` beside it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        for name in ("head", "base"):
            self.write(name, "pytest.ini", "[pytest]\n")

    def write(self, side: str, name: str, text: str) -> Path:
        path = self._pytester.path / side / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    def suite(self, *, head: str, base: str, name: str = "capacity/test_suite.py") -> None:
        self.write("head", name, head)
        self.write("base", name, base)

    def comparisons(self) -> dict[str, Comparison]:
        results = result_file.read(self._pytester.path / "head" / ".gpucap" / "result.json").results
        return {each.test: each.comparison for each in results if each.comparison is not None}


@pytest.fixture
def checkouts(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Checkouts:
    found = Checkouts(pytester)
    monkeypatch.chdir(pytester.path / "head")
    return found


def test_the_base_has_the_markers_of_the_same_test_there(pytester: pytest.Pytester, checkouts: Checkouts) -> None:
    # The base's conftest adds a marker at collection, as one may, and leaves a trace of the process that ran it.
    checkouts.write(
        "base",
        "conftest.py",
        """
        import os
        from pathlib import Path

        import pytest

        Path(__file__).with_name("pid").write_text(str(os.getpid()))

        def pytest_collection_modifyitems(items):
            for item in items:
                if item.originalname == "test_by_case":
                    item.add_marker(pytest.mark.vllm(max_num_seqs=item.callspec.params["seqs"]))
        """,
    )
    new = "\ndef test_new(gpucap):\n    gpucap.check()\n"
    head = (
        SUITE
        + MARKED.format(seqs=64)
        + MORE.replace("def test_by_case", "@pytest.mark.vllm(max_num_seqs=64)\ndef test_by_case")
    )
    checkouts.suite(head=head + new, base=SUITE + MARKED.format(seqs=20) + MORE)
    checkouts.write("head", "capacity/test_other.py", SUITE + new)
    result = pytester.runpytest(SIMULATED, BASE, "capacity", "--junit-xml=junit.xml", "--gpucap-json=all.json")
    result.assert_outcomes(passed=5)
    found = checkouts.comparisons()
    decisions = {test.partition("::")[2]: each.decision for test, each in found.items() if "suite" in test}
    assert decisions.pop("test_marked") is RegressionDecision.IMPROVED
    assert decisions.pop("test_by_case[20]") is RegressionDecision.IMPROVED
    assert set(decisions) == {"test_by_case[64]", "test_new"}
    assert set(decisions.values()) == {RegressionDecision.NOT_COMPARABLE}
    reasons = {test.partition("/")[2]: each.reason for test, each in found.items()}
    same = "nothing to compare with in the base: it declares the same server"
    assert reasons["test_suite.py::test_by_case[64]"] == same
    base = (pytester.path / "base").resolve()
    lead = f"nothing to compare with in the base: the base ({base}) has no"
    assert reasons["test_suite.py::test_new"] == f"{lead} test capacity/test_suite.py::test_new"
    assert reasons["test_other.py::test_new"] == f"{lead} file capacity/test_other.py"
    said = " ".join(result.stdout.str().split())
    assert "has no file capacity/test_other.py" in said
    assert "3 NOT COMPARABLE, 2 IMPROVED" in said
    # Nothing of the base ran in this process, and the reports that the head asked for were written by the head.
    assert int((pytester.path / "base" / "pid").read_text()) != os.getpid()
    assert not list((pytester.path / "base").glob("*.xml")) + list((pytester.path / "base").glob("*.json"))


def test_a_fall_against_the_base_checkout_fails(pytester: pytest.Pytester, checkouts: Checkouts) -> None:
    checkouts.suite(head=SUITE + MARKED.format(seqs=40), base=SUITE + MARKED.format(seqs=256))
    result = pytester.runpytest(SIMULATED, BASE, "capacity/test_suite.py::test_marked")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["REGRESSED: test_marked sustains * req/s, * base * req/s: -*"])
    [found] = checkouts.comparisons().values()
    assert found.confirmed is True
    assert found.changed == ("engine",)


MISTAKES: dict[str, tuple[dict[str, str], list[str], str]] = {
    "no folder": ({}, ["--gpucap-base-dir=../nowhere"], "--gpucap-base-dir: there is no folder *nowhere: check the *"),
    "itself": ({}, ["--gpucap-base-dir=."], "--gpucap-base-dir: * is pytest's own root folder: check the base out *"),
    "beside a baseline": (
        {},
        [BASE, "--gpucap-compare=x", "--gpucap-save=x"],
        "*: a result holds one comparison, so *",
    ),
    "a running server": (
        {},
        [BASE, "--gpucap-url=http://127.0.0.1:1/v1"],
        "*--gpucap-base-... needs servers that the plugin starts, but --gpucap-url names a running one",
    ),
    "a file that cannot be imported": (
        {"capacity/test_suite.py": "import no_such_module"},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: capacity/test_suite.py of *base cannot be collected: ModuleNotFoundError: No module *",
    ),
    "a conftest that cannot be imported": (
        {"conftest.py": "import no_such_module"},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: pytest does not collect *base: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "a hook that refuses the session": (
        {"conftest.py": 'import pytest\ndef pytest_collection_modifyitems(): raise pytest.UsageError("fill it in")'},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: pytest does not collect *base: fill it in",
    ),
    "an option that the base does not know": (
        {"pytest.ini": "[pytest]\naddopts = --no-such-option"},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: pytest does not collect *base: unrecognized arguments: --no-such-option",
    ),
    "a wrong marker": (
        {"capacity/test_suite.py": SUITE + "@pytest.mark.vllm(port=1)\ndef test_marked(gpucap): ..."},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: capacity/test_suite.py:5 of *base: vllm: port cannot be set: the kernel chooses a free *",
    ),
    "an argument that is no data": (
        {"capacity/test_suite.py": SUITE + '@pytest.mark.engine("sglang", a=object())\ndef test_marked(gpucap): ...'},
        [SIMULATED, BASE],
        "*--gpucap-base-dir: capacity/test_suite.py:5 of *base: an argument of its server cannot be passed on: object*",
    ),
    "a server that cannot be simulated": (
        {"capacity/test_suite.py": SUITE + MARKED.format(seqs="1, enforce_eager=True")},
        [SIMULATED, BASE],
        "capacity/test_suite.py:6: --gpucap-base-dir: capacity/test_suite.py:6 of *: vllm(enforce_eager=True): a *",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_base_cost_one_line(pytester: pytest.Pytester, checkouts: Checkouts, name: str) -> None:
    files, options, line = MISTAKES[name]
    checkouts.suite(head=SUITE + MARKED.format(seqs=64) + "\ndef test_second(gpucap): ...\n", base=SUITE)
    for path, text in files.items():
        checkouts.write("base", path, text)
    result = pytester.runpytest(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [each for each in result.stderr.lines if "-base-" in each or "comparison" in each]
    result.stderr.fnmatch_lines([f"ERROR: {line}" if not line.startswith("*") else line])
    assert len(lines) <= 2


def test_what_cannot_stand_beside_the_head_is_not_compared(pytester: pytest.Pytester, checkouts: Checkouts) -> None:
    def tests(*marks: str) -> str:
        return SUITE + "".join(
            f"\n@pytest.mark.{mark}\ndef test_{number}(gpucap):\n    gpucap.check()\n"
            for number, mark in enumerate(marks)
        )

    checkouts.suite(
        head=tests('vllm("synthetic:tiny")', 'vllm("synthetic:tiny")', 'vllm("synthetic:tiny")'),
        base=tests(
            'engine("llama.cpp", model="m.gguf")',
            'vllm("synthetic:tiny", tp=2)',
            'vllm("synthetic:tiny", max_model_len=64)',
        ),
    )
    checkouts.write(
        "head",
        "conftest.py",
        """
        def pytest_collection_finish(session):
            from pytest_gpucap.session.pytest_session import _PLAN

            for item in session.items:
                plan = item.stash[_PLAN]
                print(f"{item.name}: {plan.base} {plan.not_compared}")
        """,
    )
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-base-dir=../base", "--collect-only", "-s")
    lead = "None nothing to compare with in the base: "
    result.stdout.fnmatch_lines(
        [
            f"test_0: {lead}it runs on the engine llama.cpp there, and on vllm here",
            f"test_1: {lead}one replica there takes 2 GPUs, and it would run on the 1 of the head",
            f"test_2: {lead}*64*",
        ]
    )


def test_the_command_line_reaches_the_base_and_workers_collect_it_too(
    pytester: pytest.Pytester, checkouts: Checkouts
) -> None:
    conftest = """
        import pytest

        def pytest_addoption(parser):
            parser.addoption("--seqs", type=int, default=256)

        def pytest_collection_modifyitems(config, items):
            for item in items:
                item.add_marker(pytest.mark.vllm("synthetic:tiny", max_num_seqs=SEQS))
        """
    checkouts.write("head", "conftest.py", conftest.replace("SEQS", 'config.getoption("--seqs")'))
    checkouts.write("base", "conftest.py", conftest.replace("SEQS", 'config.getoption("--seqs") // 2'))
    seen = """
        def test_it(gpucap, request):
            from pytest_gpucap.session.pytest_session import _PLAN

            pair = request.node.stash[_PLAN].base
            assert (pair.base.profile.engine.max_num_seqs, pair.head.profile.engine.max_num_seqs) == (20, 40)
        """
    text = SUITE + dedent(seen)
    checkouts.suite(head=text, base=text)
    head = str(pytester.path / "head" / "capacity")
    result = pytester.runpytest_subprocess(SIMULATED, BASE, head, "--seqs=40", "-n1", "-k", "test_it")
    result.assert_outcomes(passed=1)
