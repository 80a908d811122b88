"""What a session will cost -> text for a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from pytest_gpucap.planning.session_cost import (
    CHECK_S,
    MEASURE_S,
    START_UP_S,
    Basis,
    ServerCost,
    SessionCost,
    TestCost,
)
from pytest_gpucap.report.columns import NARROW, table, wrapped
from pytest_gpucap.report.escape import json_text
from pytest_gpucap.report.formatting import seconds, significant

TITLE: Final = "GPU capacity: estimate"
_DEFAULT: Final = "*"
_HEADERS: Final = ("server", "GPUs", "starts", "start-up", "measuring", "server minutes")
_MINUTE_S: Final = 60.0


def cost_json(cost: SessionCost) -> str:
    """The whole estimate as JSON."""
    return json_text(msgspec.to_builtins(cost)) + "\n"


def cost_lines(cost: SessionCost, width: int = NARROW) -> list[str]:
    """The servers, their tests, the totals, and what they were taken from; lines of at most `width` where words allow.

    Args:
        cost: of the session.
        width: columns of the terminal.
    """
    if not cost.servers:
        return [TITLE, f"no server is needed{_skipped(cost)}"]
    priced = cost.cost is not None
    headers = [*_HEADERS, *([f"cost {cost.currency}".strip()] if priced else [])]
    body = [_row(server, priced=priced) for server in cost.servers]
    lines = [TITLE, *table(headers, body, width, ruled=True, shrunk=0)]
    for server in cost.servers:
        lines += ["", *wrapped(f"{server.server}:", hang="  ", width=width)]
        lines += [line for test in server.tests for line in wrapped(_test(test, cost), "  ", "    ", width)]
    lines.append("")
    for text in _notes(cost):
        lines += wrapped(text, hang="  ", width=width)
    return lines


def _row(server: ServerCost, *, priced: bool) -> list[str]:
    measuring_s = server.server_s - server.starts * server.startup_s
    guessed = any(test.measuring_from is Basis.DEFAULT for test in server.tests)
    return [
        server.server,
        f"{server.gpus} x {server.gpu_class}" if server.gpu_class else str(server.gpus),
        str(server.starts),
        _marked(server.startup_s, guessed=server.startup_from is Basis.DEFAULT),
        _marked(measuring_s, guessed=guessed),
        f"{server.server_s / _MINUTE_S:.1f}",
        *([_money(server.cost)] if priced else []),
    ]


def _test(test: TestCost, cost: SessionCost) -> str:
    said = [
        "server only" if test.measuring_from is Basis.NONE else "",
        f"{test.own_starts} more start{_s(test.own_starts)}" if test.own_starts else "",
        f"priority {test.priority}" if test.priority else "",
        "does NOT fit" if test.test in cost.unfit else "",
    ]
    remarks = ", ".join(filter(None, said))
    time = _marked(test.measuring_s, guessed=test.measuring_from is Basis.DEFAULT)
    return f"{time}  {test.test}{f' ({remarks})' if remarks else ''}"


def _notes(cost: SessionCost) -> Iterator[str]:
    yield _total(cost)
    if cost.workers > 1:
        yield (
            f"{cost.workers} workers share the tests, and each starts the servers that its tests need: there are at "
            f"most so many starts, and it takes at least {seconds(cost.server_s / cost.workers)}"
        )
    if cost.limit_s is not None:
        yield _limit(cost)
    if cost.unpriced:
        yield f"no price is given for {', '.join(cost.unpriced)}"
    if cost.sources:
        yield f"from the last results in {', '.join(cost.sources)}"
    if any(server.startup_from is Basis.DEFAULT for server in cost.servers) or any(
        test.measuring_from is Basis.DEFAULT for test in cost.tests
    ):
        yield (
            f"{_DEFAULT} a default, where no earlier result tells: {seconds(START_UP_S)} for a start, "
            f"{seconds(CHECK_S)} for check(), {seconds(MEASURE_S)} for measure()"
        )
    for line in cost.left_out:
        yield f"left out: {line}"


def _total(cost: SessionCost) -> str:
    starts, tests, servers = sum(server.starts for server in cost.servers), len(cost.tests), len(cost.servers)
    parts = [
        f"{servers} server{_s(servers)}, {starts} start{_s(starts)}, {tests} test{_s(tests)}{_skipped(cost)}",
        f"{cost.server_s / _MINUTE_S:.1f} server minutes",
        f"{significant(cost.gpu_hours)} GPU hours",
        *([f"{_money(cost.cost)} {cost.currency}".strip()] if cost.cost is not None else []),
    ]
    return f"total: {'; '.join(parts)}"


def _limit(cost: SessionCost) -> str:
    allowed = f"--gpucap-max-total allows {(cost.limit_s or 0.0) / _MINUTE_S:.1f} minutes"
    if cost.workers > 1:
        return f"{allowed} for each worker"
    count = len(cost.unfit)
    return f"{allowed}: " + (f"{count} test{_s(count)} will NOT be measured" if count else "all tests fit")


def _skipped(cost: SessionCost) -> str:
    return f" ({cost.skipped} skipped)" if cost.skipped else ""


def _marked(value_s: float, *, guessed: bool) -> str:
    return f"{seconds(value_s) if value_s else '0 s'}{_DEFAULT if guessed and value_s else ''}"


def _money(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
