"""A vision model that reasons, made on the spot: Idefics3's architecture, tiny and with random weights.

It is one of the few whose processor vLLM loads without torchvision, which the CPU build here does not have.
"""

from __future__ import annotations

from pathlib import Path

from tests.load import made_model
from tests.load.made_model import write

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
ARGUMENTS = made_model.arguments(reasoning_parser="deepseek_r1")
VARIABLES = made_model.VARIABLES


def make(folder: Path) -> tuple[Path, int]:
    """The folder of the model, and the id of the token that ends its reasoning."""
    ids = made_model.make(folder, SPECIAL, THINK, TEMPLATE)
    text = made_model.read(folder / "config.json")
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
