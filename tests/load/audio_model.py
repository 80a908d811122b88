"""A model that hears, made on the spot: Qwen2-Audio's architecture, tiny and with random weights.

It is one of the few whose processor needs neither a hub nor a package that the CPU build of vLLM does not have. Of
audio vLLM decodes WAV with the package soundfile.
"""

from __future__ import annotations

from pathlib import Path

from tests.load import made_model
from tests.load.made_model import write

TOKENS_PER_S = 25
"""Of audio: a hundred spectra a second, of which the encoder makes one of four."""
_MEL = 16
"""Bands of a spectrum."""
_WINDOW_S = 30
_CLIP = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
AROUND = 2
"""Tokens around those of a clip."""
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}" + "".join(_CLIP) + "{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
ARGUMENTS = made_model.arguments(limit_mm_per_prompt={"audio": 2})
VARIABLES = made_model.VARIABLES


def make(folder: Path) -> Path:
    """The folder of the model."""
    ids = made_model.make(folder, _CLIP, (), TEMPLATE)
    # Else the processor's own template, which is a long one, comes before the tokenizer's.
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    text = made_model.read(folder / "config.json")
    del text["architectures"]
    hearing = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": _MEL,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "d_model": 64,
        "max_source_positions": 50 * _WINDOW_S,
    }
    config = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": ids["<|AUDIO|>"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": text,
        "audio_config": hearing,
        **{name: text[name] for name in ("bos_token_id", "eos_token_id")},
    }
    write(folder / "config.json", config)
    spectra = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "Qwen2AudioProcessor",
        "feature_size": _MEL,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": _WINDOW_S,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    write(folder / "preprocessor_config.json", spectra)
    return folder
