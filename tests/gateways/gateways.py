"""Gateways as people put them before a server: nginx, LiteLLM's proxy and vLLM's router, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.launch import free_port
from pytest_gpucap.fleet import router
from pytest_gpucap.fleet.nginx import nginx_command, nginx_program
from pytest_gpucap.installing import pip_install
from tests.waiting import until

LITELLM_KEY = "sk-of-the-gateway-3f9c1b7d5e2a48064c8d"
SHORT_PHASES = """
from pytest_gpucap.load import self_check
from pytest_gpucap.measure import constants

constants.WARM_UP_S = constants.HOLD_S = constants.LOW_HOLD_S = constants.OPEN_S = 2.0
constants.LEAST_PHASE_S = 0.5
self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.CPU_LIMIT = self_check.STOPPED_S = 1e6
"""
"""For the conftest of an inner run: what a gateway does shows in seconds, however busy the machine is."""
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def _running(command: Sequence[str], url: str, log: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """A gateway's process, once it answers at all; its base URL. All that it started ends with it."""
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True) as process,
    ):
        try:
            until(lambda: process.poll() is not None or _answers(url))
            assert process.poll() is None, log.read_text()[-2000:]
            yield f"{url}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health/liveliness", timeout=60).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False
    return True


@contextmanager
def nginx(folder: Path, upstream: str, *, http: str = "", location: str = "", chat: str = "") -> Iterator[str]:
    """nginx with its defaults; its base URL.

    Args:
        folder: for its files.
        upstream: base URL of the server behind it.
        http: lines for all of it.
        location: lines for what is passed on.
        chat: further ones for requests of the load alone.
    """
    program = nginx_program()
    if program is None:
        pytest.skip("nginx is not installed; `make nginx` installs it")
    folder.mkdir(parents=True)
    port = free_port()
    root = upstream.removesuffix("/v1")
    said = f"""
  {http}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {root};
      {location}
    }}
    location /v1/chat/completions {{
      proxy_pass {root};
      {location}
      {chat}
    }}
  }}
"""
    with _running(nginx_command(program, folder, said), f"http://127.0.0.1:{port}", folder / "nginx.log") as url:
        yield url


def litellm_program() -> str | None:
    """LiteLLM's command line, where it is installed."""
    named = os.environ.get("GPUCAP_TEST_LITELLM")
    own = REPOSITORY / ".venv-litellm" / "bin" / "litellm"
    return named or (str(own) if own.exists() else shutil.which("litellm"))


@contextmanager
def litellm(
    folder: Path, upstreams: Mapping[str, tuple[str, str, str]], a_minute: Mapping[str, int] | None = None
) -> Iterator[str]:
    """LiteLLM's proxy with one worker, which asks for `LITELLM_KEY`; its base URL.

    Args:
        folder: for its files.
        upstreams: the model's name here -> base URL, model and key of the server behind it.
        a_minute: the model's name here -> requests a minute after which it refuses further ones.
    """
    program = litellm_program()
    if program is None:
        pytest.skip("LiteLLM is not installed; `make litellm` installs it, GPUCAP_TEST_LITELLM names another")
    folder.mkdir(parents=True)
    models: list[dict[str, Any]] = [
        {
            "model_name": name,
            "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": url, "api_key": f"os.environ/KEY_{place}"},
        }
        for place, (name, (url, model, _)) in enumerate(upstreams.items())
    ]
    for model in models:
        if (most := (a_minute or {}).get(model["model_name"])) is not None:
            model["rpm"] = most
    settings = {"optional_pre_call_checks": ["enforce_model_rate_limits"]} if a_minute else {}
    keys = {f"KEY_{place}": key for place, (_, _, key) in enumerate(upstreams.values())}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models, "router_settings": settings}))  # JSON is YAML
    port = free_port()
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LITELLM", "OPENAI"))}
    env = (
        kept
        | keys
        | {"LITELLM_MASTER_KEY": LITELLM_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    )
    with _running(command, f"http://127.0.0.1:{port}", folder / "litellm.log", env) as url:
        yield url


@contextmanager
def vllm_router(folder: Path, upstream: str) -> Iterator[str]:
    """vLLM's router before one server; its base URL."""
    pytest.importorskip("vllm_router", reason=f"vLLM's router is not installed: {pip_install('router')}")
    folder.mkdir(parents=True)
    port, metrics = free_port(), free_port()
    command = [sys.executable, str(router._VLLM_ROUTER), str(port), str(metrics), "round_robin"]
    with _running([*command, upstream.removesuffix("/v1")], f"http://127.0.0.1:{port}", folder / "router.log") as url:
        yield url
