"""The service that a plan is made for: a model, its server arguments, its load and its latency limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.requirement import Slo, Workload
from pytest_gpucap.roofline.limits import Deployment, Roofline
from pytest_gpucap.roofline.served import build, hardware_under
from pytest_gpucap.vllm_arguments import VllmArguments

BOUNDING: Final = (
    "dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "max_num_seqs", "max_model_len", "gpu_memory_utilization", "speculative_config",
)  # fmt: skip
"""Server arguments that bound the speed of a replica. Rates under different values are not comparable."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a replica serves. A rate is known for one service only.

    Attributes:
        model: its name.
        arguments: those of `BOUNDING` that were given.
        workload: the shape of its requests.
        slo: its latency limits.
        config: the fields of the model's ``config.json``. None if it is not at hand; then no physical limit is known.
    """

    model: str
    arguments: VllmArguments
    workload: Workload
    slo: Slo
    config: Mapping[str, Any] | None = None

    def same(self, other: Service) -> bool:
        """Whether model, arguments, workload and latency limits are equal. The order of the limits does not matter."""
        mine = (self.model, self.arguments, self.workload, frozenset(self.slo.limits))
        return mine == (other.model, other.arguments, other.workload, frozenset(other.slo.limits))

    def roofline(self, gpu_class: GpuClass) -> Roofline | None:
        """The physical limits of one replica on a GPU class. None if the config or the class's bandwidth is unknown.

        Raises:
            RequirementError: if a server argument is not a number in its range.
            UnknownModel: if the model or its quantization is not understood.
        """
        given = self.arguments
        hardware = hardware_under(gpu_class, given)
        if self.config is None or hardware is None or given.prefill_context_parallel_size > 1:
            return None
        deployment = Deployment(
            # vLLM's limit holds for each data-parallel engine.
            max_num_seqs=None if given.max_num_seqs is None else given.max_num_seqs * given.data_parallel_size,
            memory_share=given.gpu_memory_utilization or 1.0,
        )
        return build(self.config, given, hardware, self.workload, deployment)
