"""vLLM as an engine: the server of a test's ``vllm`` marker, and a pull request's base beside it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pytest_gpucap.engines.protocol import Engine, EnginePair, Server, ServerRequest
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.synthetic import is_synthetic
from pytest_gpucap.vllm_arguments import VllmArguments

DEFAULT_SHARE: Final = 0.92
"""vLLM's default for ``gpu_memory_utilization``."""
MOST_SHARE: Final = 0.95
"""Share of the GPU's memory for two servers together. CUDA and its graphs need memory besides."""


class VllmEngine(Engine):
    """Starts vLLM's OpenAI server.

    Attributes:
        spec: what to start.
    """

    name = "vllm"
    title = "vLLM"

    def __init__(self, request: ServerRequest) -> None:
        super().__init__(request)
        if request.model is None:
            raise ValueError(
                'no model is named: mark the test with vllm(model="...") or give --gpucap-model '
                '("synthetic:tiny" needs no download)'
            )
        if shutil.which(request.python) is None:
            raise ValueError(
                f"there is no interpreter at {request.python} to start vLLM with "
                "(--gpucap-vllm-python or ini gpucap_vllm_python)"
            )
        if "command" in request.arguments:
            raise ValueError('vllm: command= starts other engines: name yours, engine("NAME", command="...")')
        args = VllmArguments(request.arguments)
        if os.environ.get("VLLM_USE_RUST_FRONTEND", "0").strip() not in {"", "0"}:
            raise ValueError(
                "vllm: the environment sets VLLM_USE_RUST_FRONTEND, and that front end does not ask for the key on "
                "every path: unset it, or start the server yourself and measure it with --gpucap-url"
            )
        if reason := _one_front_end(args):
            raise ValueError(f"vllm: api_server_count={args.api_server_count} has no effect: {reason}")
        adapters = request.adapters if _makes_adapters(request.model, args) else ()
        self.spec = ServerSpec(
            model=request.model,
            args=args,
            python=request.python,
            startup_timeout_s=request.startup_timeout_s,
            log_dir=request.log_dir,
            identity=request.identity,
            adapters=adapters,
            adapter_rank=request.adapter_rank,
        )

    @classmethod
    def gpus_per_replica(cls, arguments: Mapping[str, object]) -> int:
        """See `Engine.gpus_per_replica`."""
        return VllmArguments(arguments).gpus_per_replica

    @property
    def max_model_len(self) -> int | None:
        """See `Engine.max_model_len`."""
        return self.spec.args.max_model_len

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self.spec.key

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:
        """See `Engine.start`."""
        from pytest_gpucap.engines.vllm import start_vllm

        return start_vllm(self.spec, devices=devices, on_wait=on_wait)

    def with_base(self, base_args: str, base_python: str | None) -> VllmPair:
        """See `Engine.with_base`."""
        try:
            args = self.spec.args.overlaid(VllmArguments.parse(base_args))
        except ValueError as error:
            raise ValueError(f"--gpucap-base-args: {error}") from None
        return VllmPair(self._with(args, base_python or self.request.python), self)

    def sharing(self, share: float) -> VllmEngine:
        """A copy with another share of the GPU's memory."""
        args = self.spec.args.overlaid(VllmArguments({"gpu_memory_utilization": share}))
        return self._with(args, self.request.python)

    def _with(self, args: VllmArguments, python: str) -> VllmEngine:
        return VllmEngine(replace(self.request, arguments=args.values, python=python))


def _makes_adapters(model: str, args: VllmArguments) -> bool:
    """Whether adapters are made: for a synthetic model, unless the user gives the server some."""
    return is_synthetic(model) and not args.has("lora-modules")


def _one_front_end(args: VllmArguments) -> str:
    """Why vLLM would start one front end where several are asked for; empty if it starts what is asked for."""
    if (args.api_server_count or 1) == 1:
        return ""
    if args.get("enable_elastic_ep") is True:
        return "with enable_elastic_ep, vLLM starts one front end"
    return ""


class VllmPair(EnginePair[VllmEngine]):
    """Two vLLM servers on the same GPUs. One idles while the other is measured, so the memory must hold both.

    Args:
        base, head: their engines.
        asked: the pair before its shares of memory were scaled down; None if they were not.
    """

    def __init__(self, base: VllmEngine, head: VllmEngine, asked: VllmPair | None = None) -> None:
        super().__init__(base, head)
        self._asked = asked

    def fitted(self) -> VllmPair:
        """This pair if the shares of the GPU's memory fit together; otherwise one with the shares scaled down."""
        shares = [spec.args.gpu_memory_utilization or DEFAULT_SHARE for spec in (self.base.spec, self.head.spec)]
        if sum(shares) <= MOST_SHARE:
            return self
        factor = DEFAULT_SHARE / sum(shares)
        base, head = (round(share * factor, 3) for share in shares)
        return VllmPair(self.base.sharing(base), self.head.sharing(head), asked=self)

    def changes(self) -> list[str]:
        """See `EnginePair.changes`."""
        found = self.model_change()
        asked = self._asked or self
        base, head = asked.base.spec, asked.head.spec
        if base.python != head.python:
            found.append(f"interpreter: {base.python} -> {head.python}")
        before, after = shlex.join(base.args.flags()), shlex.join(head.args.flags())
        if before != after:
            found.append(f"arguments: {before or 'none'} -> {after or 'none'}")
        if self._asked is not None:
            share = self.head.spec.args.gpu_memory_utilization
            found.append(f"for this comparison only, gpu_memory_utilization {share} each, so that both fit")
        return found

    def remark(self) -> str:
        """See `EnginePair.remark`."""
        if self._asked is None:
            return ""
        share = self.base.spec.args.gpu_memory_utilization
        return f"base and head share the GPU's memory; the base asked for {share} of it"
