"""What a prefix cache had of each prompt, against a simulated server that knows it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_gpucap.estimate.prefix_cache import CacheSeen
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.sessions import under_way
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.workloads.sessions import with_sessions

CHAT = with_sessions(
    Workload(Length.parse("uniform:50-250", "input_tokens"), Length.parse("uniform:50-350", "output_tokens")),
    "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=5s,cv=1",
)
MIXED = profile.load("mixed").engine


def driven() -> SimRunner:
    """A closed loop, two open ones, a cancellation and another open loop on a server of 60,000 KV tokens."""
    runner = SimRunner(MIXED.settled(), seed=2)
    loop = closed_loop(CHAT, 40, 20.0, 50.0, 3, 0)
    runner.run(loop)
    first = loop.prompts
    for stream in (1, 2, 3):
        phase = open_loop(CHAT, 3.5, 60.0, 3, stream, first, under_way(runner.journal()))
        runner.run(phase)
        first += phase.prompts
        if stream == 2:
            runner.settle(0.0, cancel=True)
    return runner


def test_what_each_prompt_found_follows_from_what_was_written() -> None:
    runner = driven()
    journal = runner.journal()
    seen = CacheSeen(journal, 0)
    known = np.isfinite(journal.first_s)
    really = runner._columns["found"][: journal.due_s.size][known].astype(np.int64)
    sent, found = journal.cached_tokens[known], seen.found(MIXED.kv_tokens)[known]
    lost = sent.sum() - really.sum()
    assert lost > 0.05 * sent.sum()
    assert sent.sum() - found.sum() == pytest.approx(lost, rel=0.15)
    assert np.corrcoef(sent - found, sent - really)[0, 1] > 0.9
    share = really.sum() / journal.prompt_tokens[known].sum()
    assert seen.share(seen.found(MIXED.kv_tokens)) == pytest.approx(share, abs=0.01)
    assert seen.room_for(share) == pytest.approx(MIXED.kv_tokens, rel=0.1)


def test_the_ends_of_the_scale() -> None:
    journal = driven().journal()
    seen = CacheSeen(journal, 20)
    assert seen.found(math.inf).tolist() == journal.cached_tokens.tolist()
    assert not seen.found(0.0).any()
    tiny = seen.found(1.0)
    # What all prompts begin with is always there.
    assert (tiny >= np.minimum(20, journal.cached_tokens)).all()
    assert seen.share(tiny) < seen.share(seen.found(30_000.0)) < seen.share(seen.found(math.inf))
    assert seen.share(seen.found(math.inf), block=16) < seen.share(seen.found(math.inf))
    other = seen.journal_with(tiny)
    assert other.cached_tokens.tolist() == tiny.tolist()
    assert journal.cached_tokens.sum() > tiny.sum()
