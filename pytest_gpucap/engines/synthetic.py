"""Synthetic models: a published architecture, a byte-level tokenizer, dummy weights.

The tokenizer makes one token of every byte of UTF-8, so the length of an ASCII prompt is its token count. The chat
template adds no token. All other token ids are words that only appear in answers: every id that the model can sample
decodes to text, as with a real model, but no text is encoded to these ids.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import shutil
import string
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pytest_gpucap.user_files import home_folder

PREFIX = "synthetic:"
END_TOKEN = "<|end|>"  # noqa: S105  (a token of a model, not a secret)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_FORMAT = 1
"""Increase it when `make_model` writes different files for the same architecture."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of ``architectures.toml``."""

    name: str
    source: str
    config: Mapping[str, Any]
    args: Mapping[str, Any]
    cpu_args: Mapping[str, Any]
    cpu_env: Mapping[str, str]

    def server_args(self, *, cpu: bool) -> dict[str, Any]:
        """The vLLM arguments that are used unless the user gives others."""
        return {"load_format": "dummy", **self.args, **(self.cpu_args if cpu else {})}

    @property
    def digest(self) -> str:
        """Hash of everything that determines the folder's content."""
        content = json.dumps([_FORMAT, CHAT_TEMPLATE, self.config], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@cache
def architectures() -> Mapping[str, Architecture]:
    """All known architectures, by name."""
    with Path(__file__).with_name("architectures.toml").open("rb") as file:
        table = tomllib.load(file)
    return {
        name: Architecture(
            name,
            entry["source"],
            entry["config"],
            entry.get("args", {}),
            entry.get("cpu_args", {}),
            entry.get("cpu_env", {}),
        )
        for name, entry in table.items()
    }


def is_synthetic(model: str) -> bool:
    """Whether a model's name asks for a synthetic model."""
    return model.startswith(PREFIX)


def architecture(model: str) -> Architecture:
    """The architecture that ``synthetic:NAME`` names.

    Raises:
        ValueError: if there is none of that name. The message offers similar names and lists all.
    """
    name = model.removeprefix(PREFIX)
    known = architectures()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    meant = f" (did you mean {' or '.join(PREFIX + each for each in near)}?)" if near else ""
    raise ValueError(f"unknown model {model!r}{meant}; there are {', '.join(PREFIX + each for each in sorted(known))}")


def make_model(model: str, cache_dir: Path | None = None) -> Path:
    """The folder of a synthetic model. It is made if it is not in the cache.

    Several processes may call this at once. Each makes its own folder and renames it into place; the first one wins.
    Weights are not among its files: vLLM makes them up. For other engines see `synthetic_weights`.

    Args:
        model: ``synthetic:NAME``.
        cache_dir: where the folders are kept; by default ``$XDG_CACHE_HOME/pytest-gpucap/models``.

    Raises:
        ValueError: for an unknown name.
    """
    chosen = architecture(model)
    folder = (cache_dir or default_cache_dir()) / f"{chosen.name}-{chosen.digest}"
    return made_once(folder, lambda unfinished: _write(chosen, unfinished))


def made_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """A folder of the cache, filled by `write` if it is not there yet."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/pytest-gpucap/models``, or the same under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else home_folder() / ".cache") / "pytest-gpucap" / "models"


def _write(chosen: Architecture, folder: Path) -> None:
    end_id = int(chosen.config["vocab_size"]) - 1
    ids = {"bos_token_id": end_id, "eos_token_id": end_id}
    _write_json(folder / "config.json", {**chosen.config, **ids})
    _write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 1.0})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "pad_token": END_TOKEN,
            "model_max_length": chosen.config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_tokenizer(folder / "tokenizer.json", int(chosen.config["vocab_size"]))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    # Imported late: a compiled library that only these functions need.
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(vocabulary_of(vocab_size))}
    # Without merges, encoding stays at one token per byte.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    tokenizer.save(str(path))


def vocabulary_of(vocab_size: int) -> list[str]:
    """Every token but the end's, which is the last: the bytes in the byte-level alphabet, then words of answers."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *itertools.islice(_words(), vocab_size - len(alphabet) - 1)]


def _words() -> Iterator[str]:
    """Words with a leading space, in the byte-level alphabet (where U+0120 stands for a space)."""
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "\u0120" + "".join(letters)
