"""What `make strangers` would run: every command of the pages is run, or left out for a reason that still holds."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.strangers import commands, run
from tests.strangers.commands import ROOT, RULES, Step, pages, steps

ALL = [step for page in pages() for step in steps(page)]


def test_it_finds_the_commands_and_leaves_their_output() -> None:
    found = {step.text.partition(" ")[0] for step in ALL if not step.file and not step.script}
    assert {"make", "gpucap", "pytest", "pip"} <= found
    run = [step for step in ALL if not step.file and not step.left_out]
    assert sum(step.text.startswith("gpucap ") for step in run) > 15
    assert any(step.text.startswith("make demo") for step in run)


def test_a_shell_can_read_each() -> None:
    for step in ALL:
        if not step.file:
            subprocess.run(["bash", "-n"], input=step.text, text=True, check=True)


@pytest.mark.parametrize("rule", RULES["left_out"], ids=lambda rule: rule["reason"])
def test_every_rule_leaves_something_out(rule: dict[str, str]) -> None:
    assert any(step.left_out == rule["reason"] for step in ALL)


@pytest.mark.parametrize("rule", RULES["needs_vllm"], ids=lambda rule: rule["command"])
def test_every_command_that_needs_vllm_is_run_where_there_is_one(rule: dict[str, str]) -> None:
    found = [step for step in ALL if not step.file and re.search(rule["command"], step.text)]
    assert found
    assert all(step.needs_vllm for step in found)
    assert not any(step.left_out for step in found)


def test_the_tutorial_is_run_as_far_as_it_needs_no_gpu() -> None:
    own = [step for step in ALL if step.page == "docs/tutorial.md"]
    assert {step.file for step in own if step.file} == {
        *("capacity/test_chat.py", "capacity/test_laptop.py", ".github/workflows/capacity.yml"),
    }
    runs = [step for step in own if step.text.startswith("pytest ")]
    assert [step.needs_vllm for step in runs if not step.left_out] == [False, False, True]
    assert all("a10g" in step.text for step in runs if step.left_out)


def test_what_is_granted_is_there_and_its_page_has_commands() -> None:
    for page, files in RULES["granted"].items():
        assert page in pages()
        for source in files.values():
            assert source.startswith("text: ") or (ROOT / source).exists()


@pytest.mark.parametrize("rule", RULES["exits"], ids=lambda rule: rule["command"])
def test_every_exit_code_is_that_of_a_command(rule: dict[str, str]) -> None:
    assert any(step.page == rule["page"] and re.search(rule["command"], step.text) for step in ALL if not step.left_out)


@pytest.mark.parametrize("rule", RULES["advice"], ids=lambda rule: rule["add"])
def test_every_advice_is_given_by_the_page_of_a_command(rule: dict[str, str]) -> None:
    assert rule["add"] in " ".join((ROOT / rule["page"]).read_text(encoding="utf-8").split())
    (step,) = (each for each in ALL if each.advice[0] and each.page == rule["page"])
    assert not step.left_out
    assert step.advice == (rule["said"], f"{step.text} {rule['add']}")


def test_advice_is_followed_where_its_reason_is_seen_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"page": "page.md", "command": "^measure ", "said": "others (here)", "add": "--all-the-same"}
    monkeypatch.setitem(RULES, "advice", [rule])
    define = 'measure() { echo "$1: ${2-others (here)}"; [ "${2-}" = --all-the-same ]; }'
    wanted = [Step("page.md", number, text) for number, text in enumerate([define, "measure a", "measure b no"])]
    defined, first, second = run.in_one_shell(wanted, tmp_path, {"PATH": os.environ["PATH"]})
    assert (defined.code, defined.advised) == (0, False)
    assert (first.code, first.advised, first.output) == (0, True, "a: --all-the-same\n")
    assert (second.code, second.advised, second.output) == (1, False, "b: no\n")


def test_prompts_scripts_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "Do:\n\n```console\n$ one \\\n>   more   # why\noutput $ no\n$ two\n```\n\n"
        "Write it into `a/b.py`:\n\n```python\nx = 1\n```\n\nText.\n\n"
        "```python\ny = 2\n```\n\n```sh\nf() { :; }\nf\n```\n\n1. Item:\n\n    ```console\n    $ three\n    ```\n"
    )
    assert list(steps("page.md")) == [
        Step("page.md", 4, "one \\\n  more   # why"),
        Step("page.md", 7, "two"),
        Step("page.md", 13, "x = 1\n", file="a/b.py"),
        Step("page.md", 23, "f() { :; }\nf\n", script=True),
        Step("page.md", 30, "three"),
    ]
