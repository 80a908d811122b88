"""What each keyword of the ``gpucap`` marker takes, by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.markers.endpoint_checks import SAMPLING
from pytest_gpucap.requirement import (
    GOODPUT,
    ApiKind,
    ArrivalKind,
    ImageSize,
    Length,
    Metric,
    RequirementError,
    declared_limits,
    duration_s,
    exact,
    headroom,
    positive,
    share,
    tokens,
    whole,
)
from pytest_gpucap.secondary import METRICS
from pytest_gpucap.user_files import is_file, shown_path
from pytest_gpucap.workloads.sessions import file_of_sessions, names_a_file

BUDGET: Final = "budget"
"""Of ``replicas=``: as many as the budget holds."""
MOST_REPLICAS: Final = 4096
"""Of one fleet: more is a mistake, and the journal numbers them with 16 bits."""
MOST_DOCUMENTS: Final = 4096
"""In one request."""
USUAL_DOCUMENTS: Final = 10
"""In a request of the rerank endpoint, where nothing is said: what a search hands on to be ranked."""
_ON_LOSS: Final = ("invalid", "count")
_LONGEST_NAME: Final = 200


def _choice(kind: type[ArrivalKind | ApiKind], value: Any, what: str) -> ArrivalKind | ApiKind:
    try:
        return kind(str(value))
    except ValueError:
        raise RequirementError(f"{what} must be one of {', '.join(kind)}, not {told(value)}") from None


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise RequirementError(f"{what} must be True or False, not {told(value)}")
    return value


def text(value: Any, what: str) -> str:
    """A text as it is.

    Raises:
        RequirementError: if it is none.
    """
    if not isinstance(value, str):
        raise RequirementError(f"{what} must be a text, not {told(value)}")
    return value


def _sessions(value: Any, what: str) -> Any:
    if not isinstance(value, str | os.PathLike):
        raise RequirementError(f"{what} must be a text, or the path of a file, not {told(value)}")
    return value


def _path(value: Any, what: str) -> str:
    if not isinstance(value, str | os.PathLike):
        raise RequirementError(f"{what} must be the name of a file, not {told(value)}")
    return str(value)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not value.isprintable():
        raise RequirementError(f"{what} must be a text of up to {_LONGEST_NAME} characters, not {told(value)}")
    return value


def _sampling(value: Any, what: str) -> float:
    number = exact(value, what)
    if number < 0:
        raise RequirementError(f"{what} must not be negative, but is {told(value)}")
    return float(number)


def _replicas(value: Any, what: str) -> int | str:
    if value == BUDGET:
        return BUDGET
    count = whole(value, what)
    if count > MOST_REPLICAS:
        raise RequirementError(f'{what} must be "{BUDGET}" or a number from 1 to {MOST_REPLICAS}, not {told(value)}')
    return count


def _on_loss(value: Any, what: str) -> str:
    if value not in _ON_LOSS:
        raise RequirementError(f"{what} must be one of {', '.join(_ON_LOSS)}, not {told(value)}")
    return str(value)


def _extra_body(value: Any, what: str) -> dict[str, Any]:
    from pytest_gpucap.workloads.extra_body import read_extra_body

    return read_extra_body(value, what, SAMPLING)


def _images(value: Any, what: str) -> tuple[ImageSize, ...]:
    from pytest_gpucap.workloads.images import read_images

    return read_images(value, what)


def _audio(value: Any, what: str) -> tuple[float, ...]:
    from pytest_gpucap.workloads.audio import read_audio

    return read_audio(value, what)


def _adapters(value: Any, what: str) -> dict[str, float]:
    from pytest_gpucap.workloads.adapter_mix import read_adapters

    return read_adapters(value, what)


def _adapter_rank(value: Any, what: str) -> int:
    from pytest_gpucap.workloads.adapter_mix import read_rank

    return read_rank(value, what)


def _documents(value: Any, what: str) -> int:
    count = whole(value, what)
    if count > MOST_DOCUMENTS:
        raise RequirementError(f"{what} must be at most {MOST_DOCUMENTS} in one request, not {told(value)}")
    return count


def _priority(value: Any, what: str) -> int:
    number = exact(value, what)
    if number.denominator != 1:
        raise RequirementError(f"{what} must be a whole number, not {told(value)}")
    return int(number)


KEYWORDS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "name": _name,
    "qps": positive,
    "gpus": whole,
    "headroom": headroom,
    "replicas": _replicas,
    "on_replica_loss": _on_loss,
    "input_tokens": Length.parse,
    "output_tokens": Length.parse,
    "arrivals": lambda value, what: _choice(ArrivalKind, value, what),
    "burstiness": lambda value, what: float(positive(value, what)),
    "trace": lambda value, what: Path(_path(value, what)),
    "endpoint": lambda value, what: _choice(ApiKind, value, what),
    "shared_prefix_tokens": lambda value, what: tokens(value, what, least=0),
    "sessions": _sessions,
    "ignore_eos": _flag,
    "stream": _flag,
    "documents": _documents,
    "max_error_rate": share,
    "max_time": duration_s,
    "seed": lambda value, what: whole(value, what, least=0),
    "priority": _priority,
    "temperature": _sampling,
    "top_p": _sampling,
    "top_k": lambda value, what: whole(value, what, least=-1),
    "presence_penalty": lambda value, what: float(exact(value, what)),
    "frequency_penalty": lambda value, what: float(exact(value, what)),
    "extra_body": _extra_body,
    "adapters": _adapters,
    "adapter_rank": _adapter_rank,
    "workload": text,
    "system": text,
    "fold_system": _flag,
    "opening": text,
    "instruction": text,
    "prompts": _path,
    "images": _images,
    "audio": _audio,
    "questions": _path,
    "answer_tokens": tokens,
    "min_accuracy": share,
    **{name.value: metric.read for name, metric in METRICS.items()},
}
OF_MADE_PROMPTS: Final = ("input_tokens", "shared_prefix_tokens", "trace", "sessions", "images", "audio")
"""Keywords that say how long prompts are, what they have or share: not for prompts that are in a file."""
OF_DRAWN_REQUESTS: Final = ("input_tokens", "output_tokens")
"""Keywords that say how long requests are that are drawn: not for those of a trace."""
LIMITING: Final = frozenset({GOODPUT, *(metric.value for metric in Metric)})
"""Keywords of limits, beside metrics with a percentile."""


def read_keywords(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The values that keywords stand for, each read by itself; those of limits are one, named ``limits``.

    Args:
        given: keywords of the ``gpucap`` marker, or of a preset.
        folder: that names of files start from: the test file's, since a suite must not depend on where pytest was
            started.

    Raises:
        RequirementError: one line on a keyword that there is not, or a value that it does not take.
    """
    values: dict[str, Any] = {}
    limits = {}
    for keyword, value in given.items():
        if keyword in KEYWORDS:
            values[keyword] = KEYWORDS[keyword](value, keyword)
        elif keyword in LIMITING or keyword.startswith(tuple(f"{metric.value}_" for metric in Metric)):
            limits[keyword] = value
        elif keyword == "ttfat" or keyword.startswith("ttfat_"):
            raise RequirementError(
                f"{keyword}: the time to first answer token is shown and cannot be limited, since it depends on how "
                "long the model reasons: limit ttft, tpot or e2e"
            )
        else:
            raise RequirementError(f"gpucap has no keyword {told(keyword)}{_near(keyword)}")
    values["limits"] = declared_limits(limits)
    if "trace" in values:
        values["trace"] = _trace_file(values["trace"], folder)
    if "questions" in values:
        from pytest_gpucap.accuracy.questions import questions_file

        values["questions"] = questions_file(values["questions"], folder)
    if "prompts" in values:
        from pytest_gpucap.workloads.prompt_file import prompts_file

        values["prompts"] = prompts_file(values["prompts"], folder)
    if "sessions" in values and names_a_file(values["sessions"]):
        values["sessions"] = file_of_sessions(values["sessions"], folder)
    return values


def _near(keyword: str) -> str:
    from difflib import get_close_matches

    known = [*KEYWORDS, GOODPUT, *(f"{metric.value}_p95" for metric in Metric)]
    near = get_close_matches(keyword, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}"


def _trace_file(trace: Path, folder: Path) -> Path:
    path = trace if trace.is_absolute() else folder / trace
    if not is_file(path):
        raise RequirementError(f"trace: there is no file {shown_path(path)}")
    return path
