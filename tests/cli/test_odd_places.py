"""Commands and sessions where the working directory is gone, or nothing can be read or written: no traceback."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.namespaces import unshared

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "examples.json"
_DROP, _OVERRIDE, _SEARCH = 24, 1, 2  # prctl(2), capabilities(7)


def _obeys_permissions() -> None:
    """Even as root."""
    libc = ctypes.CDLL(None)
    for capability in (_OVERRIDE, _SEARCH):
        libc.prctl(_DROP, capability, 0, 0, 0)


def run(
    *words: str, folder: Path, gone: bool = False, environ: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    def before() -> None:
        _obeys_permissions()
        os.chdir(folder)
        if gone:
            folder.rmdir()

    return subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **environ},
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    )


def gpucap(
    *words: str, folder: Path, gone: bool = False, environ: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return run("pytest_gpucap", *words, folder=folder, gone=gone, environ=environ)


@pytest.mark.parametrize("command", ["report", "show"])
def test_the_working_directory_is_gone(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = gpucap(command, str(RESULT), folder=gone, gone=True)
    assert (done.returncode, done.stderr) == (0, "")
    gone.mkdir()
    done = gpucap(command, "result.json", folder=gone, gone=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"python -m pytest_gpucap {command}: result.json: No such file or directory"]


def test_nothing_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(0o555)
    places = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder)}
    done = gpucap("report", str(RESULT), folder=folder, environ=places)
    assert (done.returncode, done.stderr) == (0, "")
    done = gpucap("report", str(RESULT), "--markdown", "page.md", folder=folder, environ=places)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["python -m pytest_gpucap report: page.md: Permission denied"]


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(RESULT.read_bytes())
    file.chmod(0)
    done = gpucap("show", str(file), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"python -m pytest_gpucap show: {file}: Permission denied"]


NOBODY = 54321
MODEL = """
import pytest
pytestmark = pytest.mark.vllm(model="synthetic:tiny")
"""
SUITE = """
import pytest

@pytest.mark.gpucap(qps=5, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
def test_it(gpucap):
    gpucap.check()
"""


@pytest.mark.slow
def test_a_session_measures_where_nothing_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "test_it.py").write_text(SUITE)
    folder.chmod(0o555)
    places = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder)}
    words = ["pytest", "-pno:cacheprovider", "-pno:benchmark", "-ogpucap_host_check=warn", "--gpu-class=sim:fast"]
    done = run(*words, folder=folder, environ=places)
    assert "1 passed" in done.stdout
    assert "result.json could not be written: [Errno 13] Permission denied" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.OK  # nobody asked for the file
    done = run(*words, "--gpucap-json=r.json", folder=folder, environ=places)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--gpucap-json: " in done.stderr
    assert "cannot be written to: choose another path" in done.stderr
    assert [each.name for each in folder.iterdir()] == ["test_it.py"]


def test_a_session_of_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    """In a user namespace of its own, where this user's files belong to a user whom no system knows."""
    (tmp_path / "test_it.py").write_text(SUITE)
    flags = f"-U --map-user={NOBODY}"
    command = ["env", "-uHOME", "-uXDG_CACHE_HOME", sys.executable, "-m", "pytest", "-pno:benchmark"]
    done = unshared(flags, *command, "-ogpucap_host_check=warn", "--gpu-class=sim:fast", cwd=tmp_path)
    assert "1 passed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.OK
    (tmp_path / "test_it.py").write_text(SUITE.replace("import pytest", MODEL))
    done = unshared(flags, *command, "--gpu-class=cpu", cwd=tmp_path)
    assert "set HOME" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode != pytest.ExitCode.OK
