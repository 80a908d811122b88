"""Sends figures to a receiver over HTTP: one attempt, bounded in time, that ends in success or in one line."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError

from pytest_gpucap.access import receiver_url
from pytest_gpucap.cli import CommandError
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.installing import pip_install
from pytest_gpucap.masking import masked, refusal

if TYPE_CHECKING:
    from pytest_gpucap.results.result import ResultFile

TIMEOUT_S: Final = 10.0
"""Of one attempt, as the OTLP exporters have it."""
_METRICS_PATH: Final = "/v1/metrics"
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_LONGEST: Final = 300
_REFUSED: Final = 400


def receiver(url: str, option: str) -> str:
    """The URL of a receiver, without a slash at its end.

    Raises:
        CommandError: if it is no URL, or holds a user, a password, a query or what looks like a secret.
    """
    try:
        found = receiver_url(url)
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None
    if refusal(option, url):
        raise CommandError(f"{option}: the URL holds what looks like a secret: leave it out, since the URL is shown")
    return found


def push(url: str, content: ResultFile) -> None:
    """Replace what a Pushgateway has of the job ``gpucap``.

    Raises:
        CommandError: if it does not take it.
    """
    from prometheus_client import push_to_gateway

    from pytest_gpucap.report.exported import registry_of

    def send() -> None:
        try:
            push_to_gateway(url, "gpucap", registry_of(content), timeout=TIMEOUT_S)
        except HTTPError as error:
            error.close()
            raise

    _attempt(f"--push {url}", send)


def send_otlp(url: str, contents: Iterable[ResultFile]) -> None:
    """Send metrics to an OTLP receiver. Headers, certificates and compression are as OpenTelemetry's variables say.

    Args:
        url: with or without ``/v1/metrics`` at its end.
        contents: of the files.

    Raises:
        CommandError: if it does not take them, or without the extra ``otlp``.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        from pytest_gpucap.report.otlp import otlp_metrics

        data = otlp_metrics(contents)
    except ImportError:
        raise CommandError(f"--otlp: needs OpenTelemetry: {pip_install('otlp')}") from None
    endpoint = url if url.endswith(_METRICS_PATH) else f"{url}{_METRICS_PATH}"

    def send() -> None:
        session: Any = import_module("requests").Session()
        original = session.send

        def once(*arguments: Any, **named: Any) -> Any:
            """Send a request; whatever goes wrong is no reason for the exporter to try again for seconds."""
            try:
                response = original(*arguments, **named)
            except OSError as error:
                failures.append(_cause(error))
                raise RuntimeError from None
            if response.status_code >= _REFUSED:
                failures.append(f"HTTP {response.status_code} {response.reason or ''}".strip())
                raise RuntimeError
            if refused := _refused(response.content):
                failures.append(refused)
            return response

        failures: list[str] = []
        session.send = once
        exporter = OTLPMetricExporter(endpoint=endpoint, timeout=TIMEOUT_S, session=session)
        exported = exporter.export(data)
        exporter.shutdown()
        if failures or exported.name != "SUCCESS":
            raise OSError(failures[0] if failures else "the metrics could not be sent")

    with _silent():
        _attempt(f"--otlp {url}", send, _header_values())


def _refused(body: bytes) -> str:
    """What a receiver says of points that it did not take although it answered well; empty if it took all."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    unreadable: type[Exception] = import_module("google.protobuf.message").DecodeError
    try:
        found = ExportMetricsServiceResponse.FromString(body).partial_success
    except unreadable:  # receivers that answer in JSON or in words have taken them
        return ""
    rejected = found.rejected_data_points
    return f"{rejected} points were refused: {found.error_message or 'no reason given'}" if rejected > 0 else ""


def _attempt(what: str, send: Callable[[], object], secrets: Iterable[str] = ()) -> None:
    """Send once, and wait for it no longer than its time limit, however slowly the receiver answers.

    Raises:
        CommandError: if it fails, or takes longer.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever the libraries raise is one line for the user
            raised.append(error)

    thread = threading.Thread(target=run, name="gpucap-send", daemon=True)
    thread.start()
    thread.join(1.5 * TIMEOUT_S)
    if thread.is_alive():
        raise CommandError(f"{what}: no whole answer came in {1.5 * TIMEOUT_S:.0f} s")
    if raised:
        why = on_one_line(masked(_cause(raised[0]), secrets))
        raise CommandError(f"{what}: {why[:_LONGEST]}")


def _cause(error: BaseException) -> str:
    """The words of the error that is at the bottom: libraries wrap what the system said in sentences of their own."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        wrapped = (getattr(error, "reason", None), *error.args[:1], error.__cause__, error.__context__)
        error = next((each for each in wrapped if isinstance(each, BaseException)), error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _header_values() -> list[str]:
    """Values of the headers that OpenTelemetry's variables hold, which may be secrets: ``name=value,name=value``."""
    pairs = [pair.partition("=")[2].strip() for name in _HEADERS for pair in os.environ.get(name, "").split(",")]
    return [value for value in pairs if value]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter from writing to the terminal: what it has to say becomes one line."""
    logger = logging.getLogger("opentelemetry")
    before, handler = logger.propagate, logging.NullHandler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
