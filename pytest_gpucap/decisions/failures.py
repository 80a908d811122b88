"""What failed requests mean for the verdict: the server failed, or the requests were refused."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from pytest_gpucap.results.failures import FailedRequests, Failure, FailureKind
from pytest_gpucap.results.problems import ProblemKind

_NEVER_SERVED: Final = frozenset(
    {
        FailureKind.HTTP_4XX,
        FailureKind.REDIRECT,
        FailureKind.PROTOCOL,
        FailureKind.SHORT,
        FailureKind.CONTENT_FILTER,
    }
)
_OF_THE_SERVER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.FAILED_DEPENDENCY})
"""Statuses of the class 4xx that servers under load give: a timeout, and a failed generation (TGI)."""
_CLIENT_ERRORS: Final = range(400, 500)
_ADVICE: Final = {
    HTTPStatus.BAD_REQUEST: "send what the server takes: lengths within its context, fields that it knows",
    HTTPStatus.UNAUTHORIZED: "check the API key",
    HTTPStatus.FORBIDDEN: "check the API key and what it may do",
    HTTPStatus.NOT_FOUND: "check the URL and the model's name",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the limit on the size of requests",
    HTTPStatus.UNPROCESSABLE_ENTITY: "send what the server takes: lengths within its context, fields that it knows",
    HTTPStatus.TOO_MANY_REQUESTS: "raise the rate limit, or measure behind the gateway",
}
_ADVICE_ON_KINDS: Final = {
    FailureKind.REDIRECT: "give the URL that it points to",
    FailureKind.PROTOCOL: "check that the URL is that of a server that streams OpenAI's API",
    FailureKind.SHORT: "the server does not keep ignore_eos: set ignore_eos=False, or see what ends its answers",
    FailureKind.CONTENT_FILTER: "measure without the filter",
}


def refused(failure: Failure) -> bool:
    """Whether requests were refused, or not answered as asked, whatever the server's capacity is.

    Client errors, rate limits, redirects, answers of another protocol, other lengths, filters. Server errors, timeouts,
    lost connections, and answers that are empty or given up are the server's own failures.
    """
    if failure.http_status in _OF_THE_SERVER:
        return False
    if failure.kind is FailureKind.STREAM_ERROR:
        return failure.http_status in _CLIENT_ERRORS
    return failure.kind in _NEVER_SERVED


def refusal(found: FailedRequests) -> tuple[ProblemKind, str] | None:
    """Why failed requests say nothing of the server's capacity; None where most of them are its own failures."""
    refusals = [each for each in found.kinds if refused(each)]
    if 2 * sum(each.count for each in refusals) < found.failed:
        return None
    first = refusals[0]
    kind = ProblemKind.LENGTHS if first.kind is FailureKind.SHORT else ProblemKind.REFUSED
    status = first.http_status or 0
    advice = _ADVICE_ON_KINDS.get(first.kind) or next((text for code, text in _ADVICE.items() if code == status), "")
    said = "the answers are not what was asked for" if kind is ProblemKind.LENGTHS else "refused, not slow"
    return kind, f"{found}; {said}{f': {advice}' if advice else ''}"
