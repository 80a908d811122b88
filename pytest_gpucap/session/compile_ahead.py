"""What a check calls of compiled code, compiled ahead: ``python -P -m pytest_gpucap.session.compile_ahead``.

Compiling takes many seconds, and a server that is ready would wait for it with its GPU. So a session runs this process
while a server starts (`compiling.py`). It calls each function once, with arguments of the types that a check
has, and Numba keeps the code on disk. A check then finds it there.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from pytest_gpucap.estimate import prefix_cache
from pytest_gpucap.estimate.queue_model import ServerModel, evaluate, server_of
from pytest_gpucap.estimate.queue_simulation import GAP_BINS, QueueArrivals, QueueLatencies, QueueStart, simulate
from pytest_gpucap.estimate.session_simulation import SessionLatencies, SessionRequests, Stops, simulate_sessions
from pytest_gpucap.estimate.traffic import Traffic
from pytest_gpucap.load.fastpath import reader
from pytest_gpucap.load.parent_death import end_with_parent
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import RunTable, anonymous_memory
from pytest_gpucap.results.whole_file import write_text

_ARRIVALS: Final = 1 << 15
_RUNNING: Final = 64


def compile_reader() -> None:
    """What a load worker calls (`EventLoop` does the same at its start)."""
    memory = anonymous_memory(RunTable.size(1))
    try:
        table = RunTable.attach(memory, 1)
    finally:
        os.close(memory)
    with select.epoll() as epoll:
        reader.FastReader(epoll.fileno(), Recorder(table.tokens[0], 0.0, 0)).drain(0, math.inf, 0)


def compile_queue_model() -> None:
    """What an estimate calls, and what it checks itself against (`observed.replayed`)."""
    ones, whole = np.ones(_ARRIVALS), np.ones(_ARRIVALS, np.int64)
    pool = np.ones(_RUNNING, np.int64)
    traffic = Traffic(ones, whole, whole, np.zeros_like(whole), whole, pool, pool, 1.0, 1.0, 1.0)
    model = ServerModel(np.full(_RUNNING + 1, 0.001), 1e-5, max_seqs=_RUNNING)
    evaluate(model, traffic, 1.0)
    few = slice(0, _RUNNING)
    arrivals = QueueArrivals(np.cumsum(ones[few]), whole[few].copy(), whole[few].copy(), whole[few].copy())
    latencies = QueueLatencies(np.full(_RUNNING, np.nan), np.full(_RUNNING, np.nan), np.zeros(_RUNNING))
    running = QueueStart(pool[:1].copy(), pool[:1].copy())
    gaps = np.zeros(GAP_BINS)
    simulate(server_of(model), 1.0, 0.0, arrivals, running, (0, _RUNNING + 1), latencies, gaps, float(_RUNNING))


def compile_sessions() -> None:
    """What an estimate of sessions calls beside: the cache as it was, and the simulation of the long run."""
    whole, some = np.ones(1, np.int64), np.ones(1)
    columns = whole, whole, whole, np.full(1, -1, np.int64)
    prefix_cache._found(np.zeros(1, np.int64), np.zeros(1, np.int64), some, columns, whole, 1.0, 0)  # noqa: SLF001
    requests = SessionRequests(np.zeros(1), whole, whole, whole, np.full(1, -1, np.int64), some, whole)
    seen = SessionLatencies(np.full(1, np.nan), np.full(1, np.nan), np.full(1, np.nan), np.full(1, -1, np.int64))
    server = server_of(ServerModel(np.full(2, 0.001), 1e-5, max_seqs=1))
    simulate_sessions(server, requests, 1.0, 0, Stops(np.zeros(0), np.zeros(0)), 1.0, 1.0, seen, np.zeros(GAP_BINS))


def kept_files() -> Iterator[str]:
    """The files in which Numba finds the compiled code again; none where it can write no folder, or is not used."""
    from pytest_gpucap.estimate import queue_simulation

    functions = (
        *(reader._drain, queue_simulation.simulate, queue_simulation.simulate_replications),  # noqa: SLF001
        *(prefix_cache._found, simulate_sessions),  # noqa: SLF001
    )
    for function in functions:
        kept: Any = getattr(getattr(function, "_cache", None), "_cache_file", None)
        index: Any = getattr(kept, "_index_path", None)  # Numba has no public way
        if index is not None:
            yield str(index)


def main() -> int:
    """Compile, then write which files were made to the file that is named; returns the exit status."""
    marker, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent)
    files = list(kept_files())
    if files:  # else what is compiled here is lost with this process
        compile_reader()
        compile_queue_model()
        compile_sessions()
        write_text(marker, json.dumps(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
