"""Multi-turn sessions as a marker declares them: ``sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=8s"``.

The text is words with a space between them, each ``key=value``:

| key | value |
| --- | --- |
| ``turns`` | how many requests a session has, written as a length |
| ``think`` | from the end of an answer to the next turn: ``8s``, or ``lognormal:mean=8s,cv=1.2`` |
| ``first`` | tokens of the first turn, written as a length; otherwise as ``input_tokens`` |
| ``context`` | a session ends before a turn whose prompt and answer would take more tokens |

``input_tokens`` are then the tokens that each turn adds, and ``output_tokens`` those of each answer.

Recorded sessions are sent by ``sessions="FILE"`` (`workloads.session_file`). Behind the file may stand ``think=2s``,
instead of its pauses, ``context=`` as above, and ``block=``, the tokens of a block of a trace.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import (
    MOST_TOKENS,
    ApiKind,
    ArrivalKind,
    Length,
    RequirementError,
    Sessions,
    Workload,
    duration_s,
    exact,
    tokens,
)

if TYPE_CHECKING:  # it loads NumPy
    from pytest_gpucap.workloads.recorded import FileOfSessions

MOST_TURNS: Final = 1000
"""Of one session: more is a mistake, and its history would fit no model's context."""
MOST_THINK_S: Final = 3600.0
"""Mean: a session of longer pauses is no session, and its history is in no cache."""
MOST_THINK_CV: Final = 10.0
"""Beyond it the mean of a lognormal time is made by a few draws that no measurement sees."""
_LONGEST: Final = 500
"""Characters of the text."""
_MOST_TEXT: Final = 4096
"""The same where it names a file, whose path may be long."""
_KEYS: Final = ("turns", "think", "first", "context")
_FILE_KEYS: Final = ("think", "context", "block")
_EXAMPLE: Final = 'sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=8s"'


def names_a_file(given: Any) -> bool:
    """Whether ``sessions=`` names a file of recorded sessions: its first word is no ``key=value``, or it is a path."""
    if isinstance(given, str):
        first = given.split(maxsplit=1)[:1]
        return bool(first) and "=" not in first[0]
    return isinstance(given, PathLike)


def split_words(text: str) -> tuple[str, list[str]]:
    """The name of a file, which may have spaces, and the words behind it, each of which has an equals sign."""
    words = text.strip().split(" ")
    end = next((at for at, word in enumerate(words) if "=" in word), len(words))
    return " ".join(words[:end]).rstrip(), " ".join(words[end:]).split()


def file_of_sessions(given: str | PathLike[str], folder: Path) -> FileOfSessions:
    """The file that ``sessions=`` names, relative to the test file, and what is said beside it.

    Raises:
        RequirementError: if there is no such file, or the words behind it are wrong.
    """
    from pytest_gpucap.workloads.recorded import FileOfSessions
    from pytest_gpucap.workloads.session_file import sessions_file

    name, words = split_words(given) if isinstance(given, str) else (str(given), [])
    if isinstance(given, str) and len(given) > _MOST_TEXT:
        raise RequirementError(f"sessions must be a text of up to {_MOST_TEXT} characters, not {told(given)}")
    said = _words(words, _FILE_KEYS, 'sessions="FILE think=2s context=8192"')
    think_s = None
    if "think" in said:
        think_s, cv = _think(said["think"])
        if cv:
            raise RequirementError("sessions: think behind a file is one time for all turns, such as think=2s")
    return FileOfSessions(
        sessions_file(name, folder),
        think_s,
        tokens(said["context"], "sessions: context") if "context" in said else None,
        tokens(said["block"], "sessions: block") if "block" in said else None,
        " ".join(words),
    )


def with_sessions_of_file(workload: Workload, given: FileOfSessions, output_tokens: Length | None) -> Workload:
    """The workload with recorded sessions; see `workloads.recorded`.

    Args:
        workload: without sessions.
        given: the file and what is said beside it.
        output_tokens: as declared; None: they were not.

    Raises:
        RequirementError: if the file cannot be used, or does not go with the rest of the workload.
    """
    from pytest_gpucap.workloads.recorded import with_recorded

    _check_beside(workload)
    if output_tokens is not None and output_tokens.low != output_tokens.high:
        raise RequirementError("sessions: output_tokens beside a file is one number, for turns that do not say theirs")
    found = with_recorded(workload, given, None if output_tokens is None else output_tokens.low)
    if found.own_texts is not None:
        if workload.endpoint is not ApiKind.CHAT:
            raise RequirementError(
                f'sessions: {given.path.name} holds messages, which need endpoint="chat": leave endpoint out'
            )
        if said := next((name for name in _WORDING if getattr(workload.wording, name)), None):
            raise RequirementError(
                f"{said} stands around prompts that are texts, and {given.path.name} has messages of "
                f"its own: leave {said} out"
            )
    return found


_WORDING: Final = ("system", "fold_system", "opening", "instruction")


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
    if workload.audio_s:
        raise RequirementError("sessions and audio exclude each other: audio is drawn for each request")
    if not workload.streamed:
        raise RequirementError("sessions need answers that come token by token: leave out endpoint or stream")


def _given(text: Any) -> dict[str, str]:
    """The words of the text by their keys."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise RequirementError(f"sessions must be a text of up to {_LONGEST} characters, not {told(text)}")
    given = _words(text.split(), _KEYS, _EXAMPLE)
    if missing := [key for key in ("turns", "think") if key not in given]:
        raise RequirementError(f"sessions lacks {' and '.join(missing)}: {_EXAMPLE}")
    return given


def _words(words: list[str], keys: tuple[str, ...], example: str) -> dict[str, str]:
    """Words by their keys."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in keys or not equals or not value:
            raise RequirementError(f"sessions: {told(word)} is none of {', '.join(keys)} with a value: {example}")
        if key in given:
            raise RequirementError(f"sessions names {key} twice")
        given[key] = value
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
