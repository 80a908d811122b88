from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_gpucap.engines.device_indices import indices
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import environment
from pytest_gpucap.vllm_arguments import VllmArguments


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\nprintf "0, GPU-aaaa\\n1, GPU-bbbb\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return script


@pytest.mark.usefixtures("nvidia_smi")
def test_uuids_of_whole_gpus_become_indices() -> None:
    assert indices(["GPU-bbbb", "GPU-aaaa"]) == ["1", "0"]
    assert indices(["MIG-cccc", "GPU-aaaa", "GPU-unknown", "3"]) == ["MIG-cccc", "0", "GPU-unknown", "3"]


def test_without_a_driver_they_stay(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    assert indices(["GPU-aaaa"]) == ["GPU-aaaa"]
    assert indices(["0"]) == ["0"]
    assert indices([]) == []


@pytest.mark.usefixtures("nvidia_smi")
def test_the_environment_of_a_gpu_server() -> None:
    env = environment(ServerSpec("org/model"), ["GPU-bbbb"], "secret")
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["VLLM_API_KEY"] == "secret"
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert "HF_HUB_OFFLINE" not in env


def test_the_environment_of_a_cpu_server_hides_gpus_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    env = environment(ServerSpec("synthetic:tiny"), [], "secret")
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


def test_what_the_spec_sets_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert environment(ServerSpec("m"), [], "k")["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment(ServerSpec("m", env={"VLLM_CPU_KVCACHE_SPACE": "2"}), [], "k")["VLLM_CPU_KVCACHE_SPACE"] == "2"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    spec = ServerSpec("m", args=VllmArguments({"kv_cache_memory_bytes": 1}))
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(spec, [], "k")  # it would override the argument
