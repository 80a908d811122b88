"""Markers -> what one test declares: its requirement, its server and its GPU class.

Markers are read at collection, so a mistake costs no GPU time. Markers of a module, a class and a function are merged
keyword by keyword; the closest one wins.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from pytest_gpucap.endpoint_checks import OF_ANSWERS, SAMPLING, check_endpoint
from pytest_gpucap.engines.protocol import Engine
from pytest_gpucap.engines.shipped import COMMAND, SHIPPED, commanded, shipped
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.errors import told
from pytest_gpucap.masking import refusal
from pytest_gpucap.options import Options
from pytest_gpucap.requirement import (
    GOODPUT,
    ApiKind,
    ArrivalKind,
    Arrivals,
    ImageSize,
    Length,
    Metric,
    OwnPrompts,
    Requirement,
    RequirementError,
    Slo,
    Wording,
    Workload,
    declared_limits,
    duration_s,
    exact,
    headroom,
    positive,
    share,
    tokens,
    whole,
)
from pytest_gpucap.secondary import METRICS, SecondaryLimit
from pytest_gpucap.server_checks import check_log, with_adapters
from pytest_gpucap.simulated import is_simulated
from pytest_gpucap.user_files import is_file, shown_path
from pytest_gpucap.vllm_arguments import VllmArguments
from pytest_gpucap.workloads.sessions import file_of_sessions, names_a_file, with_sessions, with_sessions_of_file

if TYPE_CHECKING:  # every collection of our tests imports this file
    from pytest_gpucap.workloads.prompt_file import PromptFile

VLLM: Final = VllmEngine.name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test stands; its text is ``file:line``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Declaration:
    """All that one test declares.

    Attributes:
        place: of the test, for messages.
        requirement: None if no rate was declared; then `check` fails with a message.
        workload, slo: declared even without a rate, so that `measure` and `sweep` work without one.
        gpus_per_replica: GPUs that one server occupies.
        fleet: replicas that are measured together.
        secondary: what is required beside the rate.
        counts_loss: a replica that is lost is counted, and the measurement goes on with the others; otherwise it ends.
        model: model of the server; None when no marker and no option names one.
        engine: the name of the engine that starts the server.
        arguments: of the server: every other keyword of the ``vllm`` or ``engine`` markers.
        vllm_args: the same, parsed as vLLM's arguments; empty for another engine.
        gpu_class: the class this test is about, from its marker; None when it names none.
        max_time_s: server time that one verdict may take.
        seed: of arrivals, lengths and prompts.
        named: whether a marker gives `name`; otherwise it is the name of the test function.
        priority: tests with a higher one come first; 0 unless declared.
    """

    place: Place
    name: str
    requirement: Requirement | None
    workload: Workload
    slo: Slo
    gpus_per_replica: int
    model: str | None
    engine: str = VLLM
    arguments: Mapping[str, Any] = field(default_factory=dict)
    vllm_args: VllmArguments = field(default_factory=VllmArguments)
    gpu_class: str | None = None
    max_time_s: float = 600.0
    seed: int = 0
    named: bool = False
    fleet: int = 1
    counts_loss: bool = False
    secondary: tuple[SecondaryLimit, ...] = ()
    priority: int = 0

    def with_workload(self, workload: Workload) -> Declaration:
        """The declaration with another workload, which its requirement has as well."""
        requirement = self.requirement and replace(self.requirement, workload=workload)
        return replace(self, workload=workload, requirement=requirement)

    def of(self, item: pytest.Item) -> Declaration:
        """The declaration of a test with equal markers: only its place differs, and its name unless `named`."""
        name = self.name if self.named else _own_name(item)
        requirement = self.requirement and replace(self.requirement, name=name)
        return replace(self, place=place_of(item), name=name, requirement=requirement)


def place_of(item: pytest.Item) -> Place:
    """File and line of a test."""
    path, line, _ = item.location
    return Place(path, (line or 0) + 1)


def measures(item: pytest.Item) -> bool:
    """Whether a test asks for a measurement."""
    return _MEASURING in getattr(item, "fixturenames", ())


def same_declaration(item: pytest.Item) -> Hashable:
    """A key that is equal for tests with equal markers of ours in the same folder (markers name files relative to it).

    Comparing markers is cheaper than reading them, and a suite repeats a few declarations in thousands of tests.
    """
    marks = [mark for mark in item.iter_markers() if mark.name in _MARKERS]
    return measures(item), item.path.parent, *((mark.name, _content(mark.args, mark.kwargs)) for mark in marks)


def _content(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Hashable:
    try:
        # The fastest way for builtins. Version 0 keeps types apart and does not depend on which strings are interned.
        return marshal.dumps((arguments, dict(named)), 0)
    except ValueError:
        pass
    try:
        return _hashable(arguments), _hashable(named)
    except RecursionError:
        return id(named)


def _hashable(value: object) -> Hashable:
    """Equal for equal type and content, so 1, 1.0 and True differ. Values of other types equal only themselves."""
    if isinstance(value, dict):
        return dict, tuple((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_hashable, value))
    return type(value), value if isinstance(value, str | int | float | Fraction | Decimal | Path | None) else id(value)


def _own_name(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", None) or item.name)


class DeclaredServer(NamedTuple):
    """The server that a test's markers name.

    Attributes:
        engine: the name of the engine that starts it.
        model: None when no marker and no option names one.
        arguments: every other keyword of the ``vllm`` or ``engine`` markers.
    """

    engine: str
    model: str | None
    arguments: Mapping[str, Any]

    def of(self, declared: Declaration) -> Declaration:
        """The declaration of a test with this server in place of its own."""
        return replace(
            declared,
            engine=self.engine,
            model=self.model,
            arguments=self.arguments,
            vllm_args=VllmArguments(self.arguments if self.engine == VLLM else {}),
        )


def declared_server(item: pytest.Item, options: Options) -> DeclaredServer:
    """The server of a test: its markers laid over the session's model.

    Raises:
        RequirementError: one line, the mistake and the fix.
    """
    engine, model, arguments = _engine(item)
    model = model or options.model
    if model is not None and not isinstance(model, str | os.PathLike):
        raise RequirementError(f"model must be a name or a path, not {told(model)}")
    return DeclaredServer(engine, None if model is None else str(model), arguments)


def declare(item: pytest.Item, options: Options) -> Declaration:
    """What a test declares: its markers laid over the session's options.

    Raises:
        RequirementError: one line, the mistake and the fix.
    """
    engine, model, arguments = declared_server(item, options)
    gpus_per_replica = engine_type(engine, options, arguments).gpus_per_replica(arguments)
    values = _gpucap_values(_with_preset(_merged(item, "gpucap"), options, item), item)
    slo = Slo(
        limits=values.pop("limits"),
        **{key: values.pop(key) for key in ("max_error_rate", "min_accuracy") if key in values},
    )
    workload = _workload(values)
    _check_questions(workload, slo)
    _check_pace(workload, slo)
    own_class = _merged(item, "gpu_class", positional="name").get("name")
    if workload.adapters or workload.adapter_rank is not None:
        running = options.url is not None or is_simulated(options.gpu_class or own_class)
        workload = with_adapters(workload, engine, model, arguments, running=running)
    name = values.get("name") or _own_name(item)
    fleet = _fleet(values, options, gpus_per_replica)
    if workload.own_texts is not None:
        check_log(arguments)
    # The session's budget does not apply to a test that only uses the server.
    if "gpus" in values or measures(item):
        _check_budget(values.get("gpus") or options.gpus, gpus_per_replica)
    return Declaration(
        place=place_of(item),
        name=name,
        requirement=_requirement(name, values, options, workload, slo, gpus_per_replica, fleet),
        workload=workload,
        slo=slo,
        gpus_per_replica=gpus_per_replica,
        model=model,
        engine=engine,
        arguments=arguments,
        vllm_args=VllmArguments(arguments if engine == VLLM else {}),
        gpu_class=None if own_class is None else _text(own_class, "gpu_class"),
        max_time_s=values.get("max_time", options.max_time_s),
        seed=values.get("seed", options.seed),
        named=bool(values.get("name")),
        fleet=fleet,
        counts_loss=values.get("on_replica_loss") == "count",
        secondary=tuple(SecondaryLimit(name, float(values[name])) for name in METRICS if name in values),
        priority=values.get("priority", 0),
    )


def _check_budget(gpus: int | None, needed: int) -> None:
    """Check that the budget holds at least one replica."""
    if gpus is not None and gpus < needed:
        raise RequirementError(
            f"gpus={gpus} cannot hold one replica: with its server's arguments, a replica takes {needed} GPUs"
        )


def _fleet(values: Mapping[str, Any], options: Options, gpus_per_replica: int) -> int:
    """How many replicas are measured together.

    Raises:
        RequirementError: if the budget has no room for them, or there is none to count them from.
    """
    asked, gpus = values.get("replicas", 1), values.get("gpus") or options.gpus
    if asked == BUDGET:
        if gpus is None:
            raise RequirementError('replicas="budget" needs a budget: gpucap(gpus=...) or --gpus')
        return max(1, gpus // gpus_per_replica)
    if gpus is not None and asked * gpus_per_replica > gpus and asked > 1:
        raise RequirementError(
            f"replicas={asked} take {asked * gpus_per_replica} GPUs, and the budget is gpus={gpus}: raise it, or write "
            'replicas="budget"'
        )
    if asked == 1 and "on_replica_loss" in values:
        raise RequirementError("on_replica_loss is about a fleet: give replicas= as well")
    return int(asked)


def _requirement(
    name: str,
    values: Mapping[str, Any],
    options: Options,
    workload: Workload,
    slo: Slo,
    gpus_per_replica: int,
    fleet: int,
) -> Requirement | None:
    qps = values.get("qps", options.target_qps)
    if qps is None:
        return None
    factor = values.get("headroom") or options.headroom
    requirement = Requirement(
        name=name,
        qps=qps,
        gpus=values.get("gpus") or options.gpus or fleet * gpus_per_replica,
        gpus_per_replica=gpus_per_replica,
        workload=workload,
        slo=slo,
        fleet=fleet,
    )
    return requirement if factor is None else replace(requirement, headroom=factor)


def _marks(item: pytest.Item, name: str, positional: str | None = None) -> Iterator[dict[str, Any]]:
    """The keywords of each marker of a name, the closest marker last. One positional argument may have a name."""
    for mark in reversed(list(item.iter_markers(name))):
        keywords, arguments = dict(mark.kwargs), list(mark.args)
        if arguments and positional is not None:
            if positional in keywords:
                raise RequirementError(f"{name}(...) names {positional} twice")
            keywords[positional] = arguments.pop(0)
        if name in _SERVERS:
            # First of all, since other messages repeat values.
            for argument, value in [*keywords.items(), *((positional or name, each) for each in arguments)]:
                if why := refusal(argument, value):
                    raise RequirementError(f"{name}: {why}")
        if arguments:
            raise RequirementError(f"{name}({', '.join(map(told, arguments))}) takes keywords only")
        yield keywords


def _merged(item: pytest.Item, name: str, positional: str | None = None) -> dict[str, Any]:
    """The keywords of all markers of a name; the closest marker wins."""
    merged: dict[str, Any] = {}
    for keywords in _marks(item, name, positional):
        merged |= keywords
    return merged


def engine_type(name: str, options: Options, arguments: Mapping[str, Any]) -> type[Engine]:
    """The engine of a name: a plugin's, one that comes with this one, or any that ``command=`` describes.

    Raises:
        RequirementError: if there is none; the message offers similar names.
    """
    own = options.extensions.engines
    found = VllmEngine if name == VLLM else own.get(name) or shipped(name)
    if found is not None:
        return found
    if COMMAND in arguments:
        return commanded(name)
    from difflib import get_close_matches

    known = [VLLM, *own, *(each for each in SHIPPED if each not in own)]
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise RequirementError(
        f"engine({told(name)}): there is no such engine; {offer}; any other server is started by command="
    )


def _engine(item: pytest.Item) -> tuple[str, Any, Mapping[str, Any]]:
    """Name, model and arguments of the test's engine, from its ``engine`` markers or from ``vllm``, their shorthand.

    The closest marker wins, argument by argument. Markers of engines other than the closest one are ignored.
    """
    vllm, engines = list(_marks(item, "vllm", positional="model")), list(_marks(item, "engine", positional="name"))
    if vllm and engines:
        raise RequirementError('vllm(...) is short for engine("vllm", ...): mark a test with one of the two')
    if not engines:
        return VLLM, *_merged_vllm(vllm)
    name = None
    since: list[dict[str, Any]] = []
    for keywords in engines:
        named = keywords.pop("name", name)
        if not isinstance(named, str):
            raise RequirementError('engine(...) needs the name of an engine: engine("vllm", model=..., ...)')
        since = [*since, keywords] if named == name else [keywords]
        name = named
    assert name is not None  # noqa: S101 - there is a marker, and each has a name
    if name == VLLM:
        return VLLM, *_merged_vllm(since)
    merged = {key: value for keywords in since for key, value in keywords.items()}
    return name, merged.pop("model", None), merged


def _merged_vllm(marks: Sequence[dict[str, Any]]) -> tuple[Any, Mapping[str, Any]]:
    """Model and arguments; the closest marker wins, however it spells an argument."""
    model, arguments = None, VllmArguments()
    for keywords in marks:
        model = keywords.pop("model", model)
        arguments = arguments.overlaid(VllmArguments(keywords))
    return model, arguments.values


def _choice(kind: type[ArrivalKind | ApiKind], value: Any, what: str) -> ArrivalKind | ApiKind:
    try:
        return kind(str(value))
    except ValueError:
        raise RequirementError(f"{what} must be one of {', '.join(kind)}, not {told(value)}") from None


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise RequirementError(f"{what} must be True or False, not {told(value)}")
    return value


def _text(value: Any, what: str) -> str:
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


_LONGEST_NAME: Final = 200


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not value.isprintable():
        raise RequirementError(f"{what} must be a text of up to {_LONGEST_NAME} characters, not {told(value)}")
    return value


def _sampling(value: Any, what: str) -> float:
    number = exact(value, what)
    if number < 0:
        raise RequirementError(f"{what} must not be negative, but is {told(value)}")
    return float(number)


BUDGET: Final = "budget"
"""Of ``replicas=``: as many as the budget holds."""
MOST_REPLICAS: Final = 4096
"""Of one fleet: more is a mistake, and the journal numbers them with 16 bits."""
_ON_LOSS: Final = ("invalid", "count")


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


def _form(values: Mapping[str, Any]) -> str:
    if "extra_body" not in values:  # so that most collections do not load the module
        return ""
    from pytest_gpucap.workloads.extra_body import form_of

    return form_of(values["extra_body"])


def _adapters(value: Any, what: str) -> dict[str, float]:
    from pytest_gpucap.workloads.adapter_mix import read_adapters

    return read_adapters(value, what)


def _adapter_rank(value: Any, what: str) -> int:
    from pytest_gpucap.workloads.adapter_mix import read_rank

    return read_rank(value, what)


_USUAL_DOCUMENTS: Final = 10
"""In a request of the rerank endpoint, where nothing is said: what a search hands on to be ranked."""
MOST_DOCUMENTS: Final = 4096
"""In one request."""


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


_KEYWORDS: Final[dict[str, Callable[[Any, str], Any]]] = {
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
    "workload": _text,
    "system": _text,
    "fold_system": _flag,
    "opening": _text,
    "instruction": _text,
    "prompts": _path,
    "images": _images,
    "questions": _path,
    "answer_tokens": tokens,
    "min_accuracy": share,
    **{name.value: metric.read for name, metric in METRICS.items()},
}

_MARKERS: Final = frozenset({"gpucap", "engine", "vllm", "gpu_class"})
_SERVERS: Final = frozenset({"engine", "vllm"})
_MEASURING: Final = "gpucap"
"""The fixture of a test that measures."""
_OF_MADE_PROMPTS: Final = ("input_tokens", "shared_prefix_tokens", "trace", "sessions", "images")
"""Keywords that say how long prompts are, what they have or share: not for prompts that are in a file."""
_OF_DRAWN_REQUESTS: Final = ("input_tokens", "output_tokens")
"""Keywords that say how long requests are that are drawn: not for those of a trace."""
_LIMITING: Final = frozenset({GOODPUT, *(metric.value for metric in Metric)})
"""Keywords of limits, beside metrics with a percentile."""
_WORDING: Final = ("system", "fold_system", "opening", "instruction")


def _gpucap_values(given: Mapping[str, Any], item: pytest.Item) -> dict[str, Any]:
    values: dict[str, Any] = {}
    limits = {}
    for keyword, value in given.items():
        if keyword in _KEYWORDS:
            values[keyword] = _KEYWORDS[keyword](value, keyword)
        elif keyword in _LIMITING or keyword.startswith(tuple(f"{metric.value}_" for metric in Metric)):
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
        values["trace"] = _trace_file(values["trace"], item)
    if "questions" in values:
        from pytest_gpucap.accuracy.questions import questions_file

        values["questions"] = questions_file(values["questions"], item.path.parent)
    if "prompts" in values:
        from pytest_gpucap.workloads.prompt_file import prompts_file

        values["prompts"] = prompts_file(values["prompts"], item.path.parent)
    if "sessions" in values and names_a_file(values["sessions"]):
        values["sessions"] = file_of_sessions(values["sessions"], item.path.parent)
    return values


def _with_preset(given: dict[str, Any], options: Options, item: pytest.Item) -> dict[str, Any]:
    """The keywords of the preset that the marker or the session names, and the marker's own laid over them."""
    name = given.get("workload", options.workload)
    if name is None:
        return given
    from pytest_gpucap.workloads.presets import find_preset

    preset = find_preset(_text(name, "workload"), options.workload_file, options.extensions.presets)
    try:
        _gpucap_values(preset.keywords, item)
    except RequirementError as error:
        raise RequirementError(f"workload preset {name}: {error}") from None
    below = _fit_for(given.get("endpoint"), preset.keywords)
    # What is in a file is as long as it is. A preset's own file comes before the lengths that it extends.
    if "prompts" in given:
        below = _without(below, _OF_MADE_PROMPTS)
    elif "sessions" in given:
        below = _without(below, ("trace", "sessions"))
    if names_a_file({**below, **given}.get("sessions")):
        below = _without(below, (*_OF_DRAWN_REQUESTS, "shared_prefix_tokens"))
    elif "trace" in {**below, **given}:
        below = _without(below, _OF_DRAWN_REQUESTS)
    return {**below, "workload": name, **given}


def _without(below: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """The keywords of a preset without some, and without the arrivals of a trace that is left out."""
    arrivals = ("arrivals",) if "trace" in left_out and "trace" in below else ()
    return {key: value for key, value in below.items() if key not in {*left_out, *arrivals}}


def _fit_for(endpoint: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a preset, without those of answers' tokens where the marker's endpoint has none."""
    without = isinstance(endpoint, str) and endpoint in set(ApiKind) and not ApiKind(endpoint).generates
    return {key: value for key, value in keywords.items() if not (without and key in OF_ANSWERS)}


def _near(keyword: str) -> str:
    from difflib import get_close_matches

    known = [*_KEYWORDS, GOODPUT, *(f"{metric.value}_p95" for metric in Metric)]
    near = get_close_matches(keyword, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}"


def _trace_file(trace: Path, item: pytest.Item) -> Path:
    # Relative to the test file: a suite must not depend on where pytest was started.
    path = trace if trace.is_absolute() else item.path.parent / trace
    if not is_file(path):
        raise RequirementError(f"trace: there is no file {shown_path(path)}")
    return path


def _check_questions(workload: Workload, slo: Slo) -> None:
    if workload.questions is not None:
        from pytest_gpucap.accuracy.questions import read_questions

        read_questions(workload.questions)
    elif slo.min_accuracy is not None:
        raise RequirementError(
            'min_accuracy needs questions whose answers are known: questions=FILE, or questions="arithmetic"'
        )


def _check_pace(workload: Workload, slo: Slo) -> None:
    """Check that a limit on tokens' times has answers that tell them."""
    if not workload.streamed and (
        early := next((limit.name for limit in slo.percentiles if limit.metric is not Metric.E2E), None)
        or next((metric.value for metric, _ in slo.thresholds if metric is not Metric.E2E), None)
    ):
        how = f'endpoint="{workload.endpoint}"' if not workload.endpoint.generates else "stream=False"
        raise RequirementError(
            f"{early} needs answers that come token by token, and with {how} they come as a whole: limit e2e"
        )
    percentiles = [limit.name for limit in slo.percentiles if limit.metric in {Metric.TPOT, Metric.ITL}]
    limits = percentiles or [metric.value for metric, _ in slo.thresholds if metric is Metric.TPOT]
    lengths_in_a_file = workload.arrivals.trace is not None or workload.prompts is not None
    lengths_in_a_file |= workload.recorded is not None
    if limits and not lengths_in_a_file and workload.output_tokens.high == 1:
        raise RequirementError(
            f"{limits[0]} limits the time between tokens, but output_tokens=1: answers have only one"
        )


def _workload(values: Mapping[str, Any]) -> Workload:
    check_endpoint(values)
    kind = values.get("arrivals")
    trace, burstiness = values.get("trace"), values.get("burstiness")
    if kind is None:
        kind = ArrivalKind.TRACE if trace else ArrivalKind.GAMMA if burstiness else ArrivalKind.POISSON
    recorded = values.get("sessions") if not isinstance(values.get("sessions", ""), str) else None
    if (kind is ArrivalKind.TRACE) != (trace is not None) and not (kind is ArrivalKind.TRACE and recorded):
        raise RequirementError('arrivals="trace" goes with trace=FILE, or with sessions=FILE')
    _check_lengths(values)
    if (kind is ArrivalKind.GAMMA) != (burstiness is not None):
        raise RequirementError('arrivals="gamma" and burstiness=CV go together')
    plain = _of_requests(values)
    prompts = _prompts(values)
    if prompts is not None:
        plain["endpoint"] = prompts.endpoint(values.get("endpoint"))
    workload = Workload(
        **plain,
        prompts=None
        if prompts is None
        else OwnPrompts(prompts.path, prompts.sha256, len(prompts.prompts), declared=values.get("output_tokens")),
        arrivals=Arrivals(kind, burstiness or (0.0 if kind is ArrivalKind.CONSTANT else 1.0), trace),
        shared_prefix_tokens=values.get("shared_prefix_tokens", 0),
        sampling={key: values[key] for key in SAMPLING if key in values},
        extra_body=values.get("extra_body", {}),
        adapters=values.get("adapters", {}),
        adapter_rank=values.get("adapter_rank"),
        wording=Wording(**{key: values[key] for key in _WORDING if key in values}),
        preset=values.get("workload"),
        questions=values.get("questions"),
        answer_tokens=values.get("answer_tokens"),
        images=values.get("images", ()),
    )
    _check_messages(workload, values)
    if prompts is not None:
        _check_wording(prompts, workload.wording)
    if workload.input_tokens.low < workload.documents:
        raise RequirementError(
            f"documents={workload.documents} leave no token for some of them in the shortest request "
            f"({workload.input_tokens.low} tokens): raise input_tokens, which is of all documents together"
        )
    if recorded is not None:
        return with_sessions_of_file(workload, recorded, values.get("output_tokens"))
    if "sessions" in values:
        return with_sessions(workload, values["sessions"])
    if workload.shared_prefix_tokens >= workload.input_tokens.low:
        raise RequirementError(
            f"shared_prefix_tokens={workload.shared_prefix_tokens} leaves no token of the shortest prompt "
            f"({workload.input_tokens.low} tokens) that is not shared"
        )
    return workload


def _check_lengths(values: Mapping[str, Any]) -> None:
    """Check that nothing is said of lengths that a file has."""
    if "trace" in values and "sessions" in values:
        raise RequirementError("sessions and trace exclude each other: a trace says when each request arrives")
    if "trace" in values and (other := next((key for key in _OF_DRAWN_REQUESTS if key in values), None)):
        raise RequirementError(f"trace and {other} exclude each other: requests of a trace are as long as it says")
    in_file = "sessions" in values and not isinstance(values["sessions"], str)
    if in_file and (other := next((key for key in ("input_tokens", "shared_prefix_tokens") if key in values), None)):
        raise RequirementError(
            f"sessions and {other} exclude each other: the prompts of recorded sessions are as long as they are"
        )


def _check_messages(workload: Workload, values: Mapping[str, Any]) -> None:
    """What needs an endpoint with messages."""
    if workload.endpoint is not ApiKind.CHAT and workload.images:
        raise RequirementError('images needs endpoint="chat": a plain completion is text alone')
    if (workload.endpoint is not ApiKind.CHAT and workload.questions) or (
        not workload.endpoint.has_messages and workload.wording != Wording()
    ):
        said = "questions" if workload.questions else next(key for key in _WORDING if key in values)
        raise RequirementError(f'{said} needs endpoint="chat": a plain completion has no messages')


def _of_requests(values: Mapping[str, Any]) -> dict[str, Any]:
    """What each request asks for, and of which endpoint."""
    told_as_is = ("input_tokens", "output_tokens", "endpoint", "ignore_eos", "stream")
    plain = {key: values[key] for key in told_as_is if key in values}
    if "ignore_eos" not in values and _form(values):
        plain["ignore_eos"] = False  # else a server writes on after the end of the form, whatever comes to its mind
    if not plain.get("endpoint", ApiKind.CHAT).generates:
        plain["output_tokens"] = Length.fixed(1)
    if plain.get("endpoint") is ApiKind.RERANK:
        plain["documents"] = values.get("documents", _USUAL_DOCUMENTS)
    return plain


def _prompts(values: Mapping[str, Any]) -> PromptFile | None:
    """The file of prompts that a marker names, read; None if it names none.

    Raises:
        RequirementError: if it cannot be used, or beside it something is said of prompts that are made.
    """
    if "prompts" not in values:
        return None
    from pytest_gpucap.workloads.prompt_file import read_prompts

    if other := next((key for key in _OF_MADE_PROMPTS if key in values), None):
        raise RequirementError(f"prompts and {other} exclude each other: prompts of a file are as long as they are")
    return read_prompts(values["prompts"])


def _check_wording(prompts: PromptFile, wording: Wording) -> None:
    """Check that there is no text to put around prompts that are whole messages."""
    whole = next((each.place for each in prompts.prompts if each.whole), None)
    said = next((name for name in _WORDING if getattr(wording, name)), None)
    if whole is not None and said is not None:
        raise RequirementError(
            f"{said} stands around prompts that are texts, and {whole} has messages of its own: leave {said} out"
        )
