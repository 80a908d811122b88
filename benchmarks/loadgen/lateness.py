"""Open-loop lateness: ``python lateness.py PORT RATE SECONDS WORKERS``; prints one line of JSON.

Sends Poisson arrivals of 8-event requests through `HttpLoadRunner` and compares when they were sent with when they were
due. Kolmogorov-Smirnov tests hold the gaps of the schedule that the workers were given, all together, against the
exponential distribution, and the gaps between *sends* against those of the schedule; ``at_us`` is the gap at which the
two differ most. A split with a bias would show in the first, lateness of the order of a gap in the second.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from scipy import stats

from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import ApiKind, Length, Workload

port, rate, seconds, workers = (float(text) for text in sys.argv[1:5])
workload = Workload(Length.fixed(16), Length.fixed(8), endpoint=ApiKind.COMPLETIONS)
with HttpLoadRunner(f"http://127.0.0.1:{port:.0f}", "bench", None, workload, 1, workers=int(workers)) as runner:
    runner.prepare()
    span = runner.run(open_loop(workload, rate, seconds, seed=2, stream=0))
    runner.settle(10.0)
    journal = runner.journal()
late = journal.sent_s - journal.due_s
gaps = np.diff(np.sort(journal.due_s))
test = stats.ks_2samp(np.diff(np.sort(journal.sent_s)), gaps)
schedule = stats.kstest(gaps, stats.expon(scale=1 / rate).cdf)
print(
    json.dumps(
        {
            "requests": int(journal.status.size),
            "ok": int(np.count_nonzero(journal.status == Status.OK)),
            "late_us": {
                "p50": float(np.quantile(late, 0.5)) * 1e6,
                "p99": float(np.quantile(late, 0.99)) * 1e6,
                "max": float(late.max()) * 1e6,
            },
            "ks": {
                "statistic": float(test.statistic),
                "p": float(test.pvalue),
                "at_us": float(test.statistic_location) * 1e6,
            },
            "ks_schedule": {"statistic": float(schedule.statistic), "p": float(schedule.pvalue)},
            "cpu": span.check.worker_cpu_share,
            "problems": [problem.text for problem in span.check.problems],
        }
    )
)
