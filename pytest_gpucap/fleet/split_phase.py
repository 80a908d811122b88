"""One phase, cut into a piece for each of several load generators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.protocol import ClosedLoop, LoadPhase, OpenLoop


def split(phase: LoadPhase, parts: int, missing: Sequence[int] | None = None) -> list[LoadPhase]:
    """A phase in `parts` pieces, which together are the phase to the row.

    Row i goes to part i mod `parts`. Hot rows of a closed loop fill slots that are not in flight yet, so they go in
    turn to parts that have such slots. A part without a share of the concurrency gets an empty open loop. The phase's
    range of prompt numbers is cut into one range for each part.

    Args:
        phase: the whole.
        parts: pieces.
        missing: slots of each part that are not in flight; None: all of its share.
    """
    n = int(phase.prompt_tokens.size)
    if isinstance(phase, OpenLoop):
        rows = [np.arange(part, n, parts) for part in range(parts)]
        firsts = phase.first_prompt + np.cumsum([0, *(each.size for each in rows)])
        return [
            OpenLoop(
                phase.duration_s,
                phase.due_s[each],
                phase.prompt_tokens[each],
                phase.output_tokens[each],
                int(first),
            )
            for each, first in zip(rows, firsts, strict=False)
        ]
    shares = shares_of(phase.concurrency, parts)
    to = _deal(n, phase.hot, shares, shares if missing is None else missing)
    rows = [np.flatnonzero(to == part) for part in range(parts)]
    firsts = phase.first_prompt + np.cumsum([0, *(each.size for each in rows)])
    return [
        ClosedLoop(
            phase.duration_s,
            share,
            phase.prompt_tokens[each],
            phase.output_tokens[each],
            int((each < phase.hot).sum()),
            int(first),
        )
        if share
        else nothing(phase.duration_s, int(first))
        for each, share, first in zip(rows, shares, firsts, strict=False)
    ]


def shares_of(concurrency: int, parts: int) -> list[int]:
    """Requests that each part keeps in flight."""
    each, more = divmod(concurrency, parts)
    return [each + (part < more) for part in range(parts)]


def _deal(n: int, hot: int, shares: Sequence[int], missing: Sequence[int]) -> Ints:
    """Shape (n,): the part of each row of a closed loop. Only parts with a share get any."""
    live = np.flatnonzero(np.asarray(shares) > 0)
    to: Ints = live[np.arange(n) % live.size].astype(np.int64)
    left = [min(slots, share) for slots, share in zip(missing, shares, strict=True)]
    row = 0
    while row < hot and any(left):
        for part in live:
            if row < hot and left[part] > 0:
                to[row] = part
                left[part] -= 1
                row += 1
    return to


def nothing(duration_s: float, first_prompt: int = 0) -> OpenLoop:
    """A phase without requests."""
    none = np.empty(0, np.int32)
    return OpenLoop(duration_s, np.empty(0), none, none, first_prompt)
