"""What a replica runs on and how it is run, as far as that bounds its speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_PLAIN = {"bf16": ("bf16", "fp16"), "fp16": ("fp16", "bf16")}
"""Arithmetic of 16 bits falls back on the other kind where a GPU has one of them only."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The GPUs of one replica.

    Attributes:
        name: of the GPU class.
        bandwidth_bytes_per_s, memory_bytes: of one GPU; the memory may be unknown.
        operations_per_s: of one GPU, by kind (``bf16``, ``fp16``, ``fp8``, ``int8``, ``fp4``); a kind that is missing
            is computed in 16 bits, as vLLM does (it unpacks the weights). Empty: computing is not bounded.
        tensor, pipeline: GPUs that share every layer, and stages of layers one after the other.
        data: engines of tensor x pipeline GPUs, among which the requests are shared. Each engine holds a copy of what
            every token uses. A mixture's experts are spread over all engines (vLLM, "Data parallel deployment").
    """

    name: str
    bandwidth_bytes_per_s: float
    memory_bytes: float | None = None
    operations_per_s: Mapping[str, float] = field(default_factory=dict)
    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.gpus_per_engine * self.data

    @property
    def gpus_per_engine(self) -> int:
        """GPUs that hold one copy of what every token uses."""
        return self.tensor * self.pipeline

    @property
    def passes(self) -> int:
        """Passes over the model that run at once, each with a share of the requests in flight."""
        return self.pipeline * self.data

    def operations(self, arithmetic: str) -> float:
        """Operations per second of one GPU; infinite where unknown."""
        for kind in (arithmetic, *_PLAIN.get(arithmetic, _PLAIN["bf16"])):
            if kind in self.operations_per_s:
                return self.operations_per_s[kind]
        return math.inf


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the server is run, as far as it bounds its speed. None: not known, or no bound.

    Attributes:
        max_num_seqs: requests that it runs at once, all engines together.
        kv_tokens: tokens that its KV cache holds, where a running server has told; otherwise memory decides.
        memory_share: share of the memory that it may use (vLLM's ``gpu_memory_utilization``).
        tokens_per_pass: tokens that one pass over the model can yield a sequence: 1, or with speculative decoding one
            more than the tokens drafted.
        kv_split: whether KV heads are spread over GPUs even where there are fewer heads than GPUs (decode context
            parallelism); otherwise each GPU keeps a copy.
    """

    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    memory_share: float = 1.0
    tokens_per_pass: int = 1
    kv_split: bool = False
