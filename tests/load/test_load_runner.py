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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.connection import RequestTemplate
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import ClosedLoop, LoadError, OpenLoop, Progress, Status
from pytest_gpucap.load.runner import HttpLoadRunner, workers_for
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.shared_memory import PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.load.worker_pool import WorkerPool
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Workload
from tests.load.rawserver import RawServer
from tests.load.tokenserver import TokenServer

WORKLOAD = Workload(Length.parse("uniform:30-60", "input_tokens"), Length.parse("uniform:2-12", "output_tokens"))


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("endpoint", list(ApiKind))
@pytest.mark.parametrize("workers", [1, 2])
def test_phases_records_and_the_servers_own_counts(endpoint: ApiKind, workers: int) -> None:
    workload = Workload(WORKLOAD.input_tokens, WORKLOAD.output_tokens, endpoint=endpoint)
    with TokenServer(gap_s=0.002) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=workers) as runner:
            one = open_loop(workload, 60.0, 1.0, seed=1, stream=0)
            two = closed_loop(workload, 6, 0.7, 500.0, seed=1, stream=1, first_prompt=10_000)
            spans = [runner.run(one), runner.run(two)]
            assert runner.settle(10.0)
            journal = runner.journal()
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
    first, second = spans
    assert (first.first_row, first.end_row, second.first_row) == (0, one.due_s.size, one.due_s.size)
    assert second.end_row == journal.status.size
    np.testing.assert_allclose(journal.due_s[: first.end_row], first.start_s + one.due_s, atol=1e-9)
    np.testing.assert_array_equal(journal.prompt_tokens[: first.end_row], one.prompt_tokens)
    assert 0 <= second.start_s - first.end_s < 0.5
    assert (np.diff(journal.due_s) >= 0).all()
    assert journal.hot.sum() == 6
    # The first ones of the second phase, give or take what another worker started meanwhile.
    assert not journal.hot[: second.first_row].any()
    assert np.flatnonzero(journal.hot).max() < second.first_row + 12
    # Each phase's gaps: a request of k tokens has k - 1, the last of them after the second phase's end.
    gaps = (journal.counted_output_tokens - 1).sum()
    assert 0.8 * gaps <= first.gaps.total + second.gaps.total <= gaps
    assert (journal.ttft_s > 0).all()
    assert 0.002 <= np.nanmedian(journal.tpot_s) < 0.05
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
        assert runner.settle(10.0)
        journal = runner.journal()
    np.testing.assert_allclose(journal.due_s - span.start_s, phase.due_s, atol=1e-9)
    assert np.median(journal.sent_s - journal.due_s) < 0.02
    assert span.check.intended_rps == pytest.approx(phase.rate_rps)
    assert span.check.achieved_rps == pytest.approx(phase.rate_rps, rel=0.05)
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
        def _send(self, answer: Answer, request: bytes, *, fresh: bool = False) -> float:
            tried_s.append(time.monotonic())
            return super()._send(answer, request, fresh=fresh)

    pairs = [socket.socketpair() for _ in range(60)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop = Watched(
            RequestTemplate((socket.AF_INET, listener.getsockname()), b"POST / HTTP/1.1\r\nContent-Length: ", True),
            RequestComposer(PromptRecipe("m", "completions", ("a", "b"))),
            run_table,
            0,
            bins_start_s=time.monotonic(),
            request_timeout_s=60.0,
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
        loop.begin(table, start_s=due_s, end_s=due_s + 60.0, concurrency=0, first_prompt=0)
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
        TokenServer(gap_s=0.005) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=workers) as runner,
    ):
        seen: list[Progress] = []

        def watch(progress: Progress) -> bool:
            seen.append(progress)
            return False

        runner.run(closed_loop(workload, 5, 1.2, 400.0, 1, 0), watch)
        assert server.seen.most_in_flight == 5
        assert {progress.in_flight for progress in seen} <= {3, 4, 5}
        assert [progress.completed for progress in seen] == sorted(progress.completed for progress in seen)
        # Fewer in the next phase: it waits for the number to fall. More: it tops up at once.
        runner.run(closed_loop(workload, 2, 0.8, 400.0, 1, 1, first_prompt=1000))
        server.seen.most_in_flight = 0
        runner.run(closed_loop(workload, 2, 0.5, 400.0, 1, 2, hot=False, first_prompt=2000))
        assert server.seen.most_in_flight == 2
        assert runner.settle(5.0)
        assert (runner.journal().status == Status.OK).all()


def test_requests_in_flight_go_on_into_the_next_phase() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(20))
    one = OpenLoop(0.5, np.array([0.05]), np.array([30], np.int32), np.array([20], np.int32))
    with (
        # What comes between two phases belongs to neither: nothing does.
        TokenServer(gap_s=0.02, hold_after=5) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):

        def go_on(_progress: Progress) -> bool:
            server.release()
            return False

        first = runner.run(one)
        assert runner.journal().status.tolist() == [Status.IN_FLIGHT]
        second = runner.run(
            OpenLoop(1.2, np.array([0.1]), np.array([30], np.int32), np.array([2], np.int32), first_prompt=1), go_on
        )
        assert runner.settle(5.0)
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
        span = runner.run(open_loop(workload, 50.0, 30.0, 1, 0), lambda progress: progress.completed >= 20)
        assert span.stopped
        assert span.end_s - span.start_s < 25.0
        assert runner.settle(5.0)
        journal = runner.journal()
        assert journal.due_s.size == span.end_row
        assert (journal.due_s <= span.end_s).all()
        assert (journal.status == Status.OK).all()
        count = len(server.seen.bodies)
        time.sleep(0.1)
        assert len(server.seen.bodies) == count == span.end_row  # nothing more is sent


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
                wait_for(lambda: len(server.seen.bodies) >= already + 10, "more requests")
            tell(pool, message, fd)

        monkeypatch.setattr(WorkerPool, "tell", tell_late)
        phase = open_loop(workload, 100.0, 30.0, 1, 0) if loop == "open" else closed_loop(workload, 4, 9.0, 999.0, 1, 0)
        span = runner.run(phase, lambda progress: progress.completed >= 5)
        following = runner.run(open_loop(workload, 50.0, 0.2, 1, 1, first_prompt=100_000))
        assert runner.settle(5.0)
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
        TokenServer(gap_s=0.05) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed_loop(workload, 3, 30.0, 10.0, 1, 0, hot=False), lambda _: server.seen.output_tokens >= 12)
        journal = runner.journal()
        assert journal.status.tolist() == [Status.IN_FLIGHT] * 3
        assert (journal.due_s <= journal.sent_s).all()
        assert (journal.sent_s < journal.first_s).all()
        assert np.isnan(journal.last_s).all()
        assert runner.settle(5.0, cancel=True)
        ended = runner.journal()
        assert ended.status.tolist() == [Status.CANCELLED] * 3
        np.testing.assert_array_equal(ended.first_s, journal.first_s)


def test_cancelling_ends_what_is_in_flight() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(1000))
    with (
        TokenServer(gap_s=0.05) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed_loop(workload, 3, 0.3, 10.0, 1, 0, hot=False))
        assert not runner.settle(0.1)
        assert runner.settle(5.0, cancel=True)
        assert runner.journal().status.tolist() == [Status.CANCELLED] * 3
        assert runner.error_texts() == {}


def tokens_by(runner: HttpLoadRunner, server: TokenServer, time_s: float) -> tuple[int, int]:
    """Output tokens in the bins that were over by then, as the journal has them now and as the server sent them."""
    journal = runner.journal()
    bins = int((time_s - journal.bins_start_s) / journal.bin_s)
    end_s = journal.bins_start_s + bins * journal.bin_s
    return int(journal.tokens[:bins].sum()), sum(tokens for at_s, tokens in server.seen.sent if at_s < end_s)


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
        TokenServer(gap_s=0.02, per_event=4) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed_loop(workload, 8, 1.5, 10.0, 1, 0))  # some answers end, and are learned from
        assert runner.settle(10.0)
        server.per_event, server.gap_s = then, 0.005 * then
        second = runner.run(closed_loop(workload, 8, 0.5, 10.0, 1, 1, first_prompt=1000))
        counted, sent = tokens_by(runner, server, second.end_s)
        before = tokens_by(runner, server, second.start_s)[1]
        in_flight = int((runner.journal().status == Status.IN_FLIGHT).sum())
        assert runner.settle(10.0)
        journal = runner.journal()
        assert in_flight >= 6  # the first are shorter, so that they do not end together
        assert counted - before == pytest.approx(sent - before, rel=0.1)
        # Whatever was expected, in the end the usage has the last word.
        assert journal.tokens.sum() == server.seen.output_tokens == journal.counted_output_tokens.sum()


def test_events_of_several_tokens_are_counted_in_cancelled_answers() -> None:
    workload = Workload(Length.fixed(30), Length.fixed(200))
    with (
        TokenServer(gap_s=0.02, per_event=4) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.run(closed_loop(workload, 8, 2.5, 10.0, 1, 0))
        assert runner.settle(10.0, cancel=True)
        journal = runner.journal()
        assert (journal.status == Status.CANCELLED).sum() >= 6
        # What was on its way to a client that hung up is the server's alone.
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
        pytest.raises(LoadError, match="the closed loop ran out of requests: 5 rows did not last 1 s"),
    ):
        runner.run(ClosedLoop(1.0, 2, few, np.full(5, 2, np.int32)))


def test_a_server_that_refuses_everything_is_not_stormed() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with (
        RawServer([refusal]) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):
        runner.run(closed_loop(WORKLOAD, 4, 1.0, 100.0, 1, 0))
        assert runner.settle(5.0)
        journal = runner.journal()
        assert (journal.status == Status.HTTP_5XX).all()
        assert 4 <= journal.status.size <= 4 * 12


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_workers_death_is_an_error_at_once(how: signal.Signals) -> None:
    with (
        TokenServer(gap_s=0.01) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=2) as runner,
    ):
        phase = open_loop(WORKLOAD, 20.0, 60.0, 1, 0)
        runner.prepare(phase)
        victim = runner.worker_pids[1]

        def kill(_: Progress) -> bool:
            os.kill(victim, how)
            return False

        began_s = time.monotonic()
        with pytest.raises(LoadError, match=rf"load worker 1 \(pid {victim}\) died: signal {int(how)}"):
            runner.run(phase, kill)
        assert time.monotonic() - began_s < 30.0
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
        parent.wait(30)
        wait_for(lambda: not any(map(psutil.pid_exists, pids)), "the end of the workers")


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
            assert runner.settle(5.0)
            assert (runner.journal().status == Status.OK).all()


def test_no_server_is_one_clear_error() -> None:
    with RawServer([b""]) as server:
        url = server.url
    with HttpLoadRunner(url, "m", None, WORKLOAD, 1) as runner, pytest.raises(LoadError, match="does not answer"):
        runner.prepare()
    with pytest.raises(LoadError, match=r"is not the URL of a server: write http://HOST:PORT/v1"):
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
