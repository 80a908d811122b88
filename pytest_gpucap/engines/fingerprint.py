"""What a server depends on beside its spec: if it is the same, a server that still runs is the one that would start.

The environment, the packages of the interpreter, and the files that model and arguments name. Values of variables are
kept as digests with a salt, since some are secrets.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pytest_gpucap.engines.server_spec import ServerSpec

_DIGEST: Final = 24
_MOST_FILES: Final = 10_000
_MOST_NAMED: Final = 4
_PACKAGES, _FILES, _VARIABLE = "packages", "files", "variable "

_OF_A_TERMINAL: Final = re.compile(
    r"_|OLDPWD|PWD|SHLVL|SHELL|PS\d|PROMPT_COMMAND|TERM(?:INAL)?(?:_.*)?|COLORTERM|COLUMNS|LINES|LS_COLORS|LESS.*|PAGER|EDITOR|"
    r"VISUAL|MAIL|HIST.*|WINDOWID|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|XDG_(?:SESSION|SEAT|VTNR|ACTIVATION).*|DBUS_.*|SSH_.*|"
    r"GPG_.*|GNOME_.*|DESKTOP_.*|SESSION_MANAGER|TMUX.*|STY|VSCODE_.*|GIT_.*|KITTY_.*|ITERM_.*|WEZTERM_.*|ALACRITTY_.*|KONSOLE_.*|"
    r"VTE_.*|TILIX_.*|STARSHIP_.*|DIRENV_.*|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_.*|NO_COLOR|FORCE_COLOR|CLICOLOR.*|PY_COLORS|"
    r"VIRTUAL_ENV_PROMPT|CONDA_PROMPT_MODIFIER|PYTEST_.*|COV_.*|COVERAGE_.*|DEBUGINFOD_.*|MAKE.*|MFLAGS|VLLM_API_KEY"
)
"""Variables that differ from one terminal or one run to the next and change no server; and one that no server gets."""


def fingerprint(spec: ServerSpec, salt: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a server of this spec that starts now depends on, by name.

    Args:
        spec: model, arguments and interpreter.
        salt: of the digests of variables.
        environment: this process's, if it is not given.
    """
    variables = os.environ if environment is None else environment
    found = {
        f"{_VARIABLE}{name}": hmac.new(salt.encode(), value.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[
            :_DIGEST
        ]
        for name, value in variables.items()
        if not _OF_A_TERMINAL.fullmatch(name)
    }
    return {**found, _PACKAGES: _digest(_packages(spec.python)), _FILES: _digest(_files(spec))}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is not the same any more, in a few words; empty if everything is. Values are not named."""
    unlike = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if _PACKAGES in unlike:
        return "packages of its interpreter have changed"
    if _FILES in unlike:
        return "files of its model or its arguments have changed"
    names = [name.removeprefix(_VARIABLE) for name in unlike]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"the environment differs in {', '.join(names[:_MOST_NAMED])}{more}" if names else ""


def editable_vllm(python: str) -> bool:
    """Whether the interpreter's vLLM is installed in place, so that its code may change and nobody sees it."""
    for folder in _package_folders(python):
        for told in folder.glob("vllm-*.dist-info/direct_url.json"):
            try:
                found = json.loads(told.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            info = found.get("dir_info") if isinstance(found, dict) else None
            if isinstance(info, dict) and info.get("editable") is True:
                return True
    return False


def _package_folders(python: str) -> list[Path]:
    """Where an interpreter finds packages, as far as the layout of folders tells."""
    found = shutil.which(python)
    if found is None:
        return []
    here = Path(found).absolute()
    roots = [here.parents[1]]
    if not (roots[0] / "pyvenv.cfg").is_file():
        roots.append(here.resolve().parents[1])
    patterns = ("lib*/python3*/site-packages", "lib/python3*/dist-packages", "local/lib/python3*/dist-packages")
    return sorted({folder.resolve() for root in roots for pattern in patterns for folder in root.glob(pattern)})


def _packages(python: str) -> Iterator[str]:
    """A folder's time changes with every package that is installed or removed."""
    found = shutil.which(python)
    for path in [] if found is None else [Path(found), *_package_folders(python)]:
        yield from _told(path)


def _files(spec: ServerSpec) -> Iterator[str]:
    for value in (spec.model, *spec.args.values.values()):
        if not isinstance(value, str) or len(value) > 4096 or "\0" in value:  # noqa: PLR2004 - the longest path
            continue
        path = Path(value).expanduser().absolute()
        try:
            below = sorted(path.iterdir())[:_MOST_FILES] if path.is_dir() else [path] if path.exists() else []
        except OSError:
            below = []
        for each in below:
            yield from _told(each)


def _told(path: Path) -> Iterator[str]:
    try:
        found = path.stat()
    except OSError:
        yield f"{path} cannot be seen"
    else:
        yield f"{path} {found.st_ino} {found.st_size if path.is_file() else 0} {found.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST]
