"""Simulated servers that nobody chose: their constants are drawn from fixed seeds, one trait or two each.

    python benchmarks/verdict/servers.py draw      # servers/*.toml, where they are missing
    python benchmarks/verdict/servers.py truth     # the true rate of those that have none: minutes of CPU each

`seen` servers may be looked at while the procedure is developed. `unseen` ones are for its results only. Both have the
same kinds of server with other constants, and the unseen ones have kinds of their own.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.truth import simulated_saturation_rps, true_rate_rps

FOLDER = Path(__file__).parent / "servers"
SEEDS = {"seen": 20_261_129, "unseen": 74_207_281}
TRUTH_RUNS = 16


@dataclass(slots=True)
class Drawn:
    """A server under construction.

    Attributes:
        rng: of its constants.
        engine: keys of `EngineModel`.
        inputs, outputs: mean tokens.
        shape: of both lengths: fixed, uniform or lognormal.
        limits: latency limits by name, as multiples of the same latency of a request alone; filled in by a kind.
    """

    rng: np.random.Generator
    engine: dict[str, float | int] = field(default_factory=dict)
    inputs: float = 0.0
    outputs: float = 0.0
    shape: str = "lognormal"
    cv: float = 0.4
    limits: dict[str, float] = field(default_factory=dict)

    def within(self, low: float, high: float) -> float:
        """A constant between two, uniform."""
        return float(self.rng.uniform(low, high))

    def about(self, low: float, high: float) -> float:
        """A constant between two, uniform in its logarithm."""
        return float(math.exp(self.rng.uniform(math.log(low), math.log(high))))

    def scale(self, key: str, factor: float) -> None:
        """Multiply one of the engine's constants."""
        self.engine[key] *= factor


def plain(rng: np.random.Generator) -> Drawn:
    """A server without any trait: what every kind starts from."""
    drawn = Drawn(rng)
    speed = drawn.about(0.6, 2.0)
    drawn.engine = {
        "base_s": 0.010 * speed * drawn.about(0.7, 1.4),
        "per_seq_s": 6e-5 * speed * drawn.about(0.5, 2.0),
        "per_kv_token_s": 3e-8 * speed * drawn.about(0.3, 2.0),
        "per_prompt_token_s": 2e-5 * speed * drawn.about(0.5, 2.0),
        "noise": drawn.within(0.02, 0.08),
        "drift_sd": drawn.within(0.004, 0.009),
        "drift_tau_s": drawn.within(60.0, 150.0),
        "stall_per_s": drawn.within(0.005, 0.015),
        "stall_s": drawn.within(0.15, 0.35),
        "warm_tau_s": drawn.within(2.0, 4.0),
        "max_num_batched_tokens": int(rng.choice([2048, 4096, 8192])),
        "kv_tokens": int(drawn.about(3e5, 1e6)),
    }
    drawn.inputs, drawn.outputs = drawn.about(128, 768), drawn.about(80, 320)
    drawn.shape = str(rng.choice(["fixed", "uniform", "lognormal"]))
    if rng.random() < 0.5:
        drawn.limits = {"e2e_p95": drawn.within(1.6, 3.0)}
    else:
        drawn.limits = {"ttft_p95": drawn.within(5.0, 15.0), "tpot_p95": drawn.within(1.6, 3.0)}
    return drawn


def tails(drawn: Drawn) -> None:
    """Lengths with heavy tails, and a KV cache that they fill: requests are preempted."""
    drawn.shape, drawn.cv = "lognormal", drawn.within(0.8, 1.2)
    drawn.inputs, drawn.outputs = drawn.about(300, 800), drawn.about(150, 350)
    drawn.engine["kv_tokens"] = int(drawn.within(30, 60) * (drawn.inputs + drawn.outputs))
    drawn.limits = {"ttft_p95": drawn.within(15.0, 40.0), "tpot_p95": drawn.within(2.0, 4.0)}


def few(drawn: Drawn) -> None:
    """Few sequences at once."""
    drawn.engine["max_num_seqs"] = int(drawn.within(6, 20))
    drawn.limits = {"e2e_p95": drawn.within(1.8, 3.0)}


def drift(drawn: Drawn) -> None:
    """The pace drifts over a minute or two."""
    drawn.engine |= {"drift_sd": drawn.within(0.025, 0.035), "drift_tau_s": drawn.within(70.0, 110.0)}


def throttle(drawn: Drawn) -> None:
    """The clock takes another level every half minute."""
    drawn.engine |= {"throttle_sd": drawn.within(0.02, 0.04), "throttle_every_s": drawn.within(25.0, 35.0)}


def staircase(drawn: Drawn) -> None:
    """CUDA graphs of few sizes: the step time is a staircase of the batch."""
    drawn.engine["graph_step"] = int(drawn.rng.choice([8, 16, 32]))
    drawn.scale("per_seq_s", drawn.within(2.0, 4.0))


def speculation(drawn: Drawn) -> None:
    """Speculative decoding; how many tokens are accepted differs by request."""
    drawn.engine |= {
        "spec_tokens": int(drawn.rng.integers(3, 6)),
        "spec_accept": drawn.within(0.55, 0.8),
        "spec_accept_sd": drawn.within(0.1, 0.2),
        "per_draft_s": drawn.within(0.03, 0.08) * drawn.engine["base_s"],
        "per_draft_seq_s": drawn.within(0.2, 0.5) * drawn.engine["per_seq_s"],
    }


def stops(drawn: Drawn) -> None:
    """The engine stops for half a second to two, every 20 to 40 s."""
    drawn.engine |= {
        "stall_per_s": 1.0 / drawn.within(20.0, 40.0),
        "stall_s": drawn.within(0.8, 1.3),
        "stall_spread": drawn.within(0.3, 0.6),
    }
    # A stop meets more than 5% of the requests, so the limit must leave room for one.
    drawn.outputs, drawn.limits = drawn.about(200, 400), {"e2e_p95": drawn.within(1.8, 3.0)}


def long(drawn: Drawn) -> None:
    """Long prompts, short answers, and a limit on the first token."""
    drawn.inputs, drawn.outputs, drawn.cv = drawn.about(5000, 9000), drawn.about(70, 140), 0.3
    drawn.engine |= {"per_prompt_context_s": drawn.about(1e-9, 3e-9), "kv_tokens": 1_000_000}
    drawn.limits = {"ttft_p95": drawn.within(4.0, 9.0)}


def wander(drawn: Drawn) -> None:
    """The pace wanders by a fifth over two or three seconds."""
    drawn.engine |= {"wander_sd": drawn.within(0.17, 0.22), "wander_tau_s": drawn.within(2.0, 3.0)}


def chunked(drawn: Drawn) -> None:
    """A step with prompt chunks in it slows decoding."""
    drawn.inputs, drawn.outputs = drawn.about(800, 2500), drawn.about(80, 200)
    drawn.engine |= {"mixed_slow": drawn.within(0.2, 0.5)}


def front(drawn: Drawn) -> None:
    """An API server that saturates before the GPU does, and grows less efficient then."""
    tokens = drawn.outputs * saturation_rps(drawn)
    drawn.engine |= {
        "front_token_s": drawn.within(1.2, 1.8) / tokens,
        "front_request_s": drawn.within(2.0, 10.0) / tokens,
        "front_loss": drawn.within(0.0, 1.5),
        "front_backlog_s": drawn.within(1.0, 6.0),
    }


def prefix(drawn: Drawn) -> None:
    """A prefix cache that takes a minute to fill."""
    drawn.inputs, drawn.outputs = drawn.about(800, 2500), drawn.about(80, 200)
    drawn.engine |= {"prefix_share": drawn.within(0.4, 0.8), "prefix_warm_s": drawn.within(15.0, 30.0)}


def tiny(drawn: Drawn) -> None:
    """Very many requests of a few tokens."""
    drawn.inputs, drawn.outputs, drawn.shape = drawn.about(40, 100), drawn.about(6, 12), "fixed"
    drawn.limits = {"e2e_p95": drawn.within(2.0, 5.0)}


def front_wander(drawn: Drawn) -> None:
    """An API server as `front`, whose own pace wanders."""
    front(drawn)
    drawn.engine |= {"front_wander_sd": drawn.within(0.15, 0.25), "wander_tau_s": drawn.within(2.0, 3.0)}


def speculation_long(drawn: Drawn) -> None:
    """Speculation, and long prompts."""
    long(drawn)
    speculation(drawn)


def stops_wander(drawn: Drawn) -> None:
    """Stops, and a pace that wanders by a tenth."""
    stops(drawn)
    drawn.engine |= {"wander_sd": drawn.within(0.08, 0.12), "wander_tau_s": drawn.within(2.0, 3.0)}


def calm(drawn: Drawn) -> None:
    """No trait at all."""
    del drawn


Kind = Callable[[Drawn], None]
SEEN: tuple[Kind, ...] = (
    calm, tails, drift, staircase, speculation, stops, long, wander, chunked, front, prefix, tiny,
)  # fmt: skip
KINDS: dict[str, tuple[Kind, ...]] = {
    "seen": SEEN,
    "unseen": (*SEEN, few, throttle, front_wander, speculation_long, stops_wander),
}


def names(half: str) -> list[str]:
    """The servers of one half."""
    return [f"{half}-{kind.__name__.replace('_', '-')}" for kind in KINDS[half]]


def path_of(name: str) -> Path:
    """Where a drawn server is described."""
    return FOLDER / f"{name}.toml"


def lengths(drawn: Drawn, mean: float, longest: float) -> str:
    """A distribution of lengths, as profiles write it."""
    if drawn.shape == "fixed":
        return str(round(mean))
    if drawn.shape == "uniform":
        return f"uniform:{max(1, round(0.4 * mean))}-{round(1.6 * mean)}"
    return f"lognormal:mean={mean:.0f},cv={drawn.cv:.2f},low={max(1, round(mean / 10))},high={round(longest * mean)}"


def text_of(drawn: Drawn, source: str, half: str, limits: dict[str, str]) -> str:
    """The profile's file."""
    engine = "\n".join(f"{k} = {v if isinstance(v, int) else f'{v:.4g}'}" for k, v in drawn.engine.items())
    slo = "\n".join(f'{name} = "{limit}"' for name, limit in limits.items())
    work = f'input_tokens = "{lengths(drawn, drawn.inputs, 5)}"\noutput_tokens = "{lengths(drawn, drawn.outputs, 5)}"'
    return (
        f'source = "Drawn at random: {source}"\nheld_out = {str(half == "unseen").lower()}\n\n'
        f"[engine]\n{engine}\n\n[workload]\n{work}\n\n[slo]\n{slo}\n"
    )


def _profile(drawn: Drawn, half: str, limits: dict[str, str]) -> profiles.Profile:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text_of(drawn, "", half, limits))
        file.flush()
        return profiles.load(file.name)


def saturation_rps(drawn: Drawn) -> float:
    """Requests per second of the engine alone, so far."""
    profile = _profile(drawn, "seen", {})
    return simulated_saturation_rps(profile.engine, profile.workload, 1)


def alone_s(drawn: Drawn) -> dict[str, float]:
    """Latencies of a mean request alone on the server, by metric."""
    engine = _profile(drawn, "seen", {}).engine
    step_s = engine.base_s + engine.per_seq_s + engine.spec_tokens * (engine.per_draft_s + engine.per_draft_seq_s)
    accept = engine.spec_accept
    per_step = (1 - accept ** (engine.spec_tokens + 1)) / (1 - accept) if engine.spec_tokens else 1.0
    steps = math.ceil(drawn.inputs / engine.max_num_batched_tokens)
    prefill_s = steps * engine.base_s + drawn.inputs * engine.per_prompt_token_s
    prefill_s += engine.per_prompt_context_s * drawn.inputs**2 / 2
    decode_s = step_s / per_step
    return {"ttft": prefill_s, "tpot": decode_s, "e2e": prefill_s + decode_s * (drawn.outputs - 1)}


def draw(half: str, kind: Kind) -> str:
    """One server's file."""
    drawn = plain(np.random.default_rng([SEEDS[half], zlib.crc32(kind.__name__.encode())]))
    kind(drawn)
    alone = alone_s(drawn)
    longer = 1.0 if drawn.shape == "fixed" else 1.6
    limits = {}
    for name, multiple in drawn.limits.items():
        metric = name.split("_")[0]
        limit_s = multiple * alone[metric] * (longer if metric == "e2e" else 1.0)
        limits[name] = f"{1000 * limit_s:.3g}ms" if limit_s < 1 else f"{limit_s:.3g}s"
    return text_of(drawn, (kind.__doc__ or "").strip(), half, limits)


def _truth(name: str) -> tuple[str, float]:
    return name, true_rate_rps(replace(profiles.load(path_of(name)), true_rate_rps=math.nan), runs=TRUTH_RUNS)


def main() -> None:
    """Draw what is missing, or find true rates that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["draw", "truth"])
    parser.add_argument("--half", choices=[*KINDS], action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    halves = options.half or [*KINDS]
    for half in halves:
        for name, kind in zip(names(half), KINDS[half], strict=True):
            if not path_of(name).exists():
                path_of(name).write_text(draw(half, kind))
    if options.what == "draw":
        return
    missing = [n for half in halves for n in names(half) if math.isnan(profiles.load(path_of(n)).true_rate_rps)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name, rate in pool.imap_unordered(_truth, missing):
            text = path_of(name).read_text()
            path_of(name).write_text(text.replace("held_out", f"true_rate_rps = {rate:.5g}\nheld_out", 1))
            print(f"{name}: {rate:.5g} req/s", flush=True)


if __name__ == "__main__":
    main()
