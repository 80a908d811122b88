"""Parsers of option values: from the text on the command line or in the ini file to what `Options` holds.

Every parser takes the value as given, the option's name for messages, and pytest's configuration. For a wrong value it
raises `ValueError` with one line that says what the option takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_gpucap.errors import told
from pytest_gpucap.installing import pip_install
from pytest_gpucap.masking import FROM_ENVIRONMENT, masked, refusal
from pytest_gpucap.user_files import UserFileError, exists, home_expanded, is_file, is_folder, real_path, shown_path

if TYPE_CHECKING:  # every pytest run imports this file: exact arithmetic is loaded when there is something to parse
    from fractions import Fraction

    from pytest_gpucap.access import HeaderSource
    from pytest_gpucap.gpu.occupancy import IdleMemory
    from pytest_gpucap.routing import Routing


def text(value: Any, _what: str, _config: pytest.Config) -> str:
    """Any text."""
    return str(value).strip()


NOTHING: Final = object()
"""Stands for the value of an option that was given without one."""


def server_arguments(value: Any, _what: str, _config: pytest.Config) -> str:
    """Arguments of a server, which may begin with dashes."""
    if value is NOTHING:
        raise ValueError('needs arguments: write --gpucap-base-args="--max-num-seqs 64"')
    given = str(value).strip()
    if masked(given) != given:
        raise ValueError(f"holds a secret, which command lines, logs and reports would show: {FROM_ENVIRONMENT}")
    return given


def model(value: Any, _what: str, _config: pytest.Config) -> str:
    """A model's name, folder or URL."""
    named = str(value).strip()
    if why := refusal("the model", named):
        raise ValueError(why)
    return named


def flag(value: Any, _what: str, _config: pytest.Config) -> bool:
    """Whether the flag is given."""
    return bool(value)


def path(value: Any, _what: str, _config: pytest.Config) -> Path:
    """A file or folder. `PATHS` has laid a relative path over the folder that it starts from."""
    return home_expanded(str(value))


def output_file(value: Any, what: str, config: pytest.Config) -> Path:
    """A file to write. Missing folders are made later; whatever would stop that is reported here."""
    file = path(value, what, config)
    if is_folder(file):
        raise ValueError(f"{shown_path(file)} is a folder: name a file in it")
    _check_name(file)
    _check_folder(file.parent)
    return file


def output_folder(value: Any, what: str, config: pytest.Config) -> Path:
    """A folder to write files to, made when it is needed."""
    folder = path(value, what, config)
    _check_name(folder)
    _check_folder(folder)
    return folder


def _check_name(path: Path) -> None:
    """Check that a file may have this path: a part that is too long, or links in a circle, would come out late."""
    try:
        os.stat(path)  # noqa: PTH116 - the name of a file that need not be there
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    except OSError as error:
        raise UserFileError.of(path, error) from None
    except ValueError:
        raise UserFileError(path, "no file can have this name") from None


def _check_folder(folder: Path) -> None:
    """Check that the folder is there or can be made, and that files can be made in it."""
    # os.path: what may not be looked at is not there.
    there = next(each for each in (folder, *folder.parents) if exists(each) or each == each.parent)
    if not is_folder(there):
        raise ValueError(f"{shown_path(there)} is a file, so there can be no folder of that name: choose another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{shown_path(there)} cannot be written to: choose another path")


def html_path(value: Any, what: str, config: pytest.Config) -> Path:
    """A file for the HTML report. A missing Jinja2 is reported here, before GPU time is spent."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise ValueError(f"needs Jinja2: {pip_install('html')}")
    return output_file(value, what, config)


def baselines_folder(value: Any, what: str, config: pytest.Config) -> Path:
    """The folder of the baselines; a session that only compares need not be able to write to it."""
    folder = path(value, what, config)
    _check_name(folder)
    if exists(folder) and not is_folder(folder):
        raise ValueError(f"{shown_path(folder)} is a file: name a folder")
    return folder


def base_folder(value: Any, what: str, config: pytest.Config) -> Path:
    """The folder of a base checkout that stands for pytest's root folder."""
    folder = path(value, what, config)
    if not is_folder(folder):
        raise ValueError(f"there is no folder {shown_path(folder)}: check the base out there")
    if real_path(folder) == real_path(config.rootpath):
        raise ValueError(f"{shown_path(folder)} is pytest's own root folder: check the base out in another one")
    return Path(real_path(folder))


def baseline(value: Any, _what: str, config: pytest.Config) -> str:
    """The name of a baseline, or the path of a run or of a folder: from pytest's root folder if it lies inside."""
    named = str(value).strip()
    if not Path(named).is_relative_to(config.rootpath):
        return named
    inside = str(Path(named).relative_to(config.rootpath))
    return inside if _is_path(inside) else f".{os.sep}{inside}"


def interpreter(value: Any, what: str, config: pytest.Config) -> str:
    """A Python interpreter: a path, or a name that is looked up on PATH."""
    given = str(value)
    if "/" not in given:
        return given
    found = path(value, what, config)
    # An ini file may name an interpreter that only the GPU machine has: tests that need none run everywhere.
    if config.getoption("gpucap_vllm_python") is not None and not is_file(found):
        raise ValueError(f"there is no interpreter at {shown_path(found)}")
    # Not resolved: a virtual environment's python is a link, and Python finds the environment by the link's path.
    return str(found)


def idle_memory(value: Any, what: str, _config: pytest.Config) -> IdleMemory:
    """An amount of GPU memory such as 2GiB, 1500 MB or 5%."""
    from pytest_gpucap.gpu.occupancy import IdleMemory

    amount = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s{0,9}(%|[KMGT]i?B?)"
    match = re.fullmatch(amount, str(value).strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(f"{what} must be an amount of memory with its unit, such as 2GiB or 5%, not {told(value)}")
    number, unit = float(match[1]), match[2].lower()
    if unit != "%":
        base = 1000 if unit.endswith("b") and "i" not in unit else 1024
        return IdleMemory(bytes=int(number * base ** ("kmgt".index(unit[0]) + 1)))
    if number >= 100:  # noqa: PLR2004 - per cent
        raise ValueError(f"{what} must be less than 100% of the GPU's memory, not {told(value)}")
    return IdleMemory(share=number / 100)


def positive_value(value: Any, what: str, _config: pytest.Config) -> Fraction:
    """A number above 0."""
    from pytest_gpucap import requirement

    return requirement.positive(value, what)


def headroom_value(value: Any, what: str, _config: pytest.Config) -> Fraction:
    """A factor of at least 1."""
    from pytest_gpucap import requirement

    return requirement.headroom(value, what)


def count(value: Any, what: str, _config: pytest.Config) -> int:
    """A whole number of at least 1."""
    from pytest_gpucap import requirement

    return requirement.whole(value, what)


def starts(value: Any, what: str, _config: pytest.Config) -> int:
    """How many starts of a server one result comes from."""
    from pytest_gpucap import requirement

    return requirement.starts(value, what)


def seed(value: Any, what: str, _config: pytest.Config) -> int:
    """A whole number of at least 0."""
    from pytest_gpucap import requirement

    return requirement.whole(value, what, least=0)


def duration(value: Any, what: str, _config: pytest.Config) -> float:
    """A time in seconds."""
    from pytest_gpucap import requirement

    return requirement.duration_s(value, what)


_LONGEST_KEPT_S: Final = 24 * 3600.0


def kept_for(value: Any, what: str, _config: pytest.Config) -> float:
    """How long a server is kept, in seconds: a day at most, since it holds its GPUs all the time."""
    from pytest_gpucap import requirement

    found = requirement.duration_s(value, what)
    if found > _LONGEST_KEPT_S:
        raise ValueError(f"{what} must be at most 24h, not {told(value)}: a kept server holds its GPUs all the time")
    return found


def share_value(value: Any, what: str, _config: pytest.Config) -> float:
    """A share above 0 and below 1."""
    from pytest_gpucap import requirement

    return requirement.proper_share(value, what)


def routing(value: Any, _what: str, _config: pytest.Config) -> Routing:
    """A router, with or without its policy."""
    from pytest_gpucap.routing import Routing

    return Routing.parse(str(value))


def load_from(value: Any, what: str, config: pytest.Config) -> str:
    """``here``, ``replicas``, or a number of nodes."""
    given = str(value).strip()
    if given in {"here", "replicas"}:
        return given
    try:
        return str(count(given, what, config))
    except ValueError:
        raise ValueError(f"{what} must be here, replicas or a number of nodes, not {told(given)}") from None


def efficiency(value: Any, what: str, config: pytest.Config) -> str | Fraction | Path:
    """``measure``, ``skip``, a share above 0 of up to 100%, or a result file."""
    given = str(value).strip()
    if given in {"measure", "skip"}:
        return given
    if _is_path(given):
        return path(given, what, config)
    from pytest_gpucap import requirement

    share = requirement.share(given, what)
    if not share:
        raise ValueError(f"{what} must be above 0%, not {told(given)}")
    return share


def url(value: Any, _what: str, _config: pytest.Config) -> str:
    """The base URL of a server; the URL of one of its endpoints is understood."""
    from pytest_gpucap.access import server_root

    return server_root(str(value)) + "/v1"


_MOST_PAGES: Final = 64


def page_urls(value: Any, what: str, _config: pytest.Config) -> tuple[str, ...]:
    """Pages of metrics, each by its URL."""
    from pytest_gpucap.access import page_url

    given = value if isinstance(value, list) else str(value).split("\n")
    found = tuple(dict.fromkeys(page_url(str(each)) for each in given))
    if len(found) > _MOST_PAGES:
        raise ValueError(f"{what} must be at most {_MOST_PAGES} pages, not {len(found)}")
    return found


_LABEL: Final = re.compile(r"\s{0,9}([A-Za-z_][A-Za-z0-9_]{0,99})\s{0,9}=([^,\n]{1,200})")


def labels(value: Any, what: str, _config: pytest.Config) -> tuple[tuple[str, str], ...]:
    """Labels of Prometheus and their values, each as ``LABEL=VALUE``, with commas between them."""
    found: dict[str, tuple[str, str]] = {}
    for part in str(value).split(","):
        match = _LABEL.fullmatch(part)
        if match is None or not match[2].strip():
            raise ValueError(f"{what} must be LABEL=VALUE,... such as pod=vllm-0 or gpu=0, not {told(value)}")
        if match[1].lower() in found:
            raise ValueError(f"{what}: {match[1]} is given twice")
        found[match[1].lower()] = match[1], match[2].strip()
    return tuple(found.values())


def headers(value: Any, _what: str, _config: pytest.Config) -> tuple[HeaderSource, ...]:
    """Headers, each as ``NAME=ENV``."""
    from pytest_gpucap.access import header_sources

    return header_sources(value if isinstance(value, list) else str(value).split("\n"))


def _is_path(text: str) -> bool:
    """Whether a text that may be a name is a path."""
    return "/" in text or text.startswith("~") or text.endswith(".json")


def _laid_over(value: Any, folder: Path) -> str:
    return str(folder / home_expanded(str(value)))


def _laid_over_if_path(value: Any, folder: Path) -> str:
    text = str(value).strip()
    return os.path.normpath(_laid_over(text, folder)) if _is_path(text) else text


def _laid_over_unless_name(value: Any, folder: Path) -> str:
    # Not normalised, because ".." behind a link leads elsewhere.
    return _laid_over(value, folder) if "/" in str(value) else str(value)


PATHS: Final[Mapping[Callable[[Any, str, pytest.Config], object], Callable[[Any, Path], str]]] = {
    **dict.fromkeys((path, output_file, output_folder, html_path, base_folder, baselines_folder), _laid_over),
    **dict.fromkeys((baseline, efficiency), _laid_over_if_path),
    interpreter: _laid_over_unless_name,
}
"""Parsers of paths: what lays a path as it was given over the folder that it starts from.

There is one rule for each source. A path on the command line starts where pytest was started, as every shell completes
it. A path in an ini file starts in the folder of that file, so it means the same wherever pytest is started. Defaults
start at pytest's root folder. ``~`` is the user's home folder.
"""

NUMBERS: Final[frozenset[Callable[[Any, str, pytest.Config], object]]] = frozenset(
    {positive_value, headroom_value, count, starts, seed, duration, share_value}
)
"""Parsers that also take the numbers of a native TOML configuration."""
