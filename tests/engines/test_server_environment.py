"""The environment of a server's process, read from the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import psutil
import pytest

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm


@pytest.fixture
def environment_of(stand_in: Callable[..., ServerSpec]) -> Callable[..., dict[str, str]]:
    """``environment_of(*devices, model=..., env=..., **args)``: starts a server and reads its environment."""

    def start(*devices: str, model: str = "org/model", **given: object) -> dict[str, str]:
        with start_vllm(replace(stand_in(**given), model=model), devices=devices) as server:
            return _same(server.pids())

    return start


def _same(pids: Iterable[int]) -> dict[str, str]:
    """The environment of the server; its processes inherit it from one another."""
    found = [psutil.Process(pid).environ() for pid in pids]
    return next(each for each in found if "VLLM_API_KEY" in each)


def test_the_environment_of_a_gpu_server(environment_of: Callable[..., dict[str, str]]) -> None:
    env = environment_of("1", "MIG-cccc")
    assert env["CUDA_VISIBLE_DEVICES"] == "1,MIG-cccc"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["VLLM_API_KEY"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert "HF_HUB_OFFLINE" not in env


def test_the_environment_of_a_cpu_server_hides_gpus_and_stays_small(
    environment_of: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert environment_of(model="synthetic:tiny")["HF_HUB_OFFLINE"] == "1"
    env = environment_of()
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


def test_the_users_environment_wins_over_a_default_and_the_spec_over_both(
    environment_of: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert environment_of()["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment_of(env={"VLLM_CPU_KVCACHE_SPACE": "2"})["VLLM_CPU_KVCACHE_SPACE"] == "2"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment_of(kv_cache_memory_bytes=1)  # it would override the argument
