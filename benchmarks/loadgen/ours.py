"""Our client as the benchmarks drive it: ``python ours.py PORT CONCURRENCY REQUESTS TOKENS [stamps | WORKERS]``.

Goes through `HttpLoadRunner`, as a measurement does, and prints one line of JSON: CPU seconds of the
worker in the phase (all book-keeping and self-checks included) and of everything (runner, imports, calibration),
events, requests. With ``stamps`` the loop runs in this process instead, and every receive time is held against the
send time that the emitter wrote into the event.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
import time
from typing import Any

import numpy as np

from pytest_gpucap.load.connection import RequestTemplate
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.fastpath.reader import DUE, FastReader
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import ClosedLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.shared_memory import Count, PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.requirement import ApiKind, Length, Workload

INPUT_TOKENS = 16
SETTLED = 10
STAMP = re.compile(rb"@(\d{19})")


def workload(tokens: int) -> Workload:
    return Workload(Length.fixed(INPUT_TOKENS), Length.fixed(tokens), endpoint=ApiKind.COMPLETIONS)


def through_the_runner(port: int, concurrency: int, requests: int, tokens: int, workers: int = 1) -> dict[str, Any]:
    """A closed loop that stops once `requests` are done."""
    rows = 4 * requests + 4 * concurrency
    phase = ClosedLoop(600.0, concurrency, np.full(rows, INPUT_TOKENS, np.int32), np.full(rows, tokens, np.int32))
    with HttpLoadRunner(f"http://127.0.0.1:{port}", "bench", None, workload(tokens), 1, workers=workers) as runner:
        runner.prepare(phase)
        begun_s = time.process_time()
        span = runner.run(phase, lambda progress: progress.completed >= requests)
        runner.settle(5.0, cancel=True)
        journal = runner.journal()
        worker_s = sum(span.check.worker_cpu_share) * (span.end_s - span.start_s)
        runner_s = time.process_time() - begun_s
        done = int(np.count_nonzero(journal.status == Status.OK))
        events = int(journal.tokens.sum())
        good = journal.status == Status.OK
        ttft = journal.ttft_s[good] * 1e3
        busy_s = float(journal.end_s[good].max()) - span.start_s
        gaps = span.gaps
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": worker_s + runner_s,
        "worker_cpu_s": worker_s,
        "all_cpu_s": time.process_time() + children.ru_utime + children.ru_stime,
        "events": events,
        "requests": done,
        "wall_s": span.end_s - span.start_s,
        "ttft_p50_ms": float(np.quantile(ttft, 0.5)),
        "ttft_p99_ms": float(np.quantile(ttft, 0.99)),
        "itl_p50_ms": gaps.quantile_s(0.5) * 1e3,
        "itl_p99_ms": gaps.quantile_s(0.99) * 1e3,
        "rps": done / busy_s,
        "lag_p99_us": span.check.timestamp_lag_p99_s * 1e6,
        "problems": [problem.text for problem in span.check.problems],
    }


def in_this_process(port: int, concurrency: int, requests: int, tokens: int) -> dict[str, Any]:
    """The loop alone, each receive time held against the emitter's send time."""
    run_table_fd = anonymous_memory(RunTable.size(1))
    run_table = RunTable.attach(run_table_fd, 1)
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    recipe = PromptRecipe("bench", "completions", tuple(str(i) for i in range(100, 164)), as_ids=True)
    loop = EventLoop(
        RequestTemplate((socket.AF_INET, ("127.0.0.1", port)), head.encode(), True),
        RequestComposer(recipe),
        run_table,
        0,
        bins_start_s=time.monotonic(),
        request_timeout_s=60.0,
    )
    table, fd = PhaseTable.create(requests, 1)
    table.prompt_tokens[:], table.output_tokens[:] = INPUT_TOKENS, tokens
    os.close(fd)
    os.close(run_table_fd)
    sent_ns: list[int] = []
    received: list[tuple[float, int]] = []

    class Watched(FastReader):
        """Holds each read's stamp against what the emitter wrote into it; one descriptor at a time."""

        __slots__ = ()

        def drain(self, timeout_ms: int, due_s: float, offset_ns: int) -> tuple[int, int, float]:
            # Due at once: it comes back after every read, with the read still in the buffer.
            found = super().drain(timeout_ms, min(due_s, 0.0), offset_ns)
            if found[0] == DUE:
                said = self._control[0]
                stamps = STAMP.findall(bytes(self._text[: said["end"]]))
                # Not while connections are still being made.
                if len(stamps) == 1 and loop.recorder.streams.events[said["stream"]] > SETTLED:
                    sent_ns.append(int(stamps[0]))
                    received.append((float(said["time_s"]), offset_ns))
            return found

    loop.reader.__class__ = Watched
    start_s = time.monotonic()
    loop.begin(table, start_s=start_s, end_s=start_s + 600.0, concurrency=concurrency, first_prompt=0)
    plain = loop.ended
    done = 0

    def ended(*args: Any, **kwargs: Any) -> None:
        nonlocal done
        plain(*args, **kwargs)
        done += 1
        if done >= requests:
            loop.stop()

    loop.ended = ended  # type: ignore[method-assign]
    cpu_s = time.process_time()
    loop.run()
    cpu_s = time.process_time() - cpu_s
    loop.recorder.flush()
    errors = np.array([t * 1e9 + offset - sent for (t, offset), sent in zip(received, sent_ns, strict=True)]) * 1e-3
    return {
        "cpu_s": cpu_s,
        "events": int(table.counts[0, Count.EVENTS]),
        "requests": requests,
        "wall_s": time.monotonic() - start_s,
        "kernel_error_us": {"p50": float(np.median(errors)), "p99": float(np.quantile(errors, 0.99))},
        "compared": errors.size,
    }


if __name__ == "__main__":
    run = in_this_process if "stamps" in sys.argv else through_the_runner
    print(json.dumps(run(*(int(text) for text in sys.argv[1:] if text != "stamps"))))
