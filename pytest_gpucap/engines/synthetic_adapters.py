"""LoRA adapters for synthetic models: random weights in the format of PEFT, made on the spot beside the model.

What an adapter costs depends on its shapes and on how many are served at once, not on the values of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pytest_gpucap.engines.synthetic import architecture, default_cache_dir, made_once

RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes for ``--max-lora-rank``."""
_FORMAT: Final = 1
"""Increase it when `make_adapter` writes different files for the same adapter."""


MOST_TOGETHER: Final = 32
"""Adapters in one batch, unless the user says otherwise: each has a place in the GPU's memory."""


def lora_arguments(adapters: int, rank: int) -> dict[str, object]:
    """The arguments with which vLLM serves so many adapters of a rank, all in one batch where they are few."""
    return {
        "enable_lora": True,
        "max_loras": min(adapters, MOST_TOGETHER),
        "max_lora_rank": next(each for each in RANKS if each >= rank),
    }


def make_adapter(model: str, name: str, rank: int, cache_dir: Path | None = None) -> Path:
    """The folder of a random adapter for a synthetic model, made if it is not in the cache.

    Several processes may call this at once; the first one to finish wins.

    Args:
        model: ``synthetic:NAME``.
        name: of the adapter. Other names have other weights.
        rank: of its matrices.
        cache_dir: where the folders are kept; by default beside the models.

    Raises:
        ValueError: for an unknown model.
    """
    chosen = architecture(model)
    content = json.dumps([_FORMAT, dict(chosen.config), name, rank], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = (cache_dir or default_cache_dir()) / f"{chosen.name}-lora{rank}-{digest}"
    return made_once(folder, lambda unfinished: _write(chosen.config, unfinished, rank, int(digest, 16)))


def _write(config: Mapping[str, Any], folder: Path, rank: int, seed: int) -> None:
    modules = _modules(config)
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [path.rpartition(".")[2] for path in modules],
    }
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shapes = dict(_tensors(config, modules, rank))
    # The file's format is its header's size in 64 bits, a header of JSON, and then the tensors one behind the other.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor, (rows, columns) in shapes.items():
        size = 2 * rows * columns
        header[tensor] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for rows, columns in shapes.values():
            # So scaled, both matrices keep the size of what goes through them: answers differ from the model's own.
            weights = rng.standard_normal((rows, columns), np.float32) / np.sqrt(np.float32(columns))
            file.write(weights.astype("<f2").tobytes())


def _modules(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear module of a layer that gets an adapter.

    Of a model with experts it is the attention alone, as adapters of such models commonly have it.
    """
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head, int(config["num_key_value_heads"]) * head
    found = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
    }
    if "num_experts" not in config:
        inner = int(config["intermediate_size"])
        found |= {
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }
    return found


def _tensors(
    config: Mapping[str, Any], modules: Mapping[str, tuple[int, int]], rank: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and shape of every tensor, as PEFT names them."""
    for layer in range(int(config["num_hidden_layers"])):
        for path, (inputs, outputs) in modules.items():
            place = f"base_model.model.model.layers.{layer}.{path}"
            yield f"{place}.lora_A.weight", (rank, inputs)
            yield f"{place}.lora_B.weight", (outputs, rank)
