"""The service that a plan is made for: a model, its server arguments, its load and its latency limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.requirement import Slo, Workload, positive, whole
from pytest_gpucap.roofline.limits import Deployment, Roofline
from pytest_gpucap.roofline.served import build, hardware_of

BOUNDING: Final = (
    "dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "max_num_seqs", "max_model_len", "gpu_memory_utilization", "speculative_config",
)  # fmt: skip
"""Server arguments that bound the speed of a replica. Rates under different values are not comparable."""


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How one replica is spread over GPUs."""

    tensor: int
    pipeline: int
    data: int

    @property
    def gpus(self) -> int:
        """GPUs per replica."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True)
class Service:
    """What a replica serves. A rate is known for one service only.

    Attributes:
        model: its name.
        arguments: those of `BOUNDING` that were given, by name with underscores.
        workload: the shape of its requests.
        slo: its latency limits.
        config: the fields of the model's ``config.json``. None if it is not at hand; then no physical limit is known.
    """

    model: str
    arguments: Mapping[str, str]
    workload: Workload
    slo: Slo
    config: Mapping[str, Any] | None = None

    def same(self, other: Service) -> bool:
        """Whether model, arguments, workload and latency limits are equal. The order of the limits does not matter."""
        mine = (self.model, self.arguments, self.workload, frozenset(self.slo.limits))
        return mine == (other.model, other.arguments, other.workload, frozenset(other.slo.limits))

    @property
    def parallelism(self) -> Parallelism:
        """From the server arguments.

        Raises:
            RequirementError: if one of the sizes is not a whole number of at least 1.
        """
        return Parallelism(
            *(
                whole(self.arguments.get(f"{kind}_parallel_size", 1), f"--{kind}-parallel-size")
                for kind in ("tensor", "pipeline", "data")
            )
        )

    def roofline(self, gpu_class: GpuClass) -> Roofline | None:
        """The physical limits of one replica on a GPU class. None if the config or the class's bandwidth is unknown.

        Raises:
            RequirementError: if a server argument is not a number in its range.
            UnknownModel: if the model or its quantization is not understood.
        """
        parallelism = self.parallelism
        hardware = hardware_of(gpu_class, parallelism.tensor, parallelism.pipeline, parallelism.data)
        if self.config is None or hardware is None:
            return None
        return build(self.config, self.arguments, hardware, self.workload, self._deployment())

    def _deployment(self) -> Deployment:
        sequences, share = self.arguments.get("max_num_seqs"), self.arguments.get("gpu_memory_utilization")
        return Deployment(
            # vLLM's limit holds for each data-parallel engine.
            max_num_seqs=None if sequences is None else whole(sequences, "--max-num-seqs") * self.parallelism.data,
            memory_share=1.0 if share is None else float(positive(share, "--gpu-memory-utilization")),
        )
