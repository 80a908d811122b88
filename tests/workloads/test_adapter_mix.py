"""Mixes of LoRA adapters: weights by name, and what is no mix."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.workloads.adapter_mix import own_adapters, read_adapters, read_rank


def test_weights_become_shares_that_add_up_to_1() -> None:
    assert read_adapters({"a": 7, "b": "2", "base": 1.0}, "adapters") == {"a": 0.7, "b": 0.2, "base": 0.1}
    assert read_adapters({"a": 0.7, "b": 0.3}, "adapters") == {"a": 0.7, "b": 0.3}
    assert own_adapters({"a": 0.7, "base": 0.3}) == ("a",)
    assert read_rank("32", "adapter_rank") == 32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b"], "adapters must be weights by the name of the adapter, such as"),
        ("a", "adapters must be weights by the name of the adapter"),
        ({}, "adapters is empty: name at least one adapter"),
        ({3: 1}, "adapters: the name of an adapter must be a text of up to 200 characters, not 3"),
        ({"": 1}, "adapters: the name of an adapter must be a text"),
        ({"a\n": 1}, "adapters: the name of an adapter must be a text"),
        ({"a": 0}, "adapters: the weight of 'a' must be above 0, not 0"),
        ({"a": -1}, "adapters: the weight of 'a' must be above 0, not -1"),
        ({"a": "much"}, "adapters: the weight of 'a' must be a number, not 'much'"),
        ({"a": float("nan")}, "adapters: the weight of 'a' must be a finite number"),
        ({"base": 1}, "adapters has only 'base', which is the model without an adapter: leave it out"),
        (dict.fromkeys(map(str, range(1025)), 1), "adapters has 1025 adapters: it may have 1024"),
    ],
)
def test_a_mistake_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(RequirementError) as caught:
        read_adapters(value, "adapters")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rank_beyond_what_vllm_serves() -> None:
    with pytest.raises(RequirementError, match="adapter_rank must be at most 512"):
        read_rank(513, "adapter_rank")
