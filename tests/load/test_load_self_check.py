"""The load generator's judgement of itself: no false alarm, and a word for everything that spoils a measurement."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.load.protocol import Histogram, OpenLoop, Progress, SelfCheck, Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.self_check import check_phase
from pytest_gpucap.load.shared_memory import (
    HISTOGRAM_BINS,
    HISTOGRAM_GROWTH,
    HISTOGRAM_LOWEST_S,
    Count,
    HistogramKind,
    PhaseTable,
    RunTable,
    anonymous_memory,
    histogram_bin,
    histogram_bins,
)
from pytest_gpucap.load.timestamps import STEP_NS, ClockOffset
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.results.problems import ProblemKind, ProblemSource
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S

ROWS = 1000


def made(*, late_s: np.ndarray | None = None, ttft_s: float = 0.1, **counts: int) -> SelfCheck:
    """The judgement of a phase of 1,000 requests in 10 s that went well but for what is given."""
    table, fd = PhaseTable.create(ROWS, 1)
    os.close(fd)
    late = np.full(ROWS, 1e-4) if late_s is None else late_s
    table.due_s[:] = np.linspace(0, 10, ROWS, endpoint=False)
    table.sent_s[:] = table.due_s + late
    table.first_s[:] = table.sent_s + ttft_s
    table.status[:] = Status.OK
    recorder = Recorder(np.zeros(1000, np.int64), 0.0, 0)
    recorder.begin(table)
    recorder.lateness.extend(late.tolist())
    table.histograms[0, HistogramKind.LAG, histogram_bin(1e-4)] = 100
    recorder.flush()
    values = {"SENT": ROWS, "CPU_NS": 10**9, "WALL_NS": 10**10, "EVENTS": 100, **counts}
    for name, value in values.items():
        table.counts[0, Count[name]] = value
    phase = OpenLoop(10.0, table.due_s.copy(), np.ones(ROWS, np.int32), np.ones(ROWS, np.int32))
    return check_phase(phase, table, start_s=0.0, end_s=10.0, due=table.due_s)


def late(share: float, seconds: float) -> np.ndarray:
    lateness = np.full(ROWS, 1e-4)
    lateness[: round(share * ROWS)] = seconds
    return lateness


def test_a_good_phase_has_no_problem_and_all_figures() -> None:
    check = made()
    assert check.problems == ()
    assert check.send_lateness_p99_s == pytest.approx(1e-4, rel=0.011)
    assert check.timestamp_lag_p99_s == pytest.approx(1e-4, rel=0.011)
    assert check.worker_cpu_share == (0.1,)
    assert check.intended_rps == check.achieved_rps == 100.0
    assert check.timestamps == "kernel"


def test_lateness_decides_relative_to_what_is_measured() -> None:
    (problem,) = made(late_s=late(0.02, 0.041)).problems
    assert problem.text.startswith("the load generator, not the GPU, was the bottleneck: send lateness p99 41")
    assert "taskset" in problem.text
    assert (problem.source, problem.kind) == (ProblemSource.LOAD_GENERATOR, ProblemKind.LATE)
    assert made(late_s=late(0.02, 0.041), ttft_s=1.0).problems == ()  # lost in a TTFT of a second
    assert made(late_s=late(0.02, 0.009), ttft_s=0.01).problems == ()  # a scheduler slice or two
    assert made(late_s=late(0.005, 0.5)).problems == ()  # one hiccup in 200 requests
    # A client that falls behind makes up what it measures: the limit does not grow away from it.
    assert made(late_s=np.linspace(0, 2.0, ROWS)).problems


@pytest.mark.parametrize(
    ("counts", "source", "kind", "words"),
    [
        ({"CPU_NS": 95 * 10**8}, ProblemSource.LOAD_GENERATOR, ProblemKind.CPU, "a worker used 95% of a core"),
        ({"SENT": 900}, ProblemSource.LOAD_GENERATOR, ProblemKind.BEHIND, "900 of 1000 due requests were sent"),
        ({"CLOCK_STEPS": 1}, ProblemSource.HOST, ProblemKind.CLOCK_SET, "the system clock was set during the phase"),
        (
            {"WRONG_PROMPT": 3, "PROMPTS": 9, "WRONG_ASKED": 96, "WRONG_COUNTED": 120},
            ProblemSource.SERVER,
            ProblemKind.PROMPT_TOKENS,
            "other prompt tokens than were asked for in 3 of 9 answers: 32 asked, 40 counted on average; does a load",
        ),
        (
            {"WRONG_PROMPT": 9, "PROMPTS": 9, "WRONG_ASKED": 288, "WRONG_COUNTED": 90},
            ProblemSource.SERVER,
            ProblemKind.PROMPT_TOKENS,
            "in 9 of 9 answers: 32 asked, 10 counted on average; does it leave cached tokens out",
        ),
        (
            {"WRONG_PROMPT": 3, "PROMPTS": 3, "WRONG_ASKED": 96},
            ProblemSource.SERVER,
            ProblemKind.PROMPT_TOKENS,
            "the server reported no prompt tokens in 3 of 3 answers",
        ),
    ],
)
def test_what_else_spoils_a_phase(counts: dict[str, int], source: ProblemSource, kind: ProblemKind, words: str) -> None:
    (problem,) = made(late_s=None, ttft_s=0.1, **counts).problems
    assert (problem.source, problem.kind) == (source, kind)
    assert words in problem.text


def test_stamps_of_user_space_are_called_so() -> None:
    assert made(USER_STAMPS=1000).timestamps == "user"
    assert made(USER_STAMPS=10).timestamps == "kernel"


WORKLOAD = Workload(Length.fixed(40), Length.fixed(4))


def stalling(pid: int, seconds: float, enough: int) -> Callable[[Progress], bool]:
    """Stops a process for so long once some requests are answered; ends the phase after more than `enough` of them."""
    stalled = False

    def stop(progress: Progress) -> bool:
        nonlocal stalled
        if not stalled and progress.completed > 10:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            stalled = True
            return False
        return stalled and progress.completed > enough

    return stop


def test_a_stalled_worker_is_noticed() -> None:
    """The worker is stopped for half a second in the middle of a phase: the lateness of its requests says so."""
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):
        runner.prepare()
        (pid,) = runner.worker_pids
        # Some 50 requests are late: as long as they are more than one in a hundred.
        span = runner.run(open_loop(WORKLOAD, 100.0, 1800.0, 1, 0), stalling(pid, 0.5, enough=80))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert any(problem.kind is ProblemKind.LATE for problem in span.check.problems), span.check
    assert span.check.send_lateness_p99_s > 0.1
    # Nothing is left out, and the latencies hold the wait: they count from when requests were due.
    assert (journal.status == Status.OK).all()
    assert journal.ttft_s.max() > 0.2
    assert isinstance(span.phase, OpenLoop)
    # A request may still be sent between the last look at the clock and the worker's end.
    assert journal.status.size >= np.count_nonzero(span.phase.due_s < span.end_s - span.start_s)


@pytest.mark.parametrize(("stalled_s", "problems"), [(2.5, [ProblemKind.SUSPENDED]), (0.3, [])])
def test_a_worker_that_stalls_in_a_closed_loop(stalled_s: float, problems: list[ProblemKind]) -> None:
    """No request of a closed loop is due at a time, so the worker's own clock has to tell."""
    with (
        TokenServer() as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):
        runner.prepare()
        (pid,) = runner.worker_pids
        span = runner.run(closed_loop(WORKLOAD, 4, 60.0, 500.0, 1, 0), stalling(pid, stalled_s, enough=10))
        assert runner.settle(FOREVER_S)
    own = [each.kind for each in span.check.problems if each.source is ProblemSource.LOAD_GENERATOR]
    assert [kind for kind in own if kind is ProblemKind.SUSPENDED] == problems


def test_too_few_sockets_are_counted_against_the_client() -> None:
    workload = Workload(Length.fixed(40), Length.fixed(50))
    with (
        TokenServer(hold_after=1) as server,
        HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner,
    ):
        runner.prepare()
        (pid,) = runner.worker_pids
        limit = psutil.Process(pid).num_fds() + 10
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        due_s = np.linspace(0, 0.3, 30)
        phase = OpenLoop(UNTIL_STOPPED_S, due_s, np.full(30, 40, np.int32), np.full(30, 50, np.int32))
        span = runner.run(phase, lambda progress: progress.in_flight + progress.failed == 30)
        assert runner.settle(FOREVER_S, cancel=True)
        statuses = runner.journal().status
    dropped = int(np.count_nonzero(statuses == Status.DROPPED))
    assert 18 <= dropped <= 21
    assert any(f"could not send {dropped} requests" in problem.text for problem in span.check.problems)
    assert span.check.open_sockets in range(9, 13)


@given(st.lists(st.floats(1e-9, 1e4), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_histogram_is_right_to_its_stated_error(values: list[float], quantile: float) -> None:
    counts = np.bincount(histogram_bins(np.array(values)), minlength=HISTOGRAM_BINS)
    found = Histogram(HISTOGRAM_LOWEST_S, HISTOGRAM_GROWTH, counts).quantile_s(quantile)
    rank = max(1, int(np.ceil(quantile * len(values) - 1e-9)))
    truth = min(
        max(sorted(values)[rank - 1], HISTOGRAM_LOWEST_S), HISTOGRAM_LOWEST_S * HISTOGRAM_GROWTH ** (HISTOGRAM_BINS - 1)
    )
    assert truth / HISTOGRAM_GROWTH * (1 - 1e-9) <= found <= truth * HISTOGRAM_GROWTH * (1 + 1e-9)


def test_percentiles_of_a_histogram_have_no_bias() -> None:
    values = np.random.default_rng(1).normal(0.010, 5e-5, 20_000)
    found = Histogram(
        HISTOGRAM_LOWEST_S, HISTOGRAM_GROWTH, np.bincount(histogram_bins(values), minlength=HISTOGRAM_BINS)
    )
    for quantile in (0.1, 0.5, 0.9):
        assert found.quantile_s(quantile) == pytest.approx(np.quantile(values, quantile), abs=1e-6)


def test_a_step_of_the_wall_clock_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"monotonic": 10**9, "real": 10**18}

    def tick(clock: str) -> int:
        """Reading a clock takes a microsecond."""
        for each in now:
            now[each] += 1000
        return now[clock]

    monkeypatch.setattr("pytest_gpucap.load.timestamps.time.monotonic_ns", lambda: tick("monotonic"))
    monkeypatch.setattr("pytest_gpucap.load.timestamps.time.time_ns", lambda: tick("real"))
    offset = ClockOffset()
    offset.resample()
    assert offset.steps == 0
    now["real"] += 5 * STEP_NS
    before = offset.ns
    offset.resample()
    assert offset.steps == 1
    assert offset.ns - before == pytest.approx(5 * STEP_NS, abs=STEP_NS / 2)


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    """50,000 requests of 512 tokens through the real book-keeping: what is kept does not grow with the tokens."""
    from pytest_gpucap.load.answer import Answer

    requests, tokens = 50_000, 512
    run_table_fd = anonymous_memory(RunTable.size(1))
    run_table = RunTable.attach(run_table_fd, 1)
    table, fd = PhaseTable.create(requests, 1)
    os.close(fd)
    os.close(run_table_fd)
    table.prompt_tokens[:], table.output_tokens[:] = 16, tokens
    recorder = Recorder(run_table.tokens[0], 0.0, 0)
    recorder.begin(table)
    before = psutil.Process().memory_info().rss
    for row in range(requests):
        answer = Answer(table, row, recorder)
        answer.token(row * 1e-3)
        answer.token(row * 1e-3 + 0.02)
        streams, stream = recorder.streams, answer.stream
        streams.events[stream] += tokens - 2
        recorder.gaps.extend([0.01] * (tokens - 2))
        recorder.token_times.extend([row * 1e-3] * (tokens - 2))
        streams.counted_prompt[stream], streams.counted_output[stream], streams.done[stream] = 16, tokens, 1
        answer.finish(row * 1e-3 + 0.03, ignore_eos=True)
        recorder.flush_if_full()
    recorder.flush()
    assert psutil.Process().memory_info().rss - before < 50 * 2**20  # 200 MB would be 8 bytes a token
    assert run_table.tokens.sum() == requests * tokens
    assert table.histogram(HistogramKind.GAPS).total == requests * (tokens - 1)
    assert (table.status == Status.OK).all()
