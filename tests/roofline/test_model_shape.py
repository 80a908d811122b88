"""Parameters and KV cache of published models from their configs, to the last one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.planning.references import references
from pytest_gpucap.roofline.model_shape import UnknownModel, model_of
from pytest_gpucap.roofline.precision import precision_of

MODELS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("model_configs.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_kv_cache_are_those_published(name: str) -> None:
    entry = MODELS[name]
    model = model_of(entry["config"])
    assert model.parameters == entry["parameters"]
    assert model.kv == entry["kv_elements"]


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if "active_billions" in entry])
def test_active_parameters_of_mixtures_are_those_published(name: str) -> None:
    model = model_of(MODELS[name]["config"])
    # Some publish them with the input table, some without.
    counts = {round(model.active / 1e9, 1), round((model.active + model.embedding) / 1e9, 1)}
    assert min(abs(count - MODELS[name]["active_billions"]) for count in counts) < 0.11


def test_every_reference_names_the_same_models() -> None:
    names = {
        "DeepSeek-R1-Distill-Qwen-1.5B": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
        "Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
        "Llama-3.3-70B": "meta-llama/Llama-3.1-70B",
    }
    assert {reference.model for reference in references()} == set(names)
    for reference in references():
        assert model_of(reference.config) == model_of(MODELS[names[reference.model]]["config"])


def test_the_synthetic_architecture_is_the_published_one() -> None:
    config = architecture("synthetic:qwen2-1.5b").config
    assert model_of(config) == model_of(MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]["config"])
    assert model_of(config).parameters == pytest.approx(1.777e9, rel=1e-3)  # the embeddings are not tied


def test_grouped_queries_keep_a_share_of_the_cache_and_latent_attention_less_still() -> None:
    whole = model_of(MODELS["meta-llama/Llama-2-7b-hf"]["config"])
    grouped = model_of(MODELS["meta-llama/Llama-3.1-8B"]["config"])
    assert grouped.kv * 4 == whole.kv  # 8 of 32 heads
    latent = model_of(MODELS["deepseek-ai/DeepSeek-V3"]["config"])
    assert latent.kv == 61 * (512 + 64)
    assert latent.kv_heads == 1


def test_windows_bound_what_attention_reads() -> None:
    def reach(name: str, context: int) -> float:
        model = model_of(MODELS[name]["config"])
        return sum(layer.reach(context) * count for layer, count in model.blocks) / model.layers

    assert reach("mistralai/Mistral-7B-v0.1", 10_000) == 4096
    assert reach("google/gemma-2-9b", 10_000) == (4096 + 10_000) / 2
    assert reach("google/gemma-3-1b-pt", 5120) == pytest.approx((22 * 512 + 4 * 5120) / 26)
    assert reach("openai/gpt-oss-20b", 1128) == (128 + 1128) / 2
    assert reach("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 10_000) == 10_000  # use_sliding_window is false


def test_a_multi_modal_config_is_its_text_decoder() -> None:
    text = MODELS["google/gemma-3-1b-pt"]["config"]
    assert model_of({"model_type": "gemma3", "text_config": text}) == model_of(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba2"}, "model_type 'mamba2' is not understood"),
        ({"hidden_size": None}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be a whole number"),
        ({"sliding_window": 512, "layer_types": ["linear_attention"] * 32}, "'linear_attention' are not understood"),
        ({"sliding_window": 512, "layer_types": [["full_attention"]] * 32}, "are not understood"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], said: str) -> None:
    config = {**MODELS["meta-llama/Llama-3.1-8B"]["config"], **change}
    with pytest.raises(UnknownModel, match=said):
        model_of(config)


LLAMA = MODELS["meta-llama/Llama-3.1-8B"]["config"]


@pytest.mark.parametrize(
    ("arguments", "kept", "weight", "kv", "arithmetic"),
    [
        ({}, {}, 16, 16, "bf16"),
        ({"dtype": "half"}, {}, 16, 16, "fp16"),
        ({"dtype": "float32"}, {}, 32, 32, "fp16"),
        ({"quantization": "fp8"}, {}, 8, 16, "fp8"),
        ({"quantization": "int8"}, {}, 8, 16, "int8"),
        ({"kv_cache_dtype": "fp8"}, {}, 16, 8, "bf16"),
        ({"quantization": "awq"}, {}, 4 + 20 / 128, 16, "bf16"),
        ({}, {"quant_method": "gptq", "bits": 8, "group_size": 32}, 8 + 24 / 32, 16, "bf16"),
        ({}, {"quant_method": "gptq", "bits": 4, "group_size": -1}, 4, 16, "bf16"),
        ({}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, 4, 16, "bf16"),
        ({}, {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, 8, 8, "fp8"),
        ({"quantization": "nvfp4"}, {}, 4.5, 16, "fp4"),
        (
            {},
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                        "input_activations": {"num_bits": 8, "type": "int"},
                    }
                },
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
            },
            8,
            8,
            "int8",
        ),
        (
            {},
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            4 + 16 / 128,
            16,
            "bf16",
        ),
    ],
)
def test_precision(arguments: dict[str, str], kept: dict[str, Any], weight: float, kv: float, arithmetic: str) -> None:
    precision = precision_of({**LLAMA, "quantization_config": kept}, **arguments)
    assert (precision.weight_bits, precision.kv_bits, precision.arithmetic) == (weight, kv, arithmetic)
    assert precision.head_bits == precision.plain_bits  # none of these quantises the output projection


def test_mxfp4_quantises_experts_only() -> None:
    precision = precision_of(MODELS["openai/gpt-oss-20b"]["config"])
    assert (precision.weight_bits, precision.expert_bits) == (16, 4.25)


@pytest.mark.parametrize("arguments", [{"quantization": "magic"}, {"dtype": "float8"}, {"kv_cache_dtype": "int3"}])
def test_an_unknown_precision_is_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(UnknownModel, match="not understood"):
        precision_of(LLAMA, **arguments)
