"""Stops in one line while the model is not filled in: a server of that name would fail minutes later."""

from __future__ import annotations

import pytest

PLACEHOLDER = "ORG/MODEL"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look at the model of every test here."""
    for item in items:
        for mark in item.iter_markers("vllm"):
            if PLACEHOLDER in (*mark.args, mark.kwargs.get("model")):
                raise pytest.UsageError(
                    f"{item.nodeid}: the model is still {PLACEHOLDER!r}: write the name of yours into {item.path.name}"
                )
