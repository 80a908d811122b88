"""Random LoRA adapters for synthetic models: PEFT's format, shapes that fit the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.engines import synthetic_adapters
from pytest_gpucap.engines.protocol import ServerRequest
from pytest_gpucap.engines.synthetic_adapters import lora_arguments, make_adapter
from pytest_gpucap.engines.vllm_engine import VllmEngine


def load_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in the safetensors format: the header's size, the header, the data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    body, found, at = data[8 + size :], {}, 0
    for name, each in header.items():
        first, end = each["data_offsets"]
        assert (first, each["dtype"]) == (at, "F16")
        found[name] = np.frombuffer(body[first:end], "<f2").reshape(each["shape"])
        at = end
    assert at == len(body)
    return found


def test_every_linear_module_of_every_layer_has_two_matrices(tmp_path: Path) -> None:
    folder = make_adapter("synthetic:tiny", "a", 8, tmp_path)
    told = json.loads((folder / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"], told["bias"]) == ("LORA", 8, 16, "none")
    assert set(told["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    place = "base_model.model.model.layers.1."
    assert tensors[place + "self_attn.k_proj.lora_A.weight"].shape == (8, 128)
    assert tensors[place + "self_attn.k_proj.lora_B.weight"].shape == (64, 8)
    assert tensors[place + "mlp.down_proj.lora_A.weight"].shape == (8, 256)
    assert tensors[place + "mlp.down_proj.lora_B.weight"].shape == (128, 8)
    assert all(np.isfinite(each).all() and each.std() > 0 for each in tensors.values())


def test_a_model_with_experts_has_them_in_its_attention() -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "num_key_value_heads": 2, "num_experts": 8}
    assert synthetic_adapters._modules(config) == {
        "self_attn.q_proj": (64, 128),
        "self_attn.k_proj": (64, 64),
        "self_attn.v_proj": (64, 64),
        "self_attn.o_proj": (128, 64),
    }


def test_an_adapter_is_made_once_and_others_have_other_weights(tmp_path: Path) -> None:
    first = make_adapter("synthetic:tiny", "a", 8, tmp_path)
    before = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert make_adapter("synthetic:tiny", "a", 8, tmp_path) == first
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == before
    folders = {make_adapter("synthetic:tiny", name, rank, tmp_path) for name, rank in (("b", 8), ("a", 16))}
    assert len({first, *folders}) == 3
    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in {first, *folders}}) == 3
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_vllm_is_told_a_rank_that_it_knows_and_how_many_are_in_a_batch() -> None:
    assert lora_arguments(2, 8) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    assert lora_arguments(100, 9) == {"enable_lora": True, "max_loras": 32, "max_lora_rank": 16}


@pytest.mark.parametrize("model", ["synthetic:tiny", "org/model"])
def test_servers_with_other_adapters_are_other_servers(model: str) -> None:
    import sys

    def engine(*adapters: str, **arguments: object) -> VllmEngine:
        return VllmEngine(ServerRequest(model=model, python=sys.executable, adapters=adapters, arguments=arguments))

    made = model == "synthetic:tiny"
    assert (engine("a").key != engine().key) is made
    assert (engine("a").key != engine("b").key) is made
    assert engine("a").key == engine("a").key
    given = {"enable_lora": True, "lora_modules": ["a=/x"]}
    assert engine("a", **given).key == engine(**given).key  # the user's own are those that are served
