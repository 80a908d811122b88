"""Whole runs against servers that are already running: measured, named in the result, never stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pytest_gpucap import __version__
from pytest_gpucap.access import server_root
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.gpu.lease import lease_server
from pytest_gpucap.load.address import one_name
from tests.load.test_load_access import SECRET, Gate
from tests.load.tokenserver import TokenServer
from tests.own_ca import OWN_CA, server_tls
from tests.waiting import refused_url

EXAMPLE = Path(__file__).parents[2] / "examples" / "external" / "test_external.py"
SHORT = "from pytest_gpucap.measure import constants\n\nconstants.WARM_UP_S = 3.0\n"
pytestmark = pytest.mark.slow


@pytest.fixture
def simulator() -> Iterator[str]:
    """A simulated server over HTTP; its base URL."""
    command = [sys.executable, "-m", "pytest_gpucap.simulator", "--profile", "fast", "--with-parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split()[-1]
        finally:
            assert process.poll() is None, "the plugin must not end a server that it did not start"
            process.stdin.close()
            process.wait()


def run(pytester: pytest.Pytester, url: str, *arguments: str) -> pytest.RunResult:
    shutil.copy(EXAMPLE, pytester.path)
    return pytester.runpytest_subprocess("--gpucap-url", url, "--gpucap-api-key-env=MY_KEY", *arguments)


def records(pytester: pytest.Pytester) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    return results


@pytest.mark.vllm_cpu
@pytest.mark.usefixtures("short_phases")
def test_the_example_against_a_real_vllm(
    pytester: pytest.Pytester, vllm_cpu_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = vllm_cpu_server
    monkeypatch.setenv("MY_KEY", f"{server.api_key}")
    run(pytester, server.base_url, "--target-qps=1").assert_outcomes(passed=1)
    (record,) = records(pytester)
    assert record["outcome"] == "PASS"
    assert record["simulated"] is False
    assert record["no_limit"] == "the GPU class behind the URL is not known: name it with --gpu-class"
    assert server.client.models.list().data, "it goes on serving"
    assert f"{server.api_key}" not in (pytester.path / ".gpucap" / "result.json").read_text()

    monkeypatch.setenv("MY_KEY", "not-the-key")
    result = run(pytester, server.base_url, "--target-qps=1")
    result.assert_outcomes(errors=0, failed=1)
    result.stdout.fnmatch_lines(["*401*MY_KEY*"])
    assert "not-the-key" not in result.stdout.str()


def test_a_simulated_server_behind_a_url_is_called_simulated(
    pytester: pytest.Pytester, simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "any")
    pytester.makeconftest(SHORT)
    pytester.makepyfile(
        """
        def test_it(gpucap):
            assert gpucap.sample(rate=10, duration="2s").requests
        """
    )
    result = pytester.runpytest_subprocess("--gpucap-url", simulator, "--gpucap-api-key-env=MY_KEY")
    result.assert_outcomes(passed=1)
    (record,) = records(pytester)
    assert record["simulated"] is True
    assert (record["limit"], record["no_limit"]) == (None, "a SIMULATED server has no hardware")
    result.stdout.fnmatch_lines(["*SIMULATED*"])


def test_no_server_at_the_url_is_one_clear_error(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "any")
    with refused_url() as url:
        result = run(pytester, f"{url}/v1", "--target-qps=1", "--gpucap-startup-timeout=1ms")
    assert result.ret != 0
    result.stdout.fnmatch_lines([f"*{url}*refused*give it more time with --gpucap-startup-timeout*"])
    monkeypatch.delenv("MY_KEY")
    result = run(pytester, "http://127.0.0.1:9/v1", "--target-qps=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gpucap-api-key-env: the environment variable MY_KEY is not set"])


def test_headers_and_a_ca_reach_a_gateway_that_loads_and_show_nowhere(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs of every library, locals in tracebacks, and all reports are on. The gateway repeats what it refuses."""
    monkeypatch.setenv("TEAM_TOKEN", SECRET)
    monkeypatch.setenv("MY_KEY", "k3y-of-the-team")
    server = TokenServer(tls=server_tls())
    left = iter(range(3))

    @web.middleware
    async def loading(request: web.Request, handler: Any) -> web.StreamResponse:
        if next(left, None) is not None:
            return web.Response(status=503, text=f"Loading model for {dict(request.headers)}")
        answer: web.StreamResponse = await handler(request)
        return answer

    gate = Gate(server)
    server.app.middlewares.append(loading)
    pytester.makeconftest(SHORT)
    pytester.makepyfile(
        """
        import logging

        def test_measured(gpucap, vllm_server):
            assert gpucap.sample(rate=10, duration="1s").requests
            chat = [{"role": "user", "content": "x"}]
            assert vllm_server.client.chat.completions.create(model="m", messages=chat, max_tokens=1)

        def test_fails(gpucap, vllm_server):
            server = vllm_server
            headers = server.access.request_headers(server.api_key)
            gpucap.sample(rate=10, duration="1s")
            server.request("/nothing")

        def test_raises(vllm_server):
            vllm_server.client.get("/nothing", cast_to=object)
        """
    )
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest]
        gpucap_header = ["X-Team=TEAM_TOKEN"]
        gpucap_ca_file = "{OWN_CA / "ca.pem"}"
        """
    )
    with server:
        result = pytester.runpytest_subprocess(
            *(f"--gpucap-url={server.url}/chat/completions", "--gpucap-model=m", "--gpucap-api-key-env=MY_KEY"),
            *("--log-level=DEBUG", "-l", "-rA", "--full-trace", "--junitxml=junit.xml"),
            *("--gpucap-html=report.html", "--gpucap-markdown=report.md", "--gpucap-json=result.json"),
        )
    result.assert_outcomes(passed=1, failed=2)
    assert {headers["x-team"] for headers in gate.seen} == {SECRET}
    assert {headers["user-agent"] for headers in gate.seen} == {f"pytest-gpucap/{__version__}"}
    result.stdout.fnmatch_lines(["*is not ready (0 s): *answered 503 Service Unavailable: Loading model for *"])
    written = [path for path in pytester.path.rglob("*") if path.is_file()]
    assert {"junit.xml", "report.html", "report.md", "result.json"} <= {path.name for path in written}
    shown = [result.stdout.str(), result.stderr.str(), *(path.read_bytes().decode("latin-1") for path in written)]
    assert not any(secret in text for text in shown for secret in (SECRET, "k3y-of-the-team"))


def test_a_server_that_another_session_measures_is_waited_for(
    pytester: pytest.Pytester, simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another spelling of its URL."""
    monkeypatch.setenv("MY_KEY", "any")
    pytester.makepyfile("def test_it(gpucap):\n    gpucap.sample(rate=20, duration='1s')\n")
    spelled = simulator.replace("127.0.0.1", "localhost") + "/"
    options = [f"--gpucap-url={spelled}", "--gpucap-api-key-env=MY_KEY", "--gpucap-gpu-wait=1s"]
    with lease_server(one_name(server_root(simulator)), wait_s=0):
        result = pytester.runpytest(*options)  # in this process, which has lock files of its own
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*was not measured: pid {os.getpid()} * came first and held its lease*"])
    lease_server(one_name(server_root(simulator)), wait_s=0).release()
