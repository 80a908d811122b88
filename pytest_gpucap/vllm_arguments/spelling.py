"""Names of vLLM's arguments: every spelling that its own parser takes, and the long name that each means.

Aliases and abbreviations are those of vLLM 0.32 (``vllm/engine/arg_utils.py``, ``argparse``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pytest_gpucap.errors import shortened, told
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.vllm_arguments.values import FLAG, json_object

SHORT: Final[Mapping[str, str]] = {
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
LEVEL_OR_CONFIG: Final = "O"
_ATTACHED: Final = frozenset({"n", "r", "q", LEVEL_OR_CONFIG})
"""Short names of one letter: their value may follow without a space, as in ``-qfp8`` and ``-O3``."""
_ALIASES: Final[Mapping[str, str]] = {
    "device_memory_utilization": "gpu_memory_utilization",
    "spec_method": "speculative_config.method",
    "spec_model": "speculative_config.model",
    "spec_tokens": "speculative_config.num_speculative_tokens",
}
SHORTEST: Final[Mapping[str, str]] = {
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
OWNED: Final[Mapping[str, str]] = {
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
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\+?")
_LONGEST_COMMAND: Final = 2**16
Spelled = tuple[str, object, str]
"""An argument as it was given: the spelling of its name, its value, and both as they stood there."""


def split_words(text: str) -> list[str]:
    """The words of a command line."""
    if len(text) > _LONGEST_COMMAND:  # the time to split it grows with the square of its length
        raise RequirementError(f"a command line has at most {_LONGEST_COMMAND} characters, not {len(text)}")
    return shlex.split(text)


def as_given(given: Mapping[str, object]) -> Iterator[Spelled]:
    """Arguments of a mapping, each with its ``name=value``."""
    return ((name, value, f"{name}={told(value)}") for name, value in given.items())


def spelled(words: Sequence[str], *, strict: bool) -> list[Spelled]:
    """The arguments among the words of a command line; if not `strict`, words that belong to none are skipped."""
    found: list[tuple[str, list[str], str]] = []
    for word in words:
        flag, equals, value = word.partition("=")
        is_flag = FLAG.match(word) is not None
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
    if root in SHORT or root == LEVEL_OR_CONFIG:
        return flag, [value] if equals else []
    if word[1] in _ATTACHED:
        return word[1], [word[2:]]
    return None


def long_name(spelling: str, value: object) -> tuple[str, object]:
    """The long name of an argument, and its value with a ``no_`` of the name worked in."""
    root, dot, keys = spelling.partition(".")
    off = root.replace("-", "_").startswith("no_") and isinstance(value, bool | None) and not dot
    short = (root[3:] if off else root).removeprefix("-")
    if short == LEVEL_OR_CONFIG:
        # vLLM reads a level; its versions before 0.11 read the compilation's JSON.
        config = dot or isinstance(value, Mapping) or json_object(value) is not None
        name = "compilation_config" if config else "optimization_level"
    elif short in SHORT:
        name = SHORT[short]
    else:
        name = root.replace("-", "_")
        name = name.removeprefix("no_") if off else name
        name = next((full for full, least in SHORTEST.items() if _abbreviates(name, full, least)), name)
        name = _ALIASES.get(name, name)
    return f"{name}{dot}{keys}", (None if value is None else not value) if off else value


def _abbreviates(name: str, full: str, least: str) -> bool:
    return full.startswith(name) and name.startswith(least)
