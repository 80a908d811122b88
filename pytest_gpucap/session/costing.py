"""What the collected tests will cost: their servers, and the time of each test from its last result or a default."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from pytest_gpucap.engines.protocol import Engine, EnginePair
from pytest_gpucap.foreign_text import visible
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.markers.marks import measures
from pytest_gpucap.masking import masked
from pytest_gpucap.measure.constants import STEADY_S, WARM_UP_S
from pytest_gpucap.options.table import Options
from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.planning.session_cost import (
    CHECK_S,
    MEASURE_S,
    START_UP_S,
    Basis,
    Need,
    ServerCost,
    SessionCost,
    TestCost,
    server_cost,
    session_cost,
    unfit,
)
from pytest_gpucap.session.earlier import Earlier, Spent, read_earlier
from pytest_gpucap.session.harness import SKIP
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.prices import session_prices
from pytest_gpucap.session.workers import is_one_of_many, workers_of

_STEADY_S: Final = WARM_UP_S + STEADY_S
"""A window for limits beside the rate, with its lead."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A test that needs a server.

    Attributes:
        item: the test.
        declared: what it declares.
        placed: where it is measured; it has an engine.
        pair: its head and the base that it is compared with; None without a base.
    """

    item: pytest.Item
    declared: Declaration
    placed: Placement
    pair: EnginePair[Engine] | None = None

    @property
    def measures(self) -> bool:
        """Whether it asks for a measurement, and not for the server alone."""
        return measures(self.item)


@dataclass(slots=True)
class _Group:
    """The tests of one server."""

    planned: list[Planned] = field(default_factory=list)
    spent: list[Spent | None] = field(default_factory=list)


class Costing:
    """Knows the time of every test and the cost of the session.

    Args:
        tests: that have an engine, in the order in which they run.
        options: of the session.
        config: of the session.
    """

    def __init__(self, tests: Sequence[Planned], options: Options, config: pytest.Config) -> None:
        self._options = options
        self._workers = workers_of(config)
        self._earlier = read_earlier(options, config)
        self._tests = [each for each in tests if not _is_skipped(each)]
        self._skipped = len(tests) - len(self._tests)
        self._groups: dict[Hashable, _Group] = {}
        for each in self._tests:
            group = self._groups.setdefault(each.placed.key, _Group())
            group.planned.append(each)
            group.spent.append(_spent(each, self._earlier))
        self._startups = {key: _startup(group) for key, group in self._groups.items()}
        self._costs = {
            each.item: self._test_cost(each, spent)
            for group in self._groups.values()
            for each, spent in zip(group.planned, group.spent, strict=True)
        }
        self._places = {each.item: place for place, each in enumerate(self._tests)}
        self._needs = [self._need(each) for each in self._tests]
        # A worker does not know which of the later tests it will get.
        self._knows_later = not is_one_of_many(config) and self._workers.count == 1

    def need(self, item: pytest.Item) -> Need | None:
        """What a test needs of the session's time; None for a test without a server."""
        place = self._places.get(item)
        return None if place is None else self._needs[place]

    def later(self, item: pytest.Item) -> Sequence[Need]:
        """What the tests after this one need, as far as this process knows which will run."""
        return self._needs[self._places[item] + 1 :] if self._knows_later else ()

    def basis(self, item: pytest.Item) -> Basis:
        """What the time of a test was taken from."""
        return self._costs[item].measuring_from

    def session_cost(self) -> SessionCost:
        """The cost of the whole session."""
        prices, limit_s = session_prices(self._options), self._options.max_total_s
        out = unfit(self._needs, limit_s) if limit_s is not None and self._knows_later else []
        used = [spent.source for group in self._groups.values() for spent in group.spent if spent is not None]
        return session_cost(
            [self._server_cost(key, group, prices) for key, group in self._groups.items()],
            skipped=self._skipped,
            workers=self._workers.count,
            prices=prices,
            limit_s=limit_s,
            unfit=[self._tests[place].item.nodeid for place in out],
            sources=list(dict.fromkeys(used)),
            left_out=self._earlier.left_out,
        )

    def _server_cost(self, key: Hashable, group: _Group, prices: Prices) -> ServerCost:
        first = group.planned[0]
        startup_s, basis = self._startups[key]
        runs = first.placed.engine is not None and first.placed.engine.running_server is not None
        return server_cost(
            server=_title(first),
            gpu_class=first.placed.class_name,
            gpus=first.declared.fleet * first.declared.gpus_per_replica,
            shared_starts=0 if runs else self._workers.most_starts([each.item for each in group.planned]),
            startup_s=startup_s,
            startup_from=basis,
            tests=[self._costs[each.item] for each in group.planned],
            prices=prices,
            times=self._workers.times,
        )

    def _need(self, planned: Planned) -> Need:
        cost, (startup_s, _) = self._costs[planned.item], self._startups[planned.placed.key]
        return Need(
            server=planned.placed.key,
            startup_s=startup_s,
            own_s=cost.measuring_s + cost.own_starts * startup_s,
            priority=planned.declared.priority,
        )

    def _test_cost(self, planned: Planned, spent: Spent | None) -> TestCost:
        declared, repeat = planned.declared, self._options.repeat
        concludes = planned.measures and (spent is None or spent.concludes)
        if not planned.measures:
            measuring_s, basis = 0.0, Basis.NONE
        elif spent is None:
            measuring_s, basis = repeat * self._default_s(declared) + self._paired_s(planned), Basis.DEFAULT
        else:
            once_s = spent.once_s + (spent.paired_s or self._paired_s(planned) if planned.pair is not None else 0.0)
            sharper_s = 0.0 if spent.precise or not self._compares else min(MEASURE_S, declared.max_time_s)
            each_s = spent.measuring_s + sharper_s + (0.0 if self._options.efficiency == SKIP else spent.alone_s)
            measuring_s, basis = (repeat if concludes else 1) * each_s + once_s, Basis.EARLIER
        return TestCost(
            test=planned.item.nodeid,
            name=declared.name,
            priority=declared.priority,
            measuring_s=measuring_s,
            measuring_from=basis,
            own_starts=_pair_starts(planned) + (repeat - 1 if concludes else 0),
        )

    def _default_s(self, declared: Declaration) -> float:
        """Of one start. A test that declares no rate has no verdict to reach."""
        parts_s = [] if declared.requirement is None else [CHECK_S]
        if declared.requirement is None or self._compares:
            parts_s.append(MEASURE_S)
        window_s = _STEADY_S if any(each.metric.is_sampled for each in declared.secondary) else 0.0
        seconds = sum(min(part_s + window_s, declared.max_time_s) for part_s in parts_s)
        alone = declared.fleet > 1 and self._options.efficiency != SKIP
        return seconds + (min(MEASURE_S, declared.max_time_s) if alone else 0.0)

    @staticmethod
    def _paired_s(planned: Planned) -> float:
        """Of a comparison with a base that was never made: about a measurement."""
        return 0.0 if planned.pair is None else min(MEASURE_S, planned.declared.max_time_s)

    @property
    def _compares(self) -> bool:
        """Whether a check whose rate is not precise goes on to measure it."""
        return self._options.compare is not None or self._options.save is not None


def _spent(planned: Planned, earlier: Earlier) -> Spent | None:
    if not planned.measures:
        return None
    return earlier.spent(
        planned.item.nodeid, planned.declared, planned.placed.class_name, simulated=planned.placed.profile is not None
    )


def _startup(group: _Group) -> tuple[float, Basis]:
    """Seconds of one start of a server, and what they were taken from."""
    placed = group.planned[0].placed
    if placed.profile is not None or (placed.engine is not None and placed.engine.running_server is not None):
        return 0.0, Basis.NONE
    seen = [spent.startup_s for spent in group.spent if spent is not None and spent.startup_s > 0]
    return (max(seen), Basis.EARLIER) if seen else (START_UP_S, Basis.DEFAULT)


def _pair_starts(planned: Planned) -> int:
    """Starts of a comparison with a base: the base's, and the head's if both must share the GPU's memory."""
    pair, placed = planned.pair, planned.placed
    if pair is None or not planned.measures or placed.engine is None:
        return 0
    on_cpu = placed.gpu_class is not None and placed.gpu_class.is_cpu
    return 1 if on_cpu or pair.fitted().head.key == placed.engine.key else 3  # the next test has the whole GPU again


def _is_skipped(planned: Planned) -> bool:
    """Whether collection already shows that a test does not run."""
    item = planned.item
    if planned.placed.skip is not None:
        return True
    try:
        # pytest has no public way to ask what these marks say of a test that has not run. Where it keeps this one
        # elsewhere, such a test counts as one that runs.
        from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks

        if evaluate_skip_marks(item) is not None:
            return True
        expected = evaluate_xfail_marks(item)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a condition that is wrong fails its test, which says why
        return False
    return expected is not None and not expected.run and not item.config.getoption("runxfail")


def _title(planned: Planned) -> str:
    """Engine, model and arguments in one line. A simulator is named by its profile, a running server by its URL."""
    engine, declared = planned.placed.engine, planned.declared
    assert engine is not None  # noqa: S101 - what `Planned` says
    fleet = f"{declared.fleet} x " if declared.fleet > 1 else ""
    if planned.placed.profile is not None:
        named: Iterable[str] = [str(planned.placed.class_name)]
    else:
        named = [engine.title, *filter(None, [engine.running_server or engine.request.model])]
    arguments = [] if engine.running_server is not None else _told(declared.arguments)
    return visible(masked(f"{fleet}{' '.join([*named, *arguments])}"))


def _told(arguments: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in arguments.items()]
