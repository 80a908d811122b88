"""Answers that reason before they answer, as results hold them."""

from __future__ import annotations

from typing import Final

import msgspec

from pytest_gpucap.results.encoding import Figure

TTFAT: Final = "ttfat"
"""Time to first answer token: from when the request was due to its first token after the reasoning. Of an answer
without reasoning it is the time to first token."""


class Reasoning(msgspec.Struct, frozen=True):
    """The reasoning of whole answers that ended in one window.

    Attributes:
        requests: answers that began with reasoning.
        unanswered: those of them that ended before an answer token, and so have no TTFAT.
        reasoning_tokens: mean of these answers; counted by the server where it tells, else by events.
        output_tokens: mean of these answers, their reasoning included.
    """

    requests: int
    unanswered: int
    reasoning_tokens: Figure
    output_tokens: Figure
