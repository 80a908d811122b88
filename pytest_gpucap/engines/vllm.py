"""Start a real vLLM server, know when it is ready, and end it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.compile_cache import StartKind, start_kind
from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.front_ends import front_ends
from pytest_gpucap.engines.kv_cache import told_kv_tokens
from pytest_gpucap.engines.launch import Launched, LaunchedServer, launch
from pytest_gpucap.engines.protocol import Capabilities, MetricNames, ServingIdentity
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.start_phases import start_phases
from pytest_gpucap.engines.synthetic_adapters import lora_arguments, make_adapter

_SERVE: Final = Path(__file__).parent / "server_side" / "vllm_serve.py"
_LOG_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_LOG_BATCHED_TOKENS = re.compile(r"max_num_batched_tokens=(?P<tokens>\d+)")
_LOG_NO_EFFECT = re.compile(
    r"(?<![\w-])--(?P<flag>[a-z][a-z0-9_]*+(?:-[a-z0-9_]++)*+)\b[^.\n]{0,200}? "
    r"(?:has no effect|(?:is|will be) ignored)\b"
    r"|\b[Ii]gnoring --(?P<ignored>[a-z][a-z0-9_-]*)"
)
"""How vLLM logs that an argument does nothing, such as "--disable-cascade-attn is deprecated and has no effect"."""
_FRONT_ENDS_S: Final = 120.0
"""The first front end is ready. Others, which were started with it, are ready within this time."""
_POLL_S: Final = 0.2
_UNAUTHORISED: Final = 401
_ENGINES: Final = re.compile(r"EngineCore|\bVLLM::Worker|\bWorker_")
"""In the titles that vLLM's engines and their workers give themselves."""
_WITHHELD: Final = ("VLLM_API_KEY",)
"""Variables of the user's environment that no server gets: a key for another server, which vLLM up to 0.26 would keep
in the files of its compile cache."""


METRICS: Final = MetricNames(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    preemptions=("vllm:num_preemptions_total",),
    prompt_tokens=("vllm:prompt_tokens_total",),
    output_tokens=("vllm:generation_tokens_total",),
    prefix_queries=("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    draft_tokens=("vllm:spec_decode_num_draft_tokens_total",),
    accepted_tokens=("vllm:spec_decode_num_accepted_tokens_total",),
)


class VllmServer(LaunchedServer):
    """A vLLM server that we started. A context manager: `close` ends everything that it started.

    Args:
        launched: its process. Its command line holds no secret.
        spec: what was requested, with the defaults of a synthetic model added.
        reused: an earlier run started it.
    """

    software = "vLLM"
    engines = _ENGINES

    def __init__(self, launched: Launched, spec: ServerSpec, *, reused: bool = False) -> None:
        super().__init__(launched, reused=reused)
        self.spec = spec

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        return Capabilities(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
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
        sizes = {
            "max_num_seqs": self.max_num_seqs,
            "kv_tokens": self.kv_tokens,
            "front_ends": len(self.front_ends()) or None,
        }
        return {
            "server": told["server"],
            "model": self.spec.model,
            "server_args": dict(self.spec.args.values),
            **self._weights(),
            "command": told["command"],
            "log": told["log"],
            **{name: size for name, size in sizes.items() if size is not None},
        }

    @cached_property
    def start_phases_s(self) -> Mapping[str, float]:
        """What its start spent its time on: seconds by phase, as far as its log tells; see `start_phases`."""
        return start_phases(self.log.text(), self.started_at, self.startup_s)

    @cached_property
    def start(self) -> StartKind | None:
        """Whether its start compiled anything, as far as its log tells; see `start_kind`."""
        return start_kind(self.log.text())

    def _weights(self) -> dict[str, object]:
        """How the server stores the weights, which the model's files may determine; empty if it does not report it."""
        try:
            config = self.config["model_config"]
            return {"quantization": config["quantization"], "dtype": str(config["dtype"]).removeprefix("torch.")}
        except (KeyError, TypeError):
            return {}

    def front_ends(self) -> set[int]:
        """Its processes that take requests now."""
        return front_ends(self.pids(), urlsplit(self.base_url).port or 0)

    def check_arguments(self, patience_s: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Check that the arguments took effect, as far as it can be seen.

        Args:
            patience_s: longest wait for the front ends of ``api_server_count``.
            on_wait: called once if it waits.

        Raises:
            ServerStartError: if one had none; the message names it.
        """
        asked, deadline = self.spec.args.api_server_count, time.monotonic() + patience_s
        while asked is not None and len(found := self.front_ends()) != asked:
            if on_wait is not None:
                on_wait(f"{self.software} has {len(found)} of {asked} front ends")
                on_wait = None
            # A main process that takes requests itself starts no front ends beside it.
            final = len(found) > asked or self._process.pid in found or not self.running
            if final or time.monotonic() >= deadline:
                raise self._useless(f"api_server_count={asked}", f"requests are taken by {len(found)} of its processes")
            self._process.wait_news(_POLL_S)
        for match in _LOG_NO_EFFECT.finditer(self.log.text()):
            flag = match["flag"] or match["ignored"]
            if self.spec.args.has(flag):
                raise self._useless(f"--{flag}", f"vLLM logged: {match[0].strip()}")

    def check_key(self) -> None:
        """Check that the server refuses a request without the key on a path that vLLM itself leaves open.

        Raises:
            ServerStartError: if it does not.
        """
        stranger = HttpServer(self.base_url, self.model, "")
        try:
            stranger.request("/version")
        except EndpointError as error:
            if error.status == _UNAUTHORISED:
                return
        cause = (
            "its front end does not ask for the key on every path, so other users of this machine could control it; "
            "start it yourself and measure it with --gpucap-url"
        )
        raise ServerStartError(cause, log_path=self.log.path, title=self.software)

    def _useless(self, argument: str, seen: str) -> ServerStartError:
        cause = f"{argument} has no effect with this vLLM ({seen}); remove it from the vllm marker"
        return ServerStartError(cause, log_path=self.log.path, title=self.software)

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
    def max_num_batched_tokens(self) -> int | None:
        """Tokens of one engine step, prompt and generated, over all engines; None if it does not report it."""
        each = self.spec.args.count("max_num_batched_tokens")
        if each is None:
            try:
                each = int(str(self.config["scheduler_config"]["max_num_batched_tokens"]))
            except (ValueError, KeyError, TypeError):
                logged = _LOG_BATCHED_TOKENS.search(self.log.text())
                each = int(logged["tokens"]) if logged else None
        return None if each is None else each * self.spec.args.data_parallel_size

    @cached_property
    def kv_tokens(self) -> int | None:
        """How many tokens its KV cache holds, over all engines; None if it does not report it."""
        if (told := told_kv_tokens(self)) is not None:
            return told
        logged = _LOG_KV_TOKENS.findall(self.log.text())
        return sum(int(tokens.replace(",", "")) for tokens in logged) if logged else None


def start_vllm(
    spec: ServerSpec, *, devices: Sequence[str] = (), on_wait: Callable[[str], None] | None = None
) -> VllmServer:
    """Start what ``vllm serve`` starts and wait until it answers, at all its front ends.

    The server binds port 0, so that the kernel chooses a free port. The port is read from the listening sockets of our
    own processes, so it cannot belong to another server.

    Args:
        spec: what to start.
        devices: GPUs it may use, as entries of CUDA_VISIBLE_DEVICES in the order of the PCI bus; none: it runs on the
            CPU.
        on_wait: called about once a second with what the start is doing.

    Raises:
        ServerStartError: if it is not ready in time or ends before, an argument has no effect, or it answers without
            the key. None of its processes is left running.
        ValueError: for an unknown synthetic model.
    """
    model_path = spec.model
    if synthetic.is_synthetic(spec.model):
        spec = with_own_defaults(spec, cpu=not devices)
        model_path = str(synthetic.make_model(spec.model))
        if spec.adapters:
            spec = spec.with_defaults(lora_arguments(len(spec.adapters), spec.adapter_rank))
    python = shutil.which(spec.python)
    if python is None:
        cause = f"there is no interpreter {spec.python}; choose one that has vLLM with --gpucap-vllm-python"
        raise ServerStartError(cause, title=VllmServer.software)
    known = spec.identity or ServingIdentity.new(spec.model)
    command = [python, str(_SERVE), model_path, *spec.args.flags()]
    command += ["--host", known.host, "--port", "0", "--served-model-name", known.name]
    if spec.adapters:
        # Not among the arguments of the spec: the folders are this machine's, and results name the arguments.
        made = {name: make_adapter(spec.model, name, spec.adapter_rank) for name in spec.adapters}
        command += ["--lora-modules", *(json.dumps({"name": name, "path": str(path)}) for name, path in made.items())]
    launched = launch(
        command,
        model=known.name,
        host=known.host,
        log_path=spec.log_dir / f"{known.name}-{secrets.token_hex(2)}.log",
        timeout_s=spec.startup_timeout_s,
        devices=devices,
        env=_variables(spec, known.api_key),
        default_env=_default_variables(spec, cpu=not devices),
        without_env=_WITHHELD,
        api_key=known.api_key,
        title=VllmServer.software,
        arguments=spec.args,
        on_wait=on_wait,
    )
    server = VllmServer(launched, spec)
    try:
        server.check_key()
        server.check_arguments(_FRONT_ENDS_S, on_wait)
    except BaseException:
        server.close()
        raise
    return server


def with_own_defaults(spec: ServerSpec, *, cpu: bool) -> ServerSpec:
    """A spec with the arguments that a synthetic model adds; other models add none."""
    if not synthetic.is_synthetic(spec.model):
        return spec
    return spec.with_defaults(synthetic.architecture(spec.model).server_args(cpu=cpu))


def _variables(spec: ServerSpec, api_key: str) -> dict[str, str]:
    """What the measurement needs, then what the spec adds."""
    own = {
        # Not the key itself: see `server_side/gpucap_key.py`.
        "GPUCAP_KEY_SHA256": hashlib.sha256(api_key.encode()).hexdigest(),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Otherwise setproctitle overwrites the environment, by which we find escaped processes.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if synthetic.is_synthetic(spec.model):
        own["HF_HUB_OFFLINE"] = "1"
    if spec.identity is not None and spec.identity.open_health:
        own["GPUCAP_OPEN_HEALTH"] = "1"
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
