"""Fixtures: wiring only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported by every pytest run: the types' modules are not
    from pytest_gpucap.server.endpoint import Endpoint
    from pytest_gpucap.suite.gauge import GpuCap
    from pytest_gpucap.suite.rig import Target
    from pytest_gpucap.suite.session import Session


@pytest.fixture
def gpucap(request: pytest.FixtureRequest) -> GpuCap:
    """Measures the capacity that the test's markers declare: ``check()``, ``measure()``, ``sweep()``, ``sample()``."""
    return _session(request).gauge(request)


@pytest.fixture
def vllm_server(request: pytest.FixtureRequest) -> Endpoint:
    """The test's vLLM server, ready: ``base_url``, ``model``, ``client``, ``async_client``, ``metrics()``, ``log``."""
    return _session(request).server(request.node)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Target:
    """The devices leased to the test: ``lease.devices``, ``gpu_class``; ``telemetry`` once a server runs on them."""
    return _session(request).target(request.node)


def _session(request: pytest.FixtureRequest) -> Session:
    from pytest_gpucap.plugin import SESSION

    return request.config.stash[SESSION]
