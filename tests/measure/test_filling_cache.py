"""A prefix cache that still fills while it is measured."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pytest_gpucap.measure.filling_cache import computed_share, since_filled
from pytest_gpucap.measure.ramp import Ramp, ramp_up
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.session.prefix_hits import WatchedHits
from pytest_gpucap.session.secondary import summary_of
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

LONG = profiles.load("longprompt")


def ramped(share: float, warm_s: float, *, counted: bool = True) -> tuple[MeasuringRun, Ramp]:
    """The holds on a server whose prefix cache comes to have this share of the prompts; `counted`: it tells."""
    engine = replace(LONG.engine, prefix_share=share, prefix_warm_s=warm_s)
    runner = SimRunner(engine, 1)
    target: Any = None  # a simulated server tells by its runner
    hits = WatchedHits(summary_of(target, runner, ExitStack(), counters=False), runner, None)
    settings = Settings(seed=1, hit_rate=hits.between if counted else None)
    requirement = Requirement("fills", Fraction(8), 1, Fraction(1), 1, LONG.workload, LONG.slo)
    run = MeasuringRun(runner, requirement, settings, SilentObserver())
    return run, ramp_up(run, 24, 100.0)


def test_the_holds_go_on_until_the_cache_finds_no_more() -> None:
    run, ramp = ramped(0.6, 20.0)
    shares = [computed_share(run, window.start_s, window.end_s) for window in ramp.windows]
    assert all(share is not None and 0.4 <= share < 0.43 for share in shares)
    assert len({round(s.in_flight_mean) for window in ramp.windows for s in window.samples}) > 1


def test_without_hits_or_counters_nothing_is_waited_for() -> None:
    _, calm = ramped(0.0, 0.0)
    _, untold = ramped(0.0, 0.0, counted=False)
    assert [window.end_s for window in calm.windows] == [window.end_s for window in untold.windows]
    run, _ = ramped(0.0, 0.0, counted=False)
    assert computed_share(run, 0.0, 10.0) is None


def test_windows_from_before_it_was_full_do_not_count() -> None:
    run, ramp = ramped(0.6, 20.0, counted=False)
    assert since_filled(run, ramp.windows) == ramp.windows
    filling = replace(run.settings, hit_rate=lambda start_s, _: 0.6 if start_s > ramp.windows[0].end_s else 0.3)
    run.settings = filling
    windows = [*ramp.windows, *ramp.windows[-1:] * 3]
    assert since_filled(run, windows) == windows[1:]
