"""From what all replicas of a fleet sustain together to each replica's share, in which every result is counted."""

from __future__ import annotations

from dataclasses import replace

from pytest_gpucap.results.measured import Interval, Measurement


def per_replica(measurement: Measurement) -> Measurement:
    """The measurement with its rates divided by the replicas that were under load; its samples stay those of all.

    A replica that was lost meanwhile counts: the budget pays for it.
    """
    fleet = measurement.requirement.fleet
    if fleet == 1:
        return measurement
    at_least = measurement.at_least_rps
    return replace(
        measurement,
        sustainable_rate=shared(measurement.sustainable_rate, fleet),
        saturated_rate=shared(measurement.saturated_rate, fleet),
        at_least_rps=None if at_least is None else at_least / fleet,
    )


def shared(rate: Interval | None, replicas: int) -> Interval | None:
    """One replica's share of a rate."""
    if rate is None:
        return None
    return Interval(rate.value / replicas, rate.low / replicas, rate.high / replicas, rate.confidence)
