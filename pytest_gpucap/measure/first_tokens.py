"""First tokens as they were seen, against those of the queue model, where goodput counts them.

The queue model lets a request wait for what is left of a step that only decodes. On a server the step under way may
hold prompts as well. Then it is longer, and for that reason more arrivals meet it. So first tokens come later than
modelled, by about the same factor for all slower ones and at every rate nearby: 4 to 20% on the simulated servers. A
limit on whole answers hardly feels that. Goodput does: of the few requests that may break a threshold, more break that
on TTFT. So TTFT is corrected by itself, before the departure of all thresholds together is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.observed import block_size, paired, path_seen, replayed, resampled_blocks, upper
from pytest_gpucap.measure.of_sessions import resampled_sessions
from pytest_gpucap.requirement import GoodputLimit, LatencyLimit, Metric


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """How far TTFT departs from the model.

    Attributes:
        log_factor: logarithm of the observed over the modelled TTFT of the slower requests.
        error: its standard error.
    """

    log_factor: float = 0.0
    error: float = 0.0


UNKNOWN = FirstTokens(0.0, c.UNSEEN_ERROR)


def first_tokens(
    journal: Journal, open_loops: list[tuple[float, float]], model: ServerModel, speed: Speed, goodput: GoodputLimit
) -> FirstTokens:
    """How far TTFT departs from the model in some open loops; no departure where goodput has no threshold on it.

    Nor is there one where it is so large that something outside the model makes it: then the departure of goodput
    itself tells (`observed.Departure.unexplained`).

    Args:
        journal: at the end of all open loops or later.
        open_loops: spans of them.
        model: of the server.
        speed: its curve.
        goodput: the limit.
    """
    limit_s = dict(goodput.thresholds).get(Metric.TTFT)
    if limit_s is None:
        return FirstTokens()
    limit = LatencyLimit(Metric.TTFT, goodput.quantile, limit_s)
    parts = []
    for span in open_loops:
        path = path_seen(journal, *span, speed, model)
        parts.append(paired(journal, [replayed(journal, *span, model, path)], limit, span))
    if not parts:
        return UNKNOWN
    columns = [np.concatenate(each) for each in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    due_s, whose, seen_s, modelled_s = (column[order] for column in columns)
    return _departing(due_s, whose, seen_s, modelled_s, float(goodput.quantile))


def _departing(due_s: Floats, whose: Floats, seen_s: Floats, modelled_s: Floats, quantile: float) -> FirstTokens:
    """The departure of first tokens, shape (n,) each, in order of when they were due."""
    n = due_s.size
    if n < c.LEAST_COMPARED:
        return UNKNOWN
    beyond = max(float(np.isinf(seen_s).mean()), float(np.isinf(modelled_s).mean()))
    highest = min(quantile, 1.0 - beyond - 1.5 / n, 1.0 - c.LEAST_BEYOND / n)
    if highest < 0.5:  # noqa: PLR2004 - the middle: below it lies no tail
        return UNKNOWN
    levels = np.maximum(0.5, 1.0 - (1.0 - highest) * np.array(c.FIRST_TOKEN_TAILS))
    # First tokens that come within one wait for a slow one share their queue.
    each = block_size(due_s, max(float(upper(seen_s, highest)), c.BLOCK_S))
    rng = np.random.default_rng(n)
    by_session = resampled_sessions(whose.astype(np.int64), rng, c.RESAMPLES)
    if n / each < c.LEAST_BLOCKS or by_session is None:
        return UNKNOWN
    own = np.arange(n)[None]

    def factors(picked: np.ndarray) -> Floats:
        with np.errstate(invalid="ignore"):  # both infinite: left out
            logs = [np.log(upper(seen_s[picked], level) / upper(modelled_s[picked], level)) for level in levels]
        found: Floats = np.mean(logs, axis=0)
        return found[np.isfinite(found)]

    log_factor = float(factors(own)[0])
    if abs(log_factor) > c.FAR_FROM_MODEL_LN:
        return FirstTokens()
    spreads = [float(np.std(factors(picked))) for picked in (resampled_blocks(n, each, rng), by_session) if picked.size]
    return FirstTokens(log_factor, max(spreads))
