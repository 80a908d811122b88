"""How replies are recognised that are no answer: by their headers and their status."""

from __future__ import annotations

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.protocol import Status

OK = 200


def judge_head(answer: Answer, status: int, content_type: str, encoding: str) -> None:
    """Fail an answer whose headers promise no event stream (both in lower case)."""
    if status != OK:
        return
    if encoding not in ("", "identity"):
        answer.fail(Status.PROTOCOL, f"compressed ({encoding}) though refused")
    elif not content_type.startswith("text/event-stream"):
        answer.fail(Status.PROTOCOL, f"answered with {content_type or 'nothing'} instead of text/event-stream")


def judge_status(answer: Answer, status: int, body: bytes) -> None:
    """Fail an answer that is none, with the beginning of what came instead."""
    if status != OK:
        answer.fail(_status_of(status), f"HTTP {status}: {_excerpt(body)}")


def _status_of(code: int) -> Status:
    if 300 <= code < 400:  # noqa: PLR2004 - redirects
        return Status.REDIRECT
    if 400 <= code < 500:  # noqa: PLR2004 - client errors
        return Status.HTTP_4XX
    if 500 <= code < 600:  # noqa: PLR2004 - server errors
        return Status.HTTP_5XX
    return Status.PROTOCOL


def _excerpt(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:200]
