"""Hostile options, ini keys, markers and files: one line each, in time, in little memory, and no file changes.

``make fuzz`` runs for an hour, or for the seconds of ``GPUCAP_FUZZ_SECONDS``; ``GPUCAP_FUZZ_INPUTS`` asks for so many
inputs instead. ``GPUCAP_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.campaign import campaign, place_of

pytestmark = pytest.mark.timeout(2 * 3600)


def test_some_hostile_inputs(pytester: pytest.Pytester) -> None:
    print(campaign(place_of(pytester), first_seed=1, inputs=400))


@pytest.mark.slow
@pytest.mark.skipif(
    not {"GPUCAP_FUZZ_SECONDS", "GPUCAP_FUZZ_INPUTS"} & os.environ.keys(),
    reason="takes as long as GPUCAP_FUZZ_SECONDS says",
)
def test_many_hostile_inputs(pytester: pytest.Pytester) -> None:
    first_seed = int(os.environ.get("GPUCAP_FUZZ_SEED") or random.randrange(1000, 2**31))
    inputs, seconds = os.environ.get("GPUCAP_FUZZ_INPUTS"), os.environ.get("GPUCAP_FUZZ_SECONDS")
    found = campaign(
        place_of(pytester),
        first_seed=first_seed,
        inputs=int(inputs) if inputs else None,
        seconds=None if inputs else float(seconds or 0),
    )
    print(f"{found} (seed {first_seed})")
