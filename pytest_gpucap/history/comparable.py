"""Which results may be compared: what must be equal, and what may differ because it may be what is being tested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Flag, auto
from typing import Final, NamedTuple

import msgspec

from pytest_gpucap.history.store import scrubbed
from pytest_gpucap.report.formatting import significant
from pytest_gpucap.results.environment import DeviceState, Environment
from pytest_gpucap.results.imported import ImportedFrom
from pytest_gpucap.results.result import DeclaredWorkload, Result
from pytest_gpucap.vllm_arguments import recorded

_UNKNOWN: Final = "unknown"
_NONE: Final = "none"
_CPU_CLASS: Final = "cpu"
_KV_SHARE: Final = 0.01
"""The KV cache's size differs a little from start to start; a change is named beyond this share."""


HIT_RATES_APART: Final = 0.1
"""Prefix hit rates that differ by more make other work of the same prompts. Those of two runs of the same server differ
by a few hundredths: sessions are drawn, and the cache is cold when a measurement begins."""
_STARTUP_SHARE: Final = 0.2
"""A start-up time differs from start to start with what the machine has cached; a change is named beyond this share."""
_SHORT: Final = 80
"""Characters of extra fields that are named in full."""


class Told(Flag):
    """What only some builds wrote into their files."""

    QUANTIZATION = auto()
    """How the server says that it quantises the weights; else its argument is compared."""
    DTYPE = auto()
    """The data type that the server says it holds the weights in; else its argument is compared."""
    TRACE = auto()
    """What a trace holds; else the name of its file is compared."""
    ENGINE = auto()
    """Which engine started the server; else it is not compared: it is not known behind a URL either."""


class IdentityKey(NamedTuple):
    """Names one part of the identity.

    Attributes:
        name: as people read it.
        served: the part says how the model is served: the server's arguments, the model's name, how weights are held.
    """

    name: str
    served: bool = False


EVERYTHING: Final = Told.QUANTIZATION | Told.DTYPE | Told.TRACE | Told.ENGINE


def identity(result: Result, *, told: Told = EVERYTHING) -> dict[IdentityKey, str]:
    """What must be equal for results to be comparable.

    GPU class (for `cpu` the processor), GPUs per replica, replicas measured together, engine, model, quantisation,
    every part of the workload, every limit and every server argument. Values are texts: an early file holds ``"4096"``
    where a later one holds 4096.

    Args:
        result: the result.
        told: what is taken from the result's own words; see `Told`.
    """
    environment = scrubbed(result.environment)
    arguments = recorded(environment.server_args or {})
    quantization, dtype = arguments.pop("quantization", None), arguments.pop("dtype", None)
    quantization = environment.quantization if Told.QUANTIZATION in told else quantization
    dtype = environment.dtype if Told.DTYPE in told else dtype
    found = {
        IdentityKey("measured or SIMULATED"): _source(result),
        IdentityKey("GPU class"): _text(environment.gpu_class, _UNKNOWN),
        IdentityKey("GPUs per replica", served=True): _text(result.requirement.gpus_per_replica),
        IdentityKey("replicas measured together", served=True): _text(result.requirement.fleet),
        IdentityKey("model", served=True): _text(environment.model, _UNKNOWN),
        IdentityKey("quantisation", served=True): _text(quantization),
        IdentityKey("dtype", served=True): _text(dtype),
    }
    if Told.ENGINE in told:
        found[IdentityKey("engine", served=True)] = _text(_engine(environment))
    if environment.gpu_class == _CPU_CLASS:
        found[IdentityKey("processor")] = _text(environment.gpu, _UNKNOWN)
    if profiles := {device.mig_profile for device in environment.devices if device.mig_profile is not None}:
        found[IdentityKey("MIG profile")] = ", ".join(sorted(profiles))
    found |= workload_identity(result.workload, contents=Told.TRACE in told)
    found |= _offered(result)
    found |= {IdentityKey(f"limit {name}"): _text(value) for name, value in _leaves(result.slo)}
    found |= {IdentityKey(f"server argument {name}", served=True): _text(value) for name, value in arguments.items()}
    return found


def _source(result: Result) -> str:
    """Who measured what: only the same kind of figures may be compared."""
    what = "SIMULATED" if result.simulated else "measured"
    return what if result.imported is None else f"{what} by {result.imported.tool}, imported"


def _offered(result: Result) -> dict[IdentityKey, str]:
    """Of a point of another tool: its load, what a sweep varied, and lengths as seen, which differ a little each time.

    Two figures of such a length count.
    """
    found = result.imported
    if found is None:
        return {}
    parts = {IdentityKey("load"): found.load}
    parts |= {IdentityKey(f"parameter {name}", served=True): value for name, value in found.parameters.items()}
    if found.observed_lengths:
        for name in ("input_tokens", "output_tokens"):
            length = getattr(result.workload, name)
            seen = f"about {significant(length, 2)}" if isinstance(length, int) else _text(length)
            parts[IdentityKey(f"workload {name}")] = seen
    return parts


def workload_identity(workload: DeclaredWorkload, *, contents: bool) -> dict[IdentityKey, str]:
    """Every part of the workload but the preset, which only names the others.

    Args:
        workload: as declared.
        contents: a trace is compared by what it holds, where that is known.
    """
    left_out, found = {"preset", "trace_sha256", "prompts_sha256", "extra_body", "extra_body_sha256", "adapters"}, {}
    if workload.adapters:
        mix = sorted(f"{each.name} {each.share:.4%}" for each in workload.adapters)
        found[IdentityKey("workload adapters")] = ", ".join(mix)
    if workload.extra_body_sha256 is not None:
        digest = f"sha256 {workload.extra_body_sha256[:12]}"
        short = workload.extra_body if len(workload.extra_body or "") <= _SHORT else None
        found[IdentityKey("workload extra_body")] = short or digest
    if workload.prompts_sha256 is not None:
        # What they send decides, and lengths follow from it as the model's tokenizer counts.
        left_out |= {"prompts", "prompt_count", "input_tokens"}
        found[IdentityKey("workload prompts' contents")] = f"{workload.prompts_sha256[:12]}..."
    left_out.add("sessions_sha256")
    if workload.sessions_sha256 is not None:
        left_out |= {"sessions", "session_count", "input_tokens", "output_tokens"}
        found[IdentityKey("workload sessions' contents")] = f"{workload.sessions_sha256[:12]}..."
    if contents and workload.trace_sha256 is not None:
        left_out.add("trace")
        found[IdentityKey("workload trace's contents")] = f"{workload.trace_sha256[:12]}..."
    return found | {
        IdentityKey(f"workload {name}"): _text(value) for name, value in _leaves(workload) if name not in left_out
    }


def same_requests(one: DeclaredWorkload, other: DeclaredWorkload, *, recorded: bool = False) -> bool:
    """Whether two workloads send the same requests, as far as it is declared.

    Args:
        one: a workload.
        other: another one.
        recorded: answers are as long as those that a file of prompts records. What it holds decides, since the server
            has not counted them for one of the two.
    """
    contents = bool(one.trace_sha256 and other.trace_sha256)
    ours, theirs = (workload_identity(each, contents=contents) for each in (one, other))
    names = dict.fromkeys([*ours, *theirs])
    if recorded:
        names.pop(IdentityKey("workload output_tokens"), None)
    return all(_same(ours.get(key), theirs.get(key)) for key in names)


def differences(base: Result, head: Result, *, variants: bool = False, any_hits: bool = False) -> list[str]:
    """What keeps two results from being compared, as ``name: base -> head``; empty when they may be.

    Args:
        base: the result to compare with.
        head: the result to look at.
        variants: how the model is served (`IdentityKey.served`) is what is being tested, and may differ. So may how
            much the server finds in its prefix cache.
        any_hits: that alone may differ.
    """
    found = [text for key, text in _unlike(base, head).items() if not (variants and key.served)]
    apart = hits_apart(base, head)
    return found if variants or any_hits or not apart else [*found, apart]


def hits_apart(base: Result, head: Result) -> str:
    """How the prefix hit rates of two results with sessions differ, if they clearly do; else empty."""
    before, after = base.prefix_hit_rate, head.prefix_hit_rate
    if before is None or after is None or abs(after - before) <= HIT_RATES_APART:
        return ""
    return f"prefix hit rate: {before:.0%} -> {after:.0%}"


def _unlike(base: Result, head: Result) -> dict[IdentityKey, str]:
    told = _told(base) & _told(head)
    ours, theirs = identity(base, told=told), identity(head, told=told)
    return {
        key: f"{key.name}: {ours.get(key, _NONE)} -> {theirs.get(key, _NONE)}"
        for key in dict.fromkeys([*ours, *theirs])
        if not _same(ours.get(key), theirs.get(key))
    }


def _told(result: Result) -> Told:
    """What a result's build wrote. For weights None is an answer; for a trace it is not."""
    environment, told = result.environment, Told(0)
    if environment.quantization is not msgspec.UNSET:
        told |= Told.QUANTIZATION
    if environment.dtype is not msgspec.UNSET:
        told |= Told.DTYPE
    if _engine(environment) is not None:
        told |= Told.ENGINE
    return told | Told.TRACE if result.workload.trace_sha256 else told


def _same(one: str | None, other: str | None) -> bool:
    """Whether two values are the same. A name that one build did not know yet has its empty value there."""
    return one == other or (None in {one, other} and {one, other} <= {None, _NONE, "", "false"})


def changed(base: Result, head: Result, *, variants: bool = False) -> list[str]:
    """What differs and may, because it is what is being tested or may explain a change; arguments as `differences`."""
    served = [text for key, text in _unlike(base, head).items() if key.served] if variants else []
    ours, theirs = scrubbed(base.environment), scrubbed(head.environment)
    before, after = _versions(ours), _versions(theirs)
    found = served + (_told_by_engines(ours, theirs) if variants else [])
    found += [
        f"{name}: {_text(before[name], _UNKNOWN)} -> {_text(after[name], _UNKNOWN)}"
        for name in before
        if before[name] != after[name]
    ]
    for name, one, other in zip(_SETTINGS, _settings(ours), _settings(theirs), strict=True):
        if one is not None and other is not None and one != other:
            found.append(f"{name}: {_text(one)} -> {_text(other)}")
    if ours.kv_tokens and theirs.kv_tokens and abs(theirs.kv_tokens / ours.kv_tokens - 1) > _KV_SHARE:
        found.append(f"KV cache tokens: {ours.kv_tokens} -> {theirs.kv_tokens}")
    if ours.startup_s and theirs.startup_s and abs(theirs.startup_s / ours.startup_s - 1) > _STARTUP_SHARE:
        found.append(f"start-up s: {ours.startup_s:g} -> {theirs.startup_s:g}")
    if ours.reused != theirs.reused:
        found.append(f"server reused: {_text(ours.reused)} -> {_text(theirs.reused)}")
    if base.imported is not None and head.imported is not None:
        found += _told_differently(base.imported, head.imported)
    found += [apart] if (apart := hits_apart(base, head)) else []
    if base.seed != head.seed:
        found.append(f"seed: {base.seed} -> {head.seed}")
    return found


def _told_by_engines(base: Environment, head: Environment) -> list[str]:
    """What one of two engines does not tell, and how many requests each runs at once, which no common argument says."""
    found = []
    if base.not_told != head.not_told:
        before, after = (", ".join(each.not_told) or _NONE for each in (base, head))
        found.append(f"not told: {before} -> {after}")
    if _engine(base) != _engine(head) and base.max_num_seqs != head.max_num_seqs:
        found.append(f"requests at once: {_text(base.max_num_seqs, _UNKNOWN)} -> {_text(head.max_num_seqs, _UNKNOWN)}")
    return found


def _told_differently(base: ImportedFrom, head: ImportedFrom) -> list[str]:
    """The tools' versions, and what their users had them write down."""
    ours, theirs = ({"tool": each.version or _UNKNOWN, **each.labels} for each in (base, head))
    return [
        f"{name}: {ours.get(name, _NONE)} -> {theirs.get(name, _NONE)}"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def _engine(environment: Environment) -> str | None:
    """The engine that started the server; None where that is not known. Early files say it by the server's name."""
    early = environment.url is None and (environment.server or "").startswith("vLLM ")
    return environment.engine or ("vllm" if early else None)


def _versions(environment: Environment) -> dict[str, str | None]:
    return {
        "server": environment.server,
        "driver": environment.driver,
        "CUDA": environment.cuda,
        "plugin": environment.plugin,
        "host": environment.host,
    }


_SETTINGS: Final = ("power limit W", "highest SM clock MHz")


def _settings(environment: Environment) -> tuple[float | None, float | None]:
    """Those of the first device; all have the same."""
    device = environment.devices[0] if environment.devices else DeviceState()
    return device.power_limit_w, device.max_sm_clock_mhz


def _leaves(declared: object) -> Iterator[tuple[str, object]]:
    """Fields by name. What stands inside a field has no prefix: ``limits: {ttft_p95: 1}`` is ``ttft_p95``."""
    for name, value in _fields(declared):
        if isinstance(value, Mapping | msgspec.Struct) or is_dataclass(value):
            yield from _leaves(value)
        else:
            yield name, value


def _fields(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, msgspec.Struct):
        yield from ((name, getattr(value, name)) for name in value.__struct_fields__)
    elif is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))


def _text(value: object, absent: str = _NONE) -> str:
    if value is None or value is msgspec.UNSET:
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
