"""What the simulator's tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def patient(patience: None) -> None:
    """See `patience`."""
