"""What failed requests mean for the verdict: the server failed, or the requests were refused."""

from __future__ import annotations

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
_OF_THE_SERVER: Final = frozenset({408, 424})
"""Statuses of the class 4xx that servers under load give: Request Timeout, and TGI's Failed Dependency for a generation
that failed."""
_CLIENT_ERRORS: Final = range(400, 500)
_ADVICE: Final = {
    400: "send what the server takes: lengths within its context, fields that it knows",
    401: "check the API key",
    403: "check the API key and what it may do",
    404: "check the URL and the model's name",
    413: "raise the limit on the size of requests",
    422: "send what the server takes: lengths within its context, fields that it knows",
    429: "raise the rate limit, or measure behind the gateway",
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
    advice = _ADVICE_ON_KINDS.get(first.kind) or _ADVICE.get(first.http_status or 0, "")
    said = "the answers are not what was asked for" if kind is ProblemKind.LENGTHS else "refused, not slow"
    return kind, f"{found}; {said}{f': {advice}' if advice else ''}"
