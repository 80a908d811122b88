"""The search for the rate: on curves that are known, and how much of the queue it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.estimate import sustainable_rate
from pytest_gpucap.estimate.queue_model import Evaluation, ServerModel, evaluate
from pytest_gpucap.estimate.sustainable_rate import ACCEPTED_STEP, MOST_EVALUATIONS, _root, sustainable
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.requirement import LatencyLimit, Length, Metric, Workload

Curve = Callable[[float], float]


def search(curve: Curve, guess: float, *, jumps: bool, slope: float | None = None) -> tuple[float, float, list[float]]:
    """Root and slope of a curve of ln(rate), and the rates that were asked for."""
    asked: list[float] = []

    def worst(x: float) -> tuple[float, str]:
        asked.append(x)
        return curve(x), "limit"

    root, found, name = _root(worst, guess, (-3.0, 3.0), slope, ACCEPTED_STEP, jumps=jumps)
    assert name == "limit"
    assert len(asked) <= MOST_EVALUATIONS
    return root, found, asked


def stairs(x: float) -> float:
    """A percentile that stops make: it jumps where a stop more meets as many requests as may be late."""
    return 0.3 * x + 0.35 * math.floor((x - 0.11) / 0.4) + 0.2


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("guess", [-0.6, 0.05, 0.4])
def test_a_smooth_curve_is_found_in_a_few_evaluations(jumps: Any, guess: Any) -> None:
    def smooth(x: float) -> float:
        return math.expm1(1.5 * (x - 0.1)) + 0.3 * (x - 0.1)

    root, slope, asked = search(smooth, guess, jumps=jumps)
    assert root == pytest.approx(0.1, abs=0.002)
    assert slope == pytest.approx(1.8, rel=0.25)
    assert len(asked) <= 6


@pytest.mark.parametrize("guess", np.linspace(-0.5, 0.7, 13))
def test_where_a_curve_jumps_the_search_ends_at_the_jump(guess: Any) -> None:
    root, _, asked = search(stairs, guess, jumps=True)
    assert root == pytest.approx(0.11, abs=2.0 * ACCEPTED_STEP)
    assert len(set(asked)) == len(asked)


def test_secants_across_the_bracket_ask_for_less_than_slopes_from_further_away() -> None:
    guesses = np.linspace(-0.5, 0.7, 25)
    asked = {jumps: sum(len(search(stairs, x, jumps=jumps, slope=0.4)[2]) for x in guesses) for jumps in (False, True)}
    assert asked[True] < 0.8 * asked[False]


def stopping() -> tuple[ServerModel, LatencyLimit]:
    """A server that stops for a second every quarter of a minute, and a limit that stops decide on."""
    speed = 0.004 + 2e-5 * np.arange(257.0)
    model = ServerModel(speed, 1e-5, 256, stall_per_s=1 / 15, stall_s=(0.7, 1.0, 1.3))
    return model, LatencyLimit(Metric.E2E, Fraction(95, 100), 2.0)


def test_a_rough_search_finds_nearly_the_same_rate_from_a_part_of_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[int] = []

    def counted(*args: Any, **options: Any) -> Evaluation:
        found = evaluate(*args, **options)
        requests.append(found.ttft_s.size)
        return found

    monkeypatch.setattr(sustainable_rate, "evaluate", counted)
    model, limit = stopping()
    traffic = traffic_for(Workload(Length.fixed(64), Length.fixed(100)))
    usual = sustainable(model, traffic, (limit,), 200.0).rate_rps
    of_usual = sum(requests)
    requests.clear()
    rough = sustainable(model, traffic, (limit,), 200.0, rough=True).rate_rps
    assert rough == pytest.approx(usual, rel=0.05)
    assert sum(requests) < 0.5 * of_usual


def test_without_stops_a_rough_evaluation_is_a_usual_one() -> None:
    model, limit = stopping()
    calm = replace(model, stall_per_s=0.01, stall_s=(0.2,))
    traffic = traffic_for(Workload(Length.fixed(64), Length.fixed(100)))
    usual, rough = (evaluate(calm, traffic, 50.0, rough=rough).of_limit(limit) for rough in (False, True))
    assert usual == rough
