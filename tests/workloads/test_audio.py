"""Lengths of audio clips as a marker gives them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.workloads.audio import MOST_CLIPS, read_audio


@pytest.mark.parametrize(
    ("value", "lengths_s"),
    [
        ("10s", (10.0,)),
        (" 500ms ", (0.5,)),
        (7, (7.0,)),
        (Decimal("0.1"), (0.1,)),
        ("10m", (600.0,)),
        (["30s", 1.5, "100ms"], (30.0, 1.5, 0.1)),
        (("9s",) * MOST_CLIPS, (9.0,) * MOST_CLIPS),
    ],
)
def test_one_duration_or_a_list(value: Any, lengths_s: tuple[float, ...]) -> None:
    assert read_audio(value, "audio") == pytest.approx(lengths_s)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", 'audio must be a duration such as "500ms", "20s" or "10m", not \'\''),
        ("2x10s", 'audio must be a duration such as "500ms", "20s" or "10m", not \'2x10s\''),
        ("٣s", 'audio must be a duration such as "500ms"'),
        ([], 'audio must be a duration such as "10s" or a list of durations, not []'),
        (None, 'audio must be a duration such as "10s" or a list of durations, not None'),
        (True, 'audio must be a duration such as "10s" or a list of durations, not True'),
        ({"seconds": 10}, 'audio must be a duration such as "10s" or a list of durations, not {'),
        ([["10s"]], 'audio must be a duration such as "10s" or a list of durations, not ['),
        (90, 'audio=90 needs a unit, since it is above a minute: "90s" or "90ms"'),
        (0, "audio must be above 0, not 0"),
        (float("nan"), "audio must be a finite number, not nan"),
        ("99ms", "audio must have clips of at least 0.1 s, not '99ms'"),
        ("601s", "audio must have at most 600 s together, not 601 s"),
        (["5m"] * 3, "audio must have at most 600 s together, not 900 s"),
        (["1s"] * (MOST_CLIPS + 1), f"audio must be at most {MOST_CLIPS} clips, not {MOST_CLIPS + 1}"),
    ],
)
def test_a_mistake_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(RequirementError) as caught:
        read_audio(value, "audio")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
