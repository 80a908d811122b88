"""What the server that a test starts must have, or must not do, for the requests that the test declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.markers.declaration import VLLM
from pytest_gpucap.requirement import BASE_MODEL, RequirementError, Workload
from pytest_gpucap.vllm_arguments import VllmArguments


def with_adapters(
    workload: Workload, engine: str, model: object, arguments: Mapping[str, Any], *, running: bool
) -> Workload:
    """The workload, with the rank of its adapters where they are made.

    Args:
        workload: with a mix of adapters, or with a rank.
        engine: name of the test's engine.
        model: of the server.
        arguments: of the server.
        running: the server is simulated, or already runs and is asked before the load.

    Raises:
        RequirementError: if the server that the test starts would not have an adapter of the mix.
    """
    from pytest_gpucap.engines.synthetic import is_synthetic
    from pytest_gpucap.workloads.adapter_mix import DEFAULT_RANK, own_adapters

    if not workload.adapters:
        raise RequirementError("adapter_rank is about a mix of adapters: give adapters= as well, or leave it out")
    given = VllmArguments(arguments).lora_names if engine == VLLM else ()
    if engine == VLLM and model is not None and is_synthetic(str(model)) and not given:
        return replace(workload, adapter_rank=workload.adapter_rank or DEFAULT_RANK)
    if workload.adapter_rank is not None:
        raise RequirementError(
            "adapter_rank is for adapters that are made, which synthetic models without lora_modules have: leave it out"
        )
    if running or engine != VLLM:
        return workload
    if missing := next((name for name in own_adapters(workload.adapters) if name not in given), None):
        known = f"it has {', '.join(given)}" if given else "it has none"
        raise RequirementError(
            f"adapters: the server has no adapter {told(missing)}, {known}: "
            f"name it in vllm(enable_lora=True, lora_modules=[{told(f'{missing}=PATH')}])"
        )
    if BASE_MODEL in given:
        raise RequirementError(
            f"lora_modules: {BASE_MODEL!r} stands for the model without an adapter in adapters=: name it otherwise"
        )
    if VllmArguments(arguments).get("enable_lora") is not True:
        raise RequirementError("adapters: vLLM serves lora_modules with vllm(enable_lora=True) only: add it")
    return workload


_LOGS_PROMPTS: Final = frozenset({"enable_log_requests", "log_requests", "log_requests_level"})
"""Arguments of vLLM and SGLang with which a server writes every prompt into its log."""


def check_log(arguments: Mapping[str, Any]) -> None:
    """Check that the server does not write prompts of the user's own into its log.

    Raises:
        RequirementError: one line on the argument with which it would.
    """
    logs = next((name for name in arguments if name.replace("-", "_") in _LOGS_PROMPTS and arguments[name]), None)
    if logs is not None:
        raise RequirementError(f"{logs} would write the prompts of the file into the server's log: leave it out")
