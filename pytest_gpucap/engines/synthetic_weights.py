"""Weights of synthetic models, for engines that need them in a file: random, and the same ones every time.

Two formats are written: safetensors, beside the files of `synthetic.make_model`, and GGUF, which holds everything.
Formats: https://github.com/huggingface/safetensors#format and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors: those of ``Qwen2ForCausalLM`` in
Transformers, and of llama.cpp's architecture ``qwen2``.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.synthetic import Architecture

_DENSE: Final = "qwen2"
"""The only kind of synthetic model whose weights can be written: the others are vLLM's alone."""
_DRAWN: Final = 1 << 20
"""Numbers that are drawn. Larger tensors repeat them: billions would take minutes, and nothing depends on them."""
_ALIGNED: Final = 32
_F32, _F16 = 0, 1
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3
"""Kinds of tokens in GGUF."""


_TOKENIZER: Final = "tokenizer_config.json"
_PLAIN_ANSWERS: Final[Mapping[str, Any]] = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"\Z",
    "fields": {"content": {"content": "text"}},
}
"""Answers are text, and begin where the prompt ends. Otherwise Transformers looks for the mark by which Qwen's chat
template begins an answer, and where it finds none it streams the prompt as the beginning of the answer."""


class Tensor(NamedTuple):
    """One tensor of a model.

    Attributes:
        name: in Transformers.
        gguf: in GGUF.
        shape: rows first.
        value: of every element; None: drawn.
    """

    name: str
    gguf: str
    shape: tuple[int, ...]
    value: float | None = None


def with_weights(model: str, cache_dir: Path | None = None) -> Path:
    """The folder of a synthetic model with its weights, as Transformers loads it. Made if it is not in the cache.

    Args:
        model: ``synthetic:NAME``.
        cache_dir: see `synthetic.make_model`.

    Raises:
        ValueError: for an unknown name, or a model whose weights cannot be written.
    """
    chosen = _dense(model)
    plain = synthetic.make_model(model, cache_dir)

    def write(folder: Path) -> None:
        for file in plain.iterdir():
            shutil.copy(file, folder)
        told = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))
        (folder / _TOKENIZER).write_text(json.dumps({**told, "response_template": _PLAIN_ANSWERS}, indent=2) + "\n")
        with (folder / "model.safetensors").open("wb") as written:
            _write_safetensors(chosen, written)

    return synthetic.made_once(plain.with_name(f"{plain.name}-weights"), write)


def as_gguf(model: str, cache_dir: Path | None = None) -> Path:
    """The GGUF file of a synthetic model; arguments and errors as `with_weights`."""
    chosen = _dense(model)
    folder = (cache_dir or synthetic.default_cache_dir()) / f"{chosen.name}-{chosen.digest}-gguf"

    def write(unfinished: Path) -> None:
        with (unfinished / f"{chosen.name}.gguf").open("wb") as written:
            _write_gguf(chosen, written)

    return synthetic.made_once(folder, write) / f"{chosen.name}.gguf"


def check(model: str) -> None:
    """Check that the weights of a synthetic model can be written.

    Raises:
        ValueError: as `with_weights`.
    """
    _dense(model)


def _dense(model: str) -> Architecture:
    chosen = synthetic.architecture(model)
    if chosen.config["model_type"] != _DENSE:
        raise ValueError(f"{model}: its weights cannot be written, so only vLLM, which makes them up, can serve it")
    return chosen


def _tensors(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, inner, words = (int(config[name]) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, groups = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    shared = hidden // heads * groups
    yield Tensor("model.embed_tokens.weight", "token_embd.weight", (words, hidden))
    for layer in range(int(config["num_hidden_layers"])):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        yield Tensor(f"{ours}.input_layernorm.weight", f"{theirs}.attn_norm.weight", (hidden,), 1.0)
        for name, width in (("q", hidden), ("k", shared), ("v", shared)):
            yield Tensor(f"{ours}.self_attn.{name}_proj.weight", f"{theirs}.attn_{name}.weight", (width, hidden))
            yield Tensor(f"{ours}.self_attn.{name}_proj.bias", f"{theirs}.attn_{name}.bias", (width,), 0.0)
        yield Tensor(f"{ours}.self_attn.o_proj.weight", f"{theirs}.attn_output.weight", (hidden, hidden))
        yield Tensor(f"{ours}.post_attention_layernorm.weight", f"{theirs}.ffn_norm.weight", (hidden,), 1.0)
        yield Tensor(f"{ours}.mlp.gate_proj.weight", f"{theirs}.ffn_gate.weight", (inner, hidden))
        yield Tensor(f"{ours}.mlp.up_proj.weight", f"{theirs}.ffn_up.weight", (inner, hidden))
        yield Tensor(f"{ours}.mlp.down_proj.weight", f"{theirs}.ffn_down.weight", (hidden, inner))
    yield Tensor("model.norm.weight", "output_norm.weight", (hidden,), 1.0)
    if not config["tie_word_embeddings"]:
        yield Tensor("lm_head.weight", "output.weight", (words, hidden))


def _values(tensor: Tensor, drawn: Floats) -> Floats:
    """The elements of a tensor, shape (elements,)."""
    count = int(np.prod(tensor.shape))
    return np.resize(drawn, count) if tensor.value is None else np.full(count, tensor.value)


def _drawn(config: Mapping[str, Any]) -> Floats:
    scale = float(config["initializer_range"])
    return np.random.Generator(np.random.Philox(0)).normal(0.0, scale, _DRAWN)


def _write_safetensors(chosen: Architecture, file: BinaryIO) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, tensors = 0, list(_tensors(chosen.config))
    for each in tensors:
        begin, end = end, end + 2 * int(np.prod(each.shape))
        header[each.name] = {"dtype": "BF16", "shape": each.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(text)) + text)
    drawn = _drawn(chosen.config)
    for each in tensors:
        # The upper half of a 32-bit number is its bfloat16, rounded towards zero.
        upper = (_values(each, drawn).astype("<f4").view("<u4") >> 16).astype("<u2")
        file.write(upper.tobytes())


def _write_gguf(chosen: Architecture, file: BinaryIO) -> None:
    tensors = list(_tensors(chosen.config))
    facts = _gguf_facts(chosen)
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)))
    file.writelines(_text(name) + struct.pack("<I", kind) + value for name, kind, value in facts)
    place = 0
    for each in tensors:
        shape = each.shape[::-1]  # the fastest dimension first
        file.write(_text(each.gguf) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        file.write(struct.pack("<IQ", _type(each), place))
        place += _padded(_size(each))
    file.write(bytes(_padded(file.tell()) - file.tell()))
    drawn = _drawn(chosen.config)
    for each in tensors:
        data = _values(each, drawn).astype("<f4" if _type(each) == _F32 else "<f2").tobytes()
        file.write(data + bytes(_padded(len(data)) - len(data)))


def _gguf_facts(chosen: Architecture) -> list[tuple[str, int, bytes]]:
    """What a GGUF file says of its model: name, type, and the value as it is written."""
    config, words = chosen.config, int(chosen.config["vocab_size"])
    tokens = [*synthetic.vocabulary_of(words), synthetic.END_TOKEN]
    kinds = [*[_NORMAL] * (words - 1), _CONTROL]
    numbers = {
        "general.file_type": 1,
        f"{_DENSE}.context_length": config["max_position_embeddings"],
        f"{_DENSE}.embedding_length": config["hidden_size"],
        f"{_DENSE}.block_count": config["num_hidden_layers"],
        f"{_DENSE}.feed_forward_length": config["intermediate_size"],
        f"{_DENSE}.attention.head_count": config["num_attention_heads"],
        f"{_DENSE}.attention.head_count_kv": config["num_key_value_heads"],
        "tokenizer.ggml.eos_token_id": words - 1,
        "tokenizer.ggml.bos_token_id": words - 1,
    }
    fractions = {
        f"{_DENSE}.rope.freq_base": config["rope_theta"],
        f"{_DENSE}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    texts = {
        "general.architecture": _DENSE,
        "general.name": chosen.name,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.chat_template": synthetic.CHAT_TEMPLATE,
    }
    return [
        *((name, _STRING, _text(value)) for name, value in texts.items()),
        *((name, _UINT32, struct.pack("<I", int(value))) for name, value in numbers.items()),
        *((name, _FLOAT32, struct.pack("<f", float(value))) for name, value in fractions.items()),
        ("tokenizer.ggml.add_bos_token", _BOOL, b"\x00"),
        ("tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, words) + b"".join(map(_text, tokens))),
        ("tokenizer.ggml.token_type", _ARRAY, struct.pack(f"<IQ{words}i", _INT32, words, *kinds)),
        # None: every byte stays a token of its own.
        ("tokenizer.ggml.merges", _ARRAY, struct.pack("<IQ", _STRING, 0)),
    ]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _type(tensor: Tensor) -> int:
    return _F32 if len(tensor.shape) == 1 else _F16


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape)) * (4 if _type(tensor) == _F32 else 2)


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
