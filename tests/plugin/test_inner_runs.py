"""Runs of pytest inside a test leave the plugin's modules as they were: these stay loaded for the next test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.plugin.measured_once import ONCE


@pytest.fixture
def as_it_was() -> Iterator[None]:
    from pytest_gpucap.measure import constants
    from pytest_gpucap.session.gpucap import GpuCap

    before = GpuCap._checked, constants.WARM_UP_S
    yield
    assert (GpuCap._checked, constants.WARM_UP_S) == before


def test_what_a_conftest_replaces_is_put_back(as_it_was: None, pytester: pytest.Pytester) -> None:
    del as_it_was
    pytester.makeconftest(f"{ONCE}\n    from pytest_gpucap.measure import constants\n    constants.WARM_UP_S = 1.0\n")
    pytester.makepyfile(
        "def test_nothing():\n    from pytest_gpucap.measure import constants\n    assert constants.WARM_UP_S == 1.0"
    )
    pytester.runpytest().assert_outcomes(passed=1)
