"""Observed against modelled latencies: the same requests, in the queue model and on the server.

Near its limit a server's percentile is very variable, and most of that is the luck of the arrivals. The queue model
replays the arrivals as they came, so it has the same luck. What is left between both is what the model leaves out: its
mean corrects the model, its scatter from block to block is the error of that (a control variate).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.arrays import Bools, Floats, Ints
from pytest_gpucap.estimate.bins import integral
from pytest_gpucap.estimate.paces import CLOCK_BIN_S, STOP_LN, departures, paces_of, token_clock
from pytest_gpucap.estimate.queue_model import ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import (
    GAP_BINS,
    GAP_GROWTH,
    GAP_LOWEST_S,
    QueueArrivals,
    QueueLatencies,
    QueueStart,
    simulate,
)
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.load.latencies import Ended, limited, with_first_tokens
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.late import late_by
from pytest_gpucap.measure.of_sessions import owners, resampled_sessions
from pytest_gpucap.measure.run import Window
from pytest_gpucap.requirement import GoodputLimit, Limit, Metric, Slo

PACES_LN = np.array([-0.15, -0.07, 0.0, 0.07, 0.15])
"""Logarithms of the factors on all times at which the model replays the arrivals."""
_STANDSTILL = 50.0
"""A bin of a path without a token: next to nothing happens in it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Requests as the queue model serves them, with the server's own arrivals.

    Attributes:
        rows: shape (n,), of the journal, in order of arrival.
        ttft_s, e2e_s: shape (n,), from being due; NaN where it had not come by the end.
        gaps: histogram of inter-token gaps.
        in_flight_s: time integral of requests in flight.
    """

    rows: Ints
    ttft_s: Floats
    e2e_s: Floats
    gaps: Floats
    in_flight_s: float


def replayed(
    journal: Journal, start_s: float, end_s: float, model: ServerModel, path: Floats, factor: float = 1.0
) -> Replay:
    """Replay [start_s, end_s) from the state in which it began.

    Args:
        journal: at `end_s` or later.
        start_s: on the runner's clock.
        end_s: on the runner's clock.
        model: of the server.
        path: shape (k,): factors on all times, as they were seen (`path_seen`).
        factor: on all times.
    """
    usable = _usable(journal)
    waiting = usable & (journal.due_s < start_s) & ~(journal.first_s <= start_s) & ~(journal.end_s <= start_s)
    due = usable & (journal.due_s >= start_s) & (journal.due_s < end_s)
    rows = np.concatenate([np.flatnonzero(waiting), np.flatnonzero(due)])
    # Where each request has its own pace, that of an answer is known once it is whole.
    paces = np.ones(journal.due_s.size)
    if model.own_paces:
        seen = paces_of(journal, float(journal.first_s[np.isfinite(journal.first_s)].min()), end_s)
        paces = np.where(np.isnan(seen), 1.0, np.clip(seen, model.own_paces[0], model.own_paces[-1]))
    running = _running_at(journal, start_s, usable, paces)
    arrivals = QueueArrivals(
        np.maximum(0.0, journal.due_s[rows] - start_s),
        journal.prompt_tokens[rows].astype(np.int64),
        np.maximum(1, np.rint(journal.output_tokens[rows] / paces[rows])).astype(np.int64),
        journal.cached_tokens[rows].astype(np.int64),
    )
    server = server_of(model)._replace(stall_per_s=0.0, path=path, path_bin_s=(end_s - start_s) / path.size)
    found = QueueLatencies(np.full(rows.size, np.nan), np.full(rows.size, np.nan), np.zeros(rows.size))
    gaps = np.zeros(GAP_BINS)
    in_flight_s = simulate(server, factor, 0.0, arrivals, running, (0, rows.size + 1), found, gaps, end_s - start_s)
    return Replay(rows, found.ttft_s, found.e2e_s, gaps, in_flight_s)


def _usable(journal: Journal) -> Bools:
    """Requests that did not fail, shape (rows,)."""
    usable: Bools = ~journal.failed
    return usable


def _replays(journal: Journal, start_s: float, end_s: float, model: ServerModel, speed: Speed) -> list[Replay]:
    """Replays of [start_s, end_s) with each of the factors `PACES_LN` on all times."""
    path = path_seen(journal, start_s, end_s, speed, model)
    return [replayed(journal, start_s, end_s, model, path, math.exp(ln)) for ln in PACES_LN]


def path_seen(journal: Journal, start_s: float, end_s: float, speed: Speed, model: ServerModel) -> Floats:
    """Factors on all times in [start_s, end_s), as they were seen: stops of the engine, or all where it wanders."""
    factors = departures(journal, start_s, end_s, speed)
    factors = np.clip(np.where(np.isnan(factors), 1.0, factors), 1.0 / _STANDSTILL, _STANDSTILL)
    if model.wanders:
        return factors
    log = np.log(factors)
    return np.where(log - np.median(log) > STOP_LN, factors, 1.0)


def _running_at(journal: Journal, at_s: float, usable: Bools, paces: Floats) -> QueueStart:
    """The requests that ran at a time, of the `usable` ones: tokens to go, and KV tokens held."""
    running = usable & (journal.first_s <= at_s) & ~(journal.end_s <= at_s)
    output = journal.output_tokens[running] / paces[running]
    done = np.clip(_tokens_done(journal, at_s, journal.first_s[running]), 1.0, np.maximum(1.0, output - 1.0))
    return QueueStart(
        np.maximum(1, output - done).astype(np.int64), (journal.prompt_tokens[running] + done).astype(np.int64)
    )


def _tokens_done(journal: Journal, at_s: float, first_s: Floats) -> Floats:
    """Tokens that requests running at `at_s` had received, from when their first came and the pace since."""
    if first_s.size == 0:
        return np.zeros(0)
    begin = float(first_s.min())
    if at_s - begin < 2 * CLOCK_BIN_S:
        return np.ones(first_s.size)
    edges, clock = token_clock(journal, begin, at_s)
    result: Floats = clock[-1] - np.interp(first_s, edges, clock) + 1.0
    return result


@dataclass(frozen=True, slots=True)
class Departure:
    """How far a limit's latency departs from the model.

    Attributes:
        limit: its name.
        log_factor, error: logarithm of the observed over the modelled percentile, and its standard error.
        log_pace, pace_error: the same as a factor on all times of the model with which it has the observed percentile.
        sensitivity: of ln(percentile) to ln(times): high where requests queue.
        of_limit: the observed percentile over the limit.
    """

    limit: str
    log_factor: float
    error: float
    log_pace: float
    pace_error: float
    sensitivity: float
    of_limit: float = 1.0

    @property
    def in_pace(self) -> bool:
        """Whether a pace explains it better than a factor on the latency: where requests queue."""
        return self.sensitivity > c.QUEUEING

    @property
    def unexplained(self) -> bool:
        """Whether it is clear, longer than anything that the model knows makes it, and matters.

        A latency that keeps its limit and departs by the same factor all the time is corrected by that factor. So is
        one that is far from its limit.
        """
        if self.of_limit < c.FAR_WITHIN or (self.of_limit < 1.0 and self.error < c.UNSTEADY_ERROR):
            return False
        if self.in_pace:  # the pace itself was measured
            return self.log_pace > max(c.MISFIT_PACE_LN, c.CLEAR * self.pace_error)
        return self.log_factor > max(c.FAR_FROM_MODEL_LN, c.CLEAR * self.error)


def departures_of(
    journal: Journal,
    spans: list[tuple[float, float]],
    open_loops: list[tuple[float, float]],
    model: ServerModel,
    speed: Speed,
    slo: Slo,
) -> list[Departure]:
    """How every limit's latency departs from the model, over requests due in some spans of uninterrupted load.

    In a closed loop a request comes when another has just left: a replay that is a little slower than the server gets
    the server's arrivals all the same, and falls behind. So its requests count only while the open loops are too short
    to tell, and its first tokens never. Limits on ITL are left out: their gaps are no requests. So are those of which
    too few requests are known.

    Args:
        journal: at the end of all spans or later.
        spans: of uninterrupted load.
        open_loops: the parts of them that are open loops.
        model: of the server.
        speed: its curve.
        slo: the limits.
    """
    limits = [limit for limit in slo.limits if not limit.of_gaps]
    factor = model.calibration.first_token_factor

    def pairs(spans: list[tuple[float, float]]) -> dict[str, list[Floats]]:
        parts: dict[str, list[tuple[Floats, ...]]] = {limit.name: [] for limit in limits}
        for span in spans:
            replays = _replays(journal, *span, model, speed)
            for limit in limits:
                parts[limit.name].append(paired(journal, replays, limit, span, factor))
        return {name: [np.concatenate(each) for each in zip(*found, strict=True)] for name, found in parts.items()}

    e2e_s = _usual_e2e_s(journal)
    free = pairs(open_loops) if open_loops else {}
    everything: dict[str, list[Floats]] = {}
    found = []
    for limit in limits:
        first = Metric.TTFT in limit.metrics
        least = c.LEAST_BLOCKS if first else c.ENOUGH_BLOCKS
        each = _departure(limit, free[limit.name], e2e_s, least) if free else None
        if each is None and not first:
            everything = everything or pairs(spans)
            each = _departure(limit, everything[limit.name], e2e_s)
        if (
            each is None
            and not limit.at_first
            and sum(end - begin for begin, end in open_loops) < c.ENOUGH_BLOCKS * e2e_s
        ):
            each = _by_requests_in_flight(journal, open_loops, model, speed, limit)
        if each is not None:
            found.append(each)
    return found


def _usual_e2e_s(journal: Journal) -> float:
    ended = (journal.status == Status.OK) & ~journal.hot
    return float(np.median(journal.e2e_s[ended])) if ended.any() else math.inf


def paired(
    journal: Journal, replays: list[Replay], limit: Limit, span: tuple[float, float], first_token_factor: float = 1.0
) -> tuple[Floats, ...]:
    """When requests were due, whose turns they are (`owners`), and what a limit is set on (`limited`).

    That is on the server, and in each replay. Infinite beyond what is known of all.

    A request counts if it was due so early that a latency at the limit would be known of it.

    Args:
        journal: at the end of the span or later.
        replays: of the span.
        limit: none on ITL.
        span: of uninterrupted load.
        first_token_factor: on the replays' TTFT, where the limit is goodput.
    """
    start_s, end_s = span
    rows = replays[0].rows
    due_s = journal.due_s[rows]
    first = limit.at_first
    seen = (journal.ttft_s if first else journal.e2e_s)[rows]
    # What came after the end came under another load.
    columns = [np.where(due_s + seen <= end_s, seen, np.inf)]
    for replay in replays:
        modelled = replay.ttft_s if first else replay.e2e_s
        columns.append(np.where(np.isnan(modelled), np.inf, modelled))
    known = columns[0][np.isfinite(columns[0])]
    longest_s = dict(limit.thresholds).get(Metric.TTFT if first else Metric.E2E, math.inf)
    horizon_s = min(longest_s, float(np.quantile(known, 0.98)) if known.size else math.inf)
    counted = (due_s >= start_s) & (due_s < end_s - horizon_s)
    counted &= ~journal.hot[rows] if first else journal.output_tokens[rows] > 1
    due_s, whose = due_s[counted], owners(journal, rows[counted])
    columns = [np.where(column[counted] <= end_s - due_s, column[counted], np.inf) for column in columns]
    factors = (1.0, *([first_token_factor if isinstance(limit, GoodputLimit) else 1.0] * len(replays)))
    if first:
        most_s = longest_s if isinstance(limit, GoodputLimit) else 1.0
        columns = [column * (by / most_s) for column, by in zip(columns, factors, strict=True)]
        return (due_s, whose, *columns)
    tokens = np.maximum(1.0, journal.output_tokens[rows][counted] - 1.0)
    firsts = [each[counted] for each in (journal.ttft_s[rows], *(replay.ttft_s for replay in replays))]
    with np.errstate(invalid="ignore"):
        whole = [
            with_first_tokens(Ended(ttft, (e2e - ttft) / tokens, e2e), by)
            for e2e, ttft, by in zip(columns, firsts, factors, strict=True)
        ]
        return (due_s, whose, *(np.where(np.isinf(each.e2e_s), np.inf, limited(each, limit)) for each in whole))


def block_size(due_s: Floats, block_s: float) -> int:
    """Requests of a block that lasts so long, from when all of them were due, in order."""
    gap_s = max(float(np.median(np.diff(due_s))) / math.log(2.0), 1e-9)
    return max(1, round(block_s / gap_s)) if math.isfinite(block_s) else due_s.size


def resampled_blocks(n: int, each: int, rng: np.random.Generator) -> Ints:
    """Resamples of n requests by blocks of so many neighbours, as their places; shape (`constants.RESAMPLES`, n)."""
    starts = rng.integers(0, n, (c.RESAMPLES, math.ceil(n / each)))
    picked: Ints = ((starts[:, :, None] + np.arange(each)) % n).reshape(c.RESAMPLES, -1)[:, :n]
    return picked


def _departure(
    limit: Limit, columns: list[Floats], e2e_s: float, least_blocks: float = c.LEAST_BLOCKS
) -> Departure | None:
    order = np.argsort(columns[0], kind="stable")
    due_s, whose, *latencies = (column[order] for column in columns)
    n = due_s.size
    if n < c.LEAST_COMPARED:
        return None
    beyond = max(float(np.isinf(column).mean()) for column in latencies)
    level = min(float(limit.quantile), 1.0 - beyond - 1.5 / n, 1.0 - c.LEAST_BEYOND / n)
    if level < 0.5:  # noqa: PLR2004 - the middle: below it lies no tail
        return None
    # Requests within a request's duration share their queue: blocks of that time are nearly independent.
    each = block_size(due_s, max(c.BLOCK_REQUESTS * e2e_s, c.BLOCK_S))
    blocks = n / each
    if blocks < least_blocks:
        return None
    rng = np.random.default_rng(n)
    picked = resampled_blocks(n, each, rng)
    by_session = resampled_sessions(whose.astype(np.int64), rng, c.RESAMPLES)
    if by_session is None:
        return None
    picked = np.concatenate([np.arange(n)[None], picked, by_session])
    seen, *modelled = (np.log(np.maximum(upper(column[picked], level), 1e-6)) for column in latencies)
    table = np.maximum.accumulate(np.column_stack(modelled), axis=1)
    middle = PACES_LN.size // 2
    with np.errstate(invalid="ignore"):  # neither ended: left out below
        factors = seen - table[:, middle]
    paces = np.array([_pace_for(target, row) for target, row in zip(seen, table, strict=True)])
    sensitivity = float((table[0, middle + 1] - table[0, middle - 1]) / (PACES_LN[middle + 1] - PACES_LN[middle - 1]))
    usable = np.isfinite(factors) & np.isfinite(paces)
    if not usable[0] or usable[: c.RESAMPLES + 1].sum() < c.RESAMPLES / 2:
        return None
    more = math.sqrt(blocks / (blocks - 2.0))

    def spread(values: Floats) -> float:
        """Of the resampled values: the larger of that by blocks of time, and that by session."""
        blockwise, sessionwise = slice(0, c.RESAMPLES + 1), slice(c.RESAMPLES + 1, None)
        found = float(np.std(values[blockwise][usable[blockwise]])) * more
        others = values[sessionwise][usable[sessionwise]]
        return max(found, float(np.std(others))) if others.size else found

    elsewhere = c.LEVEL_ERROR * (float(limit.quantile) - level)
    return Departure(
        limit.name,
        float(factors[0]),
        math.hypot(spread(factors), elsewhere),
        float(paces[0]),
        math.hypot(spread(paces), elsewhere / max(1.0, sensitivity)),
        sensitivity,
        math.exp(float(seen[0])) / limit.most,
    )


def _by_requests_in_flight(
    journal: Journal, open_loops: list[tuple[float, float]], model: ServerModel, speed: Speed, limit: Limit
) -> Departure | None:
    """The departure where requests take longer than the load lasted: a pace, from how many were in flight."""
    paces = []
    for start_s, end_s in open_loops:
        replays = _replays(journal, start_s, end_s, model, speed)
        in_flight_s = np.maximum.accumulate([replay.in_flight_s for replay in replays])
        if in_flight_s[0] <= 0.0:  # nothing arrived
            continue
        modelled = np.log(in_flight_s)
        usable = _usable(journal)
        span = np.array([start_s, end_s])
        seen_s = float(np.diff(integral(span, journal.due_s[usable], journal.end_s[usable]))[0])
        if modelled[-1] - modelled[0] > c.LEAST_PROGRESS * (PACES_LN[-1] - PACES_LN[0]):
            paces.append(float(np.interp(math.log(max(seen_s, 1e-9)), modelled, PACES_LN)))
    if not paces:
        return None
    mean = float(np.mean(paces))
    scatter = float(np.std(paces, ddof=1)) if len(paces) > 1 else 0.0
    error = max(c.PROGRESS_ERROR, scatter) / math.sqrt(len(paces))
    return Departure(limit.name, mean, error, mean, error, math.inf)


def _pace_for(target: float, modelled: Floats) -> float:
    """Where a rising table over `PACES_LN` reaches a value; straight on beyond its ends.

    A slow pace may overload the model, so that the percentile never ends: the table is then used as far as it goes.
    """
    known = int(np.isfinite(modelled).sum())
    if known < 2 or not np.isfinite(modelled[:known]).all():  # noqa: PLR2004 - no slope of one
        return math.nan
    modelled, paces = modelled[:known], PACES_LN[:known]
    if target > modelled[-1]:
        slope = max(1.0, (modelled[-1] - modelled[-2]) / (paces[-1] - paces[-2]))
        return float(paces[-1] + (target - modelled[-1]) / slope)
    if target < modelled[0]:
        slope = max(1.0, (modelled[1] - modelled[0]) / (paces[1] - paces[0]))
        return float(paces[0] + (target - modelled[0]) / slope)
    return float(np.interp(target, modelled + 1e-9 * np.arange(known), paces))


def upper(values: Floats, level: float) -> Floats:
    """A percentile along the last axis, as a value that occurred."""
    k = min(values.shape[-1] - 1, int(level * values.shape[-1]))
    found: Floats = np.partition(values, k, axis=-1)[..., k]
    return found


def itl_factor(journal: Journal, window: Window, model: ServerModel, speed: Speed, slo: Slo) -> float:
    """Observed over modelled percentile of the inter-token gaps, where a limit is set on them; otherwise 1."""
    limits = [limit for limit in slo.limits if limit.of_gaps]
    if not limits or window.span.gaps.total == 0:
        return 1.0
    path = path_seen(journal, window.span.start_s, window.end_s, speed, model)
    counts = np.maximum(replayed(journal, window.span.start_s, window.end_s, model, path).gaps, 0.0)
    quantile = float(limits[0].quantile)
    at = np.searchsorted(np.cumsum(counts), quantile * counts.sum())
    modelled = GAP_LOWEST_S * GAP_GROWTH ** (float(at) - 0.5)
    return float(window.span.gaps.quantile_s(quantile) / modelled)


def side(journal: Journal, open_loops: list[Window], limit: Limit) -> float:
    """On which side of a limit some open loops are, in standard errors: above 0, fewer break it than may.

    Requests of the same moments break a limit together. So the error is that of as many draws as there were blocks of
    time, not of as many as there were requests.
    """
    allowed = 1.0 - float(limit.quantile)
    late, known = 0.0, 0
    for window in open_loops:
        broken, counted = _broken(journal, window, limit)
        late, known = late + broken, known + counted
    seconds = sum(w.end_s - w.start_s for w in open_loops)
    if known < c.LEAST_KNOWN:
        return 0.0
    share = min(late / known, 1.0 - allowed)
    spread = max(share, allowed)
    blocks = max(1.0, seconds / max(c.SIDE_BLOCK_S, c.BLOCK_REQUESTS * _usual_e2e_s(journal)))
    # Turns of one session belong together as well.
    if journal.sessions is not None:
        rows = np.concatenate([np.arange(w.span.first_row, w.span.end_row) for w in open_loops])
        blocks = min(blocks, max(1.0, float(np.unique(owners(journal, rows)).size)))
    return (allowed - share) / math.sqrt(spread * (1.0 - spread) / blocks)


def violations(journal: Journal, window: Window, slo: Slo) -> float:
    """Largest share of the open loop's own requests that broke a limit; undecided requests count for neither side."""
    shares = [0.0]
    for limit in slo.limits:
        broken, known = _broken(journal, window, limit)
        if known >= c.LEAST_KNOWN:
            shares.append(broken / known)
    return max(shares)


def _broken(journal: Journal, window: Window, limit: Limit) -> tuple[float, int]:
    """How many of an open loop's requests, or gaps, broke a limit, and of how many that is known."""
    if limit.of_gaps:
        total = int(window.span.gaps.total)
        return (window.span.gaps.share_above(limit.most) * total if total else 0.0), total
    late, known = late_by(journal, slice(window.span.first_row, window.span.end_row), window.end_s, limit)
    return float(late.sum()), int(known.sum())
