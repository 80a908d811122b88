"""The user's terminal, seen past pytest's capture and from xdist workers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import pytest

from pytest_gpucap.report.columns import terminal_columns
from pytest_gpucap.session.workers import told

_FROM_MAIN: Final = "gpucap_columns"


def columns(config: pytest.Config) -> int:
    """How wide the user's terminal is now; a worker has the width that it was started with."""
    width = told(config).get(_FROM_MAIN)
    if width is not None:
        return int(width)
    capture = config.pluginmanager.getplugin("capturemanager")
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        return terminal_columns()


def tell_worker(node: Any) -> None:
    """Tell an xdist worker, which has no terminal, how wide the user's is."""
    node.workerinput[_FROM_MAIN] = columns(node.config)
