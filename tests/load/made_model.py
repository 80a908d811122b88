"""What models that see or hear are made of: the tiny text model, with tokens of their own in its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_gpucap.engines import synthetic
from pytest_gpucap.vllm_arguments import VllmArguments

_TINY = synthetic.architecture("synthetic:tiny")
VARIABLES = dict(_TINY.cpu_env)


def arguments(**more: Any) -> VllmArguments:
    """Arguments of the server: those of the tiny model, with a short context and few sequences."""
    return VllmArguments({**_TINY.server_args(cpu=True), "max_model_len": 1024, "max_num_seqs": 8, **more})


def make(folder: Path, special: Sequence[str], text: Sequence[str], template: str) -> dict[str, int]:
    """Make the tiny text model in a folder, with further tokens and a chat template; returns the tokens' ids.

    Args:
        folder: which is not there yet.
        special, text: tokens that answers do not show, and others. They take the place of the vocabulary's last words.
        template: of chats.
    """
    shutil.copytree(synthetic.make_model("synthetic:tiny"), folder)
    tokenizer = read(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    ids, added = {}, (*special, *text)
    for word, token in zip(sorted(vocabulary, key=vocabulary.__getitem__)[-len(added) :], added, strict=True):
        ids[token] = vocabulary[token] = vocabulary.pop(word)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append({"id": ids[token], "content": token, "special": token in special, **plain})
    write(folder / "tokenizer.json", tokenizer)
    write(folder / "tokenizer_config.json", read(folder / "tokenizer_config.json") | {"chat_template": template})
    return ids


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content))
