"""What server a test wants: the model, and vLLM's own arguments passed through by name."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

Item = str | int | float
Value = Item | bool | tuple[Item, ...] | None

_OWNED = {
    "host": "the server listens on loopback only",
    "port": "the kernel chooses a free port",
    "uds": "the server listens on a loopback port",
    "api_key": "every server gets a random key",
    "served_model_name": "every server gets a unique model name",
    "ssl_keyfile": "the loopback connection is plain HTTP",
    "ssl_certfile": "the loopback connection is plain HTTP",
    "root_path": "the server stands at the root",
    "headless": "a headless server answers no requests",
    "model": "it is given by model=",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One distinct vLLM server. Equal specs (same model, arguments, interpreter, environment) share one server.

    Args:
        model: a hub name, a folder, or ``synthetic:NAME`` (see `synthetic.py`).
        args: vLLM's arguments by their keyword (``max_model_len=4096``), known to us or not. True becomes ``--flag``,
            False ``--no-flag``, None is left out, a mapping becomes JSON, a list or tuple repeated values. Kept in a
            read-only mapping of plain values.
        python: the interpreter that has vLLM.
        env: environment variables on top of the present ones.
        startup_timeout_s: seconds from start to ready.
        log_dir: folder of the logs.

    Raises:
        ValueError: for a keyword that we own, or a value that no command line can carry.
    """

    model: str = field(compare=False)
    args: Mapping[str, Any] = field(default_factory=dict, compare=False)
    python: str = field(default=sys.executable, compare=False)
    env: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    startup_timeout_s: float = field(default=1800.0, compare=False)
    log_dir: Path = field(default=Path(".gpucap/logs"), compare=False)
    key: str = field(init=False, repr=False)
    """Stable identity over what makes servers distinct: everything but the timeout and the folder of the logs."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("vllm: model is empty: name a hub model, a folder or synthetic:NAME")
        args = {name: _plain(name, value) for name, value in self.args.items()}
        names = [_canonical(name) for name in args]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"vllm: {', '.join(sorted(twice))} given twice")
        env = {str(name): str(value) for name, value in self.env.items()}
        identity = [self.model, self.python, sorted(env.items()), sorted(map(_flags, args, args.values()))]
        object.__setattr__(self, "args", MappingProxyType(args))
        object.__setattr__(self, "env", MappingProxyType(env))
        object.__setattr__(self, "key", hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])

    def with_defaults(self, defaults: Mapping[str, Any]) -> ServerSpec:
        """The same with arguments added that were not given in any spelling."""
        given = {_canonical(name) for name in self.args}
        return replace(self, args={**self.args, **{n: v for n, v in defaults.items() if _canonical(n) not in given}})

    def flags(self) -> list[str]:
        """The command line that carries `args`."""
        return [word for name, value in self.args.items() for word in _flags(name, value)]


def _flags(name: str, value: Value) -> list[str]:
    """The words of the command line for one argument."""
    flag = "--" + name.replace("_", "-")
    match value:
        case None:
            return []
        case True:
            return [flag]
        case False:
            # vLLM's switches come in pairs (argparse.BooleanOptionalAction).
            return ["--no-" + name.replace("_", "-")]
        case tuple():
            return [flag, *map(str, value)]
        case str() if value.startswith("-"):
            return [f"{flag}={value}"]
        case _:
            return [flag, str(value)]


def _canonical(name: str) -> str:
    """One name for all spellings of an argument: ``no-enforce-eager`` and ``enforce_eager`` set the same."""
    return name.replace("-", "_").removeprefix("no_")


def _plain(name: str, value: Any) -> Value:
    """The value in a form that can be hashed and put on a command line."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"vllm: {name!r} is no name of a vLLM argument")
    if reason := _OWNED.get(_canonical(name).lower()):
        raise ValueError(f"vllm: {name} cannot be set: {reason}")
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"vllm: {name} is an empty list: leave it out or name its values")
        return tuple(_item(name, item) for item in value)
    return value if value is None or isinstance(value, bool) else _item(name, value)


def _item(name: str, value: Any) -> Item:
    """One word of the command line."""
    if isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except TypeError as error:
            raise ValueError(f"vllm: {name}={value!r} cannot be written as JSON: {error}") from None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"vllm: {name}={value!r}: write text, a number, a mapping or a list of these")
