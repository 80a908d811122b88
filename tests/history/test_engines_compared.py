"""Which engine served is a part of what makes results comparable."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pytest_gpucap.history.comparable import changed, differences
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.result import Result
from tests.history.made import ENVIRONMENT, result


def by(engine: str | None, **environment: Any) -> Result:
    found = result()
    served = msgspec.structs.replace(ENVIRONMENT, engine=engine, **environment)
    return msgspec.structs.replace(found, environment=served)


def test_results_of_two_engines_are_not_compared_as_base_and_head() -> None:
    base, head = by("vllm"), by("sglang", server="SGLang 0.5.23")
    assert differences(base, head) == ["engine: vllm -> sglang"]


def test_two_engines_are_variants_of_one_model() -> None:
    base, head = by("vllm"), by("sglang", server="SGLang 0.5.23", server_args={"tp_size": 1})
    assert differences(base, head, variants=True) == []
    told = changed(base, head, variants=True)
    assert "engine: vllm -> sglang" in told
    assert "server: vLLM 0.26.0 -> SGLang 0.5.23" in told
    other = msgspec.structs.replace(head, workload=msgspec.structs.replace(head.workload, ignore_eos=False))
    assert differences(base, other, variants=True) == ["workload ignore_eos: true -> false"]


@pytest.mark.parametrize("known", ["vllm", None])
def test_an_early_file_does_not_say_its_engine_and_was_of_vllm(known: str | None) -> None:
    assert differences(by(None), by(known)) == []
    assert differences(by(None), by("sglang")) == ["engine: vllm -> sglang"]


def test_behind_a_url_any_engine_may_stand() -> None:
    behind = by(None, url="http://gpu:8000/v1")
    assert differences(behind, by("sglang")) == []
    assert differences(behind, by("vllm")) == []


def test_an_early_file_is_read_without_engine_and_missing_evidence() -> None:
    raw = msgspec.to_builtins(ENVIRONMENT)
    assert not {"engine", "not_told"} & set(raw)
    assert msgspec.convert(raw, Environment).not_told == ()
