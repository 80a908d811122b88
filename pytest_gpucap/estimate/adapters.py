"""What the requests of each LoRA adapter met, from the journal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_gpucap.estimate.samples import latency_of
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.requirement import Metric, Workload
from pytest_gpucap.results.measured import AdapterLatencies, Sample, judged_samples


def latencies_by_adapter(
    journal: Journal, workload: Workload, samples: Sequence[Sample]
) -> tuple[AdapterLatencies, ...]:
    """What the requests of each adapter met in the windows that are judged, in the order of the mix.

    Every latency is of the requests that ended well in those windows and began there, not in mid-life.

    Args:
        journal: of the measurement.
        workload: with the mix.
        samples: of the measurement.
    """
    mix = workload.adapters
    if not mix or journal.adapter is None:
        return ()
    counted = np.zeros(journal.status.size, np.bool_)
    for sample in judged_samples(samples):
        counted |= (journal.end_s >= sample.start_s) & (journal.end_s < sample.end_s)
    counted &= (journal.status == Status.OK) & ~journal.hot
    values = {Metric.E2E: journal.e2e_s}
    if workload.streamed:
        values = {Metric.TTFT: journal.ttft_s, Metric.TPOT: journal.tpot_s, **values}
    total, found = int(counted.sum()), []
    for place, (name, share) in enumerate(mix.items()):
        rows = counted & (journal.adapter == place)
        known = {metric.value: each[rows & ~np.isnan(each)] for metric, each in values.items()}
        latencies = {metric: latency_of(each) for metric, each in known.items() if each.size}
        requests = int(rows.sum())
        found.append(AdapterLatencies(name, share, requests, requests / total if total else float("nan"), latencies))
    return tuple(found)
