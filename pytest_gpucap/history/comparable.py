"""Which results may be compared: what must be equal by name, and what may differ because it is what is being tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.history.scrub import scrubbed
from pytest_gpucap.results.record import Record
from pytest_gpucap.vllm_arguments import recorded

_UNKNOWN: Final = "unknown"
_NONE: Final = "none"
_CPU_CLASS: Final = "cpu"
WEIGHTS: Final = {"quantization": "quantisation", "dtype": "dtype"}
"""How weights are held, with what to call it: an argument of the server, or what its model's own files decide."""
_TRACE: Final = "trace_sha256"
"""What a trace holds is what counts; the name of its file only where a file is too old to tell the rest."""
TOLD: Final = frozenset({*WEIGHTS, _TRACE})
"""What only some files tell."""
_MAY_DIFFER: Final = (
    ("server", "server"),
    ("driver", "driver"),
    ("CUDA", "cuda"),
    ("plugin", "plugin"),
    ("host", "host"),
)
_KV_SHARE: Final = 0.01
"""The KV cache's size differs a little from start to start; beyond this share it is worth a word."""


def identity(record: Record, *, told: frozenset[str] = TOLD) -> dict[str, str]:
    """What makes results comparable, each by the name a person would give it.

    GPU class (for `cpu` the processor), GPUs a replica, model, quantisation, every part of the workload, every limit
    and every server argument. Values are texts, because an early file holds ``"4096"`` where a later one holds 4096.

    Args:
        record: the result.
        told: of `TOLD`, what is taken from the record. Else `quantization` and `dtype` are those of the arguments, not
            the server's own word, and a trace is the name of its file.
    """
    environment = scrubbed(record["environment"])
    arguments = recorded(environment.get("server_args") or {})
    names = {
        "measured or SIMULATED": "SIMULATED" if record["simulated"] else "measured",
        "GPU class": _text(environment.get("gpu_class"), _UNKNOWN),
        "GPUs a replica": _text(record["requirement"].get("gpus_per_replica")),
        "model": _text(environment.get("model"), _UNKNOWN),
    }
    for key, name in WEIGHTS.items():
        names[name] = _text((environment if key in told else arguments).get(key))
    if environment.get("gpu_class") == _CPU_CLASS:
        names["processor"] = _text(environment.get("gpu"), _UNKNOWN)
    if profiles := {device.get("mig_profile") for device in environment.get("devices") or ()} - {None}:
        names["MIG profile"] = ", ".join(sorted(map(str, profiles)))
    workload = {key: value for key, value in record["workload"].items() if key != "preset"}  # it names what follows
    contents = workload.pop(_TRACE, None)
    if contents is not None and _TRACE in told:
        del workload["trace"]
        names["workload trace's contents"] = f"{contents[:12]}..."
    names |= {f"workload {key}": _text(value) for key, value in _flat(workload).items()}
    names |= {f"limit {key}": _text(value) for key, value in _flat(record["slo"]).items()}
    names |= {f"server argument {key}": _text(value) for key, value in arguments.items() if key not in WEIGHTS}
    return names


def differences(base: Record, head: Record, *, variants: bool = False) -> list[str]:
    """What keeps two results from being compared, as ``name: base -> head``; empty when they may be.

    Args:
        base: the result to compare with.
        head: the result to look at.
        variants: how the model is served (`_is_served`) is what is being tested, and may differ.
    """
    found = _unlike(base, head)
    return [text for name, text in found.items() if not (variants and _is_served(name))]


def _unlike(base: Record, head: Record) -> dict[str, str]:
    told = TOLD & _told(base) & _told(head)
    ours, theirs = identity(base, told=told), identity(head, told=told)
    return {
        name: f"{name}: {ours.get(name, _NONE)} -> {theirs.get(name, _NONE)}"
        for name in dict.fromkeys([*ours, *theirs])
        if not _same(ours.get(name), theirs.get(name))
    }


def _is_served(name: str) -> bool:
    """Whether a part of the identity is the server's: its arguments, the model's name, and how weights are held."""
    return name == "model" or name in WEIGHTS.values() or name.startswith("server argument ")


def _told(record: Record) -> set[str]:
    """What a record's build knew to say: of weights that there is nothing to say counts, of a trace it does not."""
    return {*record["environment"], *([_TRACE] if record["workload"].get(_TRACE) else [])}


def _same(one: str | None, other: str | None) -> bool:
    """Whether two values are the same; a key that a build did not know yet stands for its empty value."""
    return one == other or (None in {one, other} and {one, other} <= {None, _NONE, "", "false"})


def changed(base: Record, head: Record, *, variants: bool = False) -> list[str]:
    """What differs and may: it is what the comparison is about, or may explain it; arguments as of `differences`."""
    served = [text for name, text in _unlike(base, head).items() if _is_served(name)] if variants else []
    ours, theirs = scrubbed(base["environment"]), scrubbed(head["environment"])
    found = served + [
        f"{name}: {_text(ours.get(key), _UNKNOWN)} -> {_text(theirs.get(key), _UNKNOWN)}"
        for name, key in _MAY_DIFFER
        if ours.get(key) != theirs.get(key)
    ]
    found += [
        f"{name}: {_text(one, _UNKNOWN)} -> {_text(other, _UNKNOWN)}"
        for name, key in (("power limit W", "power_limit_w"), ("highest SM clock MHz", "max_sm_clock_mhz"))
        if (one := _device(ours, key)) != (other := _device(theirs, key)) and None not in {one, other}
    ]
    one, other = ours.get("kv_tokens"), theirs.get("kv_tokens")
    if one and other and abs(other / one - 1) > _KV_SHARE:
        found.append(f"KV cache tokens: {one} -> {other}")
    if base["seed"] != head["seed"]:
        found.append(f"seed: {base['seed']} -> {head['seed']}")
    return found


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings by dotted names less their own: ``limits: {ttft_p95: 1}`` is ``ttft_p95``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        else:
            flat[key] = value
    return flat


def _device(environment: Mapping[str, Any], key: str) -> Any:
    devices = environment.get("devices") or ()
    return devices[0].get(key) if devices else None


def _text(value: Any, absent: str = _NONE) -> str:
    if value is None:
        return absent
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(int(value))
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    return str(value)
