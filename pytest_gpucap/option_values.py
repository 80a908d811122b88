"""Parsers of option values: from the text on the command line or in the ini file to what `Options` holds.

Every parser takes the value as given, the option's name for messages, and pytest's configuration. For a wrong value it
raises `ValueError` with one line that says what the option takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:  # every pytest run imports this file: exact arithmetic is loaded when there is something to parse
    from fractions import Fraction


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
    """The base URL of a server."""
    from urllib.parse import urlsplit

    parts = urlsplit(str(value))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"must be a base URL such as http://127.0.0.1:8000/v1, not {value!r}")
    if parts.username or parts.password:
        raise ValueError("must not contain a key or password: name a variable that holds it with --gpucap-api-key-env")
    return str(value).rstrip("/")


NUMBERS: Final[frozenset[Callable[[Any, str, pytest.Config], object]]] = frozenset(
    {positive_value, headroom_value, count, seed, duration, share_value}
)
"""Parsers that also take the numbers of a native TOML configuration."""
