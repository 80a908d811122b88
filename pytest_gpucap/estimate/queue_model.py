"""The twin: latencies at any rate, from the engine's measured speed.

How fast an engine serves n requests in flight is a smooth curve that seconds of load measure to 1%. How long requests
then wait and take at a given rate is arithmetic on that curve and the workload, which a simulation does for free, where
measuring it directly means waiting for the rare busy periods near the knee.

Each evaluation starts its lanes in (nearly) steady state. A processor-sharing queue with speed ``speed[n]`` has the
stationary law ``p(n) ~ (rate * tokens)**n / n! * prod(speed[1..n])`` whatever the lengths' distribution (Cohen 1979,
"The multiple phase service network with generalized processor sharing"), and the running requests are then
independently of stationary age; so n is stratified over that law, ages over theirs, and most of the variance of a long
run is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from pytest_gpucap.estimate.queue_simulation import GAP_BINS, GAP_GROWTH, GAP_LOWEST_S, Floats, Ints, run_lanes
from pytest_gpucap.requirement import LatencyLimit, Metric

LANES = 256
"""Least independent starts of an evaluation: they put the rate within about 0.5% of long runs, in 5 to 10 ms."""
MOST_LANES = 2048
LANE_REQUESTS = 30_000
"""Requests in flight over all lanes at their start: few in flight afford more lanes."""
MEASURED_SHARE = 0.15
"""Requests measured a lane, over those in flight: few, because neighbours share their fate."""
LEAST_MEASURED = 24
BURN_SHARE = 0.1
"""Arrivals before the measured ones, over those in flight, where the start is the stationary law."""
BURN_PREFILL, BURN_PREFILL_FROM = 6.0, 0.15
"""Added to that for the share of the engine's time that prefill takes beyond the second figure: prompts come in bursts,
which the law ignores, so lanes need time to become as uneven as the server is."""
QUEUED_LANES = 96
"""Lanes where sequences or KV are limited, or arrivals are not Poisson: the law is then only near; lanes are long."""
QUEUED_BURN_SHARE = 5.0
QUEUED_MEASURED_SHARE = 4.0
THOROUGH_BURN_SHARE = 4.0
"""The thorough look has lanes that go on long enough for what the stationary law leaves out, the excursions after a
stop of the engine, and that measure more requests: half a million and more, which put the rate within 0.1% (0.2% where
arrivals are bursty)."""
THOROUGH_MEASURED_SHARE = 12.0
THOROUGH_LEAST_MEASURED = 256
THOROUGH_QUEUED_LANES = 4
"""So many times the lanes, where lanes are long already."""
THOROUGH_QUEUED_MEASURED_SHARE = 30.0
DRIFT_STRATA = 6
"""Values of the drift that lanes have."""
COMPANY_SHARE = 2.0
"""Arrivals after the measured ones, over those in flight: the measured ones must have company until they end."""
IN_FLIGHT_QUANTILE = 0.995
"""Of the requests in flight that must stay below the concurrency of greatest throughput, where more feed themselves."""
NEVER_LIMITED = 1 << 30
ACCEPTED_STEP = 0.005
"""Of ln(rate)."""
MOST_EVALUATIONS = 14
FIRST_SLOPE = 2.0
"""First guess of how fast ln(percentile) rises with ln(rate)."""
LEAST_SLOPE = 0.25
SLOPE_STEP = 0.02
"""Least distance in ln(rate) that a slope is taken over."""
STRAIGHT = 2.0
"""ln(percentile / limit) above this is too far off for a straight line."""
TABLE = 2048
"""Entries of a speed table where the server's sequence limit is unknown."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests for the lanes, the same for every rate (common random numbers).

    Attributes:
        gap: shape (m,): gaps between arrivals at one request a second.
        prompt, output: shape (m,), tokens.
        pool_left, pool_context: shape (p,): requests found running in steady state: tokens to go, KV held.
        mean_prompt, mean_output: tokens a request.
        poisson: arrivals are Poisson, so that the stationary law holds.
    """

    gap: Floats
    prompt: Ints
    output: Ints
    pool_left: Ints
    pool_context: Ints
    mean_prompt: float
    mean_output: float
    poisson: bool = True

    @property
    def mean_context(self) -> float:
        """Mean KV tokens of a running request."""
        return float(self.pool_context.mean())


@dataclass(frozen=True, slots=True)
class ServerModel:
    """What the twin knows of the server.

    Attributes:
        speed: shape (m,): seconds a token with n requests running, by n from 0.
        prefill_s: engine seconds a prompt token.
        max_seqs: sequences run at once; `NEVER_LIMITED` where unknown.
        kv_tokens: tokens that fit the KV cache; infinite where unknown.
        drift_sd: slow drift of all times, relative.
        stall_per_s, stall_s: rare stops of the engine, a second, and how long each lasts.
        ttft_offset_s: shape (k,): what real first tokens took beyond the model's (network, HTTP), as quantiles; empty
            for none.
        ttft_offset_rps: the rate at which they were seen; the work of an API server, which they mostly are, goes with
            the rate. 0: at any.
        correction: factors on modelled latencies by metric name, from the direct check.
        kv_token_s: seconds a step for each KV token held beyond `mean_context` a request running.
        mean_context: that `speed` holds for.
    """

    speed: Floats
    prefill_s: float
    max_seqs: int = NEVER_LIMITED
    kv_tokens: float = math.inf
    drift_sd: float = 0.0
    stall_per_s: float = 0.0
    stall_s: float = 0.0
    ttft_offset_s: tuple[float, ...] = ()
    correction: tuple[tuple[str, float], ...] = ()
    ttft_offset_rps: float = 0.0
    kv_token_s: float = 0.0
    mean_context: float = 0.0

    @property
    def stall_share(self) -> float:
        """Share of the time that stops take."""
        return self.stall_per_s * self.stall_s

    @property
    def most_running(self) -> int:
        """Highest number of requests that the speed table, and the sequence limit, allow."""
        return min(self.max_seqs, self.speed.size - 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Latencies at one rate: flat arrays over measured requests, and requests in flight met at arrival."""

    rate_rps: float
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    seen: Floats
    gaps: Floats

    def latency_s(self, limit: LatencyLimit) -> float:
        """The limit's percentile; infinite where requests never ended."""
        quantile = float(limit.quantile)
        if limit.metric is Metric.ITL:
            counts = np.maximum(self.gaps, 0.0)
            rank = quantile * counts.sum()
            return float(GAP_LOWEST_S * GAP_GROWTH ** (np.searchsorted(np.cumsum(counts), rank) - 0.5))
        values = {Metric.TTFT: self.ttft_s, Metric.TPOT: self.tpot_s, Metric.E2E: self.e2e_s}[limit.metric]
        finite = values[~np.isnan(values)]
        if finite.size == 0:
            return math.nan
        k = min(finite.size - 1, int(quantile * finite.size))
        return float(np.partition(finite, k)[k])

    def share_above(self, limit: LatencyLimit) -> float:
        """Share of the requests (gaps, for ITL) beyond the limit."""
        if limit.metric is Metric.ITL:
            counts = np.maximum(self.gaps, 0.0)
            edges = GAP_LOWEST_S * GAP_GROWTH ** (np.arange(GAP_BINS) - 0.5)
            return float(counts[edges > limit.limit_s].sum() / max(counts.sum(), 1e-9))
        values = {Metric.TTFT: self.ttft_s, Metric.TPOT: self.tpot_s, Metric.E2E: self.e2e_s}[limit.metric]
        return float((values > limit.limit_s).mean())


@dataclass(frozen=True, slots=True)
class Sustainable:
    """The rate at which the tightest limit just holds.

    Attributes:
        rate_rps: that rate.
        binding: the limit's name, or ``backlog``.
        slope: of ln(percentile / limit) against ln(rate) there.
        in_flight: requests in flight met at that rate: its 95th percentile.
    """

    rate_rps: float
    binding: str
    slope: float
    in_flight: float

    @property
    def elasticity(self) -> float:
        """Relative loss of the rate for a relative rise of all the engine's times.

        Times longer by d shift the curve of ln(percentile) by d along both axes (a change of the unit of time), so the
        root moves by d (1 + 1 / slope).
        """
        return 1.0 + 1.0 / self.slope


@dataclass(frozen=True, slots=True)
class Examination:
    """What a thorough look at a root adds; common random numbers let it hold for all models and roots nearby.

    Attributes:
        rate_rps: the root looked at.
        correction: of its logarithm, from more requests.
        slope: as that of `Sustainable`, from both sides of the root.
    """

    rate_rps: float
    correction: float
    slope: float


def saturation_rps(model: ServerModel, traffic: Traffic) -> float:
    """Requests a second that the engine completes when it never runs short of work."""
    most = model.most_running
    if math.isfinite(model.kv_tokens):
        most = min(most, max(1, int(model.kv_tokens / max(1.0, traffic.mean_context + 1.0))))
    n = np.arange(1, most + 1)
    per_request_s = traffic.mean_output * model.speed[1 : most + 1] / n + model.prefill_s * traffic.mean_prompt
    return float((1.0 - model.stall_share) / per_request_s.min())


def starting_levels(model: ServerModel, traffic: Traffic, rate_rps: float, lanes: int) -> tuple[Ints, bool]:
    """Requests in flight at the start of each lane, stratified over the stationary law, and whether limits bite.

    Returns:
        Shape (lanes,), and true when more than 0.5% of the law lies where sequences or KV run out.
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
    levels = np.searchsorted(cumulative, (np.arange(lanes) + 0.5) / lanes)
    return levels.astype(np.int64), bool(1.0 - cumulative[min(most, top) - 1] > 0.005)  # noqa: PLR2004 - documented


def _starts(model: ServerModel, traffic: Traffic, rate_rps: float, lanes: int) -> tuple[Floats, Ints]:
    """Drift and requests in flight of each lane, shape (lanes,) each.

    The drift is slow against the queue, so a lane that is slow started with more in flight.
    """
    scores = ndtri((np.arange(DRIFT_STRATA) + 0.5) / DRIFT_STRATA)
    scores /= math.sqrt(float((scores * scores).mean()))
    each = max(1, lanes // DRIFT_STRATA)
    factors = np.exp(model.drift_sd * scores)
    levels = [
        starting_levels(replace(model, speed=model.speed * factor), traffic, rate_rps, each)[0] for factor in factors
    ]
    return np.repeat(factors, each), np.concatenate(levels)


def evaluate(
    model: ServerModel, traffic: Traffic, rate_rps: float, *, want_gaps: bool = False, thorough: bool = False
) -> Evaluation:
    """Latencies of the workload at a rate; with `thorough` from ten times as many requests and more."""
    few, queued = starting_levels(model, traffic, rate_rps, 16)
    queued = queued or not traffic.poisson
    typical = 1.0 + float(few.mean())
    prefilling = min(1.0, rate_rps * model.prefill_s * traffic.mean_prompt)
    share = BURN_SHARE + BURN_PREFILL * max(0.0, prefilling - BURN_PREFILL_FROM)
    burn = int((QUEUED_BURN_SHARE if queued else share) * typical)
    measured = max(LEAST_MEASURED, int((QUEUED_MEASURED_SHARE if queued else MEASURED_SHARE) * typical))
    lanes = QUEUED_LANES if queued else int(min(MOST_LANES, max(LANES, LANE_REQUESTS / typical)))
    if thorough and queued:
        lanes *= THOROUGH_QUEUED_LANES
        measured = int(THOROUGH_QUEUED_MEASURED_SHARE * typical)
    elif thorough:
        burn = max(burn, int(THOROUGH_BURN_SHARE * typical))
        measured = max(THOROUGH_LEAST_MEASURED, int(THOROUGH_MEASURED_SHARE * typical))
    rows = burn + measured + int(COMPANY_SHARE * typical) + 16
    lanes = max(1, min(lanes, traffic.gap.size // rows))
    factors, levels = _starts(model, traffic, rate_rps, lanes)
    lanes = levels.size
    # Those that wait at the start take rows as well.
    rows = min(rows + int(max(0, levels.max() - model.most_running)), traffic.gap.size // lanes)
    shape = (lanes, measured)
    met, first, whole = np.empty(shape), np.empty(shape), np.empty(shape)
    outputs = np.empty(shape, np.int64)
    gaps = np.zeros(GAP_BINS)
    run_lanes(
        model.speed, factors, model.prefill_s, model.max_seqs, model.kv_tokens, model.kv_token_s, model.mean_context,
        model.stall_per_s, model.stall_s, rate_rps, traffic.gap, traffic.prompt, traffic.output, rows, levels,
        traffic.pool_left, traffic.pool_context, burn, measured, first, whole, met, outputs, gaps, want_gaps,
    )  # fmt: skip
    ttft, e2e, seen = first.ravel(), whole.ravel(), met.ravel()
    with np.errstate(invalid="ignore"):
        decode_s = np.where(np.isinf(e2e), np.inf, e2e - ttft)
        tpot = decode_s / np.where(outputs.ravel() > 1, outputs.ravel() - 1.0, np.nan)
    correction = dict(model.correction)
    if model.ttft_offset_s:
        extra = np.asarray(model.ttft_offset_s)[(np.arange(ttft.size) * 7919) % len(model.ttft_offset_s)]
        if model.ttft_offset_rps > 0:
            extra = extra * (rate_rps / model.ttft_offset_rps)
        ttft = np.maximum(ttft + extra, 0.0)
        e2e = np.maximum(e2e + extra, 0.0)
    return Evaluation(
        rate_rps,
        ttft,
        tpot * correction.get("tpot", 1.0),
        e2e * correction.get("e2e", 1.0),
        seen,
        gaps if correction.get("itl", 1.0) == 1.0 else _shifted(gaps, correction["itl"]),
    )


def _shifted(gaps: Floats, factor: float) -> Floats:
    """The histogram of gaps with every gap multiplied by a factor."""
    shift = round(math.log(factor) / math.log(GAP_GROWTH))
    return np.roll(gaps, shift)


def sustainable(
    model: ServerModel,
    traffic: Traffic,
    limits: tuple[LatencyLimit, ...],
    guess_rps: float,
    slope: float | None = None,
    *,
    most_in_flight: float | None = None,
) -> Sustainable:
    """The highest rate at which every limit holds, or the saturation rate without limits.

    With `most_in_flight`, a percentile (`IN_FLIGHT_QUANTILE`) of requests in flight is held to that like a latency to
    its limit.

    Solves ln(percentile / limit) = 0 for ln(rate); common random numbers make it smooth. `slope`, where known from an
    earlier solution nearby, saves an evaluation.
    """
    bound = saturation_rps(model, traffic)
    if not limits and most_in_flight is None:
        return Sustainable(bound, "backlog", math.inf, float(model.most_running))
    evaluations: dict[float, Evaluation] = {}

    def worst(log_rate: float) -> tuple[float, str]:
        f, name, evaluations[log_rate] = _worst(model, traffic, limits, math.exp(log_rate), most_in_flight)
        return f, name

    top = math.log(bound)
    log_rate, slope, name = _root(worst, min(math.log(guess_rps), top - 0.02), top, slope)
    nearest = evaluations[min(evaluations, key=lambda key: abs(key - log_rate))]
    in_flight = float(np.quantile(nearest.seen, 0.95))
    return Sustainable(math.exp(log_rate), name, slope, in_flight)


def examine(found: Sustainable, model: ServerModel, traffic: Traffic, limits: tuple[LatencyLimit, ...]) -> Examination:
    """A thorough look at the root that `sustainable` found.

    The secants on the way to it lie wherever the first guess was, and on a convex curve are steeper than the curve at
    its root when that was too high; here they lie evenly about it.
    """
    if not limits:
        return Examination(found.rate_rps, 0.0, found.slope)

    def f(log_rate: float) -> float:
        return _worst(model, traffic, limits, math.exp(log_rate), None, thorough=True)[0]

    root, slope, missed = math.log(found.rate_rps), found.slope, 0.0
    low, middle, high = (f(root + step) for step in (-SLOPE_STEP, 0.0, SLOPE_STEP))
    if max(abs(low), abs(high)) < STRAIGHT:
        slope = max(LEAST_SLOPE, (high - low) / (2.0 * SLOPE_STEP))
        missed = (low + middle + high) / 3.0
    room = math.log(saturation_rps(model, traffic)) - root
    return Examination(found.rate_rps, min(-missed / slope, room), slope)


def _worst(
    model: ServerModel,
    traffic: Traffic,
    limits: tuple[LatencyLimit, ...],
    rate_rps: float,
    most_in_flight: float | None,
    *,
    thorough: bool = False,
) -> tuple[float, str, Evaluation]:
    """Logarithm of the tightest percentile over its limit, the limit's name, and the evaluation behind it."""
    want_gaps = any(limit.metric is Metric.ITL for limit in limits)
    evaluation = evaluate(model, traffic, rate_rps, want_gaps=want_gaps, thorough=thorough)
    ratios = {limit.name: evaluation.latency_s(limit) / limit.limit_s for limit in limits}
    if most_in_flight is not None:
        ratios["backlog"] = float(np.quantile(evaluation.seen, IN_FLIGHT_QUANTILE)) / most_in_flight
    name = max(ratios, key=lambda key: ratios[key])
    return math.log(min(max(ratios[name], 1e-9), 1e9)), name, evaluation


def _root(
    worst: Callable[[float], tuple[float, str]], guess: float, bound: float, known_slope: float | None
) -> tuple[float, float, str]:
    """Where `worst` crosses 0, its slope there, and the name that binds.

    Newton steps with a secant slope over rates far enough apart that the lanes' own noise does not matter, inside a
    bracket. A last step shorter than `ACCEPTED_STEP` is taken without another look: the slope is right to a fifth.
    """
    low, high = -math.inf, bound
    slope = known_slope or FIRST_SLOPE
    sure = known_slope is not None
    x, name = guess, "backlog"
    tried: list[tuple[float, float]] = []
    for _ in range(MOST_EVALUATIONS):
        f, found = worst(x)
        if f > 0:
            high, name = x, found
        else:
            low = x
            name = found if name == "backlog" else name
        apart = [(abs(x - p), (f - g) / (x - p)) for p, g in tried if abs(x - p) > SLOPE_STEP and abs(f - g) < STRAIGHT]
        if apart:
            slope, sure = max(LEAST_SLOPE, min(apart)[1]), True
        tried.append((x, f))
        step = min(max(-f / slope, -1.0), 1.0)
        if high - low < ACCEPTED_STEP / 4:
            break
        if abs(step) < ACCEPTED_STEP and x + step < bound:
            if sure:
                return x + step, slope, found
            # A second rate, on the side where the queue is calmer, to learn the slope from.
            step -= 2.0 * SLOPE_STEP
        following = x + step
        if not low < following < high:
            following = (low + high) / 2 if math.isfinite(low) else x - 0.5
        x = following
    return (low if math.isfinite(low) else x), slope, name


def predicted(
    model: ServerModel, traffic: Traffic, rate_rps: float, limits: tuple[LatencyLimit, ...]
) -> Mapping[str, float]:
    """Each limit's latency percentile at a rate, by limit name, in seconds."""
    evaluation = evaluate(model, traffic, rate_rps, want_gaps=any(limit.metric is Metric.ITL for limit in limits))
    return {limit.name: evaluation.latency_s(limit) for limit in limits}
