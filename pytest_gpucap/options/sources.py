"""Where options are given, the command line and the ini file: registered there, and read as they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from pytest_gpucap.options import values
from pytest_gpucap.options.table import Option, all_options

UNSET: Final = None


def add_options(parser: pytest.Parser) -> None:
    """Register every option and its ini key."""
    group = parser.getgroup("gpucap", "GPU capacity")
    number: Any = str | int | float if _takes_union() else "string"
    for row in all_options():
        about = f"{row.about} ({row.otherwise})" if row.otherwise else row.about
        if row.parse is values.flag:
            group.addoption(row.flag, dest=row.ini, action="store_true", default=UNSET, help=about)
            parser.addini(row.ini, f"see {row.flag}", type="bool", default=UNSET)
            continue
        group.addoption(
            row.flag,
            dest=row.ini,
            metavar=row.metavar,
            choices=row.choices or None,
            default=UNSET,
            action="append" if row.repeatable else "store",
            help=about.replace("%", "%%"),
            # A value that begins with dashes would be an error: see `join_words`.
            **({"nargs": "?", "const": values.NOTHING} if row.parse is values.server_arguments else {}),
        )
        kind: Any = number if row.parse in values.NUMBERS else "linelist" if row.repeatable else "string"
        parser.addini(row.ini, f"see {row.flag}", type=kind, default=UNSET)


def _takes_union() -> bool:
    # Before pytest 9.2 an ini key has one type. So numbers in native TOML are refused, with a line that asks for
    # quotes.
    return tuple(int(part) for part in pytest.__version__.split(".")[:2]) >= (9, 2)


def join_words(words: list[str]) -> None:
    """Join an option that takes server arguments to its value, where that begins with dashes, in place.

    ``--gpucap-base-args --no-enable-prefix-caching`` are two options for argparse, and one with ``=`` between them.
    """
    flags = {row.flag for row in all_options()}
    takers = {row.flag for row in all_options() if row.parse is values.server_arguments}
    for place in range(len(words) - 1, 0, -1):
        before, word = words[place - 1], words[place]
        if before in takers and word.startswith("-") and word.partition("=")[0] not in flags:
            words[place - 1 : place + 1] = [f"{before}={word}"]


def is_given(raw: Any) -> bool:
    """Whether an option has a value: an empty one is none, so that a command line can take back an ini file's."""
    return raw is not UNSET and raw not in ("", [])


def as_given(config: pytest.Config, row: Option[Any]) -> tuple[Any, str, Path]:
    """The text or value as given, where it was given, and the folder that its relative paths start from.

    The command line comes before the ini file.
    """
    value = config.getoption(row.ini)
    started_in = config.invocation_params.dir
    if value is not UNSET:
        return value, row.flag, started_in
    place = f"{config.inipath.name if config.inipath else 'ini'}: {row.ini}"
    folder = config.inipath.parent if config.inipath else started_in
    try:
        return config.getini(row.ini), place, folder
    except (TypeError, ValueError):
        raise pytest.UsageError(f'{place}: write the value in quotes, such as {row.ini} = "10"') from None
