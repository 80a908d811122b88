"""The plugin of the process that collects a base checkout: it writes down which server each test there declares.

``base_checkout.py`` starts that process in the checkout, with ``--collect-only``. It is told in a file which test files
to collect, and tells in another what it found.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from pytest_gpucap.errors import GpuCapError, shortened
from pytest_gpucap.markers.declaration import place_of
from pytest_gpucap.markers.marks import measures
from pytest_gpucap.markers.server import declared_server
from pytest_gpucap.options.reading import parse_options
from pytest_gpucap.options.table import Options
from pytest_gpucap.user_files import MIB, read_bytes

FOLDER: Final = "PYTEST_GPUCAP_BASE_COLLECTION"
"""The environment variable that names the folder of both files."""
ASKED: Final = "asked.json"
COLLECTED: Final = "collected.json"
MOST_COLLECTED: Final = 64 * MIB


class BaseTest(msgspec.Struct, frozen=True):
    """What one test of the base declares.

    Attributes:
        place: ``file:line`` of the test.
        engine, model, arguments: its server; see `pytest_gpucap.markers.server.DeclaredServer`.
        mistake: why its markers cannot be read; else empty.
    """

    place: str = ""
    engine: str = ""
    model: str | None = None
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    mistake: str = ""


class Collected(msgspec.Struct, frozen=True):
    """What the base was found to have.

    Attributes:
        tests: its tests that measure, by node id.
        others: node ids of its tests that measure nothing.
        broken: what could not be collected, by node id, and why in one line.
    """

    tests: dict[str, BaseTest] = msgspec.field(default_factory=dict)
    others: list[str] = msgspec.field(default_factory=list)
    broken: dict[str, str] = msgspec.field(default_factory=dict)


_broken: Final[dict[str, str]] = {}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Collect the files that were asked for, whatever the command line names: that may be a test of the head alone."""
    asked = read_bytes(_folder() / ASKED, MOST_COLLECTED)
    config.args = msgspec.json.decode(asked, type=list[str])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember what cannot be collected."""
    if report.failed:
        lines = str(report.longrepr).strip().splitlines()
        errors = [line[1:].strip() for line in lines if line.startswith("E ")]
        _broken[report.nodeid] = shortened((errors or lines or ["no reason was given"])[-1])


# Inside the plugin's own hook, which is registered later and would stop at the first mistake of the session.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Tell what every test declares once other plugins have added their markers, those of deselected tests too."""
    collected = list(items)
    yield  # a hook of the base that refuses the session ends here; pytest says why, and nothing is told
    found = _collected(config, collected)
    (_folder() / COLLECTED).write_bytes(msgspec.json.encode(found, enc_hook=_text_of_path))


def _collected(config: pytest.Config, items: Sequence[pytest.Item]) -> Collected:
    options = parse_options(config)
    tests = {item.nodeid: _told(item, options) for item in items if measures(item)}
    return Collected(tests, [item.nodeid for item in items if item.nodeid not in tests], dict(_broken))


def _told(item: pytest.Item, options: Options) -> BaseTest:
    place = str(place_of(item))
    try:
        server = declared_server(item, options)
        told = BaseTest(place, server.engine, server.model, dict(server.arguments))
        msgspec.json.encode(told, enc_hook=_text_of_path)
    except TypeError as error:
        return BaseTest(place, mistake=f"an argument of its server cannot be passed on: {shortened(str(error))}")
    except (ValueError, GpuCapError) as error:
        return BaseTest(place, mistake=str(error))
    return told


def _text_of_path(value: Any) -> str:
    """A path as text; a server's other arguments are JSON already.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{type(value).__name__} is no text, number, list or mapping")


def _folder() -> Path:
    return Path(os.environ[FOLDER])
