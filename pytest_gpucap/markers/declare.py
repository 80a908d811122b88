"""Markers -> what one test declares: its requirement, its server and its GPU class.

Markers are read at collection, so a mistake costs no GPU time. Markers of a module, a class and a function are merged
keyword by keyword; the closest one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pytest_gpucap.markers.declaration import VLLM, Declaration, own_name, place_of
from pytest_gpucap.markers.keywords import BUDGET, read_keywords, text
from pytest_gpucap.markers.marks import measures, merged
from pytest_gpucap.markers.preset import with_preset
from pytest_gpucap.markers.server import declared_server, engine_type
from pytest_gpucap.markers.server_checks import check_log, with_adapters
from pytest_gpucap.markers.workload import read_workload
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Metric, Requirement, RequirementError, Slo, Workload
from pytest_gpucap.secondary import METRICS, SecondaryLimit
from pytest_gpucap.simulated import is_simulated
from pytest_gpucap.vllm_arguments import VllmArguments


def declare(item: pytest.Item, options: Options) -> Declaration:
    """What a test declares: its markers laid over the session's options.

    Raises:
        RequirementError: one line, the mistake and the fix.
    """
    engine, model, arguments = declared_server(item, options)
    gpus_per_replica = engine_type(engine, options, arguments).gpus_per_replica(arguments)
    folder = item.path.parent
    values = read_keywords(with_preset(merged(item, "gpucap"), options, folder), folder)
    slo = Slo(
        limits=values.pop("limits"),
        **{key: values.pop(key) for key in ("max_error_rate", "min_accuracy") if key in values},
    )
    workload = read_workload(values)
    _check_questions(workload, slo)
    _check_pace(workload, slo)
    own_class = merged(item, "gpu_class", positional="name").get("name")
    if workload.adapters or workload.adapter_rank is not None:
        running = options.url is not None or is_simulated(options.gpu_class or own_class)
        workload = with_adapters(workload, engine, model, arguments, running=running)
    name = values.get("name") or own_name(item)
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
        gpu_class=None if own_class is None else text(own_class, "gpu_class"),
        max_time_s=values.get("max_time", options.max_time_s),
        seed=values.get("seed", options.seed),
        named=bool(values.get("name")),
        fleet=fleet,
        counts_loss=values.get("on_replica_loss") == "count",
        secondary=tuple(SecondaryLimit(name, float(values[name])) for name in METRICS if name in values),
        priority=values.get("priority", 0),
    )


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


def _check_budget(gpus: int | None, needed: int) -> None:
    """Check that the budget holds at least one replica."""
    if gpus is not None and gpus < needed:
        raise RequirementError(
            f"gpus={gpus} cannot hold one replica: with its server's arguments, a replica takes {needed} GPUs"
        )


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
