"""Sessions as a marker writes them."""

from __future__ import annotations

import pytest

from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, LengthKind, RequirementError, Workload
from pytest_gpucap.workloads.sessions import with_sessions

TURNS = "turns=lognormal:mean=4,cv=0.5,high=12"


def test_every_key_is_read_and_input_tokens_become_those_of_a_turn() -> None:
    workload = Workload(input_tokens=Length.fixed(100), shared_prefix_tokens=300)
    text = f"{TURNS}  think=lognormal:mean=8s,cv=1.2 first=uniform:500-900 context=4096"
    sessions = with_sessions(workload, text).sessions
    assert sessions is not None
    assert (sessions.turns.kind, sessions.turns.mean, sessions.turns.high) == (LengthKind.LOGNORMAL, 4.0, 12)
    assert (sessions.think_s, sessions.think_cv, sessions.context) == (8.0, 1.2, 4096)
    assert sessions.new == Length.fixed(100)
    assert sessions.opening == Length.parse("uniform:500-900", "first")
    assert sessions.text == text.replace("  ", " ")


def test_a_think_time_may_be_fixed_or_nothing() -> None:
    for text, seconds in (("think=500ms", 0.5), ("think=0", 0.0)):
        sessions = with_sessions(Workload(), f"turns=3 {text}").sessions
        assert sessions is not None
        assert (sessions.think_s, sessions.think_cv) == (seconds, 0.0)
        assert sessions.opening == sessions.new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (4, "sessions must be a text"),
        ("", "sessions lacks turns and think"),
        ("turns=4", "sessions lacks think"),
        ("turns=4 think=5s think=6s", "sessions names think twice"),
        ("turns=4 think=5s rounds=3", "'rounds=3' is none of turns, think, first, context"),
        ("turns= think=5s", "'turns=' is none of"),
        ("turns=0 think=5s", "sessions: turns must be a whole number of at least 1"),
        ("turns=1001 think=5s", "sessions: turns must be at most 1000"),
        ("turns=4 think=2h", "think must be at most 1h on average, not 7200 s"),
        ("turns=4 think=soon", "sessions: think must be a duration"),
        ("turns=4 think=lognormal:mean=5s", "takes mean= and cv="),
        ("turns=4 think=lognormal:mean=5s,cv=0", "cv must be above 0"),
        ("turns=4 think=5s context=400", "context=400 does not hold the longest first turn of 512 tokens"),
        ("turns=4 think=5s first=none", "sessions: first must be a whole number"),
        ("turns=1000 think=5s first=16777216", "a session may grow to 17288"),
    ],
)
def test_a_mistake_names_the_place_and_the_fix(text: object, message: str) -> None:
    with pytest.raises(RequirementError) as error:
        with_sessions(Workload(), text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sessions_do_not_go_with_a_trace() -> None:
    with pytest.raises(RequirementError, match="sessions and trace exclude each other"):
        with_sessions(Workload(arrivals=Arrivals(ArrivalKind.TRACE)), f"{TURNS} think=5s")
