"""Models made on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.vllm_arguments import VllmArguments


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


BILLIONS = {"qwen2-1.5b": 1.78, "qwen2.5-7b": 7, "qwen2.5-14b": 14, "qwen2.5-32b": 32, "qwen3-30b-a3b": 30}
"""Parameters as the names have them; those of the 1.5B as published, because its name leaves its head out."""


def test_every_large_model_has_the_size_that_its_name_says() -> None:
    assert set(synthetic.architectures()) == {"tiny", *BILLIONS}
    for name, billions in BILLIONS.items():
        shape = model_of(synthetic.architecture(f"synthetic:{name}").config)
        assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.1), name
    assert model_of(synthetic.architecture("synthetic:qwen3-30b-a3b").config).active / 1e9 == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("name", BILLIONS)
def test_physical_limits_come_from_the_config_and_fall_with_the_size(name: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pytest_gpucap", "plan", f"--model=synthetic:{name}", "--qps=10", "--format=json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    planned = json.loads(found.stdout)
    assert planned["model"]["parameters"] / 1e9 == pytest.approx(BILLIONS[name], rel=0.1)


ACCEPTS = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import ModelRegistry
import torch

found = {}
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    served = EngineArgs(model=folder, load_format="dummy", max_model_len=4096).create_model_config()
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    found[folder] = {
        "architecture": served.architecture,
        "dtype": str(served.dtype),
        "known": served.architecture in ModelRegistry.get_supported_archs(),
        "heads": served.hf_text_config.num_attention_heads,
        "parameters": sum(each.numel() for each in model.parameters()),
        "tokens": tokenizer("ta lr amp").input_ids,
    }
print("FOUND" + json.dumps(found))
"""


@pytest.mark.vllm_cpu
def test_vllm_and_transformers_take_every_config(vllm_python: str, tmp_path: Path) -> None:
    folders = {str(synthetic.make_model(f"synthetic:{name}", tmp_path)): name for name in BILLIONS}
    ran = subprocess.run(
        [vllm_python, "-c", ACCEPTS, *folders],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )
    line = next((line for line in ran.stdout.splitlines() if line.startswith("FOUND")), None)
    assert line is not None, ran.stderr[-3000:]
    for folder, told in json.loads(line.removeprefix("FOUND")).items():
        config = synthetic.architecture(f"synthetic:{folders[folder]}").config
        assert told["architecture"] == config["architectures"][0]
        assert told["known"]
        assert told["dtype"] == "torch.bfloat16"
        assert told["heads"] == config["num_attention_heads"]
        assert told["parameters"] == model_of(config).parameters
        assert len(told["tokens"]) == len("ta lr amp")
        assert max(told["tokens"]) < config["vocab_size"]
        assert Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab_size() == config["vocab_size"]
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        assert size < 4e6  # no weights


@pytest.mark.parametrize("name", BILLIONS)
@pytest.mark.parametrize("cpu", [False, True])
def test_weights_are_never_read_and_the_speed_is_that_of_16_bits(name: str, *, cpu: bool) -> None:
    chosen = synthetic.architecture(f"synthetic:{name}")
    spec = ServerSpec(f"synthetic:{name}").with_defaults(chosen.server_args(cpu=cpu))
    flags = " ".join(spec.args.flags())
    assert "--load-format dummy" in flags
    assert chosen.config["torch_dtype"] == "bfloat16"  # which vLLM takes where no dtype is given
    if not cpu:
        assert "--dtype" not in flags
    own = ServerSpec(f"synthetic:{name}", VllmArguments({"dtype": "float16"})).with_defaults(
        chosen.server_args(cpu=cpu)
    )
    assert "--dtype float16" in " ".join(own.args.flags())


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
    with pytest.raises(ValueError, match=r"there are synthetic:qwen2-1.5b, .*, synthetic:tiny") as caught:
        synthetic.make_model(model)
    if model != "synthetic:":
        assert "did you mean synthetic:" in str(caught.value)
    assert "\n" not in str(caught.value)
