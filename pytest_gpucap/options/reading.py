"""The command line and the ini file -> the session's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap import extensions
from pytest_gpucap.errors import told
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.options import values
from pytest_gpucap.options.checks import check_no_url, check_url, input_files, written_twice
from pytest_gpucap.options.sources import as_given, is_given
from pytest_gpucap.options.table import Options, all_options
from pytest_gpucap.user_files import real_path


def parse_options(config: pytest.Config) -> Options:
    """The session's options.

    Raises:
        pytest.UsageError: one line that names the option or ini key, its value and what it takes.
    """
    given: dict[str, Any] = {}
    for row in all_options():
        raw, place, folder = as_given(config, row)
        if not is_given(raw):
            if isinstance(row.default, Path):
                given[row.name] = config.rootpath / row.default
            continue
        try:
            if (laid_over := values.PATHS.get(row.parse)) is not None:
                raw = laid_over(raw, folder)
            given[row.name] = row.parse(raw, row.ini.removeprefix("gpucap_").replace("_", " "), config)
        except ValueError as error:
            raise pytest.UsageError(on_one_line(f"{place}: {error}")) from None
        if row.choices and given[row.name] not in row.choices:
            raise pytest.UsageError(f"{place}: must be one of {', '.join(row.choices)}, not {told(raw)}")
    if "url" in given:
        check_url(given)
    else:
        check_no_url(config)
    if mistake := written_twice(given, config):
        raise pytest.UsageError(mistake)
    return Options(**given, extensions=extensions.read_extensions(config))


def json_file(config: pytest.Config) -> Path | None:
    """The file of ``--gpucap-json``, however wrong the other options are; None if none is named or it cannot be."""
    raw, _, folder = as_given(config, Options.json)
    if not is_given(raw):
        return None
    try:
        file = values.output_file(values.PATHS[values.output_file](raw, folder), Options.json.flag, config)
    except ValueError:
        return None
    return None if real_path(file) in input_files(config) else file
