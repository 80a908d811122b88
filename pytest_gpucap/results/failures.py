"""Failed requests by kind: how many, with which HTTP status, and what the server said most often."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

MOST_KEPT: Final = 20
"""Kinds of failure, by HTTP status, that a result keeps."""
MOST_TOLD: Final = 3
"""Kinds of failure that one sentence names."""


class FailureKind(StrEnum):
    """How a request failed. The names are those of `Sample.errors`."""

    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    REDIRECT = "redirect"
    CONNECT = "connect"
    """No connection was made."""
    RESET = "reset"
    """The connection ended before the answer was whole."""
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    """The answer was not HTTP, or no event stream."""
    SHORT = "short"
    """Fewer tokens than asked for, under ``ignore_eos``."""
    STREAM_ERROR = "stream_error"
    """The server reported an error inside an answer with HTTP status 200."""
    DROPPED = "dropped"
    """Never sent, because of a limit of the load generator."""
    EMPTY = "empty"
    """Ended well, but without a token."""
    ABORTED = "aborted"
    """The engine gave the answer up (``finish_reason`` abort)."""
    ENGINE_ERROR = "engine_error"
    """``finish_reason`` error."""
    CONTENT_FILTER = "content_filter"
    """``finish_reason`` content_filter."""


_NAMES: Final = {
    FailureKind.CONNECT: "no connection",
    FailureKind.RESET: "connection lost",
    FailureKind.TIMEOUT: "timeout",
    FailureKind.PROTOCOL: "protocol error",
    FailureKind.SHORT: "short answer",
    FailureKind.STREAM_ERROR: "error inside the answer",
    FailureKind.DROPPED: "not sent",
    FailureKind.EMPTY: "empty answer",
    FailureKind.ABORTED: "aborted answer",
    FailureKind.ENGINE_ERROR: "engine error",
    FailureKind.CONTENT_FILTER: "content filter",
}


class Failure(msgspec.Struct, frozen=True):
    """Requests that failed in one way.

    Attributes:
        kind: how.
        count: requests.
        http_status: of the answer, or the code of the error object inside it; None where there is none.
        text: the server's words, or ours where it said nothing; the most frequent ones, shortened, on one line.
    """

    kind: FailureKind
    count: int
    http_status: int | None = None
    text: str = ""

    def __str__(self) -> str:
        name = _NAMES.get(self.kind, "HTTP")
        status = f" {self.http_status}" if self.http_status else ""
        return f"{self.count} x {name}{status}" + (f" '{self.text}'" if self.text else "")


class FailedRequests(msgspec.Struct, frozen=True):
    """The failed requests of one measurement.

    Attributes:
        failed: how many.
        ended: requests that ended, well or not.
        kinds: by kind and HTTP status, the most frequent first.
    """

    failed: int
    ended: int
    kinds: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        """``412 of 2447 requests failed: 412 x HTTP 429 'rate limit'``."""
        told = [str(each) for each in self.kinds[:MOST_TOLD]]
        if more := len(self.kinds) - MOST_TOLD:
            told += [f"{more} kinds more"] if more > 0 else []
        return f"{self.failed} of {self.ended} requests failed: {', '.join(told)}"
