"""What is known of one model on one GPU class: measured, published, estimated, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpucap.cli._plan_sources import MeasuredRate
from pytest_gpucap.gpu.classes import GpuClass, find_class
from pytest_gpucap.planning.fleet import Evidence, FleetTarget, Provenance
from pytest_gpucap.planning.other_class import Operation, what_if
from pytest_gpucap.planning.references import judge, references, roofline_for
from pytest_gpucap.requirement import Workload, positive, whole
from pytest_gpucap.roofline.deployment import Deployment
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.plausibility import share_of
from pytest_gpucap.roofline.served import build, hardware_of


@dataclass(frozen=True, slots=True)
class Subject:
    """What is planned for."""

    target: FleetTarget
    model: str
    config: Mapping[str, Any] | None
    arguments: Mapping[str, str]
    workload: Workload
    tensor: int
    pipeline: int
    data: int

    def roofline(self, gpu_class: GpuClass) -> Roofline | None:
        """Its limits on one class; None where they are not known."""
        hardware = hardware_of(gpu_class, self.tensor, self.pipeline, self.data)
        if self.config is None or hardware is None:
            return None
        sequences, share = self.arguments.get("max_num_seqs"), self.arguments.get("gpu_memory_utilization")
        deployment = Deployment(
            max_num_seqs=None if sequences is None else whole(sequences, "--max-num-seqs") * self.data,
            memory_share=1.0 if share is None else float(positive(share, "--gpu-memory-utilization")),
        )
        return build(self.config, self.arguments, hardware, self.workload, deployment)


def measured(finding: MeasuredRate) -> Evidence:
    """A rate of a result or baseline file."""
    rate = finding.rate
    declared = ", GPU class as declared" if finding.declared else ""
    return Evidence(finding.provenance, rate.value, rate.low, rate.high, f"{finding.name} in {finding.place}{declared}")


def published(subject: Subject, classes: Sequence[GpuClass]) -> tuple[list[tuple[str, Evidence]], list[dict[str, Any]]]:
    """Published rates of this model, build and workload by class: those that physics allows, those that it does not."""
    usable: list[tuple[str, Evidence]] = []
    set_aside: list[dict[str, Any]] = []
    for reference in references():
        gpu_class = next((each for each in classes if each.name == reference.gpu_class), None)
        mine = None if gpu_class is None else subject.roofline(gpu_class)
        hardware = None if gpu_class is None else hardware_of(gpu_class)
        if (
            mine is None
            or hardware is None
            or (reference.tensor, 1, 1) != (subject.tensor, subject.pipeline, subject.data)
        ):
            continue
        if not _same(mine, roofline_for(reference, hardware)):
            continue
        judged = judge(reference, hardware)
        text = f"{reference.source} ({reference.build}, {reference.engine})"
        if judged.plausible:
            limits = ", without these latency limits" if subject.target.slo.limits else ""
            evidence = Evidence(Provenance.PUBLISHED, reference.rate_rps, None, None, text + limits)
            usable.append((reference.gpu_class, evidence))
        else:
            set_aside.append(
                {
                    "gpu_class": reference.gpu_class,
                    "source": text,
                    "rate_rps": reference.rate_rps,
                    "share": judged.share,
                    "text": judged.text,
                }
            )
    return usable, set_aside


def _same(mine: Roofline, theirs: Roofline) -> bool:
    """Whether model, lengths and bits are the same; the names of 16-bit types do not matter."""
    bits = [(each.precision.weight_bits, each.precision.kv_bits, each.model, each.workload) for each in (mine, theirs)]
    return bits[0] == bits[1]


def estimated(
    subject: Subject, gpu_class: GpuClass, known: Sequence[MeasuredRate], own: Sequence[GpuClass]
) -> Evidence | None:
    """What the measured classes say of this one: the estimate with the narrowest band; None where there is none."""
    there = subject.roofline(gpu_class)
    found = []
    for finding in known:
        here = subject.roofline(find_class(finding.gpu_class, own))
        if finding.gpu_class == gpu_class.name or here is None or there is None:
            continue
        share = share_of(finding.samples, here)
        operation = None if share is None else Operation(share.limit.batch, share.share)
        estimate = what_if(finding.rate, here, there, subject.target.slo, operation)
        if estimate is not None:
            found.append(estimate)
    if not found:
        return None
    best = min(found, key=lambda each: each.rate.high / each.rate.low)
    return Evidence(Provenance.ESTIMATE, best.rate.value, best.rate.low, best.rate.high, best.text)
