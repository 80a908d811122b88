"""The workload that keywords of the ``gpucap`` marker describe together, and what of them does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.markers.endpoint_checks import SAMPLING, check_endpoint
from pytest_gpucap.markers.keywords import OF_DRAWN_REQUESTS, OF_MADE_PROMPTS, USUAL_DOCUMENTS
from pytest_gpucap.requirement import (
    ApiKind,
    ArrivalKind,
    Arrivals,
    Length,
    OwnPrompts,
    RequirementError,
    Wording,
    Workload,
)
from pytest_gpucap.workloads.sessions import with_sessions, with_sessions_of_file

if TYPE_CHECKING:  # every collection of our tests imports this file
    from pytest_gpucap.workloads.prompt_file import PromptFile


_WORDING: Final = ("system", "fold_system", "opening", "instruction")


def read_workload(values: Mapping[str, Any]) -> Workload:
    """The workload that a test declares.

    Args:
        values: keywords of the ``gpucap`` marker, read.

    Raises:
        RequirementError: one line on what does not go together.
    """
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
        audio_s=values.get("audio", ()),
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
    if "trace" in values and (other := next((key for key in OF_DRAWN_REQUESTS if key in values), None)):
        raise RequirementError(f"trace and {other} exclude each other: requests of a trace are as long as it says")
    in_file = "sessions" in values and not isinstance(values["sessions"], str)
    if in_file and (other := next((key for key in ("input_tokens", "shared_prefix_tokens") if key in values), None)):
        raise RequirementError(
            f"sessions and {other} exclude each other: the prompts of recorded sessions are as long as they are"
        )


def _check_messages(workload: Workload, values: Mapping[str, Any]) -> None:
    """What needs an endpoint with messages."""
    beside = "images" if workload.images else "audio" if workload.audio_s else None
    if workload.endpoint is not ApiKind.CHAT and beside is not None:
        raise RequirementError(f'{beside} needs endpoint="chat": a plain completion is text alone')
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
        plain["documents"] = values.get("documents", USUAL_DOCUMENTS)
    return plain


def _form(values: Mapping[str, Any]) -> str:
    if "extra_body" not in values:  # so that most collections do not load the module
        return ""
    from pytest_gpucap.workloads.extra_body import form_of

    return form_of(values["extra_body"])


def _prompts(values: Mapping[str, Any]) -> PromptFile | None:
    """The file of prompts that a marker names, read; None if it names none.

    Raises:
        RequirementError: if it cannot be used, or beside it something is said of prompts that are made.
    """
    if "prompts" not in values:
        return None
    from pytest_gpucap.workloads.prompt_file import read_prompts

    if other := next((key for key in OF_MADE_PROMPTS if key in values), None):
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
