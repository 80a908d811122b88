"""How many requests in flight a server bears: beyond it, first tokens come late for a reason that no model has.

An API server in front of the engine, on one core, falls behind beyond some number of requests in flight. Tokens then
queue in it, and first tokens behind them. Below that number nothing shows. A hold that was given up because its first
tokens came late tells of it, if the queue model, with the same requests, has them come early.
"""

from __future__ import annotations

import math

import numpy as np

from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.belief import Part
from pytest_gpucap.measure.observed import path_seen, replayed
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.requirement import Metric


def crowded_at(run: MeasuringRun, model: ServerModel, speed: Speed) -> tuple[float, str] | None:
    """Fewest requests in flight of the holds whose first tokens came late and should not have, and the limit's name.

    None if there was no such hold.
    """
    limits = [
        (limit.name, limit_s)
        for limit in run.requirement.slo.limits
        for metric, limit_s in limit.thresholds
        if metric is Metric.TTFT
    ]
    found = [
        (_in_flight(window), name)
        for window in run.given_up
        for name, limit_s in limits
        if _late(run, window, limit_s, model, speed)
    ]
    return min(found, default=None)


def borne(run: MeasuringRun, windows: list[Window], model: ServerModel, most_rps: float, crowd: float) -> Part | None:
    """What is believed where `crowd` requests in flight are too many, and the model says `most_rps`.

    The rate with which fewer are in flight lies between the one for `crowd` and the one for the most that were borne.

    Returns:
        None if that many are never in flight at `most_rps`.
    """
    kept = [s.in_flight_mean for w in windows for s in w.samples if s.in_flight_mean < crowd]
    traffic = traffic_for(run.requirement.workload, model.own_paces)
    limits = run.requirement.slo.limits

    def rate(in_flight: float) -> float:
        return sustainable(model, traffic, limits, most_rps, most_in_flight=in_flight).rate_rps

    greatest = rate(crowd)
    if greatest >= most_rps:
        return None
    least = min(greatest, rate(max(kept, default=1.0)))
    return Part(1.0, math.sqrt(least * greatest), least, greatest, c.PEAK_ERROR)


def _in_flight(window: Window) -> float:
    return float(np.mean([s.in_flight_mean for s in window.samples]))


def _late(run: MeasuringRun, window: Window, limit_s: float, model: ServerModel, speed: Speed) -> bool:
    """Whether the usual first token of a hold came later than `limit_s`, and far later than the model has it."""
    journal, start_s, end_s = run.journal, window.start_s, window.end_s
    replay = replayed(journal, start_s, end_s, model, path_seen(journal, start_s, end_s, speed, model))
    due_s = journal.due_s[replay.rows]
    counted = (due_s >= start_s) & (due_s < end_s - limit_s) & ~journal.hot[replay.rows]
    if counted.sum() < c.LEAST_ANSWERS:
        return False
    seen_s, modelled_s = (
        float(np.median(np.where(np.isnan(each), np.inf, each)[counted]))
        for each in (journal.ttft_s[replay.rows], replay.ttft_s)
    )
    return seen_s > limit_s and seen_s > modelled_s * math.exp(c.FAR_FROM_MODEL_LN)
