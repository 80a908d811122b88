"""The runner against real servers: phases, records, workers, deaths."""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.connection import RequestTemplate
from pytest_gpucap.load.event_loop import FAILURE_PAUSE_S, EventLoop
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import ClosedLoop, LoadError, OpenLoop, Progress, Status
from pytest_gpucap.load.runner import START_LEAD_S, HttpLoadRunner, MonotonicClock, workers_for
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.shared_memory import Count, HistogramKind, PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.load.worker_pool import WorkerPool
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Workload
from tests.load.rawserver import RawServer
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S, until

WORKLOAD = Workload(Length.parse("uniform:30-60", "input_tokens"), Length.parse("uniform:2-12", "output_tokens"))


def closed(
    concurrency: int, output_tokens: int, *, duration_s: float = UNTIL_STOPPED_S, first_prompt: int = 0
) -> ClosedLoop:
    """A closed loop of equal requests, with more rows than are ever used."""
    n = 20_000
    rows = np.full(n, 30, np.int32), np.full(n, output_tokens, np.int32)
    return ClosedLoop(duration_s, concurrency, *rows, first_prompt=first_prompt)


class ReadClock(MonotonicClock):
    """A clock that remembers what it said."""

    def __init__(self) -> None:
        self.said_s: list[float] = []

    def now(self) -> float:
        self.said_s.append(super().now())
        return self.said_s[-1]


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
@pytest.mark.parametrize("workers", [1, 2])
def test_phases_records_and_the_servers_own_counts(endpoint: ApiKind, workers: int) -> None:
    workload = Workload(WORKLOAD.input_tokens, WORKLOAD.output_tokens, endpoint=endpoint)
    with TokenServer(gap_s=0.002) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=workers) as runner:
            one = open_loop(workload, 60.0, 1.0, seed=1, stream=0)
            two = closed_loop(workload, 6, 0.7, 500.0, seed=1, stream=1, first_prompt=10_000)
            first = runner.run(one)
            # A phase whose requests have ended lets go of its table when the next one begins.
            table = runner._finished[0].table
            runner.clock = clock = ReadClock()
            second = runner.run(two)
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
            # Of each phase and of what came after its end.
            all_gaps = [each.histogram(HistogramKind.GAPS).total for each in (table, runner._finished[1].table) if each]
        seen = server.seen
    assert journal.status.size == len(seen.bodies)
    assert (journal.status == Status.OK).all(), runner.error_texts()
    # What we counted, what the server reported, and what it really did.
    np.testing.assert_array_equal(journal.prompt_tokens, journal.counted_prompt_tokens)
    np.testing.assert_array_equal(journal.output_tokens, journal.counted_output_tokens)
    assert journal.counted_prompt_tokens.sum() == seen.prompt_tokens
    assert journal.tokens.sum() == journal.counted_output_tokens.sum() == seen.output_tokens
    # Every request was the one that the schedule says, once.
    sent = sorted(body["max_tokens"] for body in seen.bodies)
    assert sent == sorted(journal.output_tokens.tolist())
    assert (first.first_row, first.end_row, second.first_row) == (0, one.due_s.size, one.due_s.size)
    assert second.end_row == journal.status.size
    np.testing.assert_allclose(journal.due_s[: first.end_row], first.start_s + one.due_s, atol=1e-9)
    np.testing.assert_array_equal(journal.prompt_tokens[: first.end_row], one.prompt_tokens)
    # The second began as soon as the runner was told to run it.
    assert second.start_s == max(first.end_s, clock.said_s[0] + START_LEAD_S)
    assert (np.diff(journal.due_s) >= 0).all()
    assert journal.hot.sum() == 6
    # The first ones of the second phase, whenever their worker came to send them.
    assert not journal.hot[: second.first_row].any()
    for rows, scheduled in (
        (journal.prompt_tokens, two.prompt_tokens),
        (journal.output_tokens, two.output_tokens),
    ):
        assert sorted(rows[journal.hot].tolist()) == sorted(scheduled[:6].tolist())
    # Each phase's gaps: a request of k tokens has k - 1, the last of them after a phase's end.
    assert sum(all_gaps) == (journal.counted_output_tokens - 1).sum()
    for span, all_of_it in zip((first, second), all_gaps, strict=True):
        assert 0 < span.gaps.total <= all_of_it
    assert (journal.ttft_s > 0).all()
    several = journal.counted_output_tokens > 1
    np.testing.assert_allclose(
        (journal.ttft_s + journal.tpot_s * (journal.counted_output_tokens - 1))[several],
        journal.e2e_s[several],
    )
    assert len(runner.worker_pids) == 0 or not any(map(psutil.pid_exists, runner.worker_pids))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_union_of_the_workers_arrivals_is_the_schedule(workers: int) -> None:
    workload = Workload(Length.fixed(30), Length.fixed(1), arrivals=Arrivals(ArrivalKind.GAMMA, 2.0))
    phase = open_loop(workload, 100.0, 1.0, seed=5, stream=0)
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, workload, 5, workers=workers) as runner,
    ):
        span = runner.run(phase)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        table = runner._finished[0].table
        assert table is not None
    np.testing.assert_allclose(journal.due_s - span.start_s, phase.due_s, atol=1e-9)
    # A worker that gets the processor late is as late with everything it does.
    assert np.median(journal.sent_s - journal.due_s) < 0.02 + table.histogram(HistogramKind.LOOP).quantile_s(0.9)
    assert span.check.intended_rps == pytest.approx(phase.rate_rps)
    assert 0 < span.check.achieved_rps <= 1.001 * phase.rate_rps
    assert table.counts[:, Count.SENT].sum() == phase.due_s.size
    prompts = {str(body["messages"]) for body in server.seen.bodies}
    assert len(prompts) == phase.due_s.size


def test_a_request_that_is_due_does_not_wait_for_what_is_to_be_read() -> None:
    run_table_fd = anonymous_memory(RunTable.size(1))
    run_table = RunTable.attach(run_table_fd, 1)
    table, fd = PhaseTable.create(1, 1)
    os.close(fd)
    os.close(run_table_fd)
    begun_s: list[float] = []
    tried_s: list[float] = []

    class Watched(EventLoop):
        def _send(self, answer: Answer, request: bytes, template: RequestTemplate, *, fresh: bool = False) -> float:
            tried_s.append(time.monotonic())
            return super()._send(answer, request, template, fresh=fresh)

    pairs = [socket.socketpair() for _ in range(60)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop = Watched(
            RequestTemplate((socket.AF_INET, listener.getsockname()), b"POST / HTTP/1.1\r\nContent-Length: ", True),
            RequestComposer(PromptRecipe("m", "completions", ("a", "b"))),
            run_table,
            0,
            bins_start_s=time.monotonic(),
            request_timeout_s=UNTIL_STOPPED_S,
        )
        due_s = time.monotonic() + 0.02

        def read(mine: socket.socket) -> None:
            begun_s.append(time.monotonic())
            mine.recv(1)
            while time.monotonic() < begun_s[-1] + 0.002:
                pass
            if len(begun_s) == len(pairs):
                loop.stop()

        for mine, other in pairs:
            loop.add_handler(mine, lambda mine=mine: read(mine))  # type: ignore[misc]
            other.send(b".")
        table.due_s[:], table.prompt_tokens[:], table.output_tokens[:] = due_s, 16, 8
        loop.begin(table, start_s=due_s, end_s=due_s + UNTIL_STOPPED_S, concurrency=0, first_prompt=0)
        loop.run()
        loop.close()
    for pair in pairs:
        for end in pair:
            end.close()
    # One may have begun between the look at the clock and its own.
    assert sum(due_s < begin_s < tried_s[0] for begin_s in begun_s) <= 1
    assert begun_s[-1] > tried_s[0]


def test_workers_run_in_short_slices_where_the_kernel_grants_them() -> None:
    with TokenServer() as server, HttpLoadRunner(server.url, "m", None, Workload(), 1, workers=1) as runner:
        runner.prepare()
        (pid,) = runner.worker_pids
        scheduler = Path(f"/proc/{pid}/sched")
        lines = scheduler.read_text().splitlines() if scheduler.exists() else []
        slices = [int(line.split(":")[1]) for line in lines if line.startswith("se.slice")]
        release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
        if not slices or release < (6, 12) or os.sched_getscheduler(pid) != os.SCHED_OTHER:
            pytest.skip("this kernel grants no slices or shows none, or another scheduling policy was chosen")
        assert slices == [100_000]
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_loop_keeps_its_number_in_flight(workers: int) -> None:
    workload = Workload(Length.fixed(30), Length.fixed(10))
    with (
        TokenServer(gap_s=0.005, hold_after=1) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=workers) as runner,
    ):
        seen: list[Progress] = []

        def watch(progress: Progress) -> bool:
            if server.seen.held == 5:  # every worker has begun
                server.release()
            if seen or progress.in_flight == 5:
                seen.append(progress)
            return len(seen) == 4 and progress.completed > 0

        runner.run(closed(5, 10), watch)
        assert server.seen.most_in_flight == 5
        assert {progress.in_flight for progress in seen} <= {3, 4, 5}
        assert [progress.completed for progress in seen] == sorted(progress.completed for progress in seen)
        # Fewer in the next phase: it waits for the number to fall. More: it tops up at once.
        runner.run(closed(2, 10, first_prompt=100_000), lambda _: server.seen.in_flight <= 2)
        server.seen.most_in_flight = 0
        runner.run(closed(2, 10, first_prompt=200_000), lambda progress: progress.completed >= 10)
        assert server.seen.most_in_flight == 2
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all()


def test_requests_in_flight_go_on_into_the_next_phase() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(20))
    prompt, due_s = np.array([30], np.int32), np.array([0.05])
    one = OpenLoop(UNTIL_STOPPED_S, due_s, prompt, np.array([20], np.int32))
    two = OpenLoop(UNTIL_STOPPED_S, due_s, prompt, np.array([2], np.int32), first_prompt=1)
    with (
        # What comes between two phases belongs to neither: nothing does.
        TokenServer(gap_s=0.02, hold_after=5) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):

        def go_on(progress: Progress) -> bool:
            server.release()
            return progress.completed == 2

        first = runner.run(one, lambda _: server.seen.held == 1)
        assert runner.journal().status.tolist() == [Status.IN_FLIGHT]
        second = runner.run(two, go_on)
        assert runner.settle(FOREVER_S)
        assert runner.journal().status.tolist() == [Status.OK, Status.OK]
        assert first.gaps.total + second.gaps.total == 19 + 1
        assert first.gaps.total > 0
        assert second.gaps.total > 10


def test_should_stop_ends_a_phase_early() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(2))
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        phase = open_loop(workload, 50.0, 1800.0, 1, 0)
        span = runner.run(phase, lambda progress: progress.completed >= 20)
        assert span.stopped
        assert span.end_s - span.start_s < phase.duration_s
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert journal.due_s.size == span.end_row
        assert (journal.due_s <= span.end_s).all()
        assert (journal.status == Status.OK).all()
        count = len(server.seen.bodies)
        assert count == span.end_row
        # Nothing more is sent of it, even in the next phase.
        following = runner.run(open_loop(workload, 50.0, 0.3, 1, 1, first_prompt=1_000_000))
        assert runner.settle(FOREVER_S)
        assert len(server.seen.bodies) == following.end_row
        assert following.end_row - count == following.phase.prompt_tokens.size


@pytest.mark.parametrize("loop", ["open", "closed"])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_workers_send_until_they_hear_of_an_early_end_is_recorded(
    loop: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(Length.fixed(30), Length.fixed(2))
    with TokenServer(gap_s=0.002) as server, HttpLoadRunner(server.url, "m", None, workload, 1, workers) as runner:
        tell = WorkerPool.tell

        def tell_late(pool: WorkerPool, message: dict[str, object], fd: int | None = None) -> None:
            if message["do"] == "cut":
                already = len(server.seen.bodies)
                until(lambda: len(server.seen.bodies) >= already + 10)
            tell(pool, message, fd)

        monkeypatch.setattr(WorkerPool, "tell", tell_late)
        phase = open_loop(workload, 20.0, 1800.0, 1, 0) if loop == "open" else closed(4, 2)
        span = runner.run(phase, lambda progress: progress.completed >= 5)
        following = runner.run(open_loop(workload, 50.0, 0.2, 1, 1, first_prompt=100_000))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert span.stopped
        assert journal.status.size == len(server.seen.bodies) == following.end_row
        assert (journal.status == Status.OK).all(), runner.error_texts()
        assert journal.tokens.sum() == server.seen.output_tokens == journal.counted_output_tokens.sum()
        assert (journal.due_s[: span.end_row] <= span.end_s).all()
        assert (journal.due_s[span.end_row :] >= following.start_s).all()


def test_a_request_is_known_from_its_first_token_on() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(400))
    with (
        TokenServer(hold_after=5) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed(3, 400), lambda _: server.seen.held == 3)
        journal = runner.journal()
        assert journal.status.tolist() == [Status.IN_FLIGHT] * 3
        assert (journal.due_s <= journal.sent_s).all()
        assert (journal.sent_s < journal.first_s).all()
        assert np.isnan(journal.last_s).all()
        assert runner.settle(FOREVER_S, cancel=True)
        ended = runner.journal()
        assert ended.status.tolist() == [Status.CANCELLED] * 3
        np.testing.assert_array_equal(ended.first_s, journal.first_s)


def test_cancelling_ends_what_is_in_flight() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(1000))
    with (
        TokenServer(hold_after=1) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed(3, 1000), lambda _: server.seen.held == 3)
        assert not runner.settle(0.1)
        assert runner.settle(FOREVER_S, cancel=True)
        assert runner.journal().status.tolist() == [Status.CANCELLED] * 3
        assert runner.error_texts() == []


@pytest.mark.parametrize(
    ("then", "endpoint"),
    [(10, ApiKind.COMPLETIONS), (4, ApiKind.CHAT), (1, ApiKind.COMPLETIONS), (1, ApiKind.CHAT)],
)
def test_events_of_several_tokens_are_counted_before_their_answer_ends(endpoint: ApiKind, then: int) -> None:
    """Only an answer's end says how many tokens it had; a phase's last second must not look slower for that.

    Nor quicker, where events come to hold more or fewer than those of answers that have ended.
    """
    workload = Workload(Length.fixed(30), Length.fixed(200), endpoint=endpoint)
    with (
        TokenServer(gap_s=0.005, per_event=4) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        # Some answers end, and are learned from.
        runner.run(closed(8, 200), lambda progress: progress.completed >= 8)
        assert runner.settle(FOREVER_S)
        before = server.seen.output_tokens
        # The next ones stop half-way, and so does the phase. A chat begins with an event that holds no token.
        server.per_event, server.hold_after = then, 100 // then + (endpoint is ApiKind.CHAT)
        second = runner.run(closed(8, 200, first_prompt=100_000), lambda _: server.seen.held == 8)
        under_way, sent = runner.journal(), server.seen.output_tokens
        server.release()
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert (under_way.status == Status.IN_FLIGHT).sum() == 8
        assert sent - before == 8 * 100
        last = int((second.end_s - under_way.bins_start_s) / under_way.bin_s)
        counted = int(under_way.tokens[: last + 1].sum())
        assert counted == under_way.tokens.sum()
        assert counted - before == pytest.approx(sent - before, rel=0.1)
        # Whatever was expected, in the end the usage has the last word.
        assert journal.tokens.sum() == server.seen.output_tokens == journal.counted_output_tokens.sum()


def test_events_of_several_tokens_are_counted_in_cancelled_answers() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(200))
    with (
        TokenServer(gap_s=0.005, per_event=4) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):

        def half_way(progress: Progress) -> bool:
            if progress.completed >= 8:
                server.hold_after = 25  # of 50 events
            return server.seen.held == 8

        runner.run(closed(8, 200), half_way)
        assert runner.settle(FOREVER_S, cancel=True)
        journal = runner.journal()
        assert (journal.status == Status.CANCELLED).sum() == 8
        assert journal.tokens.sum() == pytest.approx(server.seen.output_tokens, rel=0.05)
        assert journal.counted_output_tokens.sum() < journal.tokens.sum()


def test_a_closed_runner_keeps_its_journal_and_runs_no_more() -> None:
    with TokenServer() as server:
        runner = HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1)
        phase = open_loop(WORKLOAD, 20.0, 0.3, 1, 0)
        runner.run(phase)
        runner.close()
        runner.close()
        assert runner.settle(1.0)
        statuses = set(runner.journal().status.tolist())
        assert statuses <= {Status.OK, Status.CANCELLED}
        with pytest.raises(LoadError, match="has been closed"):
            runner.run(phase)


def test_running_out_of_rows_is_an_error() -> None:
    few = np.full(5, 30, np.int32)
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
        pytest.raises(LoadError, match="the closed loop ran out of requests: 5 rows did not last 3600 s"),
    ):
        runner.run(
            ClosedLoop(3600.0, 2, few, np.full(5, 2, np.int32)),
            lambda progress: progress.completed == 5,
        )


def test_a_server_that_refuses_everything_is_not_stormed() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with (
        RawServer([refusal]) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):
        span = runner.run(closed(4, 2), lambda progress: progress.failed >= 24)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert (journal.status == Status.HTTP_5XX).all()
        assert 24 <= journal.status.size <= 4 * (2 + (span.end_s - span.start_s) / FAILURE_PAUSE_S)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_workers_death_is_an_error_at_once(how: signal.Signals) -> None:
    with (
        TokenServer(gap_s=0.01) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=2) as runner,
    ):
        phase = open_loop(WORKLOAD, 20.0, 7200.0, 1, 0)  # longer than a test may take
        runner.prepare(phase)
        victim = runner.worker_pids[1]

        def kill(_: Progress) -> bool:
            os.kill(victim, how)
            return False

        with pytest.raises(LoadError, match=rf"load worker 1 \(pid {victim}\) died: signal {int(how)}"):
            runner.run(phase, kill)
        pids = runner.worker_pids
    assert not any(map(psutil.pid_exists, pids))


def test_a_hanging_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gpucap.load.worker_pool.SILENCE_S", 0.5)
    monkeypatch.setattr("pytest_gpucap.load.worker_pool.WORKER_STOP_TIMEOUT_S", 0.5)
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):
        phase = open_loop(WORKLOAD, 20.0, 60.0, 1, 0)
        runner.prepare(phase)
        (pid,) = runner.worker_pids

        def stop(_: Progress) -> bool:
            os.kill(pid, signal.SIGSTOP)
            return False

        with pytest.raises(LoadError, match=rf"load worker 0 \(pid {pid}\) has been silent"):
            runner.run(phase, stop)
        runner.close()
        runner.close()
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "sys.exit(1)"])
def test_workers_die_with_their_parent(ending: str, tmp_path: Path) -> None:
    with TokenServer(gap_s=0.05) as server:
        script = tmp_path / "parent.py"
        script.write_text(
            textwrap.dedent(f"""
            import os, signal, sys
            from pytest_gpucap.load.runner import HttpLoadRunner
            from pytest_gpucap.load.schedule import open_loop
            from pytest_gpucap.requirement import Length, Workload
            workload = Workload(Length.fixed(30), Length.fixed(200))
            runner = HttpLoadRunner({server.url!r}, "m", None, workload, 1, workers=2)
            phase = open_loop(workload, 50.0, 60.0, 1, 0)
            runner.prepare(phase)
            print(*runner.worker_pids, flush=True)
            def end(progress):
                {ending}
            runner.run(phase, end)
            """)
        )
        parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        parent.stdout.close()
        assert len(pids) == 2
        parent.wait()
        until(lambda: not any(map(psutil.pid_exists, pids)))


def test_a_runner_made_in_a_short_lived_thread_keeps_its_workers() -> None:
    with TokenServer() as server:
        made: list[HttpLoadRunner] = []

        def make() -> None:
            made.append(HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1))
            made[0].prepare()

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        with made[0] as runner:
            runner.run(open_loop(WORKLOAD, 20.0, 0.3, 1, 0))
            assert runner.settle(FOREVER_S)
            assert (runner.journal().status == Status.OK).all()


def test_no_server_is_one_clear_error() -> None:
    with RawServer([b""]) as server:
        url = server.url
    with HttpLoadRunner(url, "m", None, WORKLOAD, 1) as runner, pytest.raises(LoadError, match=r"failed: .*refused"):
        runner.prepare()
    with pytest.raises(LoadError, match=r"is not a server's URL: write http://HOST:PORT/v1"):
        HttpLoadRunner("localhost:8000", "m", None, WORKLOAD, 1)


def test_a_refused_probe_says_why() -> None:
    from aiohttp import web

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "model m does not exist"}}, status=404)

    with (
        TokenServer(handler=refuse) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1) as runner,
        pytest.raises(LoadError, match=r"HTTP 404: .*model m does not exist"),
    ):
        runner.prepare()


def test_the_key_is_in_no_repr() -> None:
    runner = HttpLoadRunner("http://127.0.0.1:1", "m", "sk-secret", WORKLOAD, 1)
    assert "sk-secret" not in repr(runner.server)


def phase_of(rate_rps: float, output: int) -> OpenLoop:
    n = round(10 * rate_rps)
    return OpenLoop(10.0, np.linspace(0, 9.99, n), np.full(n, 30, np.int32), np.full(n, output, np.int32))


@pytest.mark.parametrize(
    ("phase", "cores", "workers"),
    [
        (phase_of(2, 512), 2, 1),
        (phase_of(1000, 512), 2, 1),
        (phase_of(10, 512), 64, 1),
        (phase_of(200, 512), 64, 2),
        (phase_of(4000, 8), 64, 3),
        (phase_of(4000, 8), 8, 2),
        (ClosedLoop(10.0, 1000, np.full(9, 30, np.int32), np.full(9, 512, np.int32)), 64, 2),
        (None, 64, 1),
    ],
)
def test_the_number_of_workers_follows_load_and_cores(
    phase: OpenLoop | ClosedLoop | None, cores: int, workers: int
) -> None:
    assert workers_for(phase, cores) == workers
