"""From windows to the sustainable rate and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate import queue_model
from pytest_gpucap.estimate.bins import Bins, bin_width_s, bins_of
from pytest_gpucap.estimate.forgetting import Forgetting
from pytest_gpucap.estimate.paces import PATH_BIN_S, own_paces, pace_path, paces_of
from pytest_gpucap.estimate.queue_model import LONG_STOP_S, Calibration, ServerModel, saturation_rps, starting_levels
from pytest_gpucap.estimate.step_time import Speed, SpeedError, fit
from pytest_gpucap.estimate.sustainable_rate import Examination, Sustainable, examine, sustainable
from pytest_gpucap.estimate.traffic import Traffic, traffic_for
from pytest_gpucap.load.protocol import Journal, OpenLoop
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.belief import Belief, Part, mixture
from pytest_gpucap.measure.kept import kept_by
from pytest_gpucap.measure.rare_stops import UNMOVED, long_stops, stop_shifts
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.measure.staircase import rival_shifts
from pytest_gpucap.requirement import Metric, Requirement
from pytest_gpucap.results.measured import Interval

NORMAL_95 = 1.96
"""Standard errors on either side that hold 95% of a normal distribution: every interval is one of 95%."""
NORMAL_95_ONE_SIDED = 1.64
"""Standard errors on one side that hold 95%: the highest correlation of neighbouring windows that they do not rule
out."""


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """What the windows say.

    Attributes:
        rate: sustainable rate with its 95% interval.
        error: standard error of its logarithm.
        binding: the limit that binds at it.
        in_flight: requests in flight at it, 95th percentile.
        slope: of the tightest percentile against the rate (see `Sustainable`).
        elasticity: of the rate to all times of the engine (see `Sustainable`).
        speed: the curve fitted.
        model: of the server, as the queue model took it.
        least, greatest: the rates with the slowest and the fastest course that the curve may take beyond the batch
            sizes measured; both are the rate itself where the queue reaches none of those.
        belief: how sure it is; before an open loop, the model may be off by much.
        settled: an open loop is behind it, and its slope may be taken for that of the next estimate.
        examination: the queue model's thorough look that is in it; None where there was none.
        extrapolated: the queue reaches batch sizes that were not measured.
        stops: how often long stops of the engine may come, which is known from a few of them alone, and which staircase
            its step times are, where several are possible: the chance of each, and by how much the rate is then
            another, in the logarithm. One of no change where neither is open.
        warming: the server got faster while it was measured, so it may be faster still.
        misfits: names of the limits whose latency the queue model does not explain. Then only what was seen counts.
        forgetting: of sessions, what it costs that the server forgets them, which is in the rate; None where nobody
            looked.
        modelled_rps: the queue model's rate, before open loops corrected it.
    """

    rate: Interval
    error: float
    binding: str
    in_flight: float
    slope: float
    elasticity: float
    speed: Speed
    model: ServerModel
    least: float
    greatest: float
    belief: Belief
    settled: bool = False
    examination: Examination | None = None
    extrapolated: bool = False
    stops: tuple[tuple[float, float], ...] = UNMOVED
    warming: bool = False
    misfits: frozenset[str] = frozenset()
    forgetting: Forgetting | None = None
    modelled_rps: float = 0.0

    @property
    def by_luck(self) -> bool:
        """Whether the number of long stops that came decides on what was seen, so that it says nothing for good."""
        moved = [shift for _, shift in self.stops]
        return max(moved) - min(moved) > c.BY_LUCK_LN

    def believing(self, belief: Belief) -> RateEstimate:
        """The same with another belief, and its interval."""
        value, low, high = belief.interval()
        error = math.log(high / low) / (2.0 * NORMAL_95)
        return replace(self, belief=belief, rate=Interval(value, low, high), error=error)


def bins_between(journal: Journal, windows: list[Window], step_s: float) -> Bins:
    """All windows in bins; windows that follow each other are one, so that no stop of the engine is cut in two."""
    spans: list[tuple[float, float]] = []
    for window in windows:
        if spans and 0.0 <= window.start_s - spans[-1][1] < c.CUT_S:
            spans[-1] = (spans[-1][0], window.end_s)
        elif window.end_s > window.start_s:
            spans.append((window.start_s, window.end_s))
    parts = [bins_of(journal, start_s, end_s, bin_width_s(step_s)) for start_s, end_s in spans]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part)
    return joined


def typical_step_s(journal: Journal, windows: list[Window]) -> float:
    """Seconds a step, roughly: what the width of the bins depends on."""
    start_s, end_s = windows[0].start_s, windows[-1].end_s
    bins = bins_of(journal, start_s, end_s, end_s - start_s)
    return float(bins.width_s[0] * max(bins.decoding[0], 0.5) / max(bins.tokens[0], 1.0))


def fitted(journal: Journal, windows: list[Window], traffic: Traffic | None = None) -> Speed:
    """The speed curve from all windows, for the requests of `traffic` (None: of any length).

    Raises:
        SpeedError: if the windows hold too few tokens.
    """
    bins = bins_between(journal, windows, typical_step_s(journal, windows))
    return fit(bins, traffic.mean_context, traffic.even_prompt) if traffic else fit(bins)


def _fitted_if_enough(journal: Journal, windows: list[Window], traffic: Traffic) -> Speed | None:
    """As `fitted`; None where the windows hold too few tokens, as open loops at a low rate do."""
    try:
        return fitted(journal, windows, traffic) if windows else None
    except SpeedError:
        return None


def drift_share(seconds: float) -> float:
    """Variance of the mean of a drift over a measurement, against the drift's own (Ornstein-Uhlenbeck process)."""
    x = max(seconds, 1e-6) / c.DRIFT_TAU_S
    return 2.0 / x * (1.0 - (1.0 - math.exp(-x)) / x)


@dataclass(frozen=True, slots=True)
class WindowPaces:
    """How the pace departs from the curve, window by window, shape (k,) each: windows with too few bins are left out.

    Attributes:
        at_s: middle of each window.
        log: median of the logarithm of time taken over time by the curve.
        variance: of that, from the window's own noise.
    """

    at_s: Floats
    log: Floats
    variance: Floats

    def falls(self, z: float) -> bool:
        """Whether times fell over the windows by `constants.TREND_LN`, which is so many of its standard errors.

        Windows scatter by more than their own noise where the pace wanders, so the larger of both is the error of the
        least-squares line.
        """
        if self.at_s.size < 3:  # noqa: PLR2004 - two points are always on a line
            return False
        weight = 1.0 / np.maximum(self.variance, 1e-12)
        at = self.at_s - float(np.average(self.at_s, weights=weight))
        moment = float((weight * at**2).sum())
        slope = float((weight * at * self.log).sum()) / moment
        residual = self.log - float(np.average(self.log, weights=weight)) - slope * at
        scatter = max(1.0, float((weight * residual**2).sum()) / (self.at_s.size - 2))
        return slope < -z * math.sqrt(scatter / moment) and slope * float(np.ptp(self.at_s)) < -c.TREND_LN


def window_paces(journal: Journal, windows: list[Window], speed: Speed) -> WindowPaces:
    """How the pace of each window departs from the curve."""
    found: list[tuple[float, float, float]] = []
    step_s = typical_step_s(journal, windows)
    for window in windows:
        bins = bins_of(journal, window.start_s, window.end_s, bin_width_s(step_s))
        taken_s = speed.taken_s(bins)
        usable = (bins.decoding >= 1.0) & (bins.tokens > 0) & (taken_s > 0)
        if usable.sum() > 3:  # noqa: PLR2004 - no spread of fewer
            departure = np.log(bins.width_s[usable] / taken_s[usable])
            # The median, so that a stop of the engine is no drift; its variance is pi / 2 that of a mean.
            spread = 1.4826 * float(np.median(np.abs(departure - np.median(departure))))
            middle_s = (window.start_s + window.end_s) / 2.0
            found.append((middle_s, float(np.median(departure)), math.pi / 2 * spread**2 / departure.size))
    at_s, log, variance = np.array(found).reshape(-1, 3).T
    return WindowPaces(at_s, log, variance)


def between_windows(paces: WindowPaces) -> float:
    """Standard error of the mean pace from how it departs from the curve, window by window.

    A server that drifts by more than `DRIFT_SD` shows it here, and widens its interval. 0 with fewer than 3 windows.
    """
    if paces.log.size < 3:  # noqa: PLR2004 - documented
        return 0.0
    return error_of_mean(paces.log, float(paces.variance.mean()))


def drift_error(journal: Journal, windows: list[Window], speed: Speed, seconds: float) -> float:
    """Standard error of the mean pace from a drift over so many seconds: the assumed one, or what windows show.

    Where the pace wanders within windows, it is at least that of the mean over the path.
    """
    assumed = c.DRIFT_SD * math.sqrt(drift_share(seconds))
    path = pace_path(journal, [(w.start_s, w.end_s) for w in windows], speed)
    wandering = path.error if len(path.factors) > 1 else 0.0
    return max(assumed, wandering, between_windows(window_paces(journal, windows, speed)))


def error_of_mean(paces: Floats, noise: float) -> float:
    """Standard error of the mean of windows' paces, beyond what their own noise explains.

    All of their scatter where a window is like the one before; less where each is a fresh draw, for then the mean over
    many has lost most of it: the variance of the mean of a first-order autoregression, with the highest correlation of
    neighbours that the windows do not rule out, which is that of the von Neumann ratio (Ann. Math. Statist. 12, 1941)
    and 1.64 of its standard errors.

    Args:
        paces: logarithms, in order of time, shape (k,) with k of at least 3.
        noise: variance of each from its own noise.
    """
    variance = float(np.var(paces, ddof=1))
    alike = max(0.0, 1.0 - float(np.mean(np.diff(paces) ** 2)) / max(2.0 * variance, 1e-30))
    alike = min(alike + NORMAL_95_ONE_SIDED / math.sqrt(paces.size), 1.0 - 1e-6)
    # The curve has followed the windows in its height and its slope.
    followed = (paces.size - 1) / max(1, paces.size - 3)
    share = min(1.0, followed * (1.0 + alike) / (1.0 - alike) / paces.size)
    return math.sqrt(max(0.0, variance - noise) * share)


def stops_of(speed: Speed) -> tuple[float, tuple[float, ...]]:
    """How often the engine stops per second, and the lengths that are equally likely.

    Short stops are told together with the one that is assumed beforehand; longer ones by what was seen alone.
    """
    seen = np.array(speed.stops_s)
    long = seen[seen > LONG_STOP_S]
    short = np.append(seen[seen <= LONG_STOP_S], c.STALL_S)
    short_per_s, long_per_s = short.size / (speed.seconds + c.STALL_PRIOR_S), long.size / speed.seconds
    if not long.size:
        return short_per_s, (float(short.mean()),)
    share = short_per_s / (short_per_s + long_per_s)
    shorts = round(share * c.STOP_LENGTHS)
    drawn = np.sort(long)[
        ((np.arange(c.STOP_LENGTHS - shorts) + 0.5) / (c.STOP_LENGTHS - shorts) * long.size).astype(int)
    ]
    return short_per_s + long_per_s, (*([float(short.mean())] * shorts), *(float(s) for s in drawn))


def server_model_of(speed: Speed, settings: Settings) -> ServerModel:
    """The queue model's view of the server."""
    max_seqs = settings.max_num_seqs or queue_model.NEVER_LIMITED
    most = int(min(max_seqs, max(queue_model.TABLE, 4 * speed.most)))
    stall_per_s, stall_s = stops_of(speed)
    return ServerModel(
        speed=speed.table(most),
        prefill_s=speed.prefill_s,
        max_seqs=max_seqs,
        kv_tokens=float(settings.kv_tokens or math.inf),
        drift_sd=c.DRIFT_SD,
        stall_per_s=stall_per_s,
        stall_s=stall_s,
        kv_token_s=speed.kv_token_s,
        mean_context=speed.mean_context,
        prefill_growth_s=speed.prefill_growth_s,
        even_prompt=speed.even_prompt,
        step_tokens=float(settings.max_num_batched_tokens or math.inf),
    )


def server_seen(run: MeasuringRun, windows: list[Window]) -> tuple[Speed, ServerModel]:
    """The curve fitted to all windows, and the server as the queue model takes it.

    Raises:
        SpeedError: if the windows hold too few tokens.
    """
    journal, workload = run.journal, run.requirement.workload
    traffic = traffic_for(workload)
    speed = None
    if workload.output_tokens.mean < c.SHORT_ANSWER:
        open_loops = [w for w in windows if isinstance(w.span.phase, OpenLoop)]
        speed = _fitted_if_enough(journal, open_loops, traffic)
        windows = open_loops if speed else windows
    speed = speed or fitted(journal, windows, traffic)
    path = pace_path(journal, [(w.start_s, w.end_s) for w in windows], speed)
    own = own_paces(paces_of(journal, windows[0].start_s, windows[-1].end_s))
    model = server_model_of(speed, run.settings)
    failed, ended = run.errors()
    return speed, replace(
        model,
        path=path.factors,
        path_bin_s=PATH_BIN_S if len(path.factors) > 1 else math.inf,
        own_paces=own,
        failed=failed / ended if ended else 0.0,
    )


def estimate(
    run: MeasuringRun,
    windows: list[Window],
    guess_rps: float,
    *,
    slope: float | None = None,
    calibration: Calibration | None = None,
    peak: int | None = None,
    extremes: bool = True,
    thorough: bool = False,
    examined: Examination | None = None,
    seen: tuple[Speed, ServerModel] | None = None,
    limited_error: float = c.LIMITED_ERROR,
) -> RateEstimate:
    """Fit the curve, put the queue on top, solve for the rate.

    Args:
        run: its journal, requirement and settings.
        windows: that count.
        guess_rps: where the search for the rate begins.
        slope: of ln(percentile) against ln(rate), where an earlier estimate nearby tells it.
        calibration: what an open loop showed beyond the model.
        peak: the concurrency beyond which throughput falls, where one was seen. A longer queue there makes the server
            slower and so grows by itself, so requests in flight must stay below it as a latency must stay below its
            limit (see `sustainable_rate.IN_FLIGHT_QUANTILE`).
        extremes: let the interval allow for batch sizes that were not measured; a search needs no such interval.
        thorough: examine the rate found, or take over `examined`, of a rate nearby. Not with a `peak`: the figure then
            belongs to a length of time, since a longer simulation is more likely to meet a moment that overloads the
            server for good.
        examined: an earlier examination.
        seen: what `server_seen` makes of these windows, where it is known already.
        limited_error: standard error of ln(rate) that is added where sequences or KV cache run out.

    Raises:
        SpeedError: if the windows hold too few tokens.
    """
    limits = run.requirement.slo.limits
    speed, model = seen or server_seen(run, windows)
    traffic = traffic_for(run.requirement.workload, model.own_paces)
    model = replace(model, calibration=calibration or Calibration())
    if peak is not None:
        model = replace(model, speed=speed.pessimistic(model.speed.size - 1))
    found = sustainable(model, traffic, limits, guess_rps, slope, most_in_flight=peak)
    stops = UNMOVED
    if extremes and peak is None:
        stops = stop_shifts(speed, model, traffic, limits, found.rate_rps, guess_rps, kept_by(run, windows))
    if speed.rivals and limits and extremes and peak is None:
        rivals = rival_shifts(speed, model, traffic, limits, found.rate_rps)
        stops = tuple((p * q, a + b) for p, a in stops for q, b in rivals)
    if thorough and peak is None and not model.stops:  # where it stops, an ordinary evaluation is long already
        if examined is None or abs(math.log(found.rate_rps / examined.rate_rps)) > c.EXAMINED_NEAR:
            examined = examine(found, model, traffic, limits)
        found = replace(found, rate_rps=found.rate_rps * math.exp(examined.correction), slope=examined.slope)
    error = _error(run.journal, windows, speed, model, found)
    if speed.stair:
        error = math.hypot(error, c.STAIR_ERROR)
    if starting_levels(model, traffic, found.rate_rps, 64)[1]:
        error = math.hypot(error, limited_error)
    least = greatest = rate = found.rate_rps
    highest = rate
    beyond = peak is None and _beyond(found, windows, model, traffic)
    if peak is not None:
        error = math.hypot(error, c.PEAK_ERROR)
        # At most all that the best concurrency brought.
        highest = max(rate, saturation_rps(model, traffic))
    elif extremes and beyond:
        bounds = _extremes(model, speed, traffic, run.requirement, rate)
        least, greatest = min(rate, *bounds), max(rate, *bounds)
        error = math.hypot(error, c.EXTRAPOLATED_ERROR)
    high = max(greatest * math.exp(NORMAL_95 * error), highest)
    own = Part(1.0, rate, least, greatest, error)
    return RateEstimate(
        Interval(rate, least * math.exp(-NORMAL_95 * error), high),
        error,
        found.binding,
        found.in_flight,
        found.slope,
        found.elasticity,
        speed,
        model,
        least,
        greatest,
        mixture(own, None).spread(stops),
        examination=examined,
        extrapolated=beyond,
        stops=stops,
        modelled_rps=rate,
    )


def curve_error(speed: Speed, in_flight: float) -> float:
    """Standard error of ln(time per step) where the rate is decided: with the most requests in flight."""
    return speed.error_at(min(in_flight, c.EXTRAPOLATED * speed.most))


def _error(journal: Journal, windows: list[Window], speed: Speed, model: ServerModel, found: Sustainable) -> float:
    """Standard error of ln(rate): of the fit, of drift, of how often the engine stops, and of the queue model."""
    seconds = windows[-1].end_s - windows[0].start_s
    drift = drift_error(journal, windows, speed, seconds)
    # How often the engine stops is known from a Poisson count: the stops seen, and the one assumed beforehand. What few
    # long ones leave open is no error of this kind (`stop_shifts`).
    short = [s for s in model.stall_s if s <= LONG_STOP_S]
    stops = model.stall_per_s * sum(short) / len(model.stall_s)
    stops /= math.sqrt(len(speed.stops_s) - len(long_stops(speed)) + 1.0)
    pace_error = math.hypot(curve_error(speed, found.in_flight), drift, stops)
    flatness = max(1.0, c.FLAT_SLOPE / found.slope)
    return math.hypot(found.elasticity * pace_error, flatness * c.QUEUE_MODEL_ERROR)


def _beyond(found: Sustainable, windows: list[Window], model: ServerModel, traffic: Traffic) -> bool:
    """Whether the queue at the estimate reaches batch sizes that were not measured."""
    fitting = model.kv_tokens / max(1.0, traffic.mean_context)
    held = max((s.in_flight_mean for w in windows for s in w.samples), default=0.0)
    return min(found.in_flight, model.most_running, fitting) > c.EXTRAPOLATED * held + c.EXTRAPOLATED_MARGIN


def _extremes(
    model: ServerModel, speed: Speed, traffic: Traffic, requirement: Requirement, guess: float
) -> tuple[float, float]:
    """The rates with the slowest and the fastest curve that the data allow beyond what they cover."""
    most = model.speed.size - 1
    rates = []
    for table in (speed.pessimistic(most), speed.optimistic(most)):
        found = sustainable(replace(model, speed=table), traffic, requirement.slo.limits, guess)
        rates.append(found.rate_rps)
    return min(rates), max(rates)


def critical_concurrency(requirement: Requirement, settings: Settings, rate_rps: float) -> int:
    """Requests in flight at which a limit would bind at `rate_rps`: where the speed decides, and is to be measured.

    A limit on E2E or TPOT fixes the slowest pace allowed, and Little's law turns the rate into requests in flight at
    that pace. A limit on TTFT or no limit at all lets the batch grow until sequences or memory run out.
    """
    workload = requirement.workload
    mean_output = workload.output_tokens.mean
    paces = []
    for limit in requirement.slo.limits:
        for metric, limit_s in limit.thresholds:
            if metric is Metric.E2E:
                paces.append(limit_s / max(1.0, _length_quantile(requirement, float(limit.quantile))))
            elif metric is not Metric.TTFT:
                paces.append(limit_s)
    ceiling = float(settings.max_num_seqs or c.UNKNOWN_SEQS)
    if settings.kv_tokens:
        ceiling = min(ceiling, c.KV_SHARE * settings.kv_tokens / traffic_for(workload).mean_context)
    if paces:
        n = rate_rps * mean_output * min(paces)
        n *= 1.0 + c.CRITICAL_MARGIN_SD / math.sqrt(max(n, 1.0))
        ceiling = min(ceiling, n)
    return max(1, math.ceil(ceiling))


def _length_quantile(requirement: Requirement, quantile: float) -> float:
    """A percentile of the output tokens."""
    from pytest_gpucap.load.draws import draw_lengths, random_generator

    drawn = draw_lengths(requirement.workload.output_tokens, random_generator(0, 0), 4096)
    return float(np.quantile(drawn, quantile))
