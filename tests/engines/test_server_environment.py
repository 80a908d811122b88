"""The environment of a server's process, read from the process."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_gpucap import engines
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm

SERVE = Path(engines.__file__).parent / "server_side" / "vllm_serve.py"


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
    return next(each for each in found if "GPUCAP_KEY_SHA256" in each)


def test_the_environment_of_a_gpu_server(environment_of: Callable[..., dict[str, str]]) -> None:
    env = environment_of("1", "MIG-cccc")
    assert env["CUDA_VISIBLE_DEVICES"] == "1,MIG-cccc"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert len(env["GPUCAP_KEY_SHA256"]) == 64
    assert "VLLM_API_KEY" not in env
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert "HF_HUB_OFFLINE" not in env
    assert "VLLM_SERVER_DEV_MODE" not in env


COMMAND_LINE = """
import json, os, sys
def main():
    print(json.dumps([sys.argv[1:], os.environ.get("VLLM_SERVER_DEV_MODE")]))
if __name__ == "__main__":
    main()
"""
"""Of a vLLM that only tells how it was called."""


@pytest.mark.parametrize("module", ["cli/main.py", "openai/api_server.py"], ids=["vllm serve", "an old vLLM"])
@pytest.mark.parametrize(
    ("given", "added"),
    [([], []), (["--config", "the-users.yaml"], ["--api-key", ""])],
    ids=["", "with a key of a file"],
)
def test_the_development_mode_is_on_in_one_process_alone_which_asks_for_the_key(
    tmp_path: Path, module: str, given: list[str], added: list[str]
) -> None:
    for folder in ("vllm", "vllm/entrypoints", f"vllm/entrypoints/{module.partition('/')[0]}"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("__version__ = '1'\n")
    (tmp_path / "vllm" / "entrypoints" / module).write_text(COMMAND_LINE)
    words = ["org/model", "--middleware", "of.the.User", *given, "--port", "0"]
    ran = subprocess.run(
        [sys.executable, str(SERVE), *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    asked, mode = json.loads(ran.stdout)
    assert mode == "1"
    # The last one is the outermost: nothing of the user's answers before it.
    assert asked[-2:] == ["--middleware", "gpucap_key.RequireKey"]
    assert asked[:-2] == ["serve" if module.startswith("cli") else "--model", *words, *added]


def test_without_a_key_the_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCAP_KEY_SHA256", raising=False)
    key = runpy.run_path(str(SERVE.with_name("gpucap_key.py")))
    with pytest.raises(RuntimeError, match="GPUCAP_KEY_SHA256 is not set, so no request could be let in"):
        key["RequireKey"](None)


def test_a_key_of_the_users_own_does_not_reach_the_server(
    environment_of: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for another server, and vLLM up to 0.26 would keep it in the files of its compile cache."""
    monkeypatch.setenv("VLLM_API_KEY", "the-key-of-another-server")
    env = environment_of()
    assert "VLLM_API_KEY" not in env
    assert "the-key-of-another-server" not in env.values()


def test_two_starts_differ_in_nothing_that_vllm_knows(environment_of: Callable[..., dict[str, str]]) -> None:
    """Up to 0.26 vLLM makes every variable of its own a part of the key of its compile cache."""
    one, other = environment_of(), environment_of()
    own = {"GPUCAP_KEY_SHA256", "GPUCAP_SERVER_ID"}
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == own


def test_a_front_end_that_cannot_ask_for_the_key_is_refused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    pytester.makepyfile("def test_it(vllm_server): ...")
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-model=m", "--gpucap-vllm-python=/bin/false")
    assert result.ret != pytest.ExitCode.OK
    assert "VLLM_USE_RUST_FRONTEND, and that front end does not ask for the key" in " ".join(
        f"{result.stdout}{result.stderr}".split()
    )


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
