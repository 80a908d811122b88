"""Whether a start of vLLM found what ``torch.compile`` had made before, as its log tells it."""

from __future__ import annotations

import re
from typing import Final, Literal

StartKind = Literal["cold", "warm"]

_MADE: Final = re.compile(
    r"saved AOT compiled function to|unable to save AOT compiled function|"
    r"Cache the graph (?:of|for) [^\n]{0,200}? for later use|Compiling a graph for "
)
_FOUND: Final = re.compile(r"Directly load (?:AOT compilation|the compiled graph|the \S{1,20} graph)")
"""Both as vLLM's versions up to 0.32 word them."""


def start_kind(log: str) -> StartKind | None:
    """``cold`` where anything had to be compiled, ``warm`` where all was found; None where the log tells of neither."""
    if _MADE.search(log):
        return "cold"
    return "warm" if _FOUND.search(log) else None
