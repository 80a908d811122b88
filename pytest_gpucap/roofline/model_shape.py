"""The shape of a decoder, from its ``config.json``: its parameters, and what one token reads, computes and keeps.

Sizes are counts of matrix elements; `pytest_gpucap.roofline.precision` turns them into bytes. Unknown model families
are refused, because a wrong limit would make valid measurements look impossible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.errors import GpuCapError, told

Config = Mapping[str, Any]


class UnknownModel(GpuCapError, ValueError):  # noqa: N818 - the name states the fault
    """The config describes no known decoder. The message says what is missing or unknown."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, in elements.

    Attributes:
        dense: parameters that every token uses: attention, norms, dense MLP, router, shared experts.
        expert: parameters of one routed expert; 0 where there are none.
        experts, experts_per_token: routed experts, and how many of them each token uses.
        kv: elements that one token keeps in the KV cache: 2 x KV heads x head size, or the latent and the rotary key of
            multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
        attention: operations of one query token with one earlier position: 2 for a multiply and add, over scores and
            values, so 4 x heads x head size.
        window: positions that attention looks back at most; None: all.
    """

    dense: int
    kv: int
    attention: int
    expert: int = 0
    experts: int = 0
    experts_per_token: int = 0
    window: int | None = None

    @property
    def parameters(self) -> int:
        """All parameters of the layer."""
        return self.dense + self.experts * self.expert

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return self.dense + self.experts_per_token * self.expert

    def reach(self, context: float) -> float:
        """Positions that attention reads of a context."""
        return context if self.window is None else min(context, float(self.window))

    def experts_read(self, tokens: float, *, least: bool = False) -> float:
        """Distinct routed experts that `tokens` tokens of one pass use.

        If routing is uniform and independent: experts x (1 - (1 - k / experts)^tokens), the expected number of occupied
        bins. With `least`: all tokens choose the same experts, the minimum for any routing.
        """
        if not self.experts:
            return 0.0
        if least:
            return float(self.experts_per_token)
        missed: float = (1 - self.experts_per_token / self.experts) ** max(1.0, tokens)
        return self.experts * (1 - missed)


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder.

    Attributes:
        family: ``model_type`` of the config.
        blocks: kinds of layers and how many of each.
        embedding: parameters of the input table, of which a token reads one row.
        head: parameters of the output projection, all of which every generated token reads. If it is tied to the
            input table, it equals `embedding` and is stored once.
        tied: whether the two are tied.
        kv_heads: KV heads, which tensor parallelism cannot split further; 1 for latent attention.
        other: parameters outside layers that a token reads (the last norm).
    """

    family: str
    blocks: tuple[tuple[Layer, int], ...]
    embedding: int
    head: int
    tied: bool
    kv_heads: int
    other: int = 0

    @property
    def parameters(self) -> int:
        """All parameters, as the weight files hold them."""
        layers = sum(layer.parameters * count for layer, count in self.blocks)
        return layers + self.embedding + self.other + (0 if self.tied else self.head)

    @property
    def active(self) -> int:
        """Parameters that take part in the matrix products of one generated token."""
        return sum(layer.active * count for layer, count in self.blocks) + self.head + self.other

    @property
    def kv(self) -> int:
        """Elements that one token keeps in the KV cache, over all layers."""
        return sum(layer.kv * count for layer, count in self.blocks)

    @property
    def layers(self) -> int:
        """The number of layers."""
        return sum(count for _, count in self.blocks)


def model_of(config: Config) -> Model:
    """The shape that a ``config.json`` describes. For a multi-modal model it is the text decoder's shape.

    Raises:
        UnknownModel: if the family is unknown or a number is missing.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**text, "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings"))}
    family = str(config.get("model_type", ""))
    if family not in _FAMILIES:
        raise UnknownModel(f"model_type {told(family)} is not understood; known are {', '.join(sorted(_FAMILIES))}")
    hidden, vocabulary = _whole(config, "hidden_size"), _whole(config, "vocab_size")
    kinds = [_layer(config, family, number) for number in range(_whole(config, "num_hidden_layers"))]
    tied = config.get("tie_word_embeddings")
    embedding = vocabulary * _whole(config, "word_embed_proj_dim", hidden)
    positions = (_whole(config, "max_position_embeddings") + 2) * hidden if family == "opt" else 0
    return Model(
        family=family,
        blocks=tuple(Counter(kinds).items()),
        embedding=embedding + positions,
        head=embedding,
        tied=family in _TIED if tied is None else bool(tied),
        kv_heads=1 if "kv_lora_rank" in config else _kv_heads(config),
        other=hidden * (2 if family == "opt" else 1),
    )


_DENSE: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "opt")
_SPARSE: Final = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
_FAMILIES: Final = frozenset(_DENSE + _SPARSE)
_TIED: Final = frozenset({"gemma", "gemma2", "gemma3_text", "opt"})
"""Families whose config means true if it leaves ``tie_word_embeddings`` out."""
_BIASED_QKV: Final = frozenset({"qwen2", "qwen2_moe", "opt"})
_NORMED_QK: Final = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
_FOUR_NORMS: Final = frozenset({"gemma2", "gemma3_text"})


def _layer(config: Config, family: str, number: int) -> Layer:
    hidden = _whole(config, "hidden_size")
    attention, kv, operations = (_latent if "kv_lora_rank" in config else _grouped)(config, family)
    norms = hidden * (4 if family in _FOUR_NORMS or family == "opt" else 2)
    shared, expert, experts, chosen = _mlp(config, family, number)
    return Layer(
        dense=attention + norms + shared,
        kv=kv,
        attention=operations,
        expert=expert,
        experts=experts,
        experts_per_token=chosen,
        window=_window(config, family, number),
    )


def _grouped(config: Config, family: str) -> tuple[int, int, int]:
    """Parameters, KV elements and operations of multi-head and grouped-query attention (arXiv:2305.13245)."""
    hidden, heads, kv_heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads"), _kv_heads(config)
    size = _whole(config, "head_dim", hidden // heads)
    parameters = hidden * size * (2 * heads + 2 * kv_heads)
    if family in _BIASED_QKV or config.get("attention_bias"):
        parameters += size * (heads + 2 * kv_heads)
    if family == "opt" or (config.get("attention_bias") and family in {"llama", "gpt_oss"}):
        parameters += hidden
    if family in _NORMED_QK:
        parameters += 2 * size
    if family == "gpt_oss":
        parameters += heads  # attention sinks
    return parameters, 2 * kv_heads * size, 4 * heads * size


def _latent(config: Config, _family: str) -> tuple[int, int, int]:
    """The same of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix C).

    Attention can be computed over heads or over the latent. The smaller number of operations counts.
    """
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    latent, rotary = _whole(config, "kv_lora_rank"), _whole(config, "qk_rope_head_dim")
    plain, value = _whole(config, "qk_nope_head_dim"), _whole(config, "v_head_dim")
    query_rank = config.get("q_lora_rank")
    if query_rank is None:
        query = hidden * heads * (plain + rotary)
    else:
        query = hidden * query_rank + query_rank + query_rank * heads * (plain + rotary)
    keys = hidden * (latent + rotary) + latent + latent * heads * (plain + value)
    by_head, by_latent = 2 * heads * (plain + rotary + value), 2 * heads * (2 * latent + rotary)
    return query + keys + heads * value * hidden, latent + rotary, min(by_head, by_latent)


def _mlp(config: Config, family: str, number: int) -> tuple[int, int, int, int]:
    """Parameters used by every token, those of one routed expert, routed experts, and how many a token uses."""
    hidden = _whole(config, "hidden_size")
    if family == "opt":
        inner = _whole(config, "ffn_dim")
        return 2 * hidden * inner + inner + hidden, 0, 0, 0
    if family in _DENSE or not _routed(config, family, number):
        return 3 * hidden * _whole(config, "intermediate_size"), 0, 0, 0
    experts = _whole(config, {"mixtral": "num_local_experts", "gpt_oss": "num_local_experts"}.get(
        family, "n_routed_experts" if family.startswith("deepseek") else "num_experts"
    ))  # fmt: skip
    inner = _whole(config, "intermediate_size" if family in {"mixtral", "gpt_oss"} else "moe_intermediate_size")
    expert, shared = 3 * hidden * inner, hidden * experts
    if family == "gpt_oss":
        expert, shared = expert + 2 * inner + hidden, shared + experts
    elif family == "qwen2_moe":
        shared += 3 * hidden * _whole(config, "shared_expert_intermediate_size") + hidden
    elif family.startswith("deepseek"):
        shared += 3 * hidden * inner * int(config.get("n_shared_experts") or 0)
        shared += experts if family == "deepseek_v3" else 0
    return shared, expert, experts, _whole(config, "num_experts_per_tok")


def _routed(config: Config, family: str, number: int) -> bool:
    """Whether this layer of a mixture of experts is one."""
    if family.startswith("deepseek"):
        dense, every = _whole(config, "first_k_dense_replace", 0, least=0), _whole(config, "moe_layer_freq", 1)
        return number >= dense and number % every == 0
    if family in {"qwen2_moe", "qwen3_moe"}:
        alone = config.get("mlp_only_layers") or []
        if not isinstance(alone, Sequence):
            raise UnknownModel(f"mlp_only_layers must be a list, not {told(alone)}")
        return number not in alone and (number + 1) % _whole(config, "decoder_sparse_step", 1) == 0
    return True


def _window(config: Config, family: str, number: int) -> int | None:
    if config.get("sliding_window") is None or (family.startswith("qwen") and not config.get("use_sliding_window")):
        return None
    window = _whole(config, "sliding_window", least=0)
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence) and len(kinds) > number:
        if kinds[number] not in ("sliding_attention", "full_attention"):
            raise UnknownModel(f"layers of type {told(kinds[number])} are not understood")
        return window if kinds[number] == "sliding_attention" else None
    if family.startswith("qwen"):
        return window if number >= _whole(config, "max_window_layers", 0, least=0) else None
    every = {"gemma2": 2, "gemma3_text": _whole(config, "sliding_window_pattern", 6), "gpt_oss": 2}.get(family)
    return None if every is not None and (number + 1) % every == 0 else window


def _kv_heads(config: Config) -> int:
    return _whole(config, "num_key_value_heads", _whole(config, "num_attention_heads"))


def _whole(config: Config, key: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    most = _MOST_LAYERS if key == "num_hidden_layers" else _MOST
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UnknownModel(f"{key} must be a whole number of at least {least} and at most {most}, not {told(value)}")
    return value


_MOST, _MOST_LAYERS = 2**40, 10_000
"""Far above every model."""
