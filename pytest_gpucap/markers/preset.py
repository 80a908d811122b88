"""A preset's keywords below those of a marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gpucap.markers.endpoint_checks import OF_ANSWERS
from pytest_gpucap.markers.keywords import OF_DRAWN_REQUESTS, OF_MADE_PROMPTS, read_keywords, text
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import ApiKind, RequirementError
from pytest_gpucap.workloads.sessions import names_a_file


def with_preset(given: dict[str, Any], options: Options, folder: Path) -> dict[str, Any]:
    """The keywords of the preset that the marker or the session names, and the marker's own laid over them.

    Args:
        given: keywords of the ``gpucap`` marker.
        options: of the session.
        folder: see `keywords.read_keywords`.

    Raises:
        RequirementError: one line, if there is no such preset, or a keyword of it is wrong.
    """
    name = given.get("workload", options.workload)
    if name is None:
        return given
    from pytest_gpucap.workloads.presets import find_preset

    preset = find_preset(text(name, "workload"), options.workload_file, options.extensions.presets)
    try:
        read_keywords(preset.keywords, folder)
    except RequirementError as error:
        raise RequirementError(f"workload preset {name}: {error}") from None
    below = _fit_for(given.get("endpoint"), preset.keywords)
    # What is in a file is as long as it is. A preset's own file comes before the lengths that it extends.
    if "prompts" in given:
        below = _without(below, OF_MADE_PROMPTS)
    elif "sessions" in given:
        below = _without(below, ("trace", "sessions"))
    if names_a_file({**below, **given}.get("sessions")):
        below = _without(below, (*OF_DRAWN_REQUESTS, "shared_prefix_tokens"))
    elif "trace" in {**below, **given}:
        below = _without(below, OF_DRAWN_REQUESTS)
    return {**below, "workload": name, **given}


def _without(below: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """The keywords of a preset without some, and without the arrivals of a trace that is left out."""
    arrivals = ("arrivals",) if "trace" in left_out and "trace" in below else ()
    return {key: value for key, value in below.items() if key not in {*left_out, *arrivals}}


def _fit_for(endpoint: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a preset, without those of answers' tokens where the marker's endpoint has none."""
    without = isinstance(endpoint, str) and endpoint in set(ApiKind) and not ApiKind(endpoint).generates
    return {key: value for key, value in keywords.items() if not (without and key in OF_ANSWERS)}
