"""The tutorial as a reader follows it, with the simulated server: its test passes, and its change makes it fail."""

from __future__ import annotations

import subprocess

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from tests.docs.blocks import REPOSITORY, Block, arguments, blocks, script

BLOCKS = list(blocks(REPOSITORY / "docs" / "tutorial.md"))


def _runs() -> list[Block]:
    """The consoles that run pytest with a simulated server."""
    return [block for block in BLOCKS if block.language == "console" and "--gpu-class sim:" in block.text]


def _outcome(pytester: pytest.Pytester, arguments: list[str]) -> tuple[pytest.RunResult, Outcome | None]:
    run = pytester.runpytest(*arguments)
    (result,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    return run, result.outcome


def test_the_budget_holds_until_the_branch_breaks_it(pytester: pytest.Pytester) -> None:
    test, *_ = (block for block in BLOCKS if block.language == "python")
    (pytester.mkdir("capacity") / "test_chat.py").write_text(test.text)
    holds, breaks = _runs()

    (given,) = arguments(script(holds), "pytest")
    run, outcome = _outcome(pytester, given)
    assert (run.ret, outcome) == (pytest.ExitCode.OK, Outcome.PASS)

    (change,) = (line for line in script(breaks).splitlines() if line.startswith("sed "))
    subprocess.run(["bash", "-c", change], cwd=pytester.path, check=True)
    (given,) = arguments(script(breaks), "pytest")
    run, outcome = _outcome(pytester, given)
    assert (run.ret, outcome) == (pytest.ExitCode.TESTS_FAILED, Outcome.FAIL)
    (shown,) = (block.text for block in BLOCKS if block.text.startswith("FAIL: "))
    for line in shown.splitlines():  # figures may differ in their last digits on another processor
        run.stdout.fnmatch_lines([f"*{'*'.join(word for word in line.split() if not word[0].isdigit())}*"])
    assert (pytester.path / "capacity.md").is_file()


def test_the_workflow_runs_the_same_test() -> None:
    (workflow,) = (block for block in BLOCKS if block.language == "yaml")
    (given,) = arguments(workflow.text.split("run: ")[-1], "pytest")
    assert given[:3] == ["capacity", "--gpu-class", "sim:fast"]
