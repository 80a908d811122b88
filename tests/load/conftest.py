"""What the load generator's tests share."""

from __future__ import annotations

import pytest

from tests.waiting import FOREVER_S


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may take any time to start or to answer: what a busy machine does is no matter of these tests."""
    for limit in ("worker_pool.START_TIMEOUT_S", "worker_pool.SILENCE_S", "runner.PHASE_END_TIMEOUT_S"):
        monkeypatch.setattr(f"pytest_gpucap.load.{limit}", FOREVER_S)
