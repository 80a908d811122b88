"""The pace from second to second, and each request's own, from what simulated servers really did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.bins import bins_of
from pytest_gpucap.estimate.paces import long_run_variance, own_paces, pace_path, paces_of
from pytest_gpucap.estimate.step_time import fit
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

CALM = EngineModel(base_s=0.01, per_seq_s=0.0001, per_prompt_token_s=0.00001, warm_extra=0.0)
WORKLOAD = Workload(Length.fixed(128), Length.parse("uniform:60-180", "output_tokens"))


def held(seconds: float = 60.0, **traits: Any) -> Journal:
    """Forty requests in flight."""
    runner = SimRunner(replace(CALM, **traits), 5)
    runner.run(schedule.closed_loop(WORKLOAD, 40, seconds, 500, 0, 0))
    return runner.journal()


def path_of(journal: Journal) -> Floats:
    speed = fit(bins_of(journal, 2.0, 60.0, 0.4))
    return np.log(pace_path(journal, [(2.0, 60.0)], speed).factors)


def test_a_calm_pace_is_none() -> None:
    assert path_of(held()).size == 1


@pytest.mark.parametrize("sd", [0.1, 0.2])
def test_a_wandering_pace_is_followed(sd: float) -> None:
    path = path_of(held(wander_sd=sd))
    assert path.size > 100
    assert float(np.std(path)) == pytest.approx(sd, rel=0.4)


def test_a_stop_of_the_engine_is_not_the_pace() -> None:
    assert path_of(held(stall_per_s=0.05, stall_s=1.5)).size == 1


def test_stops_longer_than_a_bin_are_counted_with_their_lengths() -> None:
    """Bins without a token were left out, and stops of a second with them."""
    stops = fit(bins_of(held(400.0, stall_per_s=0.05, stall_s=1.5), 2.0, 400.0, 0.4)).stops_s
    long = [each for each in stops if each > 0.5]
    assert 8 <= len(long) <= 35
    assert np.mean(long) == pytest.approx(1.5, rel=0.25)


def test_a_common_pace_is_no_own_one() -> None:
    assert own_paces(paces_of(held(), 0.0, 60.0)) == ()


def test_speculation_gives_each_request_its_own_pace() -> None:
    traits: dict[str, Any] = {"spec_tokens": 4, "spec_accept": 0.65, "spec_accept_sd": 0.15}
    own = np.array(own_paces(paces_of(held(**traits), 0.0, 60.0)))
    drawn = replace(CALM, **traits).paces(np.random.default_rng(1), 5000) / 1000.0
    assert float(np.std(np.log(own))) == pytest.approx(float(np.std(np.log(drawn))), rel=0.2)


def test_answers_of_their_own_pace_take_as_long_in_all() -> None:
    """An answer at twice the pace takes half the time, and is half as likely found running."""
    common = traffic_for(WORKLOAD)
    own = traffic_for(WORKLOAD, (0.5, 0.75, 1.5, 3.0))
    assert own.made.sum() == common.output.sum()
    assert own.output.mean() / common.output.mean() == pytest.approx(
        np.mean(1 / np.array([0.5, 0.75, 1.5, 3.0])), rel=0.02
    )
    slow = np.mean(own.pool_left > common.output.max())
    assert slow > 0.1


def test_the_long_run_variance_of_a_series_that_remembers_is_larger() -> None:
    random = np.random.default_rng(4)
    fresh = random.normal(0, 1, 4000)
    kept = np.zeros(4000)
    for at in range(1, 4000):
        kept[at] = 0.8 * kept[at - 1] + 0.6 * fresh[at]
    assert long_run_variance(fresh, 24) == pytest.approx(1.0, rel=0.2)
    # An autoregression's: variance times (1 + r) / (1 - r).
    assert long_run_variance(kept, 24) == pytest.approx(9.0, rel=0.3)
