"""Start a real vLLM server, know when it is ready, and end it."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Final

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.errors import MetricsUnavailable, ServerStartError
from pytest_gpucap.engines.launch import Launched, LaunchedServer, launch
from pytest_gpucap.engines.protocol import Capabilities, MetricNames
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.vllm_arguments import ENTRY_POINT

_LOG_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


METRICS: Final = MetricNames(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    preemptions=("vllm:num_preemptions_total",),
    prompt_tokens=("vllm:prompt_tokens_total",),
    output_tokens=("vllm:generation_tokens_total",),
    prefix_queries=("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
)


class VllmServer(LaunchedServer):
    """A vLLM server that we started. A context manager: `close` ends everything that it started.

    Args:
        launched: its process. Its command line holds no secret.
        spec: what was requested, with the defaults of a synthetic model added.
    """

    software = "vLLM"

    def __init__(self, launched: Launched, spec: ServerSpec) -> None:
        super().__init__(launched)
        self.spec = spec

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        return Capabilities(
            max_num_seqs=self.max_num_seqs,
            kv_tokens=self.kv_tokens,
            metrics=METRICS,
            simulated=self.simulated,
            loopback=self.loopback,
            models=(self.spec.model,),
            arguments=self.spec.args,
            max_model_len=self.max_model_len,
        )

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        told = super().facts()
        sizes = {"max_num_seqs": self.max_num_seqs, "kv_tokens": self.kv_tokens}
        return {
            "server": told["server"],
            "model": self.spec.model,
            "server_args": dict(self.spec.args.values),
            **self._weights(),
            "command": told["command"],
            "log": told["log"],
            **{name: size for name, size in sizes.items() if size is not None},
        }

    def _weights(self) -> dict[str, object]:
        """How the server stores the weights, which the model's files may determine; empty if it does not report it."""
        try:
            config = self.config["model_config"]
            return {"quantization": config["quantization"], "dtype": str(config["dtype"]).removeprefix("torch.")}
        except (KeyError, TypeError):
            return {}

    @cached_property
    def max_num_seqs(self) -> int | None:
        """How many requests it runs at once, over all engines; None if it does not report it."""
        each = self.spec.args.max_num_seqs
        if each is None:
            try:
                each = int(str(self.config["scheduler_config"]["max_num_seqs"]))
            except (ValueError, KeyError, TypeError):
                return None
        return each * self.spec.args.data_parallel_size

    @cached_property
    def kv_tokens(self) -> int | None:
        """How many tokens its KV cache holds, over all engines; None if it does not report it."""
        try:
            engines = self.metrics().find("vllm:cache_config_info")
        except MetricsUnavailable:
            engines = []
        try:
            # Prefer vLLM's own count: hybrid models share blocks between layers of several kinds.
            if engines and all("kv_cache_size_tokens" in engine.labels for engine in engines):
                return sum(int(engine.labels["kv_cache_size_tokens"]) for engine in engines)
            if engines:
                blocks = [(int(e.labels["num_gpu_blocks"]), int(e.labels["block_size"])) for e in engines]
                return sum(count * size for count, size in blocks)
        except (KeyError, ValueError):
            pass
        logged = _LOG_KV_TOKENS.findall(self.log.text())
        return sum(int(tokens.replace(",", "")) for tokens in logged) if logged else None


def start_vllm(
    spec: ServerSpec, *, devices: Sequence[str] = (), on_wait: Callable[[str], None] | None = None
) -> VllmServer:
    """Start a server and wait until it answers.

    The server binds port 0, so that the kernel chooses a free port. The port is read from the listening sockets of our
    own processes, so it cannot belong to another server.

    Args:
        spec: what to start.
        devices: GPUs it may use, as entries of CUDA_VISIBLE_DEVICES in the order of the PCI bus; none: it runs on the
            CPU.
        on_wait: called about once a second with what the start is doing.

    Raises:
        ServerStartError: if it is not ready in time or ends before. None of its processes is left running.
        ValueError: for an unknown synthetic model.
    """
    model_path = spec.model
    if synthetic.is_synthetic(spec.model):
        spec = spec.with_defaults(synthetic.architecture(spec.model).server_args(cpu=not devices))
        model_path = str(synthetic.make_model(spec.model))
    python = shutil.which(spec.python)
    if python is None:
        cause = f"there is no interpreter {spec.python}; choose one that has vLLM with --gpucap-vllm-python"
        raise ServerStartError(cause, title=VllmServer.software)
    name = f"gpucap-{_slug(spec.model)}-{secrets.token_hex(6)}"
    api_key = secrets.token_urlsafe(24)
    command = [python, "-m", ENTRY_POINT, "--model", model_path, *spec.args.flags()]
    command += ["--host", "127.0.0.1", "--port", "0", "--served-model-name", name]
    launched = launch(
        command,
        model=name,
        log_path=spec.log_dir / f"{name}.log",
        timeout_s=spec.startup_timeout_s,
        devices=devices,
        env=_variables(spec, api_key),
        default_env=_default_variables(spec, cpu=not devices),
        api_key=api_key,
        title=VllmServer.software,
        on_wait=on_wait,
    )
    return VllmServer(launched, spec)


def _variables(spec: ServerSpec, api_key: str) -> dict[str, str]:
    """What the measurement needs, then what the spec adds."""
    own = {
        "VLLM_API_KEY": api_key,
        # This enables the endpoints that reset caches. The server listens on loopback only.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Otherwise setproctitle overwrites the environment, by which we find escaped processes.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if synthetic.is_synthetic(spec.model):
        own["HF_HUB_OFFLINE"] = "1"
    return {**own, **spec.env}


def _default_variables(spec: ServerSpec, *, cpu: bool) -> dict[str, str]:
    """Variables that the user's own environment may override."""
    if not cpu:
        return {}
    variables = synthetic.architecture(spec.model).cpu_env if synthetic.is_synthetic(spec.model) else {}
    # This variable would override the argument.
    if spec.args.get("kv_cache_memory_bytes") is None:
        variables = {**variables, "VLLM_CPU_KVCACHE_SPACE": "1"}
    return dict(variables)


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", model.removeprefix(synthetic.PREFIX).rstrip("/").rpartition("/")[2])[:40]
