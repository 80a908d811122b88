"""vLLM's arguments: every spelling that its own parser takes, read once, and what they say of a server.

A marker's keywords, the words of a command line and a result file all become `VllmArguments`. Names are kept in one
form, the long name with underscores; ``-tp 2``, ``tp=2``, ``tensor-parallel-size=2`` and ``--tensor-parallel-size=2``
are the same. Aliases and abbreviations are those of vLLM 0.32 (``vllm/engine/arg_utils.py``, ``argparse``).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pytest_gpucap.errors import shortened, told
from pytest_gpucap.requirement import RequirementError, positive, whole

Item = str | int | float
Value = Item | bool | tuple[Item, ...] | None
"""True and False are a switch and its ``--no-`` form, a tuple is several words, None is an argument left out."""

_STARTS: Final = re.compile(
    r"\bvllm_serve\.py\b|(?:\bvllm|-m vllm\.entrypoints\.cli\.main) serve\b|-m vllm\.entrypoints\.openai\.api_server\b"
)
"""What stands before the arguments on the command line of a vLLM server."""

_SHORT: Final[Mapping[str, str]] = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "dcp": "decode_context_parallel_size",
    "pcp": "prefill_context_parallel_size",
    "dpn": "data_parallel_rank",
    "dpr": "data_parallel_start_rank",
    "dpl": "data_parallel_size_local",
    "dpa": "data_parallel_address",
    "dpp": "data_parallel_rpc_port",
    "dpb": "data_parallel_backend",
    "dph": "data_parallel_hybrid_lb",
    "dpe": "data_parallel_external_lb",
    "dpm": "data_parallel_multi_port_external_lb",
    "ep": "enable_expert_parallel",
    "n": "nnodes",
    "r": "node_rank",
    "q": "quantization",
    "sc": "speculative_config",
    "cc": "compilation_config",
    "ac": "attention_config",
    "dc": "diffusion_config",
    "asc": "api_server_count",
}
"""Names with one dash. ``-O`` is apart, since its value decides what it means (see `_long`)."""
_LEVEL_OR_CONFIG: Final = "O"
_ATTACHED: Final = frozenset({"n", "r", "q", _LEVEL_OR_CONFIG})
"""Short names of one letter: their value may follow without a space, as in ``-qfp8`` and ``-O3``."""
_ALIASES: Final[Mapping[str, str]] = {
    "device_memory_utilization": "gpu_memory_utilization",
    "spec_method": "speculative_config.method",
    "spec_model": "speculative_config.model",
    "spec_tokens": "speculative_config.num_speculative_tokens",
}
_SHORTEST: Final[Mapping[str, str]] = {
    "tensor_parallel_size": "te",
    "pipeline_parallel_size": "pi",
    "decode_context_parallel_size": "dec",
    "prefill_context_parallel_size": "prefill_c",
    "max_num_seqs": "max_num_se",
    "max_model_len": "max_m",
    "gpu_memory_utilization": "gp",
    "speculative_config": "specu",
    "spec_tokens": "spec_t",
    "dtype": "dt",
    "cpu_offload_gb": "cpu_offload_g",
    "kv_cache_memory_bytes": "kv_cache_mem",
}
"""Arguments that are asked for below -> their shortest abbreviation that argparse takes."""
_REPEATED: Final = frozenset({"middleware"})
"""Several values of these stand after a flag each."""
_OWNED: Final[Mapping[str, str]] = {
    "host": "the server listens on loopback only",
    "port": "the kernel chooses a free port",
    "uds": "the server listens on a loopback port",
    "api_key": "every server gets a random key",
    "served_model_name": "every server gets a unique model name",
    "ssl_keyfile": "the loopback connection is plain HTTP",
    "ssl_certfile": "the loopback connection is plain HTTP",
    "root_path": "the server stands at the root",
    "headless": "a headless server answers no requests",
    "grpc": "the load goes over HTTP",
    "model": "it is given by model=",
}
_SIZES: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\+?")
_FLAG: Final = re.compile(r"--?[A-Za-z]")
_READABLE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kKmMgGtT])")
_FACTORS: Final = {letter: 1000**power for power, letter in enumerate("kmgt", 1)} | {
    letter: 1024**power for power, letter in enumerate("KMGT", 1)
}
_AUTO_LENGTH: Final = frozenset({"auto", "-1"})


@dataclass(frozen=True, slots=True)
class VllmArguments:
    """The arguments of one vLLM server. Equal ones start equal servers, however they were spelled.

    Args:
        given: by name in any spelling. True is ``--flag`` and False ``--no-flag``; None leaves the argument out, also
            where a default would set it. A mapping becomes JSON, a list or tuple several values.

    Raises:
        RequirementError: for an argument that we own, a value that no command line can carry, one argument in two
            spellings with different values, or a number that vLLM would not take for one.
    """

    given: InitVar[Mapping[str, object] | None] = None
    values: Mapping[str, Value] = field(init=False, compare=False)
    """By long name, read-only. One key of a JSON argument, ``name.key``, stays as it was given."""
    identity: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    """What the arguments say, free of spelling and order: sorted pairs of name and value as text."""

    def __post_init__(self, given: Mapping[str, object] | None) -> None:
        values = _read(_shown(given or {}))
        object.__setattr__(self, "values", MappingProxyType(values))
        object.__setattr__(self, "identity", _identity(values))
        # Asked for once here, so that what is no number is found before a server is started.
        for name in _SIZES:
            self._size(name)
        _ = (self.max_num_seqs, self.max_model_len, self.gpu_memory_utilization, self.api_server_count)

    @classmethod
    def parse(cls, text: str) -> VllmArguments:
        """Arguments as they stand on a command line, such as ``--max-num-seqs 64 -tp=2 --no-enable-prefix-caching``.

        Several words after a flag are a tuple. ``--name=`` is None: the argument is left out.

        Raises:
            RequirementError: as for the class; and for a word that belongs to no argument.
            ValueError: for an unclosed quote.
        """
        pairs = []
        for spelling, value, shown in _spelled(_split(text), strict=True):
            left_out = value == "" and shown.endswith("=")
            pairs.append((spelling, None if left_out else value, shown))
        return cls(_read(pairs))

    def flags(self) -> list[str]:
        """The words of the command line that carry the arguments."""
        return [word for name, value in self.values.items() for word in _words(name, value)]

    def overlaid(self, top: VllmArguments) -> VllmArguments:
        """These arguments, with those of `top` in their place where both name one; ``name.key`` replaces that key."""
        kept = {name: value for name, value in self.values.items() if not any(_within(name, on) for on in top.values)}
        return VllmArguments(_joined({**kept, **top.values}))

    def with_defaults(self, defaults: Mapping[str, object]) -> VllmArguments:
        """These arguments, and those of `defaults` that were not given in any spelling."""
        given = {_root(name) for name in self.values}
        added = {name: value for name, value in _read(_shown(defaults)).items() if _root(name) not in given}
        return VllmArguments({**self.values, **added})

    def only(self, names: Iterable[str]) -> VllmArguments:
        """Those of these long names that were given, in the order of the names."""
        return VllmArguments(
            {given: value for name in names for given, value in self.values.items() if _root(given) == name}
        )

    def count(self, name: str) -> int | None:
        """The value of an argument as a whole number of at least 1, ``"8K"`` too; None if not given.

        Raises:
            RequirementError: if it is no such number.
        """
        value = self.get(name)
        readable = _readable(value) if isinstance(value, str) else None
        return None if value is None else _whole(name, value if readable is None else readable)

    def has(self, spelling: str) -> bool:
        """Whether an argument, by a spelling of its name without leading dashes, was given a value."""
        name, _ = _long(spelling, None)
        return any(_root(given) == name for given, value in self.values.items() if value is not None)

    def get(self, name: str) -> Value:
        """The value of an argument by its long name, or of ``name.key`` if it was given so; None if not given."""
        return self.values.get(name)

    @property
    def lora_names(self) -> tuple[str, ...]:
        """The names of the adapters in ``lora_modules``, each given as ``name=path`` or as JSON; empty if not given."""
        return tuple(filter(None, map(_lora_name, _several(self.get("lora_modules")))))

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that share every layer."""
        return self._size("tensor_parallel_size")

    @property
    def pipeline_parallel_size(self) -> int:
        """Groups of GPUs that hold a part of the layers each."""
        return self._size("pipeline_parallel_size")

    @property
    def data_parallel_size(self) -> int:
        """Engines side by side that share the requests."""
        return self._size("data_parallel_size")

    @property
    def prefill_context_parallel_size(self) -> int:
        """Groups of GPUs that share the tokens of a prompt."""
        return self._size("prefill_context_parallel_size")

    @property
    def decode_context_parallel_size(self) -> int:
        """GPUs that share the KV cache of a sequence; they are GPUs of the sizes above."""
        return self._size("decode_context_parallel_size")

    @property
    def gpus_per_replica(self) -> int:
        """Tensor x pipeline x data x prefill-context parallel size, on this machine or others.

        As vLLM's ``ParallelConfig.world_size_across_dp``. Expert parallelism and decode-context parallelism use the
        GPUs of the other sizes and add none.
        """
        return (
            self.tensor_parallel_size
            * self.pipeline_parallel_size
            * self.data_parallel_size
            * self.prefill_context_parallel_size
        )

    @property
    def api_server_count(self) -> int | None:
        """Front ends: processes that take requests and hand out tokens; None if not given."""
        return self.count("api_server_count")

    @property
    def max_num_seqs(self) -> int | None:
        """Sequences that each engine runs at once; None if not given."""
        return self.count("max_num_seqs")

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the longest sequence; None if not given or left to vLLM ("auto", -1)."""
        value = self.get("max_model_len")
        return None if str(value).strip().lower() in _AUTO_LENGTH else self.count("max_model_len")

    @property
    def gpu_memory_utilization(self) -> float | None:
        """Share of a GPU's memory that the server plans with; None if not given."""
        value = self.get("gpu_memory_utilization")
        if value is None:
            return None
        if isinstance(value, bool | tuple):
            raise RequirementError(f"vllm: gpu_memory_utilization must be a number, not {told(value)}")
        return float(positive(value, "vllm: gpu_memory_utilization"))

    @property
    def dtype(self) -> str | None:
        """Type of the weights, as given."""
        return self._text("dtype")

    @property
    def quantization(self) -> str | None:
        """Method that the weights are quantised with, as given."""
        return self._text("quantization")

    @property
    def kv_cache_dtype(self) -> str | None:
        """Type of the KV cache's entries, as given."""
        return self._text("kv_cache_dtype")

    @property
    def speculative_tokens(self) -> int:
        """Tokens drafted for each pass; 0 where speculative decoding is off.

        Raises:
            RequirementError: if it is on and their number is not given: vLLM then takes it from the draft model.
        """
        name = "speculative_config"
        if not any(value for given, value in self.values.items() if _root(given) == name):
            return 0
        config = dict(self.identity)[name]
        found = _object(config) or {}
        if found.get("num_speculative_tokens") is None:
            raise RequirementError(f"{name} names no num_speculative_tokens")
        return _whole("num_speculative_tokens", found["num_speculative_tokens"])

    def _size(self, name: str) -> int:
        value = self.get(name)
        return 1 if value is None else _whole(name, value)

    def _text(self, name: str) -> str | None:
        value = self.get(name)
        return None if value in {None, ""} else str(value)


def recorded(arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a result file by their long names; the last of several spellings counts. Refuses nothing."""
    found: dict[str, object] = {}
    for spelling, value in arguments.items():
        name, switched = _long(spelling, value)
        found.pop(name, None)
        found[name] = switched
    return found


def recorded_command(command: str) -> dict[str, object] | None:
    """The arguments that a test gave a vLLM server, from the command line that started it; None if that is no vLLM's.

    ``--max-model-len 4096`` is ``{"max_model_len": "4096"}``, ``--enforce-eager`` True, ``--no-enforce-eager`` False.
    Several values are a list. Arguments that we own are left out.

    Raises:
        ValueError: for an unclosed quote, or a text that is too long for a command line.
    """
    start = _STARTS.search(command)
    if start is None:
        return None
    words = _split(command[start.end() :])
    given = {spelling: value for spelling, value, _ in _spelled(words, strict=False)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in recorded(given).items()
        if name not in _OWNED
    }


_LONGEST_COMMAND: Final = 2**16


def _split(text: str) -> list[str]:
    """The words of a command line."""
    if len(text) > _LONGEST_COMMAND:  # the time to split it grows with the square of its length
        raise RequirementError(f"a command line has at most {_LONGEST_COMMAND} characters, not {len(text)}")
    return shlex.split(text)


Spelled = tuple[str, object, str]
"""An argument as it was given: the spelling of its name, its value, and both as they stood there."""


def _shown(given: Mapping[str, object]) -> Iterator[Spelled]:
    return ((name, value, f"{name}={told(value)}") for name, value in given.items())


def _spelled(words: Sequence[str], *, strict: bool) -> list[Spelled]:
    """The arguments among the words of a command line; if not `strict`, words that belong to none are skipped."""
    found: list[tuple[str, list[str], str]] = []
    for word in words:
        flag, equals, value = word.partition("=")
        is_flag = _FLAG.match(word) is not None
        if is_flag and word.startswith("--"):
            found.append((flag[2:], [value] if equals else [], word))
        elif is_flag and (short := _short_flag(word)) is not None:
            found.append((*short, word))
        elif is_flag and strict:
            shown = shortened(word)
            raise RequirementError(f"vLLM has no argument {shown}; a value with a dash is written --argument={shown}")
        elif found:
            spelling, values, shown = found[-1]
            found[-1] = (spelling, [*values, word], f"{shown} {word}")
        elif strict:
            raise RequirementError(f"{told(word)} follows no --argument")
    return [
        (spelling, True if not values else values[0] if len(values) == 1 else tuple(values), shown)
        for spelling, values, shown in found
    ]


def _short_flag(word: str) -> tuple[str, list[str]] | None:
    """Name and value of ``-tp``, ``-tp=2``, ``-cc.mode`` or ``-O3``; None for what is no short name of vLLM's."""
    flag, equals, value = word[1:].partition("=")
    root = flag.partition(".")[0]
    if root in _SHORT or root == _LEVEL_OR_CONFIG:
        return flag, [value] if equals else []
    if word[1] in _ATTACHED:
        return word[1], [word[2:]]
    return None


def _long(spelling: str, value: object) -> tuple[str, object]:
    """The long name of an argument, and its value with a ``no_`` of the name worked in."""
    root, dot, keys = spelling.partition(".")
    off = root.replace("-", "_").startswith("no_") and isinstance(value, bool | None) and not dot
    short = (root[3:] if off else root).removeprefix("-")
    if short == _LEVEL_OR_CONFIG:
        # vLLM reads a level; its versions before 0.11 read the compilation's JSON.
        config = dot or isinstance(value, Mapping) or _object(value) is not None
        name = "compilation_config" if config else "optimization_level"
    elif short in _SHORT:
        name = _SHORT[short]
    else:
        name = root.replace("-", "_")
        name = name.removeprefix("no_") if off else name
        name = next((full for full, least in _SHORTEST.items() if _abbreviates(name, full, least)), name)
        name = _ALIASES.get(name, name)
    return f"{name}{dot}{keys}", (None if value is None else not value) if off else value


def _abbreviates(name: str, full: str, least: str) -> bool:
    return full.startswith(name) and name.startswith(least)


def _read(given: Iterable[Spelled]) -> dict[str, Value]:
    """Arguments by long name, in a form that a command line can carry.

    Raises:
        RequirementError: see `VllmArguments`.
    """
    found: dict[str, Value] = {}
    shown_as: dict[str, str] = {}
    for spelling, raw, shown in given:
        short = spelling.partition(".")[0].removeprefix("-")
        if _NAME.fullmatch(spelling.removeprefix("-") if short in {*_SHORT, _LEVEL_OR_CONFIG} else spelling) is None:
            raise RequirementError(f"vllm: {told(spelling)} is no name of a vLLM argument")
        name, switched = _long(spelling, raw)
        if _root(name).startswith("no_"):
            raise RequirementError(f"vllm: {spelling} is a switch: write True or False, not {told(raw)}")
        if reason := _OWNED.get(name.lower()):
            raise RequirementError(f"vllm: {spelling} cannot be set: {reason}")
        value = _plain(spelling, switched)
        if name in found and name in _REPEATED:
            value = (*_several(found[name]), *_several(value))
        elif name in found and _identity({name: found[name]}) != _identity({name: value}):
            raise RequirementError(f"vllm: {name} given twice: {shortened(shown_as[name])} and {shortened(shown)}")
        found[name], shown_as[name] = value, shown
    return _joined(found, shown_as)


def _several(value: Value) -> tuple[Item, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _lora_name(given: object) -> str:
    """The name in one entry of ``lora_modules``; empty where there is none."""
    text = str(given)
    found = _object(text)
    return text.partition("=")[0] if found is None else str(found.get("name") or "")


def _plain(name: str, value: object) -> Value:
    """The value in a form that can be hashed and put on a command line."""
    if isinstance(value, list | tuple):
        if not value:
            raise RequirementError(f"vllm: {name} is an empty list: leave it out or name its values")
        items = tuple(_item(name, item) for item in value)
        if "." not in name and (flags := [item for item in items if _FLAG.match(str(item))]):
            raise RequirementError(f"vllm: {name}: {told(flags[0])} in a list would be read as an argument of its own")
        # One item and the item alone are one word; behind a key they are different JSON.
        return items[0] if len(items) == 1 and "." not in name else items
    return value if value is None or isinstance(value, bool) else _item(name, value)


_LARGEST: Final = 10**100
"""More is a mistake; Python makes no text of thousands of digits."""


def _item(name: str, value: object) -> Item:
    """One word of the command line."""
    if isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequirementError(f"vllm: {name}={told(value)} cannot be written as JSON: {error}") from None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RequirementError(f"vllm: {name} must lie within 1e100, not {told(value)}")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise RequirementError(f"vllm: {name}={told(value)}: write text, a number, a mapping or a list of these")


def _words(name: str, value: Value) -> list[str]:
    """The words of the command line for one argument."""
    root, dot, keys = name.partition(".")
    long = f"{root.replace('_', '-')}{dot}{keys}"
    if value is None:
        return []
    if dot and isinstance(value, bool | tuple):
        value = json.dumps(value)  # what stands behind a key is read as JSON
    if isinstance(value, bool):
        # vLLM's switches come in pairs (argparse.BooleanOptionalAction).
        return [f"--{long}" if value else f"--no-{long}"]
    if name in _REPEATED:
        return [word for item in _several(value) for word in (f"--{long}", str(item))]
    if isinstance(value, tuple):
        return [f"--{long}", *map(str, value)]
    return [f"--{long}={value}"] if str(value).startswith("-") else [f"--{long}", str(value)]


def _root(name: str) -> str:
    return name.partition(".")[0]


def _within(name: str, other: str) -> bool:
    """Whether an argument is another one or a key of it."""
    return name == other or name.startswith(f"{other}.")


def _joined(values: Mapping[str, Value], shown_as: Mapping[str, str] | None = None) -> dict[str, Value]:
    """The same with ``name`` and ``name.key`` made one JSON value; alone, ``name.key`` stays as it is.

    vLLM would drop the first of the two without a word.

    Args:
        values: by long name.
        shown_as: how each was given: a key that both set to different values is then an error; else the key counts.
    """
    found = dict(values)
    for root in dict.fromkeys(_root(name) for name in values if "." in name and _root(name) in values):
        whole_value = found.pop(root)
        if whole_value is None:
            continue
        joined = _object(whole_value)
        keys = [name for name in found if _within(name, root)]
        if joined is None:
            raise RequirementError(f"vllm: {root}={told(whole_value)} is no JSON object, and {keys[0]} is a key of one")
        for name in keys:
            before = json.dumps(joined, sort_keys=True)
            _put(joined, name, found.pop(name))
            if shown_as is not None and _loses(json.loads(before), joined):
                raise RequirementError(f"vllm: {name} given twice: {shown_as[root]} and {shown_as[name]}")
        found[root] = json.dumps(joined)
    return found


def _loses(before: object, after: object) -> bool:
    """Whether anything of a JSON value was replaced."""
    if isinstance(before, dict) and isinstance(after, dict):
        return any(key not in after or _loses(value, after[key]) for key, value in before.items())
    return before != after


def _put(config: dict[str, object], name: str, value: Value) -> None:
    """Set what ``name.key.key`` says in a JSON object, as vLLM's parser does; ``key+`` takes a list's elements."""
    if value is None:
        return
    *path, last = name.split(".")[1:]
    for key in path:
        below = config.get(key)
        if not isinstance(below, dict):
            below = config[key] = {}
        config = below
    read: object = _json(value)
    if last.endswith("+"):
        last, read = last[:-1], str(value).split(",")
    here = config.get(last)
    if isinstance(here, dict) and isinstance(read, dict):
        here.update(read)
    else:
        config[last] = read


def _json(value: Value) -> object:
    """A value behind a key as vLLM reads it: as JSON, else as a number with a unit, else as text."""
    if isinstance(value, tuple):
        return list(map(_json, value))
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        readable = _readable(value)
        return value if readable is None else readable


def _object(value: object) -> dict[str, object] | None:
    """The JSON object that a text is; None if it is none."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _identity(values: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """See `VllmArguments.identity`."""
    found: dict[str, str] = {}
    keyed: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if "." in name:
            _put(keyed.setdefault(_root(name), {}), name, value)
        elif (joined := _object(value)) is not None:
            found[name] = json.dumps(joined, sort_keys=True)
        else:
            number = _readable(value) if isinstance(value, str) else None
            found[name] = json.dumps(_words("", value if number is None else number))
    found |= {name: json.dumps(config, sort_keys=True) for name, config in keyed.items()}
    return tuple(sorted(found.items()))


def _readable(text: str) -> int | None:
    """``"4k"`` is 4000 and ``"4K"`` 4096, as vLLM reads numbers with a unit; None for other texts."""
    match = _READABLE.fullmatch(text.strip())
    if match is None or (match[2].isupper() and "." in match[1]):
        return None
    return int(Fraction(match[1]) * _FACTORS[match[2]])


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RequirementError(f"vllm: {name} must be a whole number of at least 1, not {told(value)}")
    return whole(value, f"vllm: {name}")
