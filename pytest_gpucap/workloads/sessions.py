"""Multi-turn sessions as a marker declares them: ``sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=8s"``.

The text is words with a space between them, each ``key=value``:

| key | value |
| --- | --- |
| ``turns`` | how many requests a session has, written as a length |
| ``think`` | from the end of an answer to the next turn: ``8s``, or ``lognormal:mean=8s,cv=1.2`` |
| ``first`` | tokens of the first turn, written as a length; otherwise as ``input_tokens`` |
| ``context`` | a session ends before a turn whose prompt and answer would take more tokens |

``input_tokens`` are then the tokens that each turn adds, and ``output_tokens`` those of each answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import (
    MOST_TOKENS,
    ArrivalKind,
    Length,
    RequirementError,
    Sessions,
    Workload,
    duration_s,
    exact,
    tokens,
)

MOST_TURNS: Final = 1000
"""Of one session: more is a mistake, and its history would fit no model's context."""
MOST_THINK_S: Final = 3600.0
"""Mean: a session of longer pauses is no session, and its history is in no cache."""
MOST_THINK_CV: Final = 10.0
"""Beyond it the mean of a lognormal time is made by a few draws that no measurement sees."""
_LONGEST: Final = 500
"""Characters of the text."""
_KEYS: Final = ("turns", "think", "first", "context")
_EXAMPLE: Final = 'sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=8s"'


def with_sessions(workload: Workload, text: Any) -> Workload:
    """The workload with sessions; its `input_tokens` have been what each turn adds.

    The lengths of whole prompts follow from the sessions: `load.sessions.with_session_lengths` describes them.

    Raises:
        RequirementError: if the text is wrong, or does not go with the rest of the workload.
    """
    given = _given(text)
    _check_beside(workload)
    if workload.arrivals.kind is ArrivalKind.TRACE:
        raise RequirementError("sessions and trace exclude each other: a trace says when each request arrives")
    turns = Length.parse(given["turns"], "sessions: turns")
    if turns.high > MOST_TURNS:
        raise RequirementError(f"sessions: turns must be at most {MOST_TURNS}, not {turns.high}")
    mean_s, cv = _think(given["think"])
    first = Length.parse(given["first"], "sessions: first") if "first" in given else None
    context = tokens(given["context"], "sessions: context") if "context" in given else None
    found = Sessions(turns, mean_s, cv, workload.input_tokens, first, context, " ".join(text.split()))
    opening = workload.shared_prefix_tokens + found.opening.high + workload.output_tokens.high
    if context is not None and context < opening:
        raise RequirementError(
            f"sessions: context={context} does not hold the longest first turn of {opening} tokens with its answer: "
            "raise it, or lower input_tokens or output_tokens"
        )
    longest = opening + (turns.high - 1) * (found.new.high + workload.output_tokens.high)
    if context is None and longest > MOST_TOKENS:
        raise RequirementError(
            f"sessions: a session may grow to {longest} tokens, and at most {MOST_TOKENS} can be asked for: give "
            "context=TOKENS, at which sessions end"
        )
    return replace(workload, sessions=found)


def _check_beside(workload: Workload) -> None:
    """What sessions do not go with."""
    if workload.adapters:
        raise RequirementError("sessions and adapters exclude each other: an adapter is drawn for each request")
    if workload.images:
        raise RequirementError("sessions and images exclude each other: an image is drawn for each request")
    if not workload.streamed:
        raise RequirementError("sessions need answers that come token by token: leave out endpoint or stream")


def _given(text: Any) -> dict[str, str]:
    """The words of the text by their keys."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise RequirementError(f"sessions must be a text of up to {_LONGEST} characters, not {told(text)}")
    given: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if key not in _KEYS or not equals or not value:
            raise RequirementError(f"sessions: {told(word)} is none of {', '.join(_KEYS)} with a value: {_EXAMPLE}")
        if key in given:
            raise RequirementError(f"sessions names {key} twice")
        given[key] = value
    if missing := [key for key in ("turns", "think") if key not in given]:
        raise RequirementError(f"sessions lacks {' and '.join(missing)}: {_EXAMPLE}")
    return given


def _think(text: str) -> tuple[float, float]:
    """Mean seconds and coefficient of variation of the think time."""
    what = "sessions: think"
    if not text.startswith("lognormal:"):
        if text in {"0", "0s"}:
            return 0.0, 0.0
        return _bounded(duration_s(text, what)), 0.0
    pairs = [part.partition("=") for part in text.removeprefix("lognormal:").split(",")]
    given = {name: value for name, _, value in pairs}
    if set(given) != {"mean", "cv"} or len(pairs) != len(given):
        raise RequirementError(f'{what}: {told(text)} takes mean= and cv=, as "lognormal:mean=8s,cv=1.2"')
    cv = float(exact(given["cv"], f"{what}: cv"))
    if not 0 < cv <= MOST_THINK_CV:
        raise RequirementError(f"{what}: cv must be above 0 and at most {MOST_THINK_CV:g}, not {told(given['cv'])}")
    return _bounded(duration_s(given["mean"], f"{what}: mean")), cv


def _bounded(mean_s: float) -> float:
    if mean_s > MOST_THINK_S:
        raise RequirementError(f"sessions: think must be at most 1h on average, not {mean_s:g} s")
    return mean_s
