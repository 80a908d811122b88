"""The queue model: latencies at any rate, from the engine's measured speed.

How fast an engine serves n requests in flight is a smooth curve, which seconds of load measure to 1%. How long requests
then wait and take at a given rate is arithmetic on that curve and the workload. A simulation does it for free. To
measure it, one would have to wait for the rare busy periods near the limit.

Each evaluation starts its replications nearly in steady state. A processor-sharing queue with speed ``speed[n]`` has
the stationary law

    p(n) ~ (rate * tokens)**n / n! * prod(speed[1..n])

whatever the distribution of the lengths (Cohen 1979, "The multiple phase service network with generalized processor
sharing"). The running requests are then independently of stationary age. So n is stratified over that law, and ages
over theirs, which removes most of the variance of a long run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.estimate.queue_simulation import (
    GAP_BINS,
    GAP_GROWTH,
    GAP_LOWEST_S,
    QueueArrivals,
    QueueLatencies,
    QueueServer,
    QueueStart,
    Replications,
    simulate_replications,
)
from pytest_gpucap.estimate.traffic import Traffic
from pytest_gpucap.load.latencies import limited, with_first_tokens
from pytest_gpucap.requirement import GoodputLimit, Limit

LEAST_REPLICATIONS = 256
"""Fewest replications of an evaluation. They put the rate within about 0.5% of long runs, in 5 to 10 ms."""
MOST_REPLICATIONS = 2048
"""Most replications: more than these, of a server with few requests in flight, would cost more than they tell."""
STARTING_REQUESTS = 30_000
"""Requests in flight at the start of all replications together. With few per replication, more replications cost the
same."""
MEASURED_SHARE = 0.15
"""Requests measured per replication, as a share of those in flight. Few, because neighbours meet the same queue and add
little."""
LEAST_MEASURED = 24
"""Fewest requests measured per replication: starting one costs about as much as simulating these."""
BURN_IN_SHARE = 0.1
"""Arrivals before the measured ones, as a share of those in flight. Few, because a replication starts in the stationary
law."""
BURN_IN_PREFILL = 6.0
"""Added to `BURN_IN_SHARE`, times the share of the engine's time that prefill takes beyond `BURN_IN_PREFILL_FROM`.
Prompts come in bursts, which the stationary law ignores, so a replication needs time to become as uneven as a
server."""
BURN_IN_PREFILL_FROM = 0.15
"""Share of the engine's time up to which prefill hardly disturbs the stationary law."""
MOST_STOPPED = 0.9
"""Largest share of the time for which the engine is taken to stand still. An engine that was seen to stop most of the
time, as on a host that gives it no core, would else have stops that leave it no time at all."""
LONG_STOP_S = 0.5
"""After a stop longer than this, a queue takes long to drain, so a short replication would not see it."""
STOPS_FACTOR = 2.0
"""Where it stops, such replications are longer by this: a tail that seldom stops make needs many of them."""
STOPS_REQUESTS = 100_000
"""Requests measured in all replications together where it stops: the percentile is then within 1 to 3% of long runs.
With many requests in flight a replication is longer and meets more stops, so fewer replications tell as much."""
STOPS_REQUESTS_ROUGH = 25_000
"""The same in a rough evaluation."""
QUEUED_REPLICATIONS = 96
"""Replications where sequences or KV cache run out, or where arrivals are not Poisson. The stationary law is only near
there, so replications are few and long."""
QUEUED_BURN_IN_SHARE = 5.0
"""Arrivals before the measured ones in those replications, over those in flight: enough for a queue to build up."""
QUEUED_MEASURED_SHARE = 4.0
"""Requests measured in each of those replications, over those in flight: a long burn-in pays only for many."""
THOROUGH_BURN_IN_SHARE = 4.0
"""Arrivals before the measured ones in a thorough evaluation, over those in flight: long enough for what the stationary
law leaves out, the excursions after a stop of the engine."""
THOROUGH_MEASURED_SHARE = 12.0
"""Requests measured per replication of a thorough evaluation, over those in flight. Half a million requests in all put
the rate within 0.1% (0.2% where arrivals are bursty)."""
THOROUGH_LEAST_MEASURED = 256
"""Fewest of them, for servers with few requests in flight."""
THOROUGH_QUEUED_FACTOR = 4
"""A thorough evaluation has this many times `QUEUED_REPLICATIONS`: such replications are long already."""
THOROUGH_QUEUED_MEASURED_SHARE = 30.0
"""Requests measured in each of those, over those in flight; together about as many as in any thorough evaluation."""
TRAILING_SHARE = 2.0
"""Arrivals after the measured ones, over those in flight. The measured requests must share the engine until they
end."""
DRIFT_STRATA = 6
"""Values of the drift that replications have: its normal distribution in six equally likely parts."""
NEVER_LIMITED = 1 << 30
"""Stands for an unknown sequence limit: more than any server runs."""
TABLE = 2048
"""Entries of a speed table where the server's sequence limit is unknown."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What an open loop showed beyond the model.

    Attributes:
        itl_factor: observed over modelled percentile of the inter-token gaps.
        latency_factors: by the name of a limit, observed over modelled percentile of its latency.
        first_token_factor: observed over modelled TTFT of each request, where goodput counts it.
    """

    itl_factor: float = 1.0
    latency_factors: tuple[tuple[str, float], ...] = ()
    first_token_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ServerModel:
    """The server as the queue model sees it.

    Attributes:
        speed: shape (m,): seconds per token with n requests running, by n from 0.
        prefill_s: engine seconds per prompt token, in a prompt of `even_prompt` tokens.
        max_seqs: sequences run at once; `NEVER_LIMITED` where unknown.
        kv_tokens: tokens that fit the KV cache; infinite where unknown.
        drift_sd: slow drift of all times, relative.
        stall_per_s: rare stops of the engine per second.
        stall_s: shape (k,): how long stops last; each is equally likely.
        calibration: what the model check found that the model leaves out.
        kv_token_s: seconds per step for each KV token held beyond `mean_context` per running request.
        mean_context: KV tokens per running request for which `speed` holds.
        prefill_growth_s, even_prompt: seconds by which each prompt token takes longer for each token of its prompt
            beyond `even_prompt`.
        path: shape (p,): factors on all times as they were seen, one after the other; one of 1: the pace stays.
        path_bin_s: how long each holds.
        own_paces: of the requests, in tokens per token of the common pace; empty: all run at the common one. The
            traffic has them in it (`traffic_for`).
        step_tokens: tokens of one step, prompt and generated; infinite where unknown.
        failed: share of the requests that fail; the latencies of an evaluation are those of the others.
    """

    speed: Floats
    prefill_s: float
    max_seqs: int = NEVER_LIMITED
    kv_tokens: float = math.inf
    drift_sd: float = 0.0
    stall_per_s: float = 0.0
    stall_s: tuple[float, ...] = (0.0,)
    calibration: Calibration = Calibration()
    kv_token_s: float = 0.0
    mean_context: float = 0.0
    prefill_growth_s: float = 0.0
    even_prompt: float = 0.0
    path: tuple[float, ...] = (1.0,)
    path_bin_s: float = math.inf
    own_paces: tuple[float, ...] = ()
    step_tokens: float = math.inf
    failed: float = 0.0

    @property
    def stall_share(self) -> float:
        """Share of the time that stops take."""
        return self.stall_per_s * sum(self.stall_s) / len(self.stall_s)

    def scaled(self, factor: float) -> ServerModel:
        """The same server with all times of its work multiplied by `factor`."""
        return replace(
            self,
            speed=self.speed * factor,
            prefill_s=self.prefill_s * factor,
            kv_token_s=self.kv_token_s * factor,
            prefill_growth_s=self.prefill_growth_s * factor,
        )

    @property
    def wanders(self) -> bool:
        """Whether the pace changes from second to second."""
        return len(self.path) > 1

    @property
    def stops(self) -> bool:
        """Whether the engine stands still for so long that its start in a steady state would matter."""
        return max(self.stall_s) > LONG_STOP_S

    @property
    def most_running(self) -> int:
        """Most requests that the speed table and the sequence limit allow to run."""
        return min(self.max_seqs, self.speed.size - 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Latencies at one rate.

    Attributes:
        rate_rps: that rate.
        ttft_s, tpot_s, e2e_s: shape (k,), of the measured requests; infinite where one did not end.
        seen: shape (k,), requests in flight that each met at its arrival.
        gaps: shape (`GAP_BINS`,), histogram of inter-token gaps; zeros where they were not counted.
        factors: on percentiles, by the name of the limit (`Calibration.latency_factors`).
        failed: share of the requests that fail, beside the measured ones.
        first_token_factor: on the TTFT of each request, where goodput counts it (`Calibration.first_token_factor`).
    """

    rate_rps: float
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    seen: Floats
    gaps: Floats
    factors: tuple[tuple[str, float], ...] = ()
    failed: float = 0.0
    first_token_factor: float = 1.0

    def of_limit(self, limit: Limit) -> float:
        """The limit's percentile over what it allows; infinite where requests never ended."""
        return dict(self.factors).get(limit.name, 1.0) * self._modelled(limit) / limit.most

    def _modelled(self, limit: Limit) -> float:
        quantile = float(limit.quantile)
        if limit.of_gaps:
            counts = np.maximum(self.gaps, 0.0)
            rank = quantile * counts.sum()
            return float(GAP_LOWEST_S * GAP_GROWTH ** (np.searchsorted(np.cumsum(counts), rank) - 0.5))
        factor = self.first_token_factor if isinstance(limit, GoodputLimit) else 1.0
        values = limited(with_first_tokens(self, factor), limit)
        finite = values[~np.isnan(values)]
        if finite.size == 0:
            return math.nan
        if limit.failed_break and self.failed:
            quantile /= 1.0 - min(self.failed, 1.0 - quantile)
            if quantile >= 1.0:
                return math.inf
        k = min(finite.size - 1, int(quantile * finite.size))
        return float(np.partition(finite, k)[k])


def server_of(model: ServerModel) -> QueueServer:
    """The model as the simulation takes it."""
    return QueueServer(
        model.speed, model.prefill_s, model.max_seqs, model.kv_tokens, model.kv_token_s, model.mean_context,
        model.prefill_growth_s, model.even_prompt, model.stall_per_s, np.array(model.stall_s), np.array(model.path),
        model.path_bin_s, model.step_tokens,
    )  # fmt: skip


def saturation_rps(model: ServerModel, traffic: Traffic) -> float:
    """Requests per second that the engine completes when it never runs short of work."""
    most = model.most_running
    if math.isfinite(model.kv_tokens):
        most = min(most, max(1, int(model.kv_tokens / max(1.0, traffic.mean_context + 1.0))))
    n = np.arange(1, most + 1)
    per_request_s = traffic.mean_output * model.speed[1 : most + 1] / n + model.prefill_s * traffic.mean_prompt
    return float((1.0 - model.stall_share) / per_request_s.min())


def starting_levels(model: ServerModel, traffic: Traffic, rate_rps: float, replications: int) -> tuple[Ints, bool]:
    """Requests in flight at the start of each replication, stratified over the stationary law.

    Returns:
        Shape (replications,), and true if more than 0.5% of the law lies where sequences or KV cache run out.
    """
    usable = max(1e-3, 1.0 - rate_rps * model.prefill_s * traffic.mean_prompt - model.stall_share)
    most = model.most_running
    if math.isfinite(model.kv_tokens):
        most = min(most, max(1, int(model.kv_tokens / (traffic.mean_context + 1.0))))
    top = min(3 * most, most + 2000)
    n = np.arange(1, top + 1)
    served = np.minimum(n, most)
    log_ratio = np.log(rate_rps * traffic.mean_output * model.speed[served] / usable) - np.log(served)
    log_law = np.concatenate([[0.0], np.cumsum(log_ratio)])
    law = np.exp(log_law - log_law.max())
    cumulative = np.cumsum(law)
    cumulative /= cumulative[-1]
    levels = np.searchsorted(cumulative, (np.arange(replications) + 0.5) / replications)
    return levels.astype(np.int64), bool(1.0 - cumulative[min(most, top) - 1] > 0.005)  # noqa: PLR2004 - documented


def _starts(model: ServerModel, traffic: Traffic, rate_rps: float, replications: int) -> tuple[Floats, Ints]:
    """Drift and requests in flight of each replication, shape (replications,) each.

    The drift is slow compared to the queue, so a replication of a slow engine starts with more requests in flight.
    """
    from scipy.special import ndtri  # imported late: sessions without an estimate need nothing of SciPy

    scores = ndtri((np.arange(DRIFT_STRATA) + 0.5) / DRIFT_STRATA)
    scores /= math.sqrt(float((scores * scores).mean()))
    each = max(1, replications // DRIFT_STRATA)
    factors = np.exp(model.drift_sd * scores)
    levels = [
        starting_levels(replace(model, speed=model.speed * factor), traffic, rate_rps, each)[0] for factor in factors
    ]
    return np.repeat(factors, each), np.concatenate(levels)


@dataclass(frozen=True, slots=True)
class _Size:
    """How much an evaluation simulates: replications, and arrivals of each before, in and after the measured ones."""

    replications: int
    burn_in: int
    measured: int
    trailing: int


def _size_of(model: ServerModel, traffic: Traffic, rate_rps: float, *, rough: bool, thorough: bool) -> _Size:
    few, limited = starting_levels(model, traffic, rate_rps, 16)
    typical = 1.0 + float(few.mean())
    trailing = int(TRAILING_SHARE * typical) + 16
    if limited or not traffic.poisson or model.wanders or model.stops:
        share = THOROUGH_QUEUED_MEASURED_SHARE if thorough else QUEUED_MEASURED_SHARE
        share *= STOPS_FACTOR if model.stops and not thorough else 1.0
        measured = int(share * typical) if thorough else max(LEAST_MEASURED, int(share * typical))
        replications = QUEUED_REPLICATIONS * (THOROUGH_QUEUED_FACTOR if thorough else 1)
        if model.stops and not thorough:
            replications = _replications_with_stops(measured, rough=rough)
        return _Size(replications, int(QUEUED_BURN_IN_SHARE * typical), measured, trailing)
    prefilling = min(1.0, rate_rps * model.prefill_s * traffic.mean_prompt)
    burn_in = int((BURN_IN_SHARE + BURN_IN_PREFILL * max(0.0, prefilling - BURN_IN_PREFILL_FROM)) * typical)
    measured = max(LEAST_MEASURED, int(MEASURED_SHARE * typical))
    if thorough:
        burn_in = max(burn_in, int(THOROUGH_BURN_IN_SHARE * typical))
        measured = max(THOROUGH_LEAST_MEASURED, int(THOROUGH_MEASURED_SHARE * typical))
    replications = int(min(MOST_REPLICATIONS, max(LEAST_REPLICATIONS, STARTING_REQUESTS / typical)))
    return _Size(replications, burn_in, measured, trailing)


def _replications_with_stops(measured: int, *, rough: bool) -> int:
    """Replications of so many measured requests each where the engine stops for long."""
    requests, most = (STOPS_REQUESTS_ROUGH, 1) if rough else (STOPS_REQUESTS, THOROUGH_QUEUED_FACTOR)
    most *= QUEUED_REPLICATIONS
    return min(most, max(requests // measured, QUEUED_REPLICATIONS // 2 if rough else QUEUED_REPLICATIONS))


def evaluate(
    model: ServerModel,
    traffic: Traffic,
    rate_rps: float,
    *,
    want_gaps: bool = False,
    rough: bool = False,
    thorough: bool = False,
) -> Evaluation:
    """Latencies of the workload at a rate; `thorough`: from at least ten times as many requests.

    With `rough`, long stops of the engine get fewer requests: the percentile is then right to a few percent.

    Inter-token gaps cost time, so they are counted only with `want_gaps`.
    """
    size = _size_of(model, traffic, rate_rps, rough=rough, thorough=thorough)
    rows = size.burn_in + size.measured + size.trailing
    factors, levels = _starts(model, traffic, rate_rps, max(1, min(size.replications, traffic.gap.size // rows)))
    # Those that wait at the start take rows as well.
    rows = min(rows + int(max(0, levels.max() - model.most_running)), traffic.gap.size // levels.size)
    shape = (levels.size, size.measured)
    found = QueueLatencies(np.empty(shape), np.empty(shape), np.empty(shape))
    outputs, gaps = np.empty(shape, np.int64), np.zeros(GAP_BINS)
    simulate_replications(
        server_of(model),
        Replications(factors, levels, rows, size.burn_in, size.measured),
        rate_rps,
        QueueArrivals(traffic.gap, traffic.prompt, traffic.output, traffic.cached),
        QueueStart(traffic.pool_left, traffic.pool_context),
        found,
        outputs,
        gaps if want_gaps else gaps[:0],
        traffic.made,
    )
    ttft, e2e, seen = found.ttft_s.ravel(), found.e2e_s.ravel(), found.seen.ravel()
    with np.errstate(invalid="ignore"):
        decode_s = np.where(np.isinf(e2e), np.inf, e2e - ttft)
        tpot = decode_s / np.where(outputs.ravel() > 1, outputs.ravel() - 1.0, np.nan)
    calibration = model.calibration
    return Evaluation(
        rate_rps,
        ttft,
        tpot,
        e2e,
        seen,
        gaps if calibration.itl_factor == 1.0 else _shifted(gaps, calibration.itl_factor),
        calibration.latency_factors,
        model.failed,
        calibration.first_token_factor,
    )


def _shifted(gaps: Floats, factor: float) -> Floats:
    """The histogram of gaps with every gap multiplied by a factor."""
    shift = round(math.log(factor) / math.log(GAP_GROWTH))
    return np.roll(gaps, shift)
