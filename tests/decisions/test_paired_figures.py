"""Limits beside the rate on base and head: figures, ratios, and what is said of their noise."""

from __future__ import annotations

import pytest

from pytest_gpucap.decisions.paired_figures import compared_figures
from pytest_gpucap.report.changes import figure_lines
from pytest_gpucap.results.comparison import FigureComparison
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.secondary import SecondaryFigure, SecondaryLimit, SecondaryName

RATES = (Interval(10.0, 9.0, 11.0), Interval(8.0, 7.5, 8.5), Interval(0.8, 0.75, 0.85))
BLOCKS = ((100.0, 1000.0), (104.0, 1000.0), (96.0, 1000.0), (100.0, 1000.0))


def compared(
    name: SecondaryName,
    base: SecondaryFigure,
    head: SecondaryFigure,
    starts: tuple[str | None, str | None] = (None, None),
) -> FigureComparison:
    limits = [SecondaryLimit(name, 1.0)]
    (found,) = compared_figures(limits, {name: base}, {name: head}, rates=RATES, tokens=100.0, starts=starts)
    return found


def line(found: FigureComparison) -> str:
    (said,) = figure_lines([found])
    return said


def test_what_is_read_has_no_interval_and_says_what_that_means() -> None:
    found = compared(SecondaryName.STARTUP, SecondaryFigure(60.0), SecondaryFigure(25.0), ("cold", "warm"))
    assert found.ratio is not None
    assert found.ratio.low == found.ratio.high == pytest.approx(25 / 60)
    assert line(found) == (
        "start-up 60 s (cold) -> 25 s (warm), -58.3% (one start of each: how starts differ by chance is not known)"
    )
    kept = compared(SecondaryName.KV_TOKENS, SecondaryFigure(120_000.0), SecondaryFigure(90_000.0), ("cold", "warm"))
    assert kept.starts is None
    assert line(kept) == "KV cache 120,000 tokens -> 90,000 tokens, -25.0% (read from the servers: no sampling error)"


def test_a_quotient_has_the_scatter_of_both_servers_blocks() -> None:
    doubled = tuple((2 * over, under) for over, under in BLOCKS)
    base, head = SecondaryFigure(parts=BLOCKS), SecondaryFigure(parts=doubled)
    found = compared(SecondaryName.JOULES_PER_1K_TOKENS, base, head)
    assert found.base is not None
    assert found.head is not None
    assert found.ratio is not None
    assert (found.base.value, found.head.value, found.ratio.value) == pytest.approx((100.0, 200.0, 2.0))
    assert found.ratio.low < 2.0 < found.ratio.high
    # The error of a ratio is wider than that of either figure.
    assert found.ratio.high / found.ratio.value > found.base.high / found.base.value
    assert line(found).startswith("energy 100 J per 1,000 output tokens (")
    assert "starts differ by is not in it" in line(found)


def test_the_cost_follows_from_the_rates() -> None:
    found = compared(SecondaryName.USD_PER_1M_TOKENS, SecondaryFigure(3.6), SecondaryFigure(3.6))
    assert found.base is not None
    assert found.ratio is not None
    assert found.base.value == pytest.approx(1.0)  # 3.6 USD/h / (10 req/s x 100 tokens x 3,600 s) x 1,000,000
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((1 / 0.8, 1 / 0.85, 1 / 0.75))


def test_nothing_has_no_ratio() -> None:
    nothing = SecondaryFigure(parts=((0.0, 100.0), (0.0, 100.0)))
    some = SecondaryFigure(parts=((2.0, 100.0), (1.0, 100.0)))
    found = compared(SecondaryName.PREEMPTIONS, nothing, some)
    assert found.ratio is None
    assert line(found).startswith("preemptions 0% of the requests -> 1.5% of the requests (")


def test_what_was_not_measured_says_why() -> None:
    found = compared(SecondaryName.ACCEPTANCE, SecondaryFigure(), SecondaryFigure(why="no counter"))
    assert (found.base, found.head, found.ratio, found.noise) == (None, None, None, "")
    assert line(found) == "acceptance not measured -> not measured (head: no counter)"
    found = compared(SecondaryName.ACCEPTANCE, SecondaryFigure(), SecondaryFigure())
    assert line(found).endswith("(base and head had no window at an equal rate)")
