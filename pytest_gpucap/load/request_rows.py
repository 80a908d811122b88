"""The single requests of a journal as rows that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.requests import RequestRow


def request_rows(
    journal: Journal, samples: Sequence[Sample], adapters: Sequence[str], most: int
) -> Iterator[RequestRow]:
    """A row per request, in the order of being due.

    Args:
        journal: when nothing is in flight any more.
        samples: the windows, on the journal's clock.
        adapters: names of the workload's mix, in its order; empty without one.
        most: rows at most; the first ones.
    """
    slices = sorted(samples, key=lambda sample: sample.start_s)
    due_in, first_in, end_in = (_at(times, slices) for times in (journal.due_s, journal.first_s, journal.end_s))
    sessions, replica, adapter = journal.sessions, journal.replica, journal.adapter
    columns = zip(
        *(
            each.tolist()
            for each in (
                journal.due_s,
                journal.sent_s,
                journal.first_s,
                journal.last_s,
                journal.end_s,
                journal.prompt_tokens,
                journal.counted_prompt_tokens,
                journal.output_tokens,
                journal.counted_output_tokens,
                journal.status,
                journal.hot,
                journal.cached_tokens,
            )
        ),
        due_in,
        first_in,
        end_in,
        strict=True,
    )
    for row, each in enumerate(islice(columns, most)):
        due, sent, first, last, end, prompt, counted, output, counted_output, status, hot, cached, *places = each
        window, began, ended = (None if place is None else slices[place].window for place in places)
        yield RequestRow(
            scheduled_s=due,
            sent_s=_known(sent),
            first_token_s=_known(first),
            last_token_s=_known(last),
            end_s=_known(end),
            prompt_tokens=counted or prompt,
            output_tokens=counted_output or None,
            asked_output_tokens=output,
            status=Status(status).name.lower(),
            phase=None if window is None else window.phase.value,
            window=None if window is None else window.whole.text,
            first_token_window=None if began is None else began.text,
            end_window=None if ended is None else ended.text,
            mid_life=hot,
            session=None if sessions is None else int(sessions.session[row]),
            cached_tokens=cached,
            adapter=adapters[int(adapter[row])] if adapters and adapter is not None else None,
            replica=None if replica is None else int(replica[row]),
        )


def _known(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _at(times_s: Floats, slices: Sequence[Sample]) -> list[int | None]:
    """Which of the windows, in rising order, each time lies in; None where it lies in none."""
    if not slices:
        return [None] * times_s.size
    starts, ends = (np.array([getattr(each, name) for each in slices]) for name in ("start_s", "end_s"))
    places = np.searchsorted(starts, times_s, side="right") - 1
    inside = (places >= 0) & (times_s < ends[places])
    return [place if within else None for place, within in zip(places.tolist(), inside.tolist(), strict=True)]
