"""Data flows one way through the folders: imports point only from later stages to earlier ones."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_gpucap

PACKAGE = Path(pytest_gpucap.__file__).parent

WIRING = {"plugin", "fixtures", "suite", "commands", "__init__", "__main__"}
"""What connects stages; no stage imports it."""

MAY_IMPORT = {
    "requirement": set(),
    "jit": set(),
    "options": {"requirement"},
    "workloads": {"requirement"},
    "markers": {"options", "requirement", "workloads"},
    "gpu": set(),
    "server": set(),
    "load": {"requirement", "jit"},
    "capacity": {"requirement", "jit", "load"},
    "measure": {"requirement", "load", "capacity"},
    "simulator": {"requirement", "jit", "workloads", "load", "capacity", "server"},
    "history": {"requirement", "capacity", "report"},
    "report": {"requirement", "capacity"},
}
"""Stage -> the stages that it may import beside itself."""

FORBIDDEN = {
    "capacity": {"pytest", "openai", "httptools", "uvloop", "asyncio", "socket", "urllib", "http", "pynvml"},
    "measure": {"pytest", "openai", "httptools", "uvloop", "asyncio", "socket", "urllib", "http", "pynvml"},
    "load": {"pytest", "pynvml"},
    "server": {"pytest", "pynvml"},
    "gpu": {"pytest", "openai"},
    "simulator": {"pytest", "pynvml"},
    "requirement": {"pytest", "numpy"},
    "*": {"vllm", "torch"},
}
"""Stage -> top-level modules that it may never import; ``*``: no stage may."""

PURE_LOAD = {"pytest_gpucap.load.protocol", "pytest_gpucap.load.schedule"}
"""Pure parts of `load` that arithmetic may use: the form of samples, and arrivals and lengths."""


def _imports() -> Iterator[tuple[str, str, str]]:
    """(file, stage, imported module) for every import anywhere in the package, functions included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        stage = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield str(relative), stage, alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}: relative imports hide where an arrow points"
                assert node.module is not None
                for alias in node.names:
                    yield str(relative), stage, f"{node.module}.{alias.name}"


def _allowed(stage: str, module: str) -> bool:
    own, _, rest = module.partition(".")
    target = rest.partition(".")[0]
    if own != "pytest_gpucap" or stage in WIRING or target in {"", "__version__", stage}:
        return True
    if stage in {"capacity", "measure"} and target == "load":
        return any(f"{module}.".startswith(f"{pure}.") for pure in PURE_LOAD)
    return target in MAY_IMPORT[stage]


def test_imports_point_one_way() -> None:
    assert not [f"{file} imports {module}" for file, stage, module in _imports() if not _allowed(stage, module)]


def test_stages_stay_out_of_what_is_not_theirs() -> None:
    wrong = [
        f"{file} imports {module}"
        for file, stage, module in _imports()
        if module.split(".")[0] in FORBIDDEN.get(stage, set()) | FORBIDDEN["*"]
    ]
    assert not wrong


def test_every_stage_is_known() -> None:
    stages = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert stages - WIRING - {"__pycache__", "py.typed"} <= set(MAY_IMPORT)


def test_loading_the_plugin_loads_nothing_but_pytest_and_the_standard_library() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_gpucap.plugin; "
        "print('\\n'.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded - set(sys.stdlib_module_names) == {"pytest_gpucap"}


@pytest.mark.skipif("GPUCAP_TEST_INSTALLED" not in os.environ, reason="only where the built wheel is tested")
def test_the_wheel_is_what_is_tested() -> None:
    assert "site-packages" in PACKAGE.parts
    assert (PACKAGE / "py.typed").is_file()
