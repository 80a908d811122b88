"""Parsers of option values: from the text on the command line or in the ini file to what `Options` holds.

Every parser takes the value as given, the option's name for messages, and pytest's configuration. For a wrong value it
raises `ValueError` with one line that says what the option takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:  # every pytest run imports this file: exact arithmetic is loaded when there is something to parse
    from fractions import Fraction

    from pytest_gpucap.access import HeaderSource
    from pytest_gpucap.gpu.occupancy import IdleMemory


def text(value: Any, _what: str, _config: pytest.Config) -> str:
    """Any text."""
    return str(value).strip()


NOTHING: Final = object()
"""Stands for the value of an option that was given without one."""


def server_arguments(value: Any, _what: str, _config: pytest.Config) -> str:
    """Arguments of a server, which may begin with dashes."""
    if value is NOTHING:
        raise ValueError('needs arguments: write --gpucap-base-args="--max-num-seqs 64"')
    return str(value).strip()


def flag(value: Any, _what: str, _config: pytest.Config) -> bool:
    """Whether the flag is given."""
    return bool(value)


def path(value: Any, _what: str, config: pytest.Config) -> Path:
    """A file or folder. A relative path starts at pytest's root folder, wherever pytest was started."""
    return config.rootpath / Path(str(value)).expanduser()


def html_path(value: Any, what: str, config: pytest.Config) -> Path:
    """A file for the HTML report. A missing Jinja2 is reported here, before GPU time is spent."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise ValueError('needs Jinja2: pip install "pytest-gpucap[html]"')
    return path(value, what, config)


def interpreter(value: Any, what: str, config: pytest.Config) -> str:
    """A Python interpreter: a path, or a name that is looked up on PATH."""
    given = str(value)
    if "/" not in given:
        return given
    found = path(value, what, config)
    # An ini file may name an interpreter that only the GPU machine has: tests that need none run everywhere.
    if config.getoption("gpucap_vllm_python") is not None and not found.exists():
        raise ValueError(f"there is no interpreter at {found}")
    # Not resolved: a virtual environment's python is a link, and Python finds the environment by the link's path.
    return str(found)


def idle_memory(value: Any, what: str, _config: pytest.Config) -> IdleMemory:
    """An amount of GPU memory such as 2GiB, 1500 MB or 5%."""
    from pytest_gpucap.gpu.occupancy import IdleMemory

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]i?B?)", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{what} must be an amount of memory with its unit, such as 2GiB or 5%, not {value!r}")
    number, unit = float(match[1]), match[2].lower()
    if unit != "%":
        base = 1000 if unit.endswith("b") and "i" not in unit else 1024
        return IdleMemory(bytes=int(number * base ** ("kmgt".index(unit[0]) + 1)))
    if number >= 100:  # noqa: PLR2004 - per cent
        raise ValueError(f"{what} must be less than 100% of the GPU's memory, not {value!r}")
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


def seed(value: Any, what: str, _config: pytest.Config) -> int:
    """A whole number of at least 0."""
    from pytest_gpucap import requirement

    return requirement.whole(value, what, least=0)


def duration(value: Any, what: str, _config: pytest.Config) -> float:
    """A time in seconds."""
    from pytest_gpucap import requirement

    return requirement.duration_s(value, what)


def share_value(value: Any, what: str, _config: pytest.Config) -> float:
    """A share above 0 and below 1."""
    from pytest_gpucap import requirement

    return requirement.proper_share(value, what)


def url(value: Any, _what: str, _config: pytest.Config) -> str:
    """The base URL of a server; the URL of one of its endpoints is understood."""
    from pytest_gpucap.access import server_root

    return server_root(str(value)) + "/v1"


def headers(value: Any, _what: str, _config: pytest.Config) -> tuple[HeaderSource, ...]:
    """Headers, each as ``NAME=ENV``."""
    from pytest_gpucap.access import header_sources

    return header_sources(value if isinstance(value, list) else str(value).split("\n"))


NUMBERS: Final[frozenset[Callable[[Any, str, pytest.Config], object]]] = frozenset(
    {positive_value, headroom_value, count, seed, duration, share_value}
)
"""Parsers that also take the numbers of a native TOML configuration."""
