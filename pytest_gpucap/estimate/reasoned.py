"""What a window showed of answers that reason first: how many, for how many tokens, and when they began to answer."""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.results.reasoning import Reasoning


def first_answer_tokens(journal: Journal, start_s: float, end_s: float) -> tuple[Floats, Floats] | None:
    """When the first answer tokens of [start_s, end_s) came, and the time to each, shape (n,); None without reasoning.

    Requests that began mid-life are left out, as for every latency.
    """
    if not journal.reasoned.any():
        return None
    when = journal.first_answer_s
    here = ~journal.hot & (when >= start_s) & (when < end_s)
    return when[here], journal.ttfat_s[here]


def reasoning_of(journal: Journal, whole: Bools) -> Reasoning | None:
    """The reasoning of whole answers; None where none of them reasoned.

    Args:
        journal: of the load.
        whole: shape (n,), the answers to look at.
    """
    told = whole & journal.reasoned
    if journal.reasoning_tokens is None or not told.any():
        return None
    output = np.where(journal.counted_output_tokens > 0, journal.counted_output_tokens, journal.output_tokens)[told]
    return Reasoning(
        requests=int(told.sum()),
        unanswered=int((told & np.isnan(journal.first_answer_s)).sum()),
        reasoning_tokens=float(journal.reasoning_tokens[told].mean()),
        output_tokens=float(output.mean()),
    )
