"""The root folder that pytest has by mistake, from the value of an option."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_gpucap.options import values
from pytest_gpucap.options.table import all_options
from pytest_gpucap.user_files import exists


def check_root(config: pytest.Config) -> None:
    """Refuse a root folder that pytest has from the value of an option of ours.

    pytest looks for its root folder and ini file before it knows the options of plugins. Then the ``PATH`` of
    ``--option PATH`` is a test path for it, but that of ``--option=PATH`` is none.

    Raises:
        pytest.UsageError: one line that names the option and the fix.
    """
    if config.getoption("rootdir") or config.getoption("inifilename"):
        return
    here = config.invocation_params.dir
    words = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.invocation_params.args)]
    flags = {row.flag for row in all_options() if row.parse is not values.flag}
    for flag, value in pairwise(words):
        path = _absolute(here / value)
        if flag in flags and exists(path) and config.rootpath in (path, *path.parents) and not _is_own_root(config):
            raise pytest.UsageError(
                f"{flag}: pytest took its value for a test path, so that its root folder is {config.rootpath}: "
                f"write {flag}={value}"
            )


def _is_own_root(config: pytest.Config) -> bool:
    """Whether pytest would have the same root folder from the folder where it was started and the tests named."""
    here = config.invocation_params.dir
    words = [str(word).partition("::")[0] for word in config.getoption("file_or_dir") or []]
    named = [_absolute(here / word) for word in words]
    starts = [path if path.is_dir() else path.parent for path in named if path.exists()] or [here]
    common = Path(os.path.commonpath(starts))
    if config.inipath is None:
        # Without an ini file it is the folder of a setup.py, or holds the tests and the folder of the start.
        common = Path(os.path.commonpath([here, common]))
        return config.rootpath == common or (config.rootpath / "setup.py").is_file()
    if config.rootpath not in (common, *common.parents):
        return config.rootpath in {folder for start in starts for folder in (start, *start.parents)}
    below = [folder for folder in (common, *common.parents) if config.rootpath in folder.parents]
    return not any(_configures_pytest(folder) for folder in below)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay, as for pytest


def _configures_pytest(folder: Path) -> bool:
    for name in ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini"):
        if (folder / name).is_file():
            return True
    marks = {"pyproject.toml": "[tool.pytest", "tox.ini": "[pytest]", "setup.cfg": "[tool:pytest]"}
    return any(
        (folder / name).is_file() and mark in (folder / name).read_text(encoding="utf-8", errors="replace")
        for name, mark in marks.items()
    )
