"""A vision model that reasons, made on the spot: Idefics3's architecture, tiny and with random weights.

It is one of the few whose processor vLLM loads without torchvision, which the CPU build here does not have.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pytest_gpucap.engines import synthetic
from pytest_gpucap.vllm_arguments import VllmArguments

SIDE, PATCH, SCALE = 56, 14, 2
"""Of the squares that the encoder sees, of its patches, and how many patches in a row and column make a token."""
SPECIAL = (
    *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
THINK = ("<think>", "</think>")
"""What stands around reasoning, for vLLM's parser of DeepSeek-R1's answers; unlike the others it is text."""
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
_TINY = synthetic.architecture("synthetic:tiny")
ARGUMENTS = VllmArguments(
    {**_TINY.server_args(cpu=True), "max_model_len": 1024, "max_num_seqs": 8, "reasoning_parser": "deepseek_r1"}
)
VARIABLES = dict(_TINY.cpu_env)


def make(folder: Path) -> tuple[Path, int]:
    """The folder of the model, and the id of the token that ends its reasoning."""
    shutil.copytree(synthetic.make_model("synthetic:tiny"), folder)
    tokenizer = read(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    ids, added = {}, (*SPECIAL, *THINK)
    for word, token in zip(sorted(vocabulary, key=vocabulary.__getitem__)[-len(added) :], added, strict=True):
        ids[token] = vocabulary[token] = vocabulary.pop(word)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append({"id": ids[token], "content": token, "special": token in SPECIAL, **plain})
    write(folder / "tokenizer.json", tokenizer)
    write(folder / "tokenizer_config.json", read(folder / "tokenizer_config.json") | {"chat_template": TEMPLATE})
    text = read(folder / "config.json")
    ends = {name: text[name] for name in ("bos_token_id", "eos_token_id")}
    for name in ("architectures", "use_sliding_window", "attention_dropout"):
        text.pop(name)
    vision = {
        "model_type": "idefics3_vision",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": ids["<image>"],
        "scale_factor": SCALE,
        "pad_token_id": ends["eos_token_id"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": text | {"model_type": "llama"},
        "vision_config": vision,
        **ends,
    }
    write(folder / "config.json", config)
    half = [0.5] * 3
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "processor_class": "Idefics3Processor",
            **dict.fromkeys(
                (f"do_{step}" for step in ("convert_rgb", "image_splitting", "normalize", "pad", "rescale", "resize")),
                True,
            ),
            "image_mean": half,
            "image_std": half,
            "max_image_size": {"longest_edge": SIDE},
            "size": {"longest_edge": 4 * SIDE},
            "resample": 1,
            "rescale_factor": 1 / 255,
        },
    )
    tokens = (SIDE // PATCH // SCALE) ** 2
    write(folder / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": tokens})
    return folder, ids[THINK[1]]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
