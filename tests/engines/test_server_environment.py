from __future__ import annotations

import pytest

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import process_environment
from pytest_gpucap.vllm_arguments import VllmArguments


def test_the_environment_of_a_gpu_server() -> None:
    env = process_environment(ServerSpec("org/model"), ["1", "MIG-cccc"], "secret")
    assert env["CUDA_VISIBLE_DEVICES"] == "1,MIG-cccc"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["VLLM_API_KEY"] == "secret"
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert "HF_HUB_OFFLINE" not in env


def test_the_environment_of_a_cpu_server_hides_gpus_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    env = process_environment(ServerSpec("synthetic:tiny"), [], "secret")
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


def test_what_the_spec_sets_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert process_environment(ServerSpec("m"), [], "k")["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert (
        process_environment(ServerSpec("m", env={"VLLM_CPU_KVCACHE_SPACE": "2"}), [], "k")["VLLM_CPU_KVCACHE_SPACE"]
        == "2"
    )
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    spec = ServerSpec("m", args=VllmArguments({"kv_cache_memory_bytes": 1}))
    assert "VLLM_CPU_KVCACHE_SPACE" not in process_environment(spec, [], "k")  # it would override the argument
