"""A server that is already running, ours or a provider's, any OpenAI-compatible one.

For example::

    MY_KEY=... pytest examples/external --gpucap-url http://127.0.0.1:8000/v1 --gpucap-api-key-env MY_KEY --target-qps 2

It is measured and never stopped. Only point it at servers that are yours to load.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap


@pytest.mark.gpucap(name="endpoint", input_tokens=64, output_tokens=16, e2e_p95="5s")
def test_the_endpoint_carries_the_target(gpucap: GpuCap, pytestconfig: pytest.Config) -> None:
    """The same check; the budget counts the whole endpoint as one replica."""
    if pytestconfig.getoption("--gpucap-url") is None:
        pytest.skip("name the server with --gpucap-url")
    gpucap.check()
