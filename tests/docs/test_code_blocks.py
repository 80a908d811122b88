"""Every fenced block of the documentation is what it says: code is collected, and commands have known options."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.make_commands import parsers
from pytest_gpucap.options.table import all_options
from tests.docs.blocks import PAGES, REPOSITORY, Block, arguments, blocks, script

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELLS = ("bash", "console", "sh")
LANGUAGES = {"json", "mermaid", "python", "text", "toml", "yaml", *SHELLS}
PROGRAMS = ("llama-server", "lmdeploy")
"""What the engines of the examples start; they are looked up at collection."""
FLAGS = {row.flag for row in all_options()}


def _of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def _compiled(block: Block) -> str:
    """A block's code as a module. One that ends with decorators shows a marker alone, and gets a test."""
    code = f"import pytest\n\n{block.text}"
    try:
        ast.parse(code)
    except SyntaxError:
        code += "def test_it(gpucap):\n    gpucap.check()\n"
    ast.parse(code)
    return code


@pytest.fixture
def modules(tmp_path: Path) -> dict[Path, Block]:
    """A file for each Python block."""
    found = {}
    for block in _of("python"):
        path = tmp_path / f"test_{block.page.stem.replace('-', '_')}_{block.line}.py"
        path.write_text(_compiled(block), encoding="utf-8")
        found[path] = block
    return found


def test_every_block_has_a_language_that_is_checked() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {block.language for block in BLOCKS} >= {"console", "python", "text", "toml", "yaml"}


def test_every_fence_is_a_block() -> None:
    """A fence that the pattern does not see would not be checked."""
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        inner = sum(block.text.count("```") for block in blocks(page))
        assert len(fences) - inner == 2 * len(list(blocks(page))), page


def test_every_test_is_collected_without_a_mistake(
    pytester: pytest.Pytester, modules: dict[Path, Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markers are read and placed at collection, so a keyword or a value that cannot be would end the run."""
    programs = pytester.mkdir("bin")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    for name in PROGRAMS:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    tests = {path: block for path, block in modules.items() if "def test_" in path.read_text(encoding="utf-8")}
    for path in tests:
        shutil.copy(path, pytester.path)
    (pytester.path / "june.jsonl").write_text('{"prompt": "How many GPUs do we need?", "max_tokens": 64}\n')
    chat = '{"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}]}\n'
    (pytester.path / "chats.jsonl").write_text(chat)
    run = pytester.runpytest("--collect-only", "-q", "--gpu-class=h200", "--target-qps=10", "--gpucap-model=ORG/MODEL")
    assert run.ret == pytest.ExitCode.OK, run.stderr.str()
    assert {line.partition("::")[0] for line in run.outlines if "::" in line} == {path.name for path in tests}
    assert len(tests) > 15


def test_no_block_has_an_unknown_name_or_an_import_that_is_not_there(
    modules: dict[Path, Block], tmp_path: Path
) -> None:
    for path, block in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pytest_gpucap"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], block
    pytest.importorskip("ruff")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=E9,F821,F822,F823"]
    done = subprocess.run([*ruff, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", _of("toml", "json"), ids=str)
def test_data_can_be_read(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
        return
    found = tomllib.loads(block.text)
    tool = found.get("tool", {}).get("pytest", {})
    keys = {key for key in {**tool, **tool.get("ini_options", {})} if key.startswith("gpucap_")}
    assert keys <= {row.ini for row in all_options()}


def _scripts(value: Any) -> Iterator[str]:
    """The texts of a workflow that a shell would run."""
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, str) and key in {"run", "command", "script"}:
                yield each
            elif isinstance(each, list) and key == "command":
                yield shlex.join(map(str, each))
            else:
                yield from _scripts(each)
    elif isinstance(value, list):
        for each in value:
            yield from [each] if isinstance(each, str) else _scripts(each)


@pytest.mark.parametrize("block", _of("yaml"), ids=str)
def test_workflows_are_sound(block: Block, pytestconfig: pytest.Config) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(block.text)
    for each in _scripts(found):
        _check_commands(each, block, pytestconfig)
    if "jobs" in found:
        actionlint = Path(sys.executable).with_name("actionlint")
        if not actionlint.exists():
            pytest.skip("actionlint is not installed")
        config = REPOSITORY / "examples" / "ci" / "actionlint.yaml"
        done = subprocess.run(
            [actionlint, "-config-file", config, "-"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", _of(*SHELLS), ids=str)
def test_commands_have_known_options(block: Block, pytestconfig: pytest.Config) -> None:
    text = script(block)
    assert text.strip(), "a console shows what is typed behind `$ `; output alone is text"
    shell = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert shell.returncode == 0, shell.stderr
    _check_commands(text, block, pytestconfig)


def _check_commands(text: str, block: Block, config: pytest.Config) -> None:
    for given in arguments(text, "gpucap"):
        _check_gpucap(given, block)
    for given in arguments(text, "pytest"):
        _check_pytest(given, block, config)


def _check_gpucap(given: list[str], block: Block) -> None:
    parser = dict(parsers())[given[0]]
    try:
        parser.parse_args(given[1:])
    except SystemExit:
        pytest.fail(f"{block}: gpucap {' '.join(given)}")


def _check_pytest(given: list[str], block: Block, config: pytest.Config) -> None:
    """No option is unknown to the parser of this run, which knows those of all plugins here; ours have values."""
    found, unknown = config._parser.parse_known_and_unknown_args(given)
    assert unknown == [], f"{block}: pytest {' '.join(given)}"
    for row in all_options():
        raw = getattr(found, row.ini, None)
        if raw not in (None, True) and "$" not in str(raw) and row.flag != "--gpucap-base-dir":  # which is looked for
            value = row.parse(raw, row.flag, config)
            assert not row.choices or value in row.choices, f"{block}: {row.flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_option_in_the_text_is_unknown(page: Path) -> None:
    """A flag that ends with a dash, or stands before dots, is the beginning of several."""
    named = set(re.findall(r"--gpu[a-z-]+", page.read_text(encoding="utf-8")))
    others = {"--gpu-file", "--gpu-memory-utilization", "--gpus-per-node"}  # of `gpucap plan`, vLLM and Slurm
    assert {flag for flag in named - FLAGS - others if not any(each.startswith(flag) for each in FLAGS)} == set()


def test_a_mistake_is_found(pytestconfig: pytest.Config) -> None:
    page = REPOSITORY / "docs" / "x.md"
    for line in ("pytest --gpucap-nothing=1", "cd x && pytest --gpucap-max-time=soon", "gpucap report --nothing x"):
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
            _check_commands(line, Block(page, 1, "sh", line), pytestconfig)
    assert list(arguments("pip install pytest", "pytest")) == []
    assert list(arguments('a() { pytest x --y="$1" || true; }  # no', "pytest")) == [["x", "--y=$1"]]
    console = Block(page, 1, "console", "$ pytest a \\\n    -q\n1 passed\n")
    assert list(arguments(script(console), "pytest")) == [["a", "-q"]]
