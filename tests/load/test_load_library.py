"""TLS and HTTP/2 go through a library: the same records, stamped in user space."""

from __future__ import annotations

import ssl
from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.load.protocol import LoadError, OpenLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.requirement import ApiKind, Length, Workload
from tests.load.h2server import H2Server
from tests.load.rawserver import HEAD, RawServer, good
from tests.load.test_load_answers import BROKEN, TOKENS, WAYS, WORKLOAD, assert_good, one_by_one
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

TLS = Path(__file__).with_name("tls")
"""A self-signed certificate for 127.0.0.1, made for these tests."""
LENGTHS = Workload(Length.fixed(40), Length.parse("uniform:2-12", "output_tokens"))


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    return context


def test_tls_gives_the_same_records(trusted: ssl.SSLContext) -> None:
    with (
        TokenServer(gap_s=0.002, tls=trusted) as server,
        HttpLoadRunner(server.url, "m", "secret", LENGTHS, 1, workers=1) as runner,
    ):
        assert runner.uses_library == "TLS"
        one = open_loop(LENGTHS, 40.0, 1.0, 1, 0)
        spans = [runner.run(one), runner.run(closed_loop(LENGTHS, 4, 0.5, 300.0, 1, 1, first_prompt=1000))]
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
    np.testing.assert_array_equal(journal.counted_output_tokens, journal.output_tokens)
    assert journal.tokens.sum() == server.seen.output_tokens == journal.output_tokens.sum()
    assert journal.status.size == len(server.seen.bodies)
    np.testing.assert_allclose(journal.due_s[: spans[0].end_row] - spans[0].start_s, one.due_s, atol=1e-9)
    assert {span.check.timestamps for span in spans} == {"user"}
    assert (journal.ttft_s > 0).all()
    assert (journal.sent_s >= journal.due_s).all()


@pytest.mark.parametrize("over_tls", [True, False])
def test_a_server_that_speaks_http2_alone(over_tls: bool, trusted: ssl.SSLContext) -> None:
    del trusted  # for its certificate only
    with (
        H2Server(TLS if over_tls else None) as server,
        HttpLoadRunner(server.url, "m", "secret", LENGTHS, 1, workers=1, http2=not over_tls) as runner,
    ):
        assert runner.uses_library == ("TLS" if over_tls else "HTTP/2")
        runner.run(open_loop(LENGTHS, 40.0, 0.7, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert server.versions == {"2"}
    assert journal.status.size == len(server.seen.bodies) > 10
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.counted_output_tokens, journal.output_tokens)
    assert journal.tokens.sum() == journal.output_tokens.sum()


def test_an_untrusted_certificate_is_one_clear_error() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    with (
        TokenServer(tls=context) as server,
        HttpLoadRunner(server.url, "m", None, LENGTHS, 1) as runner,
        pytest.raises(LoadError, match="failed: its certificate is not trusted: self-signed certificate"),
    ):
        runner.prepare()


@pytest.fixture
def through_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gpucap.load.address.ServerAddress.needs_http_library", lambda _: "this test")


SAME = [way for way in BROKEN if way not in ("HTTP/2 only", "no HTTP")]
"""The library waits for the end of these heads until the time limit; the raw client sees at once that they are none."""


def test_the_library_gives_bad_answers_the_same_names(through_the_library: None) -> None:
    result = one_by_one([script for way in SAME for script in (BROKEN[way][0], WAYS["closing after the answer"])])
    expected = [status for way in SAME for status in (BROKEN[way][1], Status.OK)]
    differ = [
        (SAME[row // 2], found) for row, found in enumerate(result.statuses[: len(expected)]) if found != expected[row]
    ]
    assert not differ, result.errors


def test_the_library_takes_every_good_answer(through_the_library: None) -> None:
    assert_good(one_by_one([script for way, script in WAYS.items()]))


def test_a_time_limit_and_a_cancellation_hold_for_the_library_too(through_the_library: None) -> None:
    phase = OpenLoop(0.2, np.zeros(1), np.full(1, 32, np.int32), np.full(1, TOKENS, np.int32))
    with RawServer([HEAD, good()[1]]) as server:
        with HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1, request_timeout_s=0.3) as runner:
            runner.run(phase)
            assert runner.settle(FOREVER_S)
            assert runner.journal().status.tolist() == [Status.TIMEOUT]
        with HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner:
            runner.run(phase)
            assert not runner.settle(0.1)
            assert runner.settle(FOREVER_S, cancel=True)
            assert runner.journal().status.tolist() == [Status.CANCELLED]


def test_completions_by_ids_through_the_library(through_the_library: None) -> None:
    workload = Workload(Length.fixed(40), Length.fixed(3), endpoint=ApiKind.COMPLETIONS)
    with TokenServer() as server, HttpLoadRunner(server.url, "m", None, workload, 1, workers=2) as runner:
        runner.run(open_loop(workload, 30.0, 0.5, 1, 0))
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all(), runner.error_texts()
