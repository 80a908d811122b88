"""From an estimate to a decision: pure rules."""

from __future__ import annotations

import math

from pytest_gpucap.results.measured import Interval, Measurement, Outcome, Verdict
from pytest_gpucap.sizing import gpus_for_rate, gpus_interval


def separated(least_rps: float, greatest_rps: float, design_rps: float, error: float, z: float) -> Outcome:
    """PASS when `z` standard errors of the logarithm lift even the least rate above the design rate.

    FAIL when they keep even the greatest below it, else INCONCLUSIVE.
    """
    if least_rps > design_rps * math.exp(z * error):
        return Outcome.PASS
    if greatest_rps < design_rps * math.exp(-z * error):
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE


def rps(rate: float) -> str:
    """A rate with three significant figures and no exponent."""
    return f"{float(f'{rate:.3g}'):.10g}"


def errors_exceed(failed: int, ended: int, allowed: float, level: float) -> bool:
    """Whether `failed` of `ended` requests are more than the allowed share, beyond chance (one-sided binomial test)."""
    if ended == 0 or failed <= allowed * ended:
        return False
    if allowed == 0:
        return True
    from scipy.stats import binom  # a heavy import that most measurements never need

    return float(binom.sf(failed - 1, ended, allowed)) < level


def verdict_of(outcome: Outcome, measurement: Measurement, reason: str) -> Verdict:
    """A verdict with the arithmetic that belongs to its measurement, whose rates are those of one replica."""
    requirement = measurement.requirement
    design = float(requirement.design_rate)
    rate = measurement.sustainable_rate
    if outcome is Outcome.INVALID or rate is None:
        return Verdict(outcome, measurement, design, None, None, None, reason)
    slack = Interval(rate.value / design - 1, rate.low / design - 1, rate.high / design - 1, rate.confidence)
    return Verdict(
        outcome,
        measurement,
        design,
        gpus_for_rate(requirement, rate.value),
        gpus_interval(requirement, low_rps=rate.low, high_rps=rate.high),
        slack,
        reason,
    )
