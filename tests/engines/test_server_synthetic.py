"""Models made on the spot."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pytest_gpucap.engines import synthetic


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_model("synthetic:tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny / "tokenizer.json"))


def test_one_token_a_byte(tokenizer: Tokenizer) -> None:
    for text in ["Hello, world", " a b\n\tc  ", "ta lr amp", "Grüße, 世界 🙂", "x" * 5000, "\x00\x7f"]:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert len(encoded.ids) == len(text.encode())
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_special_tokens_add_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("abc").ids == tokenizer.encode("abc", add_special_tokens=False).ids


def test_every_id_that_can_come_out_decodes_to_text(tiny: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((tiny / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    ends = {config["eos_token_id"]}
    texts = [tokenizer.decode([number]) for number in range(config["vocab_size"]) if number not in ends]
    assert all(texts)
    assert len({text for text in texts if text != "\ufffd"}) == sum(text != "\ufffd" for text in texts)


def test_the_end_token_is_the_one_of_the_config(tiny: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((tiny / "config.json").read_text())
    generation = json.loads((tiny / "generation_config.json").read_text())
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    assert tokenizer.id_to_token(config["eos_token_id"]) == settings["eos_token"] == synthetic.END_TOKEN
    assert generation["eos_token_id"] == config["eos_token_id"]


def test_the_published_architecture_of_the_sizing_guide() -> None:
    config = synthetic.architecture("synthetic:qwen2-1.5b").config
    embeddings = config["vocab_size"] * config["hidden_size"]
    head = config["hidden_size"] // config["num_attention_heads"]
    key_value = config["num_key_value_heads"] * head
    attention = 2 * config["hidden_size"] ** 2 + config["hidden_size"] + 2 * (config["hidden_size"] + 1) * key_value
    layer = attention + 3 * config["hidden_size"] * config["intermediate_size"] + 2 * config["hidden_size"]
    copies = 1 if config["tie_word_embeddings"] else 2
    total = copies * embeddings + config["num_hidden_layers"] * layer + config["hidden_size"]
    assert total == 1_777_088_000  # as published: 1.78 billion parameters


def test_the_arguments_are_defaults_of_the_device() -> None:
    tiny = synthetic.architecture("synthetic:tiny")
    assert tiny.server_args(cpu=True)["dtype"] == "float32"
    assert "dtype" not in tiny.server_args(cpu=False)
    assert tiny.server_args(cpu=False)["load_format"] == "dummy"


def test_made_once(tmp_path: Path) -> None:
    first = synthetic.make_model("synthetic:tiny", tmp_path)
    before = (first / "tokenizer.json").stat().st_mtime_ns
    assert synthetic.make_model("synthetic:tiny", tmp_path) == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [first]


def test_many_at_once_make_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as executor:
        made = set(executor.map(lambda _: synthetic.make_model("synthetic:tiny", tmp_path), range(16)))
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == [made.pop().name]


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_write_tokenizer", fail)
        with pytest.raises(OSError, match="disk full"):
            synthetic.make_model("synthetic:tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert synthetic.make_model("synthetic:tiny", tmp_path).is_dir()


def test_another_content_is_another_folder() -> None:
    known = synthetic.architectures()
    assert len({architecture.digest for architecture in known.values()}) == len(known)


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert synthetic.default_cache_dir() == tmp_path / "pytest-gpucap" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert synthetic.default_cache_dir() == tmp_path / ".cache" / "pytest-gpucap" / "models"
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.parametrize("model", ["synthetic:tyni", "synthetic:qwen2-1.5B", "synthetic:"])
def test_an_unknown_name_gets_near_matches(model: str) -> None:
    with pytest.raises(ValueError, match=r"there are synthetic:qwen2-1.5b, synthetic:tiny") as caught:
        synthetic.make_model(model)
    if model != "synthetic:":
        assert "did you mean synthetic:" in str(caught.value)
    assert "\n" not in str(caught.value)
