"""The queue simulation, against laws that are known without it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.capacity import twin
from pytest_gpucap.capacity.twin import ServerModel
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import LatencyLimit, Length, Workload

WORKLOAD = Workload(Length.fixed(1), Length.parse("uniform:50-150", "output"))


def processor_sharing(capacity: float) -> ServerModel:
    """An engine that makes `capacity` tokens a second whatever the batch: M/G/1 processor sharing."""
    return ServerModel(np.maximum(1.0, np.arange(1001.0)) / capacity, 0.0)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_sojourn_of_processor_sharing(load: Any) -> None:
    """Kleinrock 1976: E[T | x] = x / (1 - load), whatever the distribution of x."""
    traffic = traffic_for(WORKLOAD)
    capacity = 1000.0
    rate = load * capacity / traffic.mean_output
    found = twin.evaluate(processor_sharing(capacity), traffic, rate)
    # Half a step is lost on average where a request meets a batch under way.
    step = load / (1 - load) / capacity
    expected = traffic.mean_output / capacity / (1 - load) + step / 2
    assert found.e2e_s.mean() == pytest.approx(expected, rel=0.04)


def test_starts_follow_the_stationary_law() -> None:
    traffic = traffic_for(WORKLOAD)
    levels, queued = twin.starting_levels(processor_sharing(1000.0), traffic, 0.5 * 1000 / traffic.mean_output, 4000)
    # Geometric with ratio 0.5.
    assert not queued
    assert (levels == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert levels.mean() == pytest.approx(1.0, abs=0.03)


def test_without_limits_the_bound_is_saturation() -> None:
    model = replace(processor_sharing(1000.0), max_seqs=16)
    found = twin.sustainable(model, traffic_for(WORKLOAD), (), 1.0)
    assert found.binding == "backlog"
    assert found.rate_rps == pytest.approx(1000 / traffic_for(WORKLOAD).mean_output, rel=1e-3)


def test_the_rate_falls_as_the_engine_slows_by_its_elasticity() -> None:
    traffic = traffic_for(WORKLOAD)
    n = np.arange(1001.0)
    limits = (LatencyLimit.parse("e2e_p95", "1.5s"),)
    fast, slow = (
        twin.sustainable(ServerModel((0.003 + 1e-4 * n) * f, 0.0), traffic, limits, 20.0) for f in (1.0, 1.03)
    )
    assert fast.binding == "e2e_p95"
    drop = math.log(fast.rate_rps / slow.rate_rps) / math.log(1.03)
    assert drop == pytest.approx(fast.elasticity, rel=0.35)


def test_a_limit_that_nothing_can_keep_gives_next_to_no_rate() -> None:
    limits = (LatencyLimit.parse("e2e_p95", "10ms"),)
    found = twin.sustainable(processor_sharing(1000.0), traffic_for(WORKLOAD), limits, 5.0)
    assert found.rate_rps < 0.05


def test_a_full_kv_cache_makes_requests_wait() -> None:
    traffic = traffic_for(WORKLOAD)
    n = np.arange(1001.0)
    roomy = ServerModel(0.01 + 1e-5 * n, 0.0)
    tight = replace(roomy, kv_tokens=2000.0)
    limits = (LatencyLimit.parse("ttft_p95", "200ms"),)
    rates = [twin.sustainable(model, traffic, limits, 10.0).rate_rps for model in (tight, roomy)]
    assert rates[0] < 0.6 * rates[1]
