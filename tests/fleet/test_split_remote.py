"""Load generators in processes of their own, against a real HTTP server."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from pytest_gpucap.access import Access
from pytest_gpucap.fleet import remote_runner
from pytest_gpucap.fleet.remote_host import Host
from pytest_gpucap.fleet.remote_messages import ORDERS, Column, Setup, StreamError, array_of, column
from pytest_gpucap.fleet.remote_runner import ProcessRunner, RemoteRunner
from pytest_gpucap.fleet.remote_stream import Channel, SocketStream
from pytest_gpucap.fleet.split_runner import Part, SplitRunner
from pytest_gpucap.fleet.timed_runner import TimedHttpRunner
from pytest_gpucap.load.protocol import LoadError, OpenLoop, Progress, Status
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.masking import Secret
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.results.problems import Problem, ProblemKind
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.serve import start_simulator
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S

WORKLOAD = Workload(Length.parse("uniform:30-60", "input_tokens"), Length.parse("uniform:2-12", "output_tokens"))
FAST = profiles.load("fast")
SHIFT_S = 5000.0
OF_THE_HOST = {ProblemKind.LATE, ProblemKind.BEHIND, ProblemKind.CPU, ProblemKind.SUSPENDED}
"""What another process of a shared machine may cause."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take any time for anything."""
    monkeypatch.setattr(remote_runner, "SILENCE_S", math.inf)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every process that a test starts, and every one that those start, has ended."""
    yield
    ours = [each for each in psutil.Process().children(recursive=True) if "pytest_gpucap" in words(each)]
    _, left = psutil.wait_procs(ours, 30)
    for each in left:
        each.kill()
    assert not left


def words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def remote(url: str, node: str = "far", **more: Any) -> Part:
    given: dict[str, Any] = {"nonce": 7, "workers": 1, **more}
    runner = ProcessRunner(None, url, "m", None, WORKLOAD, 1, **given)
    return Part(node, runner, runner.exchange)


def without_the_host(problems: tuple[Problem, ...]) -> list[Problem]:
    return [each for each in problems if each.kind not in OF_THE_HOST]


def test_two_remote_parts_carry_the_declared_process() -> None:
    with TokenServer(gap_s=0.002) as server:
        parts = [remote(server.url, "near"), remote(server.url, "far", clock_shift_s=SHIFT_S)]
        split = SplitRunner(parts)
        assert split.journal().status.size == split.journal().tokens.size == 0
        one = open_loop(WORKLOAD, 80.0, 1.5, seed=1, stream=0)
        two = closed_loop(WORKLOAD, 7, 0.8, 5000.0, seed=1, stream=1, first_prompt=10_000)
        spans = [split.run(one), split.run(two)]
        assert split.settle(FOREVER_S)
        journal = split.journal()
        texts, remarks = split.error_texts(), split.remarks
        # The offset is that of the shifted clock, within its bound: both processes read the clock of this machine.
        for track, shift_s in zip(split._tracks, (0.0, SHIFT_S), strict=True):
            for reading in track._readings:
                assert abs(reading.offset_s - shift_s) <= reading.bound_s
        split.close()
        seen = server.seen
    assert not texts
    assert (journal.status == Status.OK).all()
    # Sum of the parts: the declared schedule, to the row, at the declared times on this machine's clock.
    first = spans[0]
    assert (first.first_row, first.end_row) == (0, one.due_s.size)
    np.testing.assert_array_equal(journal.prompt_tokens[: first.end_row], one.prompt_tokens)
    np.testing.assert_array_equal(journal.output_tokens[: first.end_row], one.output_tokens)
    begun_late_s = [0.0]  # by a host without time, which the self-check tells
    if any(each.kind is ProblemKind.LATE for each in first.check.problems):
        begun_late_s = list(journal.due_s[: first.end_row] - first.start_s - one.due_s)
    np.testing.assert_allclose(
        journal.due_s[: first.end_row], first.start_s + one.due_s, atol=1e-6 + max(map(abs, begun_late_s))
    )
    assert journal.hot.sum() == 7
    assert spans[1].start_s >= first.end_s
    assert (np.diff(journal.due_s[first.end_row :]) >= 0).all()
    # What the server saw, once each, with prompts of their own.
    assert len(seen.bodies) == journal.status.size
    assert len({str(body["messages"]) for body in seen.bodies}) == len(seen.bodies)
    assert journal.tokens.sum() == journal.counted_output_tokens.sum() == seen.output_tokens
    assert (journal.ttft_s > 0).all()
    assert (journal.e2e_s >= journal.ttft_s).all()
    for span in spans:
        assert not without_the_host(span.check.problems)
        assert len(span.check.worker_cpu_share) == 2
        assert span.gaps.total > 0
    assert first.check.intended_rps == pytest.approx(one.rate_rps)
    assert any("2 load generators carried one schedule: near, far" in each for each in remarks)
    assert any("the clocks of the load generators are known to" in each for each in remarks)


def test_two_remote_parts_drive_the_simulated_server_over_http() -> None:
    server = start_simulator("fast", time_scale=0.3)
    with contextlib.closing(server):
        parts = [
            Part(node, runner, runner.exchange)
            for node, shift_s in (("near", 0.0), ("far", SHIFT_S))
            for runner in [
                ProcessRunner(
                    None, server.base_url, server.model, None, FAST.workload, 1,
                    nonce=7, workers=1, clock_shift_s=shift_s, simulated=True,
                )
            ]
        ]  # fmt: skip
        with SplitRunner(parts) as split:
            assert split.simulated
            phase = open_loop(FAST.workload, 20.0, 2.0, seed=1, stream=0)
            span = split.run(phase)
            assert split.settle(FOREVER_S)
            journal = split.journal()
    assert (journal.status == Status.OK).all()
    np.testing.assert_array_equal(journal.counted_output_tokens, phase.output_tokens)
    assert journal.tokens.sum() == phase.output_tokens.sum()
    assert not without_the_host(span.check.problems)


def test_a_part_of_this_process_and_a_remote_one_end_at_one_time() -> None:
    with TokenServer(gap_s=0.002) as server:
        mine = TimedHttpRunner(server.url, "m", None, WORKLOAD, 1, workers=1, nonce=7)
        split = SplitRunner([Part("here", mine), remote(server.url, clock_shift_s=-SHIFT_S)], smallest_limit_s=1e9)
        asked: list[Progress] = []

        def enough(progress: Progress) -> bool:
            asked.append(progress)
            return progress.completed > 20

        phase = open_loop(WORKLOAD, 60.0, 500.0, seed=1, stream=0)
        span = split.run(phase, enough)
        assert split.settle(FOREVER_S)
        journal = split.journal()
        split.close()
    assert span.stopped
    assert asked[-1].completed > 20
    assert span.end_s < span.start_s + 400.0
    # Every row that was due by then, of either part, in the order of the schedule.
    np.testing.assert_array_equal(journal.prompt_tokens, phase.prompt_tokens[: span.end_row])
    assert (journal.status == Status.OK).all()
    assert not without_the_host(span.check.problems)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_part_that_goes_in_the_middle_is_named(number: signal.Signals) -> None:
    with TokenServer(gap_s=0.002) as server:
        # One that is stopped is known by its silence alone.
        lost = remote(server.url, "node7", silence_s=3.0 if number is signal.SIGSTOP else math.inf)
        split = SplitRunner([remote(server.url, "node3"), lost])
        assert isinstance(lost.runner, ProcessRunner)
        process = lost.runner.process
        gone = threading.Event()

        def end_it(progress: Progress) -> bool:
            if progress.completed > 5 and not gone.is_set():
                gone.set()
                os.kill(process.pid, number)
            return False

        phase = open_loop(WORKLOAD, 40.0, 600.0, seed=1, stream=0)
        with pytest.raises(LoadError, match=r"^the load generator on node7: it has (ended|been silent)") as caught:
            split.run(phase, end_it)
        assert gone.is_set()
        if number is signal.SIGKILL:
            assert "signal 9" in str(caught.value)
        # What the other part knows of the phase stays, and nothing waits for the lost one.
        journal = split.journal()
        assert journal.status.size > 0
        assert split.settle(FOREVER_S, cancel=True)
        assert not (split.journal().status == Status.IN_FLIGHT).any()
        with pytest.raises(LoadError, match="node7 has ended"):
            split.run(phase)
        split.close()
        assert process.returncode == -signal.SIGKILL


def test_an_interrupt_ends_the_phase_and_leaves_nothing() -> None:
    def interrupt(_: Progress) -> bool:
        raise KeyboardInterrupt

    with TokenServer(gap_s=0.002) as server:
        mine = TimedHttpRunner(server.url, "m", None, WORKLOAD, 1, workers=1, nonce=7)
        with SplitRunner([remote(server.url), Part("here", mine)]) as split, pytest.raises(KeyboardInterrupt):
            split.run(open_loop(WORKLOAD, 40.0, 100_000.0 / 40.0, seed=1, stream=0), interrupt)


class Tardy(TimedHttpRunner):
    """A load generator that begins a second later than it was told."""

    def start_at(self, start_s: float) -> None:
        super().start_at(start_s + 1.0)


def test_a_part_that_begins_late_is_named() -> None:
    with TokenServer() as server:
        parts = [
            Part(node, kind(server.url, "m", None, WORKLOAD, 1, workers=1, nonce=7))
            for node, kind in (("node3", TimedHttpRunner), ("node7", Tardy))
        ]
        with SplitRunner(parts) as split:
            span = split.run(open_loop(WORKLOAD, 20.0, 0.5, seed=1, stream=0))
            assert split.settle(FOREVER_S)
            journal = split.journal()
    found = [each for each in span.check.problems if "began" in each.text and "node7" in each.text]
    assert [each.kind for each in found] == [ProblemKind.LATE]
    assert span.end_s - span.start_s >= 1.499  # until the last part has ended
    assert (journal.status == Status.OK).all()


def test_a_stopped_worker_makes_the_phase_invalid_with_its_node() -> None:
    with TokenServer(gap_s=0.002) as server:
        slow = remote(server.url, "node7")
        split = SplitRunner([remote(server.url, "node3"), slow])
        assert isinstance(slow.runner, ProcessRunner)
        stopped: list[psutil.Process] = []
        seen_at: list[int] = []

        def hold_it(progress: Progress) -> bool:
            if progress.completed > 5 and not stopped:
                assert isinstance(slow.runner, ProcessRunner)
                stopped.extend(psutil.Process(slow.runner.process.pid).children())
                for each in stopped:
                    each.suspend()
            if stopped:
                seen_at.append(progress.completed)
                if len(seen_at) == 8:  # some two seconds of the other part's load
                    for each in stopped:
                        each.resume()
            return len(seen_at) > 9

        span = split.run(open_loop(WORKLOAD, 40.0, 600.0, seed=1, stream=0), hold_it)
        assert split.settle(FOREVER_S)
        split.close()
    assert len(stopped) == 1
    named = [each.text for each in span.check.problems if each.text.startswith("the load generator on node7")]
    assert named
    assert span.check.problems[0].text in named  # the worst first


def test_a_clock_that_is_not_known_well_enough_makes_it_invalid() -> None:
    with TokenServer() as server, SplitRunner([remote(server.url, "node7")], smallest_limit_s=1e-9) as split:
        span = split.run(open_loop(WORKLOAD, 20.0, 0.3, seed=1, stream=0))
    assert any("the clock of the load generator on node7 is known to" in each.text for each in span.check.problems)


def test_a_server_that_refuses_is_told_by_the_part() -> None:
    with TokenServer() as server:
        url = server.url
    with SplitRunner([remote(url, "node7")]) as split, pytest.raises(LoadError, match="on node7: "):
        split.run(open_loop(WORKLOAD, 20.0, 0.3, seed=1, stream=0))


def test_keys_travel_in_the_stream_alone() -> None:
    with TokenServer() as server:
        key, value = Secret("sk-" + "k" * 30), Secret("tok-" + "v" * 30)
        runner = ProcessRunner(
            None, server.url, "m", key, WORKLOAD, 1, nonce=7, workers=1, access=Access((("X-Key", value),))
        )
        process = psutil.Process(runner.process.pid)
        started = [process, *process.children(recursive=True)]
        for each in started:
            assert not any(secret in words(each) for secret in ("kkk", "vvv"))
        runner.run(open_loop(WORKLOAD, 20.0, 0.3, seed=1, stream=0))
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all()
        runner.close()
    setup = Setup(
        "http://x",
        "m",
        "kkk",
        WORKLOAD,
        1,
        7,
        1,
        9.0,
        False,
        False,
        (("X-Key", "vvv"),),
        None,
        0.0,
        (),
        Spread.ROUND_ROBIN,
    )
    assert repr(setup) == "Setup('http://x', 'm')"


def test_any_stream_of_bytes_carries_it() -> None:
    """Over a socket, with the other end in a thread: its runner's workers are processes all the same."""
    ours, theirs = socket.socketpair()
    host = threading.Thread(target=Host(Channel(SocketStream(theirs))).serve)
    host.start()
    with TokenServer() as server:
        runner = RemoteRunner(SocketStream(ours), server.url, "m", None, WORKLOAD, 1, nonce=7, workers=1)
        span = runner.run(open_loop(WORKLOAD, 50.0, UNTIL_STOPPED_S / 1e4, seed=1, stream=0), lambda p: p.completed > 9)
        assert span.stopped
        assert runner.settle(FOREVER_S)
        before = runner.journal()
        again = runner.run(open_loop(WORKLOAD, 50.0, 0.3, seed=1, stream=1))
        assert runner.settle(FOREVER_S)
        after = runner.journal()
        runner.close()
        host.join()
        closed = runner.journal()
    # Only rows that may still change were sent again.
    np.testing.assert_array_equal(after.due_s[: before.due_s.size], before.due_s)
    assert after.status.size == again.end_row
    assert (after.status == Status.OK).all()
    np.testing.assert_array_equal(closed.end_s, after.end_s)


@pytest.mark.parametrize(
    "array",
    [np.arange(5.0), np.arange(5, dtype=np.int32), np.arange(5), np.zeros(0, np.uint8), np.array([True, False])],
)
def test_arrays_come_as_they_went(array: np.ndarray) -> None:
    back = array_of(column(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_nothing_but_declared_messages_is_taken() -> None:
    with pytest.raises(StreamError, match="no array"):
        array_of(Column("|O", b"12345678"))
    with pytest.raises(StreamError, match="no array"):
        array_of(Column("<f8", b"123"))
    with pytest.raises(ValueError, match="not sent"):
        column(np.array([1j]))
    for data in (b"\x00\x00\x00\x05hello", b"\xff\xff\xff\xff", b"\x00\x00", b"\x00\x00\x00\x05hel"):
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            with pytest.raises(StreamError):
                Channel(SocketStream(theirs)).receive(ORDERS)
        theirs.close()
    pickled = msgspec.msgpack.encode({"type": "Setup", "workload": b"\x80\x04."})
    with pytest.raises(msgspec.ValidationError):
        ORDERS.decode(pickled)


def test_a_process_that_is_no_load_generator_is_told() -> None:
    with pytest.raises(LoadError, match="cannot be run"):
        ProcessRunner(["/nowhere/ssh"], "http://x", "m", None, WORKLOAD, 1, nonce=1)
    with pytest.raises(LoadError, match="exit status 3; the end of its log: no route"):
        ProcessRunner(["sh", "-c", "echo no route >&2; exit 3"], "http://x", "m", None, WORKLOAD, 1, nonce=1)


def test_more_parts_than_rows() -> None:
    with TokenServer() as server, SplitRunner([remote(server.url, "a"), remote(server.url, "b")]) as split:
        rows = np.full(1, 30, np.int32)
        span = split.run(OpenLoop(0.2, np.array([0.05]), rows, rows))
        assert split.settle(FOREVER_S)
        assert (span.first_row, span.end_row) == (0, 1)
        closed = split.run(closed_loop(WORKLOAD, 1, 0.3, 50_000.0, 1, 1, first_prompt=50))
        assert closed.end_row > closed.first_row
