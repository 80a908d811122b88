"""The server that a test needs: the model, vLLM's arguments, and the environment it runs in."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from pytest_gpucap.engines.protocol import ServingIdentity
from pytest_gpucap.vllm_arguments import VllmArguments


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One distinct vLLM server. Equal specs (same model, arguments, interpreter, environment) share one server.

    Args:
        model: a hub name, a folder, or ``synthetic:NAME`` (see `synthetic.py`).
        args: vLLM's arguments.
        python: the interpreter that has vLLM.
        env: environment variables added to this process's own.
        startup_timeout_s: seconds from start to ready.
        log_dir: folder of the logs.
        identity: name, key and address that it must have; None: a name and a key of its own, on loopback.
        adapters: LoRA adapters that are made for a synthetic model.
        adapter_rank: of these.

    Raises:
        ValueError: if the model is empty.
    """

    model: str = field(compare=False)
    args: VllmArguments = field(default_factory=VllmArguments, compare=False)
    python: str = field(default=sys.executable, compare=False)
    env: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    startup_timeout_s: float = field(default=1800.0, compare=False)
    log_dir: Path = field(default=Path(".gpucap/logs"), compare=False)
    identity: ServingIdentity | None = field(default=None, compare=False)
    adapters: tuple[str, ...] = field(default=(), compare=False)
    adapter_rank: int = field(default=16, compare=False)
    key: str = field(init=False, repr=False)
    """Stable identity of a server: everything but the timeout, the log folder and what clients know it by."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("vllm: model is empty: name a hub model, a folder or synthetic:NAME")
        env = {str(name): str(value) for name, value in self.env.items()}
        made = [[*self.adapters, str(self.adapter_rank)]] if self.adapters else []
        identity = [self.model, self.python, sorted(env.items()), self.args.identity, *made]
        object.__setattr__(self, "env", MappingProxyType(env))
        object.__setattr__(self, "key", hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])

    def with_defaults(self, defaults: Mapping[str, object]) -> ServerSpec:
        """A copy with these arguments added, except those already given in any spelling."""
        return replace(self, args=self.args.with_defaults(defaults))
