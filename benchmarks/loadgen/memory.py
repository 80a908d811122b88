"""The book-keeping of 1,000,000 requests of 512 tokens: ``python memory.py``; prints the peak memory as JSON.

The worker's own parts (records in shared memory, recorder, answers) without the network: as many tokens over a socket
would take hours. Gaps are drawn from a known lognormal distribution; its percentiles are held against the histogram's.
"""

from __future__ import annotations

import json
import os
import resource
import time

import numpy as np
from scipy import stats

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import HistogramKind, PhaseTable, RunTable, anonymous_memory

REQUESTS, TOKENS = 1_000_000, 512
MEDIAN_S, SIGMA = 0.020, 0.4


def main() -> None:
    run_table_fd = anonymous_memory(RunTable.size(1))
    run_table = RunTable.attach(run_table_fd, 1)
    table, fd = PhaseTable.create(REQUESTS, 1)
    os.close(fd)
    os.close(run_table_fd)
    recorder = Recorder(run_table.tokens[0], 0.0, 0)
    recorder.begin(table)
    table.prompt_tokens[:], table.output_tokens[:] = 16, TOKENS
    rng = np.random.default_rng(1)
    pool = [np.cumsum(rng.lognormal(np.log(MEDIAN_S), SIGMA, TOKENS)) for _ in range(256)]
    begun_s = time.monotonic()
    for row in range(REQUESTS):
        answer = Answer(table, row, recorder)
        streams, stream = recorder.streams, answer.stream
        times = (pool[row % 256] + row * 1e-3).tolist()
        # What the read path does for each event, for all of an answer's at once.
        streams.first_s[stream], streams.last_s[stream], streams.events[stream] = times[0], times[-1], TOKENS
        streams.gap_s[stream] = times[-1] - times[-2]
        recorder.gaps.extend(np.diff(times[:-1]).tolist())
        recorder.token_times.extend(times)
        streams.counted_prompt[stream], streams.counted_output[stream], streams.done[stream] = 16, TOKENS, 1
        streams.sent_s[stream] = row * 1e-3
        answer.finish(times[-1], ignore_eos=True)
        recorder.flush_if_full()
    recorder.flush()
    gaps = table.histogram(HistogramKind.GAPS)
    truth = stats.lognorm(SIGMA, scale=MEDIAN_S)
    # The pool's own percentiles: 130,000 draws differ from the distribution by chance.
    drawn = np.concatenate([np.diff(times) for times in pool])
    print(
        json.dumps(
            {
                "requests": int(np.count_nonzero(table.status == Status.OK)),
                "gaps": gaps.total,
                "tokens": int(run_table.tokens.sum()),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "seconds": time.monotonic() - begun_s,
                "relative_error": {
                    f"p{100 * q:g}": gaps.quantile_s(q) / float(np.quantile(drawn, q)) - 1 for q in (0.5, 0.95, 0.99)
                },
                "distribution_p99_ms": truth.ppf(0.99) * 1e3,
            }
        )
    )


if __name__ == "__main__":
    main()
