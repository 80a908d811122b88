"""When two servers are one: the model, the arguments free of their spelling, the interpreter and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.vllm_arguments import VllmArguments

EAGER = VllmArguments({"enforce_eager": True})


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model is empty"):
        ServerSpec("")


def test_equal_servers_are_equal_and_hash_alike() -> None:
    one = ServerSpec("m", VllmArguments({"a": {"x": 1}, "b": [1, 2]}), log_dir=Path("/x"), startup_timeout_s=1)
    two = ServerSpec("m", VllmArguments({"b": (1, 2), "a": '{"x": 1}'}), log_dir=Path("/y"), startup_timeout_s=2)
    assert one == two
    assert hash(one) == hash(two)
    assert one.key == two.key


@pytest.mark.parametrize(
    "other",
    [
        ServerSpec("n", EAGER),
        ServerSpec("m", VllmArguments({"enforce_eager": False})),
        ServerSpec("m", VllmArguments({"enforce_eager": 1})),
        ServerSpec("m", VllmArguments({"enforce_eager": True, "seed": 1})),
        ServerSpec("m", EAGER, python="/other/python"),
        ServerSpec("m", EAGER, env={"A": "1"}),
    ],
)
def test_distinct_servers_differ(other: ServerSpec) -> None:
    assert other != ServerSpec("m", EAGER)


def test_defaults_never_override_what_was_given() -> None:
    spec = ServerSpec("m", VllmArguments({"no_enforce_eager": True, "max-model-len": 10, "dtype": None}))
    merged = spec.with_defaults({"enforce_eager": True, "max_model_len": 20, "dtype": "half", "seed": 3})
    assert merged.args.flags() == ["--no-enforce-eager", "--max-model-len", "10", "--seed", "3"]


def test_the_environment_is_in_no_repr() -> None:
    assert "hf_secret" not in repr(ServerSpec("m", env={"HF_TOKEN": "hf_secret"}))
