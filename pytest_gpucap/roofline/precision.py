"""How many bits weights and KV cache take, and at which rate of the GPU they are computed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.roofline.model_shape import UnknownModel

_DTYPE_BITS: Final = {"float32": 32, "float": 32, "bfloat16": 16, "float16": 16, "half": 16}
_FP8_KV: Final = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"})


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits an element, and the kind of arithmetic.

    Attributes:
        weight_bits: of the layers' dense matrices; group scales and zeros included.
        expert_bits: of routed experts.
        head_bits: of the output projection, which most quantisations leave alone.
        plain_bits: of everything that is not quantised (embedding).
        kv_bits: of the KV cache.
        arithmetic: ``bf16``, ``fp16``, ``fp8``, ``int8`` or ``fp4``: the GPU's rate that bounds matrix products.
        name: in a few words, for reports.
    """

    weight_bits: float
    expert_bits: float
    head_bits: float
    plain_bits: float
    kv_bits: float
    arithmetic: str
    name: str


def precision_of(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
) -> Precision:
    """The precision that vLLM would serve a model in.

    Args:
        config: the model's ``config.json``; its ``quantization_config`` counts.
        dtype: vLLM's argument; None or "auto": by the config.
        quantization: vLLM's argument; None: by the config.
        kv_cache_dtype: vLLM's argument; None or "auto": by the config.

    Raises:
        UnknownModel: for a type or a quantisation that is not understood.
    """
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else config
    declared = config.get("torch_dtype") or config.get("dtype") or inner.get("torch_dtype") or inner.get("dtype")
    plain = str(declared or "bfloat16") if dtype in {None, "auto"} else str(dtype)
    plain = plain.removeprefix("torch.")
    if plain not in _DTYPE_BITS:
        raise UnknownModel(f"dtype {plain!r} is not understood; known are {', '.join(_DTYPE_BITS)}")
    if dtype in {None, "auto"} and _DTYPE_BITS[plain] == 32:  # noqa: PLR2004 - bits
        plain = "float16"  # what vLLM makes of a float32 checkpoint on a GPU
    bits = _DTYPE_BITS[plain]
    kept = config.get("quantization_config") or config.get("compression_config") or {}
    weight, arithmetic, name = _quantised(quantization, kept, bits, "bf16" if plain == "bfloat16" else "fp16")
    kv = 8 if str(kv_cache_dtype) in _FP8_KV or _kv_scheme_bits(kept) == 8 else bits  # noqa: PLR2004 - bits
    if kv_cache_dtype not in {None, "auto", "bfloat16", "float16", *_FP8_KV}:
        raise UnknownModel(f"KV cache type {kv_cache_dtype!r} is not understood")
    only_experts = name == "mxfp4"
    return Precision(
        weight_bits=bits if only_experts else weight,
        expert_bits=weight,
        head_bits=weight if kept.get("lm_head") is True else bits,
        plain_bits=bits,
        kv_bits=kv,
        arithmetic=arithmetic,
        name=name or plain,
    )


_GROUPED: Final = frozenset({"awq", "awq_marlin", "gptq", "gptq_marlin", "auto_round"})
_FIXED: Final[Mapping[str, tuple[float, str, str]]] = {
    **dict.fromkeys(("fp8", "modelopt", "modelopt_fp8", "fbgemm_fp8", "ptpc_fp8"), (8.0, "fp8", "fp8")),
    **dict.fromkeys(("int8", "experts_int8"), (8.0, "int8", "int8")),
    **dict.fromkeys(("modelopt_fp4", "nvfp4"), (4.5, "fp4", "nvfp4")),  # an 8-bit scale for every 16 weights
    "mxfp4": (4.25, "fp4", "mxfp4"),  # an 8-bit scale for every 32 weights (OCP Microscaling Formats)
}
"""Method -> bits a weight, kind of arithmetic, name."""


def _quantised(given: str | None, kept: Mapping[str, Any], bits: int, plain: str) -> tuple[float, str, str]:
    """Bits a weight, the kind of arithmetic, and the method's name; the name is empty where nothing is quantised."""
    method = str(given or kept.get("quant_method") or kept.get("quant_algo") or "none").lower().replace("-", "_")
    found = _FIXED.get(method)
    if method == "none":
        found = float(bits), plain, ""
    elif method in _GROUPED:
        stored, group = int(kept.get("bits") or kept.get("w_bit") or 4), kept.get("group_size", 128)
        # A 16-bit scale and a zero point of the weight's own width for every group (AutoAWQ, AutoGPTQ).
        overhead = (16 + stored) / group if isinstance(group, int) and group > 0 else 0.0
        found = stored + overhead, plain, f"{method} {stored}-bit"
    elif method == "bitsandbytes":
        stored = 8 if kept.get("load_in_8bit") else 4
        found = float(stored), plain, f"bitsandbytes {stored}-bit"
    elif method == "compressed_tensors":
        found = _compressed(kept, plain)
    if found is None:
        raise UnknownModel(f"quantization {method!r} is not understood")
    return found


def _compressed(kept: Mapping[str, Any], plain: str) -> tuple[float, str, str]:
    groups = list((kept.get("config_groups") or {}).values())
    if not groups or not isinstance(groups[0].get("weights"), Mapping):
        raise UnknownModel("quantization_config of compressed-tensors has no weights in its config_groups")
    weights, activations = groups[0]["weights"], groups[0].get("input_activations")
    stored, group = int(weights["num_bits"]), weights.get("group_size")
    overhead = 16 / group if isinstance(group, int) and group > 0 else 0.0
    if activations is None:
        return stored + overhead, plain, f"w{stored}a16"
    computed = int(activations["num_bits"])
    kind = "fp4" if computed == 4 else "fp8" if activations.get("type") == "float" else "int8"  # noqa: PLR2004 - bits
    return stored + overhead, kind, f"w{stored}a{computed}"


def _kv_scheme_bits(kept: Mapping[str, Any]) -> int | None:
    scheme = kept.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        return int(scheme.get("num_bits", 16))
    return 8 if str(kept.get("kv_cache_quant_algo", "")).upper() == "FP8" else None
