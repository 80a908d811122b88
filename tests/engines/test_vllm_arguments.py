from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.vllm_arguments import ServerSpec


def test_the_flags_of_the_sizing_guide() -> None:
    spec = ServerSpec(
        "/models/DeepSeek-R1-Distill-Qwen-1.5B",
        args={
            "tensor_parallel_size": 1,
            "dtype": "auto",
            "quantization": "awq",
            "max_model_len": 4096,
            "gpu_memory_utilization": 0.8,
            "enforce_eager": True,
            "enable_prefix_caching": True,
        },
    )
    assert " ".join(spec.flags()) == (
        "--tensor-parallel-size 1 --dtype auto --quantization awq --max-model-len 4096 "
        "--gpu-memory-utilization 0.8 --enforce-eager --enable-prefix-caching"
    )


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"no_enable_prefix_caching": True}, ["--no-enable-prefix-caching"]),
        ({"quantization": None}, []),
        ({"a_flag_of_tomorrow": "x"}, ["--a-flag-of-tomorrow", "x"]),
        ({"speculative_config": {"method": "ngram", "n": 3}}, ["--speculative-config", '{"method": "ngram", "n": 3}']),
        ({"lora_modules": ["a=1", "b=2"]}, ["--lora-modules", "a=1", "b=2"]),
        ({"lora_modules": [{"name": "a"}]}, ["--lora-modules", '{"name": "a"}']),
        ({"compilation_config.mode": 0}, ["--compilation-config.mode", "0"]),
        ({"chat_template": "-x-"}, ["--chat-template=-x-"]),
        ({"download_dir": Path("/models")}, ["--download-dir", "/models"]),
        ({"seed": 0}, ["--seed", "0"]),
    ],
)
def test_every_value_has_its_form(args: dict[str, Any], flags: list[str]) -> None:
    assert ServerSpec("m", args=args).flags() == flags


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"host": "0.0.0.0"}, "host cannot be set: the server listens on loopback only"),
        ({"port": 8000}, "port cannot be set: the kernel chooses a free port"),
        ({"api_key": "x"}, "api_key cannot be set: every server gets a random key"),
        ({"api-key": "x"}, "api-key cannot be set"),
        ({"served_model_name": "x"}, "served_model_name cannot be set: every server gets a unique model name"),
        ({"lora_modules": []}, "lora_modules is an empty list"),
        ({"max_model_len": object()}, "max_model_len=<object object"),
        ({"config": {"a": object()}}, "config=.* cannot be written as JSON"),
        ({"lora_modules": [True]}, "lora_modules=True: write text"),
        ({"lora_modules": [["a"]]}, "lora_modules=.* write text"),
        ({"--dtype": "auto"}, "'--dtype' is no name of a vLLM argument"),
        ({"max_model_len": 1, "max-model-len": 2}, "max_model_len given twice"),
        ({"enforce_eager": True, "no_enforce_eager": True}, "enforce_eager given twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerSpec("m", args=args)


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model is empty"):
        ServerSpec("")


def test_equal_servers_are_equal_and_hash_alike() -> None:
    one = ServerSpec("m", args={"a": {"x": 1}, "b": [1, 2]}, log_dir=Path("/x"), startup_timeout_s=1)
    two = ServerSpec("m", args={"b": (1, 2), "a": '{"x": 1}'}, log_dir=Path("/y"), startup_timeout_s=2)
    assert one == two
    assert hash(one) == hash(two)
    assert one.key == two.key


@pytest.mark.parametrize(
    "other",
    [
        ServerSpec("n", args={"enforce_eager": True}),
        ServerSpec("m", args={"enforce_eager": False}),
        ServerSpec("m", args={"enforce_eager": 1}),
        ServerSpec("m", args={"enforce_eager": True, "seed": 1}),
        ServerSpec("m", args={"enforce_eager": True}, python="/other/python"),
        ServerSpec("m", args={"enforce_eager": True}, env={"A": "1"}),
    ],
)
def test_distinct_servers_differ(other: ServerSpec) -> None:
    assert other != ServerSpec("m", args={"enforce_eager": True})


def test_defaults_never_override_what_was_given() -> None:
    spec = ServerSpec("m", args={"no_enforce_eager": True, "max-model-len": 10, "dtype": None})
    merged = spec.with_defaults({"enforce_eager": True, "max_model_len": 20, "dtype": "half", "seed": 3})
    assert merged.flags() == ["--no-enforce-eager", "--max-model-len", "10", "--seed", "3"]


def test_the_environment_is_in_no_repr() -> None:
    assert "hf_secret" not in repr(ServerSpec("m", env={"HF_TOKEN": "hf_secret"}))
