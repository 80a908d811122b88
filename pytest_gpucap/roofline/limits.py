"""The physical limit of a model on a GPU class: what no server can beat, whatever its code.

A roofline (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model"): a pass over the
model takes at least the bytes that it must read over the memory bandwidth, and at least the operations that it must do
over the arithmetic rate. The terms are those of Pope et al. 2022, "Efficiently scaling transformer inference"
(arXiv:2211.05102), kipply 2022, "Transformer inference arithmetic", and Yuan et al. 2024, "LLM inference unveiled:
survey and roofline model insights" (arXiv:2402.16363, the LLM-Viewer tool):

- decode reads every weight that takes part once a pass, and the KV cache of every sequence in the batch;
- prefill does 2 operations per parameter and token; attention does 4 x heads x head size per pair of positions, half
  of them under a causal mask;
- reading and computing may overlap perfectly, so the longer of the two counts.

Left out, because a limit must not be too low: activations, launches, communication between GPUs, sampling, scheduling.
Real servers reach 20 to 80% of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from pytest_gpucap.requirement import Length, Metric, Slo, Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.model_shape import Layer, Model
from pytest_gpucap.roofline.precision import Precision

BANDWIDTH, COMPUTE = "bandwidth", "compute"
_UNBOUNDED_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit at one batch.

    Attributes:
        bound: what it comes from: ``bandwidth`` or ``compute``.
        batch: requests in flight.
        rate_rps, output_tokens_per_s: at most.
        ttft_s: at least, for one request alone.
        tpot_s: at least, at this batch.
        formula: the arithmetic with its figures.
    """

    bound: str
    batch: float
    rate_rps: float
    output_tokens_per_s: float
    ttft_s: float
    tpot_s: float
    formula: str


@dataclass(frozen=True, slots=True)
class NoLimit:
    """Why nothing is known of the physical limit, in one line."""

    reason: str


@dataclass(frozen=True)
class Roofline:
    """Limits of one model, precision, hardware and workload.

    Attributes:
        decode_context: tokens of context of a decode step, in the mean over all steps, where lengths are known one by
            one (a trace); None: the prompt and half of the output, each at its mean.
        declared: what of this was declared and could not be seen, such as "GPU class"; empty where all was seen.
        least_experts: count a mixture's experts as if all tokens chose the same ones. Routing spreads them in truth, so
            the limit is then too high to be near, but certain: what exceeds it is not physically possible.
    """

    model: Model
    precision: Precision
    hardware: Hardware
    workload: Workload
    deployment: Deployment = field(default_factory=Deployment)
    decode_context: float | None = None
    declared: str = ""
    least_experts: bool = False

    def __repr__(self) -> str:
        return f"Roofline({self.model.family} {self.precision.name} on {self.hardware.gpus}x {self.hardware.name})"

    # Sizes

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of all weights, over all GPUs of the replica."""
        layers = self._layer_bits(lambda layer: layer.experts / self.hardware.data)
        tables = (self.model.embedding + self.model.other) * self.precision.plain_bits
        head = 0 if self.model.tied else self.model.head * self.precision.head_bits
        return (layers + tables + head) / 8 * self.hardware.data

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Bytes that one token of context takes in the KV cache, over all GPUs of the replica, copies included."""
        return self.model.kv * self.precision.kv_bits / 8 * self._copies

    @property
    def _copies(self) -> float:
        return 1.0 if self.deployment.kv_split else max(1.0, self.hardware.tensor / self.model.kv_heads)

    @cached_property
    def context(self) -> float:
        """Mean context of a decode step, in tokens."""
        if self.decode_context is not None:
            return self.decode_context
        return self.workload.input_tokens.mean + self.workload.output_tokens.mean / 2

    @cached_property
    def _steps(self) -> float:
        """Decode passes per request: the first token comes from the prefill."""
        return (self.workload.output_tokens.mean - 1) / self.deployment.tokens_per_pass

    def kv_read_bytes(self, batch: float, context: float | None = None) -> float:
        """Bytes of KV cache that one pass of `batch` sequences reads; a prefix that all share is read once."""
        context = self.context if context is None else context
        shared = min(float(self.workload.shared_prefix_tokens), context)
        elements = sum(
            layer.kv * count * max(layer.reach(context), batch * layer.reach(context) - (batch - 1) * shared)
            for layer, count in self.model.blocks
        )
        return elements * self.precision.kv_bits / 8 * self._copies

    def weights_read_bytes(self, tokens: float) -> float:
        """Bytes of weights that an engine reads in a pass: all but the input table, of experts those used.

        Args:
            tokens: of the pass; with several engines of the passes of all, which meet at the experts.
        """
        layers = self._layer_bits(
            lambda layer: layer.experts_read(tokens, least=self.least_experts) / self.hardware.data
        )
        return (layers + self.model.head * self.precision.head_bits + self.model.other * self.precision.plain_bits) / 8

    def _layer_bits(self, experts: Callable[[Layer], float]) -> float:
        dense, expert = self.precision.weight_bits, self.precision.expert_bits
        return sum(n * (layer.dense * dense + experts(layer) * layer.expert * expert) for layer, n in self.model.blocks)

    def fits(self) -> bool:
        """Whether weights and the KV cache of one whole request fit the memory (true where it is unknown)."""
        return self.memory_batch(whole=True) >= self.hardware.data

    def memory_batch(self, *, whole: bool = False) -> float:
        """Requests whose KV cache fits, each at its mean context (`whole`: at its end); infinite where unknown."""
        context = self.context + (self.workload.output_tokens.mean / 2 if whole else 0.0)
        shared = float(self.workload.shared_prefix_tokens)
        if self.deployment.kv_tokens is not None:
            prefixes = shared * self.hardware.data
            return max(0.0, (self.deployment.kv_tokens - prefixes) / max(1.0, context - shared))
        if self.hardware.memory_bytes is None:
            return math.inf
        room = self.hardware.memory_bytes * self.hardware.gpus * self.deployment.memory_share - self.weight_bytes
        held = sum(layer.kv * count * layer.reach(context) for layer, count in self.model.blocks)
        each = held * self.precision.kv_bits / 8 * self._copies * max(1.0, context - shared) / context
        return max(0.0, room / each)

    # Times

    @property
    def _group_bandwidth(self) -> float:
        return self.hardware.bandwidth_bytes_per_s * self.hardware.tensor

    @property
    def _group_operations(self) -> float:
        return self.hardware.operations(self.precision.arithmetic) * self.hardware.tensor

    def tpot_s(self, batch: float, context: float | None = None) -> float:
        """Least time between two tokens of a sequence with `batch` requests in flight.

        With pipeline stages a pass runs through all of them, but `batch` is spread over as many passes at once; with
        several engines over those of each.
        """
        read, computed = self._step_s(batch, context)
        return max(read, computed) / self.deployment.tokens_per_pass

    def _step_s(self, batch: float, context: float | None = None) -> tuple[float, float]:
        """Seconds to read and seconds to compute one decode pass."""
        context = self.context if context is None else context
        together, stage = max(1.0, batch / self.hardware.passes), max(1.0, batch / self.hardware.pipeline)
        read = (self.weights_read_bytes(stage) + self.kv_read_bytes(together, context)) / self._group_bandwidth
        return read, together * self._token_operations(context) / self._group_operations

    def _token_operations(self, context: float) -> float:
        """Operations to generate one token at a context: 2 per parameter used, and attention over what it reaches."""
        attention = sum(layer.attention * count * layer.reach(context) for layer, count in self.model.blocks)
        return 2 * self.model.active + attention

    def prefill_operations(self, tokens: float, cached: float = 0.0) -> float:
        """Operations to prefill a prompt of which the first `cached` tokens are in the cache already.

        Attention counts once a pair of positions that the causal mask lets see each other, within a layer's window.
        """
        fresh = max(1.0, tokens - cached)
        total = 2.0 * (self.model.head + self.model.other)  # logits of the last position only
        for layer, count in self.model.blocks:
            reach = layer.reach(tokens)
            pairs = fresh * reach - min(fresh, reach) ** 2 / 2
            total += count * (2 * layer.active * fresh + layer.attention * pairs)
        return total

    def ttft_s(self, tokens: float | None = None) -> float:
        """Least time to the first token of a request alone: prefill, or one reading of the weights."""
        tokens = self.workload.input_tokens.mean if tokens is None else tokens
        cached = min(float(self.workload.shared_prefix_tokens), tokens - 1)
        computed = self.prefill_operations(tokens, cached) / (self._group_operations * self._helping)
        return max(computed, self.weights_read_bytes(tokens - cached) / self._group_bandwidth)

    @property
    def _helping(self) -> int:
        """Engines that can work on one prompt: its tokens meet the experts of a mixture on all of them."""
        return self.hardware.data if any(layer.experts for layer, _ in self.model.blocks) else 1

    def e2e_s(self, batch: float = 1.0) -> float:
        """Least time of a whole request of mean lengths: the first token, then the others at `tpot_s`."""
        return self.ttft_s() + (self.workload.output_tokens.mean - 1) * self.tpot_s(batch)

    def shortest_e2e_s(self) -> float:
        """Least time of the shortest request that the workload can draw, when it runs alone."""
        prompt, output = self.workload.input_tokens.low, self.workload.output_tokens.low
        steps = math.floor((output - 1) / self.deployment.tokens_per_pass)
        return self.ttft_s(prompt) + steps * self.tpot_s(1, prompt) * self.deployment.tokens_per_pass

    # Rates

    def most_tokens_per_s(self, batch: float) -> float:
        """Output tokens per second that no server can exceed with `batch` in flight, whatever its prefill costs.

        Every token but a request's first takes a pass, at the shortest context that the workload can draw.
        """
        context = self.workload.input_tokens.low
        output = max(2.0, self.workload.output_tokens.mean)
        decoded = batch / self.tpot_s(batch, context) * output / (output - 1)
        return min(decoded, self._group_operations * self.hardware.passes / self._token_operations(context))

    def certain(self) -> Roofline:
        """The limit that no routing of experts and no draw of lengths can exceed.

        It assumes the shortest request, and that all tokens choose the same experts.
        """
        shortest = replace(
            self.workload,
            input_tokens=Length.fixed(self.workload.input_tokens.low),
            output_tokens=Length.fixed(self.workload.output_tokens.low),
        )
        return replace(self, workload=shortest, decode_context=None, least_experts=True)

    def computed_rps(self) -> float:
        """Requests per second that arithmetic allows at any batch: its rate over a request's prefill and decode."""
        return self._group_operations * self.hardware.passes / self._request_operations

    @cached_property
    def _request_operations(self) -> float:
        tokens = self.workload.input_tokens.mean
        prefill = self.prefill_operations(tokens, min(float(self.workload.shared_prefix_tokens), tokens - 1))
        return prefill + (self.workload.output_tokens.mean - 1) * self._token_operations(self.context)

    def at(self, batch: float) -> Limit:
        """The limit with `batch` requests in flight, by Little's law: batch / (decode passes x least time of one)."""
        read, computed = self._step_s(batch)
        decoding_s = self._steps * max(read, computed)
        decoded = batch / decoding_s if decoding_s > 0 else math.inf
        arithmetic = self.computed_rps()
        by_reading = read >= computed and decoded <= arithmetic
        rate = min(decoded, arithmetic)
        if math.isinf(rate):  # one output token, and arithmetic not known: a pass is still a reading of the weights
            rate, by_reading = batch / self.ttft_s(), True
        return Limit(
            bound=BANDWIDTH if by_reading else COMPUTE,
            batch=batch,
            rate_rps=rate,
            output_tokens_per_s=rate * self.workload.output_tokens.mean,
            ttft_s=self.ttft_s(),
            tpot_s=self.tpot_s(batch),
            formula=self._by_reading(batch) if by_reading else self._by_computing(batch),
        )

    def best(self, slo: Slo | None = None) -> Limit | None:
        """The limit at the largest batch that memory, sequences and the latency limits allow; None if they allow none.

        Each threshold counts, whatever share must keep it: at a steady batch, every request takes at least this time.
        """
        most = min(self.memory_batch(), self.deployment.max_num_seqs or _UNBOUNDED_BATCH, _UNBOUNDED_BATCH)
        slo = slo or Slo()
        if most < 1 or not self._within(1.0, slo):
            return None
        low, high = 1.0, float(most)
        if not self._within(high, slo):
            for _ in range(60):  # halves the span each time: far below one request
                middle = (low + high) / 2
                low, high = (middle, high) if self._within(middle, slo) else (low, middle)
            high = low
        return self.at(math.floor(high))

    def _within(self, batch: float, slo: Slo) -> bool:
        found = {
            Metric.TTFT: self.ttft_s(),
            Metric.TPOT: self.tpot_s(batch),
            Metric.ITL: 0.0 if self.deployment.tokens_per_pass > 1 else self.tpot_s(batch),
            Metric.E2E: self.e2e_s(batch),
        }
        return all(found[metric] <= limit_s for metric, limit_s in slo.thresholds)

    # Words

    def _by_reading(self, batch: float) -> str:
        together, stage = max(1.0, batch / self.hardware.passes), max(1.0, batch / self.hardware.pipeline)
        weights, kv = self.weights_read_bytes(stage) / 1e9, self.kv_read_bytes(together) / 1e9
        return (
            f"a pass reads {weights:.3g} GB of weights and {kv:.3g} GB of KV cache ({together:.3g} x "
            f"{self.context:.0f} tokens) at {self._group_bandwidth / 1e9:.0f} GB/s = "
            f"{self._step_s(batch)[0] * 1e3:.3g} ms, {self._steps:.0f} passes a request"
        )

    def _by_computing(self, batch: float) -> str:
        total = self._group_operations * self.hardware.passes
        return (
            f"a request takes {self._request_operations / 1e12:.3g} TFLOP of {self.precision.arithmetic} at "
            f"{total / 1e12:.0f} TFLOPS with {batch:.3g} in flight"
        )
