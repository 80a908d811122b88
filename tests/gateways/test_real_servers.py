"""Gateways before a real vLLM, and LiteLLM's one worker as the limit. All share one vLLM and one LiteLLM."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.gateways.gateways import LITELLM_KEY, SHORT_PHASES, litellm, nginx

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def simulated(patience: None) -> Iterator[SimulatedServer]:
    with start_simulator("fast") as running:
        yield running


@pytest.fixture(scope="module")
def proxy(
    vllm_cpu_server: VllmServer, simulated: SimulatedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """LiteLLM before both, and before the real one once more, with a limit."""
    real = vllm_cpu_server.base_url, vllm_cpu_server.model, str.__str__(vllm_cpu_server.api_key)
    upstreams = {"real": real, "limited": real, "simulated": (simulated.base_url, simulated.model, "none")}
    with litellm(tmp_path_factory.mktemp("litellm") / "proxy", upstreams, {"limited": 60}) as url:
        yield url


def result_of(pytester: pytest.Pytester, qps: float, url: str, *options: str) -> dict[str, Any]:
    pytester.makeconftest(SHORT_PHASES)
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.gpucap(qps={qps}, headroom=1, input_tokens=32, output_tokens=8, e2e_p95="20s")
        def test_it(gpucap):
            gpucap.check()
        """
    )
    pytester.runpytest_subprocess(f"--gpucap-url={url}", "--gpucap-api-key-env=MY_KEY", *options)
    (found,) = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    return dict(found)


@contextmanager
def before(gateway: str, folder: Path, server: VllmServer, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The URL of a gateway before a vLLM, and the key that it asks for."""
    key = str.__str__(server.api_key)
    if gateway == "litellm":
        yield request.getfixturevalue("proxy"), LITELLM_KEY
    else:
        with nginx(folder / "nginx", server.base_url, location="proxy_http_version 1.1; proxy_buffering off;") as url:
            yield url, key


@pytest.mark.parametrize("gateway", ["nginx", "litellm"])
def test_the_verdict_is_that_of_the_server_alone(
    pytester: pytest.Pytester,
    tmp_path: Path,
    vllm_cpu_server: VllmServer,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    gateway: str,
) -> None:
    """One request a second is far below what either takes."""
    server = vllm_cpu_server
    with before(gateway, tmp_path, server, request) as (url, key):
        monkeypatch.setenv("MY_KEY", key)
        monkeypatch.setenv("METRICS_AUTH", f"Bearer {str.__str__(server.api_key)}")
        found = result_of(
            pytester,
            1,
            url,
            f"--gpucap-metrics-url={server.root_url}/metrics",
            "--gpucap-metrics-header=Authorization=METRICS_AUTH",
            *(["--gpucap-model=real"] if gateway == "litellm" else []),
        )
    assert found["outcome"] == "PASS", found["reason"]
    assert found["telemetry"]["server"]["output_tokens"] > 0, "the engine's own figures"
    assert found["environment"]["server"].startswith("vLLM")
    text = (pytester.path / ".gpucap" / "result.json").read_text()
    assert not [secret for secret in (key, str.__str__(server.api_key)) if secret in text]


def test_one_worker_of_litellm_is_the_limit_of_a_server_that_would_carry_more(
    pytester: pytest.Pytester, simulated: SimulatedServer, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated server answers thousands of such requests a second in its own time; a Python process does not."""
    monkeypatch.setenv("MY_KEY", LITELLM_KEY)
    options = [f"--gpucap-metrics-url={simulated.root_url}/metrics", "--gpucap-model=simulated"]
    found = result_of(pytester, 2000, proxy, *options)
    assert found["outcome"] == "FAIL", found["reason"]
    assert found["bottleneck"]["kind"] == "gateway"


def test_a_rate_limit_of_litellm_is_no_limit_of_the_server(
    pytester: pytest.Pytester, vllm_cpu_server: VllmServer, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses in its own words what the server would have answered: nothing is said of the server's capacity."""
    server = vllm_cpu_server
    monkeypatch.setenv("MY_KEY", LITELLM_KEY)
    monkeypatch.setenv("METRICS_AUTH", f"Bearer {str.__str__(server.api_key)}")
    found = result_of(
        pytester,
        20,
        proxy,
        "--gpucap-model=limited",
        f"--gpucap-metrics-url={server.root_url}/metrics",
        "--gpucap-metrics-header=Authorization=METRICS_AUTH",
    )
    assert found["outcome"] == "INVALID", found["reason"]
    assert re.search(r"x HTTP 429 'litellm\.RateLimitError: .*RPM limit=60", found["reason"])
    assert found["reason"].endswith("raise the rate limit, or measure behind the gateway")
    assert found.get("sustainable_rate") is None
    assert {"refused"} == {problem["kind"] for problem in found["problems"]}
    assert found["bottleneck"]["kind"] == "gateway"
