"""An event loop whose timers pass in no time, and the simulated engine's clock along with it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")


class SkippedWaits(selectors.SelectSelector):
    """Has an event loop's timers pass in no time; `now_s` is its clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0)


def without_waits(made: Callable[[], Coroutine[Any, Any, Found]], monkeypatch: pytest.MonkeyPatch) -> Found:
    """What a coroutine returns on such a loop."""
    selector = SkippedWaits()
    loop = asyncio.SelectorEventLoop(selector)
    monkeypatch.setattr(loop, "time", lambda: selector.now_s)
    monkeypatch.setattr("pytest_gpucap.simulator.live.time", SimpleNamespace(monotonic=lambda: selector.now_s))
    try:
        return loop.run_until_complete(made())
    finally:
        loop.close()
