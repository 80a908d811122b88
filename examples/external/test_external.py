"""Measure a server that is already running: your own or a provider's, if it is OpenAI-compatible.

For example::

    MY_KEY=... pytest examples/external --gpucap-url http://127.0.0.1:8000/v1 --gpucap-api-key-env MY_KEY --target-qps 2

The server is never stopped. Only use it on servers that you may load. ``docs/running-server.md`` has the rest: gateways
that need headers, a CA of your own, servers that still load.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap


@pytest.mark.gpucap(name="endpoint", input_tokens=64, output_tokens=16, e2e_p95="5s")
def test_the_endpoint_carries_the_target(gpucap: GpuCap, pytestconfig: pytest.Config) -> None:
    """The check of ``test_budget.py``. The budget counts the whole endpoint as one replica."""
    if pytestconfig.getoption("--gpucap-url") is None:
        pytest.skip("name the server with --gpucap-url")
    gpucap.check()
