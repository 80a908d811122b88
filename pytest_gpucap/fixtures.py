"""Fixtures: wiring only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_gpucap.errors import TooLate

if TYPE_CHECKING:  # imported by every pytest run: the types' modules are not
    from pytest_gpucap.engines.protocol import Server
    from pytest_gpucap.session.gpucap import GpuCap
    from pytest_gpucap.session.pytest_session import PytestSession
    from pytest_gpucap.session.server_manager import SystemUnderTest

SESSION: pytest.StashKey[PytestSession] = pytest.StashKey()
"""Holds the `PytestSession`, once a test of ours has been collected."""


@pytest.fixture
def gpucap(request: pytest.FixtureRequest) -> GpuCap:
    """Measures the capacity that the test's markers declare: ``check()``, ``measure()``, ``sweep()``, ``sample()``."""
    return _session(request).gpucap(request)


@pytest.fixture
def vllm_server(request: pytest.FixtureRequest) -> Server:
    """The test's vLLM server, ready: ``base_url``, ``model``, ``client``, ``async_client``, ``metrics()``, ``log``."""
    return _session(request).server(request.node)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> SystemUnderTest:
    """The devices leased to the test: ``lease.devices``, ``gpu_class``; ``telemetry`` once a server runs on them."""
    return _session(request).target(request.node)


def _session(request: pytest.FixtureRequest) -> PytestSession:
    session = request.config.stash.get(SESSION, None)
    if session is None or not session.knows(request.node):
        # Markers are read and servers placed at collection.
        raise TooLate(
            f"{request.node.nodeid}: request.getfixturevalue({request.fixturename!r}) is too late: name the fixture as "
            "an argument of the test, or of a fixture that it uses"
        )
    return session
