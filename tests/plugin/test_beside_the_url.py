"""Whole runs through a URL with pages beside it: the engine's own metrics, and the exporter that shows its GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator
from tests.gateways.gateways import SHORT_PHASES
from tests.plugin.inner import OWN_LEASE
from tests.telemetry.exporter import Exporter

SAMPLE = """
def test_it(gpucap):
    assert gpucap.sample(rate=20, duration="2s").requests
"""


@pytest.fixture(scope="module")
def server(patience: None) -> Iterator[SimulatedServer]:
    with start_simulator("fast") as running:
        yield running


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter() as running:
        running.collects = True
        yield running


def run(pytester: pytest.Pytester, url: str, *options: str, suite: str = SAMPLE) -> pytest.RunResult:
    pytester.makeconftest(OWN_LEASE + SHORT_PHASES)
    pytester.makepyfile(suite)
    return pytester.runpytest(f"--gpucap-url={url}", *options)


def record(pytester: pytest.Pytester) -> dict[str, Any]:
    (found,) = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    return dict(found)


def test_the_engines_page_and_the_exporters_are_read_while_load_is_sent(
    pytester: pytest.Pytester, server: SimulatedServer, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_AUTH", "Bearer s3cret-of-the-exporter")
    monkeypatch.setenv("OPENAI_API_KEY", "k3y-of-the-server")
    suite = SAMPLE.replace("def", "import pytest\n\n@pytest.mark.gpucap(qps=10, joules_per_1k_tokens=1e9)\ndef", 1)
    result = run(
        pytester,
        server.base_url,
        f"--gpucap-metrics-url={server.root_url}/metrics",
        f"--gpucap-dcgm-url={exporter.url}",
        "--gpucap-dcgm-match=pod=vllm-0",
        "--gpucap-metrics-header=Authorization=EXPORTER_AUTH",
        suite=suite,
    )
    result.assert_outcomes(passed=1)
    found = record(pytester)
    assert found["environment"]["gpu"].startswith("1x NVIDIA H100 80GB HBM3, 80 GiB, driver 570.172.08, as the DCGM")
    assert found["environment"]["gpu_class"] == "h100-sxm"
    (device,) = found["telemetry"]["devices"]
    assert device["gpu_use"] == pytest.approx(0.97)
    assert found["telemetry"]["energy_j"] > 0
    assert found["telemetry"]["server"]["output_tokens"] > 0
    assert found["bottleneck"]["kind"] == "GPU memory bandwidth"
    assert {each.get("authorization") for each in exporter.seen} == {"Bearer s3cret-of-the-exporter"}
    assert "s3cret" not in (pytester.path / ".gpucap" / "result.json").read_text()


def test_gpus_of_another_class_are_refused_before_any_load(
    pytester: pytest.Pytester, server: SimulatedServer, exporter: Exporter
) -> None:
    options = [f"--gpucap-dcgm-url={exporter.url}", "--gpucap-dcgm-match=pod=vllm-0", "--gpu-class=a10g"]
    result = run(pytester, server.base_url, *options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--gpu-class: a10g was asked for, and the DCGM exporter shows NVIDIA H100*"])
    assert "Traceback" not in result.stdout.str()
    assert server.metrics().value("vllm:generation_tokens_total") >= 0, "it goes on serving"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "--gpucap-dcgm-url=ftp://node:9400",
            "--gpucap-dcgm-url: 'ftp://node:9400' is not the URL of a page of metrics*",
        ),
        ("--gpucap-metrics-url=http://u:p4ss@node", "--gpucap-metrics-url: the URL carries a user or password: *"),
        ("--gpucap-metrics-url=http://node/metrics?a=b", "--gpucap-metrics-url: the URL has a query or fragment*"),
        ("--gpucap-dcgm-match=pod", "--gpucap-dcgm-match: dcgm match must be LABEL=VALUE,... such as pod=vllm-0*"),
        ("--gpucap-dcgm-match=pod=a,POD=b", "--gpucap-dcgm-match: dcgm match: POD is given twice"),
        ("--gpucap-dcgm-match=pod=a", "--gpucap-dcgm-match: names no exporter: *"),
        ("--gpucap-metrics-header=X=NOT_SET_7", "*--gpucap-metrics-header: *"),
    ],
)
def test_mistakes_are_one_line(pytester: pytest.Pytester, option: str, said: str) -> None:
    pytester.makepyfile(SAMPLE)
    result = pytester.runpytest("--gpucap-url=http://127.0.0.1:9/v1", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}"])
    assert "p4ss" not in result.stderr.str()


def test_without_a_url_there_is_nothing_beside_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it():\n    pass\n")
    result = pytester.runpytest("--gpucap-dcgm-url=http://node:9400/metrics")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gpucap-dcgm-url: is about a server of --gpucap-url, and none is given*"])
    pytester.makeini("[pytest]\ngpucap_dcgm_url = http://node:9400/metrics\n")
    assert pytester.runpytest("--collect-only").ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("h100-pods", "--gpucap-metrics-url: * has no figures of a known engine*name the page of the engine itself*"),
        ("", "--gpucap-metrics-url: GET *answered 503*"),
    ],
)
def test_a_metrics_page_is_checked_before_load(
    pytester: pytest.Pytester, server: SimulatedServer, page: str, said: str
) -> None:
    with Exporter() as other:
        other.status = 200 if page else 503
        result = run(pytester, server.base_url, f"--gpucap-metrics-url={other.url}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{said}"])
