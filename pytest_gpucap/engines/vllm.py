"""Start a real vLLM server, know when it is ready, and end it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.errors import MetricsUnavailable, ServerStartError
from pytest_gpucap.engines.log import ServerLog
from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.engines.readiness import Readiness
from pytest_gpucap.engines.server import Server
from pytest_gpucap.engines.startup_errors import diagnose, oom_kills
from pytest_gpucap.engines.vllm_arguments import ServerSpec

ENTRY_POINT = "vllm.entrypoints.openai.api_server"
_TAIL_LINES = 30
_LOG_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


class VllmServer(Server):
    """A vLLM server that we started. A context manager; `close` ends everything it started.

    Attributes:
        spec: what was asked for, with the defaults of a synthetic model added.
        devices: the GPUs it may use, as entries of CUDA_VISIBLE_DEVICES; empty on a CPU.
        command: its command line (no secret stands on it).
        startup_s: seconds from start to ready.
    """

    def __init__(
        self,
        *,
        process: OwnedProcess,
        log: ServerLog,
        spec: ServerSpec,
        devices: Sequence[str],
        command: Sequence[str],
        model: str,
        api_key: str,
        base_url: str,
        startup_s: float,
    ) -> None:
        super().__init__(base_url, model, api_key)
        self.log: ServerLog = log
        self.spec = spec
        self.devices = tuple(devices)
        self.command = list(command)
        self.startup_s = startup_s
        self._process = process

    @property
    def running(self) -> bool:
        """Whether its main process still runs."""
        return self._process.poll() is None

    def pids(self) -> set[int]:
        """Every living process of the server."""
        return self._process.pids()

    @cached_property
    def max_num_seqs(self) -> int | None:  # type: ignore[override]
        """How many requests it runs at once, over all engines; None where it does not tell."""
        given = self.spec.args.get("max_num_seqs")
        try:
            each = int(str(self.config["scheduler_config"]["max_num_seqs"] if given is None else given))
        except (ValueError, KeyError, TypeError):
            return None
        return each * int(str(self.spec.args.get("data_parallel_size") or 1))

    @cached_property
    def kv_tokens(self) -> int | None:  # type: ignore[override]
        """How many tokens its KV cache holds, over all engines; None where it does not tell."""
        try:
            engines = self.metrics().find("vllm:cache_config_info")
        except MetricsUnavailable:
            engines = []
        try:
            # Hybrid models share blocks between layers of several kinds: vLLM's own count of tokens comes first.
            if engines and all("kv_cache_size_tokens" in engine.labels for engine in engines):
                return sum(int(engine.labels["kv_cache_size_tokens"]) for engine in engines)
            if engines:
                blocks = [(int(e.labels["num_gpu_blocks"]), int(e.labels["block_size"])) for e in engines]
                return sum(count * size for count, size in blocks)
        except (KeyError, ValueError):
            pass
        logged = _LOG_KV_TOKENS.findall(self.log.text())
        return sum(int(tokens.replace(",", "")) for tokens in logged) if logged else None

    def close(self) -> None:
        """End the server; returns when its processes are reaped and its port is closed. Safe to call twice."""
        super().close()
        self._process.close()


def start_vllm(
    spec: ServerSpec, *, devices: Sequence[str] = (), on_wait: Callable[[str], None] | None = None
) -> VllmServer:
    """Start a server and wait until it answers.

    The server binds port 0, so that the kernel chooses a port that nobody has, and the port is then read from the
    listening sockets of our own processes: no other server can be met by mistake.

    Args:
        spec: what to start.
        devices: GPUs it may use, as entries of CUDA_VISIBLE_DEVICES in the order of the PCI bus; none: it runs on the
            CPU.
        on_wait: told about once a second what the start is doing.

    Raises:
        ServerStartError: if it is not ready in time or ends before; nothing of it is left running.
        ValueError: for an unknown synthetic model.
    """
    started = time.monotonic()
    killed_before = oom_kills()
    model_path = spec.model
    if synthetic.is_synthetic(spec.model):
        spec = spec.with_defaults(synthetic.architecture(spec.model).server_args(cpu=not devices))
        model_path = str(synthetic.make_model(spec.model))
    python = shutil.which(spec.python)
    if python is None:
        raise ServerStartError(
            f"there is no interpreter {spec.python}; choose one that has vLLM with --gpucap-vllm-python"
        )
    name = f"gpucap-{_slug(spec.model)}-{secrets.token_hex(6)}"
    api_key = secrets.token_urlsafe(24)
    log = ServerLog(_log_path(spec, name))
    command = [python, "-m", ENTRY_POINT, "--model", model_path, *spec.flags()]
    command += ["--host", "127.0.0.1", "--port", "0", "--served-model-name", name]
    process = OwnedProcess(command, env=environment(spec, devices, api_key), log_path=log.path)
    try:
        readiness = Readiness(process, log, name, api_key, started + spec.startup_timeout_s, on_wait)
        try:
            base_url = readiness.wait()
        except ServerStartError as error:
            process.close()
            exit_code = readiness.exit_code
            cause = error.cause if exit_code is None else diagnose(log.text(), exit_code, oom_kills() - killed_before)
            raise ServerStartError(cause, log.tail(_TAIL_LINES), log.path) from None
    except BaseException:
        process.close()
        raise
    return VllmServer(
        process=process,
        log=log,
        spec=spec,
        devices=devices,
        command=command,
        model=name,
        api_key=api_key,
        base_url=base_url,
        startup_s=time.monotonic() - started,
    )


def environment(spec: ServerSpec, devices: Sequence[str], api_key: str) -> dict[str, str]:
    """The whole environment of a server: ours, what the measurement needs, then what the spec adds."""
    own = {
        "VLLM_API_KEY": api_key,
        # The reset endpoints of the caches; the server listens on loopback only.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Without it setproctitle overwrites the environment that we find escaped processes by.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
        # The order that NVML, and so every index of ours, counts in.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
    }
    defaults: dict[str, str] = {}
    if synthetic.is_synthetic(spec.model):
        own["HF_HUB_OFFLINE"] = "1"
        defaults |= {} if devices else synthetic.architecture(spec.model).cpu_env
    if not devices and spec.args.get("kv_cache_memory_bytes") is None:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"
    return {**defaults, **os.environ, **own, **spec.env}


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", model.removeprefix(synthetic.PREFIX).rstrip("/").rpartition("/")[2])[:40]


def _log_path(spec: ServerSpec, name: str) -> Path:
    return (spec.log_dir / f"{name}.log").absolute()
