"""A fake ``libnvidia-ml.so.1``, built with the machine's C compiler and driven by recorded answers.

Within the test process it is loaded under its soname before pynvml asks for it, so that the real binding finds it; a
child process finds it through ``LD_LIBRARY_PATH``. Outside `answers` it has no driver, as on a machine without a GPU.
"""

from __future__ import annotations

import atexit
import copy
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@cache
def library_directory() -> Path:
    """The directory with the built library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler to build the fake NVML library")
    directory = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-format-truncation", "-pthread"]
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, soname, "-o", directory / "libnvidia-ml.so.1", HERE / "fake_nvml.c"], check=True)
    return directory


@cache
def _load_here() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_directory() / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)


def recording(name: str) -> dict[str, Any]:
    """The recorded answers of one machine."""
    answers: dict[str, Any] = json.loads((HERE / "recordings" / f"{name}.json").read_text())
    return answers


class Answers:
    """The answers that the library gives at this moment."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        self.content: dict[str, Any] = copy.deepcopy(dict(content))
        self._path = path
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """For a child process, on top of its own."""
        return {"LD_LIBRARY_PATH": str(library_directory()), "FAKE_NVML_ANSWERS": str(self._path)}

    def device(self, index: int = 0) -> dict[str, Any]:
        """The answers of one GPU, to change before `write`."""
        device: dict[str, Any] = self.content["devices"][index]
        return device

    def set(self, index: int = 0, /, **fields: Any) -> None:
        """Change fields of one GPU, in one step for whoever reads."""
        self.device(index).update(fields)
        self.write()

    def write(self) -> None:
        lines = [f"count={len(self.content.get('devices', []))}"]
        lines += [f"{key}={value}" for key, value in _flat(self.content, "")]
        fresh = self._path.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self._path)


@contextmanager
def answers(content: str | Mapping[str, Any]) -> Iterator[Answers]:
    """Within the block, NVML gives these answers (or those of the recording of that name)."""
    given = recording(content) if isinstance(content, str) else content
    _load_here()
    with tempfile.TemporaryDirectory(prefix="fake-nvml-answers-") as directory:
        current = Answers(given, Path(directory) / "answers")
        before = os.environ.get("FAKE_NVML_ANSWERS")
        os.environ["FAKE_NVML_ANSWERS"] = current.environment["FAKE_NVML_ANSWERS"]
        try:
            yield current
        finally:
            if before is None:
                del os.environ["FAKE_NVML_ANSWERS"]
            else:
                os.environ["FAKE_NVML_ANSWERS"] = before


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """JSON as lines: ``{"error": 3}`` is an NVML error, a list also tells its length."""
    if isinstance(value, Mapping) and set(value) == {"error"}:
        yield prefix, f"!{value['error']}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        yield f"{prefix}.count", len(value)
        for position, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{position}")
    else:
        yield prefix, int(value) if isinstance(value, bool) else value
