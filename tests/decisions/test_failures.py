"""Failed requests: the server's own failures, or requests that were refused."""

from __future__ import annotations

import pytest

from pytest_gpucap.decisions.failures import refusal, refused
from pytest_gpucap.load.protocol import ERRORS
from pytest_gpucap.results.failures import FailedRequests, Failure, FailureKind
from pytest_gpucap.results.problems import ProblemKind


def test_every_error_of_the_load_generator_has_its_kind() -> None:
    assert {status.name for status in ERRORS} == set(FailureKind.__members__)


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        (FailureKind.HTTP_4XX, 429, True),
        (FailureKind.HTTP_4XX, 401, True),
        (FailureKind.HTTP_4XX, 408, False),
        (FailureKind.HTTP_4XX, 424, False),
        (FailureKind.HTTP_5XX, 503, False),
        (FailureKind.STREAM_ERROR, 429, True),
        (FailureKind.STREAM_ERROR, 500, False),
        (FailureKind.STREAM_ERROR, None, False),
        (FailureKind.TIMEOUT, None, False),
        (FailureKind.EMPTY, None, False),
        (FailureKind.ABORTED, None, False),
        (FailureKind.PROTOCOL, None, True),
        (FailureKind.SHORT, None, True),
        (FailureKind.CONTENT_FILTER, None, True),
    ],
)
def test_what_is_refused_and_what_failed(kind: FailureKind, status: int | None, expected: bool) -> None:
    assert refused(Failure(kind, 1, status)) is expected


def test_the_sentence_names_each_kind_with_count_status_and_words() -> None:
    found = FailedRequests(412, 2447, (Failure(FailureKind.HTTP_4XX, 412, 429, "rate limit"),))
    assert str(found) == "412 of 2447 requests failed: 412 x HTTP 429 'rate limit'"
    kinds = tuple(Failure(FailureKind.HTTP_5XX, 10 - i, 500 + i) for i in range(5))
    assert str(FailedRequests(40, 50, kinds)).endswith(": 10 x HTTP 500, 9 x HTTP 501, 8 x HTTP 502, 2 kinds more")


def test_the_greater_part_decides() -> None:
    limited, broken = Failure(FailureKind.HTTP_4XX, 30, 429, "slow down"), Failure(FailureKind.HTTP_5XX, 31, 500)
    assert refusal(FailedRequests(61, 100, (broken, limited))) is None
    kind, text = refusal(FailedRequests(60, 100, (limited, Failure(FailureKind.HTTP_5XX, 30, 500)))) or ("", "")
    assert kind is ProblemKind.REFUSED
    assert text.endswith("refused, not slow: raise the rate limit, or measure behind the gateway")
    short = FailedRequests(9, 9, (Failure(FailureKind.SHORT, 9, None, "3 tokens instead of 4"),))
    kind, text = refusal(short) or ("", "")
    assert kind is ProblemKind.LENGTHS
    assert "ignore_eos=False" in text
