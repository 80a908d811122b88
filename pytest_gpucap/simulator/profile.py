"""Profiles of simulated servers: data files that say how fast a made-up or measured engine steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.errors import GpuCapError, told
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.requirement import (
    ApiKind,
    Arrivals,
    Length,
    RequirementError,
    Slo,
    Workload,
    declared_limits,
    exact,
    positive,
    share,
    whole,
)
from pytest_gpucap.user_files import UserFileError, exists, read_toml, shown_path

if TYPE_CHECKING:  # loads NumPy; naming a profile at collection does not need it
    import numpy as np

    from pytest_gpucap.arrays import Floats, Ints


class ProfileError(GpuCapError, ValueError):
    """A profile that does not exist or cannot be read; the message says which do."""


@dataclass(frozen=True, slots=True)
class EngineModel:
    """How the engine steps; see `pytest_gpucap.simulator.engine` for the formula. All times in seconds.

    Attributes:
        base_s, per_seq_s, per_kv_token_s, per_prompt_token_s: terms of a step's time.
        per_seq_over_s: added for every decode beyond `knee`.
        noise: standard deviation of a step's time over its mean, independent from step to step.
        drift_sd, drift_tau_s: slow drift of the logarithm of all times: stationary sd, and time constant.
        stall_per_s, stall_s: rare stops per second of running, and how long each lasts.
        warm_extra, warm_tau_s: a fresh server is slower by this share, fading exponentially.
        max_num_seqs, max_num_batched_tokens, kv_tokens: the scheduler's limits.
        front_token_s: time of the API server for each token that it hands out; 0: it takes none.
        front_loss, front_backlog_s: the API server takes longer by up to this share as its backlog grows, by half of it
            at this backlog in seconds.
        front_request_s: time of the API server for each request, besides its tokens.
        front_wander_sd: its pace wanders by this, with `wander_tau_s`.
        graph_step, graph_most: batch sizes of CUDA graphs, in multiples of the one up to the other; 0: no graphs.
        per_prompt_context_s: for each prompt token and each token of context before it.
        mixed_slow: a step with decodes and prompt tokens takes longer by this share.
        spec_tokens, spec_accept, spec_accept_sd: speculated tokens a step, and the rate at which they are accepted: its
            mean over requests and standard deviation.
        per_draft_s, per_draft_seq_s: time for each speculated token in a step, and for each of them and each decode.
        prefix_share, prefix_warm_s: share of a prompt's tokens that the prefix cache comes to have, and in what time
            constant after the start; 0: at once.
        wander_sd, wander_tau_s: quick wandering of the logarithm of all times: stationary sd, and time constant.
        throttle_sd, throttle_every_s: the clock takes a new level at this interval: sd of the logarithm of all times.
        stall_spread: lengths of stops differ by up to this share of `stall_s`, uniformly.
        idle_w, busy_w: power that the device always takes, and what it takes beyond that in a step; both 0: it has no
            counter of its energy.
    """

    base_s: float
    per_seq_s: float
    per_prompt_token_s: float
    per_kv_token_s: float = 0.0
    per_seq_over_s: float = 0.0
    knee: float = 1e9
    noise: float = 0.04
    drift_sd: float = 0.007
    drift_tau_s: float = 90.0
    stall_per_s: float = 0.01
    stall_s: float = 0.3
    warm_extra: float = 0.35
    warm_tau_s: float = 3.5
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_tokens: int = 2_000_000
    front_token_s: float = 0.0
    front_loss: float = 0.0
    front_backlog_s: float = 1.0
    graph_step: int = 0
    graph_most: int = 512
    per_prompt_context_s: float = 0.0
    mixed_slow: float = 0.0
    spec_tokens: int = 0
    spec_accept: float = 0.6
    spec_accept_sd: float = 0.0
    per_draft_s: float = 0.0
    per_draft_seq_s: float = 0.0
    prefix_share: float = 0.0
    prefix_warm_s: float = 0.0
    wander_sd: float = 0.0
    wander_tau_s: float = 2.5
    throttle_sd: float = 0.0
    throttle_every_s: float = 30.0
    stall_spread: float = 0.0
    front_request_s: float = 0.0
    front_wander_sd: float = 0.0
    idle_w: float = 0.0
    busy_w: float = 0.0

    @property
    def params(self) -> Floats:
        """The engine's parameter vector."""
        import numpy as np

        return np.array(
            [
                self.base_s, self.per_seq_s, self.per_seq_over_s, self.knee, self.per_kv_token_s,
                self.per_prompt_token_s, self.noise, self.drift_sd, self.drift_tau_s, self.stall_per_s, self.stall_s,
                self.warm_extra, self.warm_tau_s, self.max_num_seqs, self.max_num_batched_tokens, self.kv_tokens,
                self.front_token_s, self.front_loss, self.front_backlog_s, self.graph_step, self.graph_most,
                self.per_prompt_context_s, self.mixed_slow, self.spec_tokens, self.per_draft_s, self.per_draft_seq_s,
                self.prefix_share, self.prefix_warm_s, self.wander_sd, self.wander_tau_s, self.throttle_sd,
                self.throttle_every_s, self.stall_spread, self.front_request_s, self.front_wander_sd,
            ]
        )  # fmt: skip

    def paces(self, rng: np.random.Generator, requests: int) -> Ints:
        """Thousandths of tokens that each of some new requests will make in a step."""
        import numpy as np

        if self.spec_tokens == 0:
            return np.full(requests, 1000, np.int64)
        accepted = np.clip(rng.normal(self.spec_accept, self.spec_accept_sd, requests), 0.01, 0.99)
        return (1000 * (1 - accepted ** (self.spec_tokens + 1)) / (1 - accepted)).astype(np.int64)

    def settled(self) -> EngineModel:
        """The same engine long after its start: warm, and its prefix cache as full as it gets."""
        return replace(self, warm_extra=0.0, prefix_warm_s=0.0)

    def scaled(self, factor: float) -> EngineModel:
        """The same engine with every time of a step multiplied by `factor` (below 1: faster)."""
        return replace(
            self,
            base_s=self.base_s * factor,
            per_seq_s=self.per_seq_s * factor,
            per_prompt_token_s=self.per_prompt_token_s * factor,
            per_kv_token_s=self.per_kv_token_s * factor,
            per_seq_over_s=self.per_seq_over_s * factor,
            front_token_s=self.front_token_s * factor,
            front_backlog_s=self.front_backlog_s * factor,
            front_request_s=self.front_request_s * factor,
            per_prompt_context_s=self.per_prompt_context_s * factor,
            per_draft_s=self.per_draft_s * factor,
            per_draft_seq_s=self.per_draft_seq_s * factor,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """A simulated server, and the workload and limits under which its capacity is known.

    Attributes:
        name: of the data file.
        source: what it is calibrated to, or that it is made up.
        held_out: kept aside while the measuring procedure was tuned.
        engine: how it steps.
        workload, slo: for which `true_rate_rps` holds.
        true_rate_rps: sustainable rate under that workload and SLO from long runs; NaN until determined.
        startup_s: what its start would take; None: nobody knows.
        accuracy: share of right answers to the questions that come with the plugin, over HTTP.
        file: where it stands, for profiles that do not come with the plugin.
    """

    name: str
    source: str
    held_out: bool
    engine: EngineModel
    workload: Workload
    slo: Slo
    true_rate_rps: float = float("nan")
    startup_s: float | None = None
    accuracy: float = 1.0
    file: Path | None = None


def names() -> tuple[str, ...]:
    """Names of the profiles that come with the plugin."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml")))


def load(name: str | Path) -> Profile:
    """A profile by the name of one that comes with the plugin, or by the path of a TOML file.

    Raises:
        ProfileError: if there is none of that name, or a key is unknown or a value wrong.
    """
    text = str(name)
    if text.endswith(".toml"):
        path = Path(text)
        if not exists(path):
            raise ProfileError(f"simulator profile {shown_path(text)} does not exist")
        return replace(_parse(shown_path(path.stem), path), file=path.resolve())
    if text not in names():
        raise ProfileError(
            f"no simulator profile {text!r}: there are {', '.join(names())}, or the path of a .toml file"
        )
    return _shipped(text)


@lru_cache(maxsize=64)
def _shipped(name: str) -> Profile:
    return _parse(name, _folder() / f"{name}.toml")


def _folder() -> Path:
    return Path(str(files("pytest_gpucap.simulator"))) / "profiles"


def _parse(name: str, path: Path) -> Profile:
    try:
        return _profile(name, read_toml(path))
    except UserFileError as error:
        raise ProfileError(f"simulator profile {name}: {error.why}") from None
    except KeyError as error:
        raise ProfileError(f"simulator profile {name}: {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:  # a `RequirementError` too
        raise ProfileError(f"simulator profile {name}: {on_one_line(str(error))}") from error


def _profile(name: str, data: dict[str, Any]) -> Profile:
    engine = data.pop("engine")
    work = data.pop("workload")
    slo = data.pop("slo", {})
    known = {f.name for f in fields(EngineModel)}
    if unknown := set(engine) - known:
        raise RequirementError(f"unknown engine keys {told(sorted(unknown))}")
    if missing := _NEEDED - set(engine):
        raise RequirementError(f"[engine] lacks {', '.join(sorted(missing))}")
    if unknown := set(data) - {"source", "held_out", "true_rate_rps", "accuracy", "startup_s"}:
        raise RequirementError(f"unknown keys {told(sorted(unknown))}")
    return Profile(
        name=name,
        source=str(data.get("source", "made up")),
        held_out=bool(data.get("held_out", False)),
        engine=EngineModel(**_engine_values(engine)),
        workload=_workload(work),
        slo=_slo(slo),
        true_rate_rps=_true_rate(data.get("true_rate_rps")),
        accuracy=float(share(data.get("accuracy", 1), "accuracy")),
        startup_s=None if "startup_s" not in data else float(positive(data["startup_s"], "startup_s")),
    )


_NEEDED: Final = frozenset({"base_s", "per_seq_s", "per_prompt_token_s"})
_ABOVE_ZERO: Final = frozenset(
    {"base_s", "drift_tau_s", "warm_tau_s", "wander_tau_s", "throttle_every_s", "front_backlog_s"}
    | {"knee", "max_num_seqs", "max_num_batched_tokens", "kv_tokens", "graph_most"}
)
_MOST: Final = {"max_num_seqs": 10**6, "graph_step": 10**6, "graph_most": 10**6, "spec_tokens": 1000}
_MOST_SHARE, _MOST_S, _MOST_TOKENS = 10.0, 1e5, 1e12


def _engine_values(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _engine_value(key, value) for key, value in table.items()}


def _engine_value(key: str, value: Any) -> float | int:
    """A number of the table [engine]: no time is negative, and none lets a step take nothing or for ever."""
    kind = {each.name: each.type for each in fields(EngineModel)}[key]
    if isinstance(value, str):
        raise RequirementError(f"{key} must be a number, not {told(value)}")
    number = whole(value, key, least=0) if kind == "int" else exact(value, key)
    shares = ("_sd", "_extra", "_loss", "_slow", "_accept", "_share", "_spread", "noise", "stall_per_s")
    usual = _MOST_SHARE if key.endswith(shares) else _MOST_S if key.endswith("_s") else _MOST_TOKENS
    most = _MOST.get(key, usual)
    if not (number > 0 if key in _ABOVE_ZERO else number >= 0) or number > most:
        above = "above 0" if key in _ABOVE_ZERO else "at least 0"
        raise RequirementError(f"{key} must be {above} and at most {most:g}, not {told(value)}")
    return number if isinstance(number, int) else float(number)


def _true_rate(value: Any) -> float:
    return float("nan") if value is None else float(positive(value, "true_rate_rps"))


def _workload(table: Mapping[str, object]) -> Workload:
    from pytest_gpucap.requirement import ArrivalKind

    burstiness = float(positive(str(table["burstiness"]), "burstiness")) if "burstiness" in table else 1.0
    arrivals = Arrivals(ArrivalKind(str(table.get("arrivals", "poisson"))), burstiness)
    return Workload(
        input_tokens=Length.parse(str(table["input_tokens"]), "input_tokens"),
        output_tokens=Length.parse(str(table["output_tokens"]), "output_tokens"),
        arrivals=arrivals,
        endpoint=ApiKind(str(table.get("endpoint", "completions"))),
    )


def _slo(table: Mapping[str, object]) -> Slo:
    limits = declared_limits({k: str(v) for k, v in table.items() if k != "max_error_rate"})
    return Slo(limits, share(str(table.get("max_error_rate", "0.01")), "max_error_rate"))
