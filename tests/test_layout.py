"""Data flows one way through the folders: imports point only from later stages to earlier ones."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_gpucap

PACKAGE = Path(pytest_gpucap.__file__).parent

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "masking": set(),
    "foreign_text": set(),
    "user_files": set(),
    "installing": set(),
    "explained": set(),
    "simulated": set(),
    # What is declared, and the arithmetic on it.
    "api_dialect": set(),
    "declared_numbers": set(),
    "workload_parts": {"declared_numbers"},
    "workload": {"api_dialect", "declared_numbers", "workload_parts"},
    "slo": {"declared_numbers"},
    "requirement": {"declared_numbers", "workload_parts", "workload", "slo"},
    "access": set(),
    "own_code": set(),
    "jit": {"own_code"},
    "secondary": {"requirement"},
    "sizing": {"requirement"},
    "vllm_arguments": {"requirement"},
    "routing": set(),
    # What is found.
    "results": {"requirement", "secondary", "sizing", "vllm_arguments", "simulated"},
    # The stages of a measurement, earliest first.
    "hookspecs": {"engines", "gpu", "results"},
    "extensions": {"engines", "gpu", "workloads"},
    "options": {"requirement", "access", "gpu", "routing", "extensions", "simulated"},
    "workloads": {"requirement"},
    "gpu": set(),
    "engines": {"api_dialect", "requirement", "vllm_arguments", "load", "access", "routing", "explained"},
    "telemetry": {"gpu", "engines", "results", "vllm_arguments"},
    "load": {"api_dialect", "requirement", "jit", "results", "access", "workloads"},
    "accuracy": {"requirement", "results", "load", "engines"},
    "markers": {
        *("options", "requirement", "secondary", "vllm_arguments", "workloads", "accuracy", "engines", "simulated"),
    },
    "estimate": {"requirement", "jit", "results", "load"},
    "decisions": {"requirement", "secondary", "sizing", "results"},
    "roofline": {"requirement", "vllm_arguments", "results", "load", "gpu", "engines"},
    "measure": {"requirement", "results", "load", "estimate", "decisions", "roofline"},
    "simulator": {"requirement", "vllm_arguments", "jit", "load", "accuracy", "engines", "routing", "simulated"},
    "fleet": {"requirement", "sizing", "access", "routing", "gpu", "engines", "telemetry", "load", "results"},
    # What other tools found.
    "other_tools": {"requirement", "vllm_arguments", "results"},
    # What is made of results.
    "planning": {"requirement", "sizing", "vllm_arguments", "results", "gpu", "roofline", "simulated"},
    "report": {"requirement", "secondary", "sizing", "results", "planning", "explained"},
    "history": {"requirement", "secondary", "vllm_arguments", "results", "decisions", "report"},
    # The wiring: one pytest session, and the commands.
    "session": {
        *(
            "options",
            "markers",
            "routing",
            "fleet",
            "access",
            "requirement",
            "secondary",
            "vllm_arguments",
            "results",
            "gpu",
            "engines",
            "telemetry",
            "load",
            "own_code",
            "accuracy",
            "estimate",
            "decisions",
        ),
        *("roofline", "measure", "simulator", "planning", "report", "history", "workloads", "simulated"),
    },
    # What scripts read and make of results.
    "on_disk": {"results", "history", "report"},
    "fixtures": {"engines", "session"},
    "plugin": {"hookspecs", "options", "fixtures", "results", "session", "report"},
    "cli": {
        *(
            "access",
            "on_disk",
            "requirement",
            "vllm_arguments",
            "sizing",
            "results",
            "gpu",
            "engines",
            "roofline",
            "report",
            "history",
            "planning",
            "other_tools",
        ),
    },
    "__init__": {"api_dialect", "requirement", "results", "gpu", "engines", "load", "telemetry", "session", "on_disk"},
    "__main__": {"cli"},
}
"""Folder or file -> what it may import beside itself and those of `EVERYWHERE`.

A room stands below everything that it may import.
"""

EVERYWHERE = {"errors", "arrays", "masking", "foreign_text", "user_files", "installing"}
"""What every text, error, array and advice needs."""

FORBIDDEN = {
    "results": {"pytest", "numpy", "openai", "asyncio", "socket"},
    "sizing": {"pytest", "numpy"},
    "estimate": {"pytest", "openai", "httptools", "uvloop", "asyncio", "socket", "urllib", "http", "pynvml"},
    "decisions": {"pytest", "openai", "httptools", "uvloop", "asyncio", "socket", "urllib", "http", "pynvml"},
    "measure": {"pytest", "openai", "httptools", "uvloop", "asyncio", "socket", "urllib", "http", "pynvml"},
    "load": {"pytest", "pynvml"},
    "engines": {"pytest", "pynvml"},
    "gpu": {"pytest", "openai"},
    "telemetry": {"pytest", "openai"},
    "roofline": {"pytest"},
    "accuracy": {"pytest"},
    "planning": {"pytest"},
    "report": {"pytest"},
    "history": {"pytest"},
    "other_tools": {"pytest", "numpy"},
    "cli": {"pytest"},
    "simulator": {"pytest", "pynvml"},
    "fleet": {"pytest"},
    "requirement": {"pytest", "numpy"},
    "declared_numbers": {"pytest", "numpy"},
    "workload_parts": {"pytest", "numpy"},
    "workload": {"pytest", "numpy"},
    "slo": {"pytest", "numpy"},
    "vllm_arguments": {"pytest", "numpy"},
    "*": {"vllm", "torch"},
}
"""Room -> top-level modules that it may never import; ``*``: no room may."""

PURE_LOAD = {
    f"pytest_gpucap.load.{name}"
    for name in ("protocol", "latencies", "schedule", "draws", "sessions", "recorded_sessions")
}
"""Pure parts of `load` that arithmetic may use: the form of samples, what limits are set on, arrivals and lengths."""


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
    if own != "pytest_gpucap" or target in {"", "__version__", *EVERYWHERE, stage}:
        return True
    if stage in {"estimate", "measure"} and target == "load":
        return any(f"{module}.".startswith(f"{pure}.") for pure in PURE_LOAD)
    return target in ROOMS[stage]


def _files() -> dict[str, set[str]]:
    """Every module of the package -> the modules of the package that it imports."""
    names = {
        ".".join(["pytest_gpucap", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for each in imported:
                module = each if each in names else each.rpartition(".")[0]
                if module in names and module != "pytest_gpucap":
                    found[name].add(module)
    return found


def test_no_files_import_one_another_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter(_files()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_rooms_have_an_order() -> None:
    assert list(graphlib.TopologicalSorter(ROOMS).static_order())


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
    assert stages - {"__pycache__"} == set(ROOMS)


def test_loading_the_plugin_loads_nothing_but_pytest_and_the_standard_library() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_gpucap.plugin; "
        "print('\\n'.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded - set(sys.stdlib_module_names) == {"pytest_gpucap"}


@pytest.mark.parametrize(
    ("spelt", "home"),
    [
        # How a simulated class is named.
        (r"""["']sim:(?!PROFILE)""", "simulated.py"),
        # How a worker of pytest-xdist is known. What it is told is given by `node.workerinput`.
        (r"""["']workerinput["']""", "session/workers.py"),
    ],
)
def test_one_file_knows_how_a_thing_is_spelt(spelt: str, home: str) -> None:
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if re.search(spelt, path.read_text("utf-8"))
    }
    assert found == {home}


@pytest.mark.skipif("GPUCAP_TEST_INSTALLED" not in os.environ, reason="only where the built wheel is tested")
def test_the_wheel_is_what_is_tested() -> None:
    assert "site-packages" in PACKAGE.parts
    assert (PACKAGE / "py.typed").is_file()
