"""Figures as OTLP metrics and to a Pushgateway, with real receivers over HTTP."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pytest_gpucap import __version__
from pytest_gpucap.__main__ import main
from pytest_gpucap.cli import _sending
from pytest_gpucap.installing import pip_install
from pytest_gpucap.report.exported import LABELS, METRICS, figures
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from tests.results import made
from tests.serving import ThreadedServer

OTEL = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")


@dataclass
class Receiver:
    """What a receiver got, and what it answers."""

    status: int = 200
    answer: bytes = b""
    silent: threading.Event | None = None
    url: str = ""
    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append((self.command, self.path, headers, body))
            if receiver.silent is not None:
                receiver.silent.wait()
            self.send_response(receiver.status)
            self.send_header("Content-Length", str(len(receiver.answer)))
            self.end_headers()
            self.wfile.write(receiver.answer)

        do_PUT = do_POST  # noqa: N815 - its name there

    with ThreadedServer(Handler) as server:
        receiver.url = server.root
        try:
            yield receiver
        finally:
            if receiver.silent is not None:
                receiver.silent.set()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with a result of today and one of a year ago, and no variables of OpenTelemetry."""
    monkeypatch.chdir(tmp_path)
    for name in ("HEADERS", "METRICS_HEADERS", "COMPRESSION", "ENDPOINT", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    result_file.write(Path("new.json"), made.session(made.check(), made.measured("free")))
    old = msgspec.structs.replace(made.session(made.check(Outcome.PASS)), started=made.STARTED.replace(year=2025))
    result_file.write(Path("old.json"), old)


def decoded(body: bytes) -> Any:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    return ExportMetricsServiceRequest.FromString(body)


def test_every_figure_arrives_with_its_labels_unit_and_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=gpu")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with receiving(Receiver()) as receiver:
        assert main(["export", "new.json", "old.json", "--otlp", receiver.url]) == 0
    ((method, path, headers, body),) = receiver.got
    assert (method, path, headers["x-team"]) == ("POST", "/v1/metrics", "gpu")
    (resource,) = decoded(gzip.decompress(body)).resource_metrics
    about = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (about["service.name"], about["service.version"]) == ("pytest-gpucap", __version__)
    (scope,) = resource.scope_metrics
    arrived = {
        (metric.name, point.time_unix_nano, *sorted((each.key, each.value.string_value) for each in point.attributes)):
            point.as_double
        for metric in scope.metrics
        for point in metric.gauge.data_points
    }  # fmt: skip
    contents = [result_file.read(Path(name)) for name in ("new.json", "old.json")]
    expected = {
        (found.metric, int(found.measured.timestamp()) * 10**9, *sorted(found.labels.items())): found.value
        for content in contents
        for found in figures(content)
    }
    assert arrived == expected
    assert {name for name, *_ in arrived} <= set(METRICS)
    units = {metric.name: metric.unit for metric in scope.metrics}
    assert units["gpucap_sustainable_rate_low_rps"] == "{request/s}"
    assert (units["gpucap_latency_seconds"], units["gpucap_slack_ratio"], units["gpucap_gpus_required"]) == (
        "s",
        "1",
        "{gpu}",
    )
    assert all({each.key for each in p.attributes} >= set(LABELS) for m in scope.metrics for p in m.gauge.data_points)


def test_a_receiver_under_its_whole_path_and_all_ways_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with receiving(Receiver()) as receiver:
        ways = ["--otlp", f"{receiver.url}/otel/v1/metrics", "--push", f"{receiver.url}/push/", "--openmetrics", "-"]
        assert main(["export", "new.json", *ways]) == 0
    assert [(method, path) for method, path, *_ in receiver.got] == [
        ("PUT", "/push/metrics/job/gpucap"),
        ("POST", "/otel/v1/metrics"),
    ]
    pushed = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(receiver.got[0][3].decode())
        for sample in family.samples
    }
    assert (
        pushed[next(key for key in pushed if key[0] == "gpucap_gpus_required" and ("requirement", "chat") in key)] == 3
    )
    assert capsys.readouterr().out.endswith("# EOF\n")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["export", "new.json", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.partition("export: ")[2].strip()


@pytest.mark.parametrize("option", ["--otlp", "--push"])
def test_what_a_receiver_does_is_one_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with receiving(Receiver(status=503)) as receiver:
        line = refused(capsys, option, receiver.url)
        assert line.startswith(f"{option} {receiver.url}: HTTP ")
        assert "503" in line
    assert len(receiver.got) == 1  # one attempt
    assert refused(capsys, option, receiver.url) == f"{option} {receiver.url}: Connection refused"


def test_points_that_a_receiver_leaves_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

    partial = service.ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too old")
    answer = service.ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    with receiving(Receiver(answer=answer)) as receiver:
        assert refused(capsys, "--otlp", receiver.url) == f"--otlp {receiver.url}: 3 points were refused: too old"
        receiver.answer = b"{}"
        assert main(["export", "new.json", "--otlp", receiver.url]) == 0


def test_a_receiver_that_never_answers_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sending, "TIMEOUT_S", 0.05)
    with receiving(Receiver(silent=threading.Event())) as receiver:
        for option in ("--otlp", "--push"):
            assert refused(capsys, option, receiver.url).startswith(f"{option} {receiver.url}: ")


def test_headers_are_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=Basic%20c29tZWJvZHk6c2VjcmV0")
    told = "Basic c29tZWJvZHk6c2VjcmV0 may not write"
    partial = service.ExportMetricsPartialSuccess(rejected_data_points=1, error_message=told)
    with receiving(
        Receiver(answer=service.ExportMetricsServiceResponse(partial_success=partial).SerializeToString())
    ) as r:
        line = refused(capsys, "--otlp", r.url)
    assert r.got[0][2]["authorization"] == "Basic c29tZWJvZHk6c2VjcmV0"
    assert "c29tZWJvZHk6c2VjcmV0" not in line
    assert "may not write" in line


@pytest.mark.parametrize("option", ["--otlp", "--push"])
def test_a_wrong_url_is_one_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    for url in ("localhost:4318", "ftp://host", "http://", "http://host:99999999", "http://ho st"):
        assert "write http://HOST:PORT" in refused(capsys, option, url)
    for url in ("http://me:pass-word@host", "http://host?token=abcdefgh1234"):
        line = refused(capsys, option, url)
        assert "leave it out, since the URL is shown" in line
        assert "pass-word" not in line
        assert "abcdefgh1234" not in line


def test_what_is_missing_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(capsys) == "say where the figures go: --openmetrics OUT, --push URL or --otlp URL"
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    assert refused(capsys, "--otlp", "http://h:1") == f"--otlp: needs OpenTelemetry: {pip_install('otlp')}"
