"""Every report shows the host beside the figures, and says where it was not itself."""

from __future__ import annotations

import msgspec
import pytest

from pytest_gpucap.report import host_rows, markdown, terminal
from pytest_gpucap.report.html import cards
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import HostSummary, OtherProcess, TelemetrySummary
from tests.results import made

DISTURBED = Problem(
    ProblemSource.HOST, ProblemKind.OTHERS, "other processes used 1.1 of 2 cores: pid 123 stress-ng 1.1"
)
HOST = HostSummary(
    readings=30,
    cores=2,
    busy_cores=1.9,
    own_cores=0.8,
    other_cores=1.1,
    others=(OtherProcess(123, "stress-ng", 0.8), OtherProcess(124, "python", 0.3)),
    stolen=0.002,
    quota_cores=1.5,
    throttled=0.03,
    waiting=0.45,
    memory_stalled=0.0,
    clock_mhz=2600.0,
    base_clock_mhz=2500.0,
)
FIGURES = (
    "1.9 of 2 cores busy, 0.8 by server and load generator, 1.1 by others (pid 123 stress-ng 0.8, pid 124 python 0.3)"
)
HELD_BACK = (
    "45.0% of the time a task waited for a core, 0.2% steal, CPU quota of 1.5 cores used up in 3.0% of its periods, "
    "2600 of 2500 MHz"
)


def on(host: HostSummary | None, result: Result) -> Result:
    return msgspec.structs.replace(result, telemetry=TelemetrySummary(0.0, 30.0, host=host))


def plain(text: str) -> str:
    return " ".join(text.split())


def test_the_figures_stand_in_every_report() -> None:
    result = on(HOST, made.check(Outcome.PASS))
    assert host_rows.host(result) == [("host", FIGURES), ("", HELD_BACK)]
    assert f"host {FIGURES} {HELD_BACK}" in plain(terminal.details(result))
    page = markdown.pull_request_page(made.session(result))
    assert "1.9 of 2 cores busy" in page
    assert "pid 123 stress-ng 0.8" in page
    [card] = cards.result_cards([result])
    [note] = [note for note in card.notes if note.title == "Host"]
    assert (note.lines, note.tone) == ((FIGURES, HELD_BACK), "plain")


def test_a_remark_on_a_disturbed_host_is_not_hidden_behind_a_pass() -> None:
    result = on(msgspec.structs.replace(HOST, disturbances=(DISTURBED,)), made.check(Outcome.PASS))
    assert host_rows.remarks(result) == [DISTURBED.text]
    assert f"- chat: {DISTURBED.text}" in plain(terminal.summary([result]))
    assert f"disturbed {DISTURBED.text}" in plain(terminal.details(result))
    assert f"**chat**: {DISTURBED.text}" in markdown.pull_request_page(made.session(result))
    [card] = cards.result_cards([result])
    [note] = [note for note in card.notes if note.title == "Host"]
    assert note.tone == "warn"
    assert DISTURBED.text in note.lines


def test_a_disturbance_that_made_the_result_invalid_is_said_once() -> None:
    result = on(msgspec.structs.replace(HOST, disturbances=(DISTURBED,)), made.check(Outcome.INVALID))
    result = msgspec.structs.replace(result, problems=(DISTURBED,))
    assert host_rows.remarks(result) == []
    assert plain(terminal.details(result)).count(DISTURBED.text) == 1


@pytest.mark.parametrize("host", [None, HostSummary(readings=0, cores=1)])
def test_what_nobody_watched_has_no_row(host: HostSummary | None) -> None:
    assert host_rows.host(on(host, made.check())) == []
    assert host_rows.host(made.check()) == []


def test_a_server_behind_a_gateway_is_said_to_be_unknown() -> None:
    result = on(msgspec.structs.replace(HOST, other_cores=None, others=()), made.check())
    assert "the server's processes cannot be told from others" in host_rows.host(result)[0][1]
