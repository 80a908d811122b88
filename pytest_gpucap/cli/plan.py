"""GPUs, memory and cost for a target rate, GPU class by GPU class, each with what its rate rests on.

Rates come from result files ("measured here"), baseline files, published references, an estimate scaled from another
class, or, where there is nothing else, the physical limit. Estimates and limits are no verdicts: the cheapest class is
chosen among rates that somebody measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._plan_evidence import Subject, estimated, measured, published
from pytest_gpucap.cli._plan_guide import guide_document
from pytest_gpucap.cli._plan_sources import (
    BOUNDING,
    DEFAULT_RESULT,
    MeasuredRate,
    Prices,
    best_of_each_class,
    findings,
    read_prices,
)
from pytest_gpucap.cli._runs import add_folder, find_run, put
from pytest_gpucap.gpu.classes import GIB, GpuClass, GpuClassError, find_class, known_classes, read_classes
from pytest_gpucap.planning.fleet import Fleet, FleetTarget, Provenance, cheapest, size, worth_measuring
from pytest_gpucap.report import plan as render
from pytest_gpucap.requirement import LatencyLimit, Length, RequirementError, Slo, Workload, headroom, positive, whole
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.model_shape import UnknownModel
from pytest_gpucap.roofline.served import config_of
from pytest_gpucap.sizing import Rate, decimal_text, table
from pytest_gpucap.vllm_arguments import VllmArguments

HELP: Final = "GPUs, memory and cost for a target rate, by GPU class"
_DEFAULT_TOKENS: Final = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See the module."""
    target = parser.add_argument_group("what the fleet must carry (default: what the measurement declared)")
    target.add_argument("--qps", metavar="QPS", help="requests a second, all GPUs together")
    target.add_argument("--headroom", metavar="R", help="factor on it for peaks and failures (1.3)")
    target.add_argument("--qps-table", metavar="QPS,...", help="GPUs for these rates as well, a column each")
    target.add_argument("--gpus", metavar="N", help="the budget: says which classes fit it and what it carries")
    target.add_argument(
        "--slo", metavar="NAME=TIME", action="append", default=[], help="such as e2e_p95=20s; repeatable"
    )
    load = parser.add_argument_group("the model and its load (default: those of the measurement)")
    load.add_argument("--model", help="a config.json or its folder, synthetic:NAME, or a model in the hub's cache")
    load.add_argument("--input-tokens", metavar="N", help='as in a marker: 256 or "lognormal:mean=256,cv=1,high=2048"')
    load.add_argument("--output-tokens", metavar="N")
    load.add_argument("--shared-prefix-tokens", metavar="N", help="tokens that all prompts share")
    load.add_argument("--dtype", help="as vLLM's argument, like the next ones")
    load.add_argument("--quantization", metavar="METHOD")
    load.add_argument("--kv-cache-dtype", metavar="DTYPE")
    load.add_argument("--tensor-parallel-size", metavar="N")
    load.add_argument("--pipeline-parallel-size", metavar="N")
    load.add_argument("--data-parallel-size", metavar="N")
    load.add_argument("--max-num-seqs", metavar="N")
    load.add_argument("--gpu-memory-utilization", metavar="SHARE")
    files = parser.add_argument_group("what is known")
    files.add_argument("--result", metavar="FILE", type=Path, action="append", help=f"result file ({DEFAULT_RESULT})")
    files.add_argument("--name", help="plan for this measurement of the result file (the last one)")
    files.add_argument("--baseline", metavar="NAME", action="append", default=[], help="saved run, or a result file")
    files.add_argument("--prices", metavar="FILE", type=Path, help="TOML: [per_hour] with CLASS = PRICE of one GPU")
    files.add_argument("--gpu-class", metavar="CLASS", action="append", help="only these classes; repeatable")
    files.add_argument("--gpu-file", metavar="FILE", type=Path, help="TOML file with GPU classes of your own")
    add_folder(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    out.add_argument("--guide", action="store_true", help="add the published sizing guide, set against the formula")


def run(options: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        CommandError: for a mistake in what was given.
    """
    try:
        document = plan_document(options)
    except (RequirementError, GpuClassError, UnknownModel) as error:
        raise CommandError(str(error)) from None
    if options.format == "json":
        text = json.dumps(document, indent=1)
    else:
        text = render.text(document) if options.format == "text" else render.markdown(document)
    put(text)
    return 0


def plan_document(options: argparse.Namespace) -> dict[str, Any]:
    """The whole plan as plain values; see ``docs/sizing.md``."""
    own = () if options.gpu_file is None else read_classes(options.gpu_file)
    prices = Prices() if options.prices is None else read_prices(options.prices, own)
    default = [DEFAULT_RESULT] if DEFAULT_RESULT.exists() else []
    results = options.result if options.result is not None else default
    here, left_out = findings([find_run(str(path), options.baselines) for path in results], Provenance.MEASURED)
    saved = [find_run(name, options.baselines) for name in options.baseline]
    before, left_out_before = findings(saved, Provenance.BASELINE)
    chosen = _chosen(options, here or before)
    subject = _subject(options, chosen)
    same = [each for each in (*here, *before) if chosen is not None and _applies(each, chosen, subject)]
    others = [f"{each.name} in {each.place}: another model, workload or limits" for each in (*here, *before)
              if each not in same]  # fmt: skip
    classes = _classes(options, own, {finding.gpu_class for finding in same})
    best = best_of_each_class(same, chosen if options.name is not None else None)
    references, set_aside = published(subject, classes)
    fleets = []
    for gpu_class in classes:
        found = [measured(each) for each in best if each.gpu_class == gpu_class.name]
        found += [evidence for name, evidence in references if name == gpu_class.name]
        found += filter(None, [estimated(subject, gpu_class, best, own)])
        memory = None if gpu_class.memory_bytes is None else gpu_class.memory_bytes / GIB
        fleets.append(
            size(
                subject.target,
                gpu_class.name,
                subject.roofline(gpu_class),
                found,
                gpus_per_replica=subject.arguments.gpus_per_replica,
                memory_gb=memory,
                price=prices.per_hour.get(gpu_class.name),
            )
        )
    roofline = next((limits for each in classes if (limits := subject.roofline(each)) is not None), None)
    remarks = [*left_out, *left_out_before, *others]
    rates = [] if options.qps_table is None else options.qps_table.split(",")
    return _document(subject, roofline, fleets, prices, set_aside, remarks, others=rates, guide=options.guide)


def _chosen(options: argparse.Namespace, found: Sequence[MeasuredRate]) -> MeasuredRate | None:
    """The measurement that is planned for; none where another model is named."""
    if options.name is None:
        same = [finding for finding in found if options.model in {None, finding.model}]
        return same[-1] if same else None
    named = [finding for finding in found if finding.name == options.name]
    if not named:
        known = ", ".join(dict.fromkeys(finding.name for finding in found)) or "none with a sustainable rate"
        raise CommandError(f"--name {options.name}: there is no such measurement; there are: {known}")
    return named[-1]


def _subject(options: argparse.Namespace, chosen: MeasuredRate | None) -> Subject:
    named = options.model if chosen is None else chosen.model
    if named is None:
        raise CommandError("name a model (--model config.json or synthetic:NAME) or a result file (--result)")
    qps = options.qps or (None if chosen is None else chosen.qps)
    if qps is None:
        raise CommandError("give the target rate with --qps")
    try:
        config = config_of(options.model or named)
    except ValueError as error:
        raise CommandError(f"--model: {error}") from None
    if config is None and options.model is not None:
        raise CommandError(f"--model {options.model}: no config.json there, and the hub's cache has none of that name")
    named_here = {name: value for name in BOUNDING if (value := getattr(options, name, None)) is not None}
    arguments = (VllmArguments() if chosen is None else chosen.arguments).overlaid(VllmArguments(named_here))
    factor = options.headroom or (chosen.headroom if chosen else "1.3")
    limits = [_limit(text) for text in options.slo]
    slo = Slo(tuple(limits)) if limits or chosen is None else chosen.slo
    return Subject(
        target=FleetTarget(
            qps=positive(qps, "--qps"),
            headroom=headroom(factor, "--headroom"),
            slo=slo,
            budget=None if options.gpus is None else whole(options.gpus, "--gpus"),
        ),
        model=named,
        config=config,
        arguments=arguments,
        workload=_workload(options, chosen),
    )


def _limit(text: str) -> LatencyLimit:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--slo {text}: write NAME=TIME, such as e2e_p95=20s")
    return LatencyLimit.parse(name.strip(), value.strip())


def _workload(options: argparse.Namespace, chosen: MeasuredRate | None) -> Workload:
    base = chosen.workload if chosen is not None else Workload(output_tokens=Length.fixed(_DEFAULT_TOKENS))
    read, written, shared = options.input_tokens, options.output_tokens, options.shared_prefix_tokens
    return Workload(
        input_tokens=base.input_tokens if read is None else Length.parse(read, "--input-tokens"),
        output_tokens=base.output_tokens if written is None else Length.parse(written, "--output-tokens"),
        shared_prefix_tokens=base.shared_prefix_tokens
        if shared is None
        else whole(shared, "--shared-prefix-tokens", 0),
        arrivals=base.arrivals,
    )


def _applies(finding: MeasuredRate, chosen: MeasuredRate, subject: Subject) -> bool:
    """Whether a measured rate is one of what is planned for."""
    return finding.same_subject(chosen) and (
        finding.model == subject.model
        and finding.workload == subject.workload
        and frozenset(finding.slo.limits) == frozenset(subject.target.slo.limits)
        and finding.arguments == subject.arguments
    )


def _classes(options: argparse.Namespace, own: Sequence[GpuClass], measured: set[str]) -> list[GpuClass]:
    if options.gpu_class:
        return [find_class(name, own) for name in options.gpu_class]
    return [
        gpu_class
        for gpu_class in known_classes(own)
        if gpu_class.name in measured or (gpu_class.mig_profile is None and gpu_class.bandwidth_bytes_per_s is not None)
    ]


def _document(
    subject: Subject,
    roofline: Roofline | None,
    fleets: Sequence[Fleet],
    prices: Prices,
    set_aside: Sequence[Mapping[str, Any]],
    left_out: Sequence[str],
    *,
    others: Sequence[str],
    guide: bool,
) -> dict[str, Any]:
    best = cheapest(fleets)
    target = subject.target
    return {
        "schema": "pytest-gpucap-plan",
        "schema_version": 1,
        "target": {
            "qps": float(target.qps),
            "headroom": float(target.headroom),
            "gpus": target.budget,
            "limits": {limit.name: limit.limit_s for limit in target.slo.limits},
        },
        "model": {
            "name": subject.model,
            "arguments": {name: str(value) for name, value in subject.arguments.values.items()},
            "parameters": None if roofline is None else roofline.model.parameters,
            "precision": None if roofline is None else roofline.precision.name,
            "weights_gb": None if roofline is None else roofline.weight_bytes / 1e9,
            "kv_bytes_per_token": None if roofline is None else roofline.kv_bytes_per_token,
        },
        "workload": {
            "input_tokens": subject.workload.input_tokens.mean,
            "output_tokens": subject.workload.output_tokens.mean,
            "shared_prefix_tokens": subject.workload.shared_prefix_tokens,
        },
        "currency": prices.currency,
        "priced": bool(prices.per_hour),
        "fleets": [_row(fleet) for fleet in fleets],
        "cheapest": None if best is None else best.gpu_class,
        "worth_measuring": [fleet.gpu_class for fleet in worth_measuring(fleets, best, target.budget)],
        "set_aside": list(set_aside),
        "left_out": list(left_out),
        "table": _table(target, fleets, others),
        "guide": guide_document() if guide else None,
    }


def _table(target: FleetTarget, fleets: Sequence[Fleet], others: Sequence[str]) -> dict[str, Any] | None:
    """GPUs by class for other target rates than the one that is planned for."""
    if not others:
        return None
    targets = [positive(each, "--qps-table") for each in others]
    rates = [
        Rate(
            fleet.gpu_class,
            decimal_text(fleet.evidence.rate_rps),
            None if fleet.evidence.low_rps is None else decimal_text(fleet.evidence.low_rps),
            None if fleet.evidence.high_rps is None else decimal_text(fleet.evidence.high_rps),
            fleet.gpus_per_replica,
        )
        for fleet in fleets
        if fleet.evidence is not None
    ]
    cells = table(rates, targets, target.headroom)
    rows = {name: [{"gpus": c.gpus, "fewest": c.fewest, "most": c.most} for c in row] for name, row in cells.items()}
    return {"qps": [float(each) for each in targets], "gpus": rows}


def _row(fleet: Fleet) -> dict[str, Any]:
    evidence = fleet.evidence
    return {
        "gpu_class": fleet.gpu_class,
        "gpus_per_replica": fleet.gpus_per_replica,
        "provenance": None if evidence is None else evidence.provenance.value,
        "rate_rps": None if evidence is None else evidence.rate_rps,
        "low_rps": None if evidence is None else evidence.low_rps,
        "high_rps": None if evidence is None else evidence.high_rps,
        "evidence": fleet.reason if evidence is None else evidence.text,
        "gpus": fleet.gpus,
        "fewest": fleet.fewest,
        "most": fleet.most,
        "memory_gb": fleet.memory_gb,
        "cost_per_hour": _number(fleet.cost_per_hour),
        "largest_qps": _number(fleet.largest_qps),
        "fits": fleet.fits,
    }


def _number(value: Fraction | None) -> float | None:
    return None if value is None else float(value)
