"""Plan GPUs, memory and cost for a target rate, by GPU class, and show the evidence for each rate.

Rates come from result files ("measured here"), from baseline files and from published references. A class without a
rate gets an estimate that is scaled from another class, or else its physical limit. Estimates and limits are no
verdicts: only classes with a measured rate can be the cheapest. ``--rate`` needs none of that: it is the formula alone,
with what it assumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from pytest_gpucap.cli import CommandError, _given_rate
from pytest_gpucap.cli._runs import add_folder, find_run, put
from pytest_gpucap.gpu.classes import GpuClassError, read_classes
from pytest_gpucap.planning.evidence import Provenance
from pytest_gpucap.planning.fleet import FleetTarget
from pytest_gpucap.planning.measured_rates import MeasuredRate, UnknownMeasurement, choose, measured_rates
from pytest_gpucap.planning.plan import Plan, Sources, make_plan
from pytest_gpucap.planning.prices import Prices, PricesError, read_prices
from pytest_gpucap.planning.service import BOUNDING, Service
from pytest_gpucap.report.escape import json_text
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.report.plan import plan_markdown, plan_text
from pytest_gpucap.requirement import (
    Length,
    RequirementError,
    Slo,
    Workload,
    declared_limits,
    headroom,
    positive,
    whole,
)
from pytest_gpucap.results import result_file
from pytest_gpucap.roofline.model_shape import UnknownModel
from pytest_gpucap.roofline.served import config_of
from pytest_gpucap.user_files import exists
from pytest_gpucap.vllm_arguments import VllmArguments

HELP: Final = "GPUs, memory and cost for a target rate, by GPU class"
_DEFAULT_RESULT: Final = Path(".gpucap/result.json")
_DEFAULT_TOKENS: Final = 256
_DEFAULT_HEADROOM: Final = "1.3"
_TOLD: Final = 2
"""Results that were left out, named in an error of one line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See the module."""
    target = parser.add_argument_group("what the fleet must carry (default: what the measurement declared)")
    target.add_argument(
        "--qps",
        "--target-qps",
        metavar="QPS",
        help="requests per second over all GPUs together (one option, two names)",
    )
    target.add_argument("--headroom", metavar="R", help=f"factor on it for peaks and failures ({_DEFAULT_HEADROOM})")
    target.add_argument("--qps-table", metavar="QPS,...", help="show the GPUs for these rates too, a column each")
    target.add_argument("--gpus", metavar="N", help="the budget: say which classes keep it and what it carries")
    target.add_argument(
        "--slo", metavar="NAME=VALUE", action="append", default=[], help="a limit such as e2e_p95=20s; repeatable"
    )
    load = parser.add_argument_group("the model and its load (default: those of the measurement)")
    load.add_argument("--model", help="a config.json or its folder, synthetic:NAME, or a model in the hub's cache")
    load.add_argument("--input-tokens", metavar="N", help='as in a marker: 256 or "lognormal:mean=256,cv=1,high=2048"')
    load.add_argument("--output-tokens", metavar="N")
    load.add_argument("--shared-prefix-tokens", metavar="N", help="tokens that all prompts share")
    load.add_argument("--dtype", help="this and the next ones are vLLM's arguments")
    load.add_argument("--quantization", metavar="METHOD")
    load.add_argument("--kv-cache-dtype", metavar="DTYPE")
    load.add_argument("--tensor-parallel-size", metavar="N")
    load.add_argument("--pipeline-parallel-size", metavar="N")
    load.add_argument("--data-parallel-size", metavar="N")
    load.add_argument("--max-num-seqs", metavar="N")
    load.add_argument("--gpu-memory-utilization", metavar="SHARE")
    files = parser.add_argument_group("what is known")
    files.add_argument("--rate", metavar="T", help="the requests per second of one replica: plan from it alone")
    files.add_argument("--result", metavar="FILE", type=Path, action="append", help=f"result file ({_DEFAULT_RESULT})")
    files.add_argument("--name", help="plan for the measurement of this name (default: the last one)")
    files.add_argument("--baseline", metavar="NAME", action="append", default=[], help="a saved run or a result file")
    files.add_argument("--prices", metavar="FILE", type=Path, help="TOML: [per_hour] with CLASS = PRICE of one GPU")
    files.add_argument("--gpu-class", metavar="CLASS", action="append", help="only this class; repeatable")
    files.add_argument("--gpu-file", metavar="FILE", type=Path, help="TOML file with GPU classes of your own")
    add_folder(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    out.add_argument("--guide", action="store_true", help="add a published sizing guide, checked against its formula")


def run(options: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        CommandError: if an argument or a file is wrong.
    """
    try:
        plan = _plan(options)
    except PricesError as error:
        raise CommandError(f"--prices {error}") from None
    except (RequirementError, GpuClassError, UnknownModel) as error:
        raise CommandError(str(error)) from None
    match options.format:
        case "json":
            put(json_text(msgspec.to_builtins(plan)))
        case "markdown":
            put(plan_markdown(plan))
        case _:
            put(plan_text(plan))
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    if options.rate is not None:
        return _given_rate.plan_of(options, _target(options, Sources()))
    sources = _sources(options)
    service = _service(options, sources)
    return make_plan(
        service,
        _target(options, sources),
        sources,
        class_names=options.gpu_class or (),
        other_qps=() if options.qps_table is None else options.qps_table.split(","),
        guide=options.guide,
    )


def _sources(options: argparse.Namespace) -> Sources:
    """What the given files contain."""
    own_classes = () if options.gpu_file is None else read_classes(options.gpu_file)
    prices = Prices() if options.prices is None else read_prices(options.prices, own_classes)
    default = [_DEFAULT_RESULT] if exists(_DEFAULT_RESULT) else []
    results = default if options.result is None else options.result
    here, left_out = _rates([str(path) for path in results], options.baselines, Provenance.MEASURED)
    before, left_out_before = _rates(options.baseline, options.baselines, Provenance.BASELINE)
    left_out += left_out_before
    try:
        chosen = choose(here or before, options.name, options.model)
    except UnknownMeasurement as error:
        raise CommandError(f"--name {error}{_because(left_out)}") from None
    return Sources(
        rates=(*here, *before),
        chosen=chosen,
        preferred=options.name is not None,
        left_out=left_out,
        prices=prices,
        own_classes=own_classes,
    )


def _rates(given: list[str], folder: Path, provenance: Provenance) -> tuple[list[MeasuredRate], list[str]]:
    """The usable rates of the runs at these paths or names, and a line for each result without one."""
    rates: list[MeasuredRate] = []
    left_out: list[str] = []
    for run in [find_run(each, folder) for each in given]:
        usable, others = measured_rates(result_file.read(run.path).results, shown(run.path), provenance)
        rates += usable
        left_out += others
    return rates, left_out


def _because(left_out: Sequence[str]) -> str:
    """Why files that are there give no rate, after a semicolon; empty where none was left out."""
    told = [f"left out: {line}" for line in left_out[:_TOLD]]
    more = len(left_out) - _TOLD
    return "".join(f"; {each}" for each in [*told, *([f"and {more} more"] if more > 0 else [])])


def _service(options: argparse.Namespace, sources: Sources) -> Service:
    """The service of the measurement, changed by the arguments that were given."""
    chosen = sources.chosen
    model = options.model if chosen is None else chosen.service.model
    if model is None:
        raise CommandError(
            "name a model (--model config.json or synthetic:NAME), a result file (--result) or the rate of one replica "
            f"(--rate){_because(sources.left_out)}"
        )
    try:
        config = config_of(options.model or model)
    except ValueError as error:
        raise CommandError(f"--model: {error}") from None
    if config is None and options.model is not None:
        raise CommandError(f"--model {options.model}: no config.json there, and no such model in the hub's cache")
    limits = declared_limits(dict(_limit(text) for text in options.slo))
    return Service(
        model=model,
        arguments=(VllmArguments() if chosen is None else chosen.service.arguments).overlaid(_arguments(options)),
        workload=_workload(options, chosen),
        slo=Slo(limits) if limits or chosen is None else chosen.service.slo,
        config=config,
    )


def _arguments(options: argparse.Namespace) -> VllmArguments:
    """The server arguments that were given."""
    given = {name: getattr(options, name, None) for name in BOUNDING}
    return VllmArguments({name: value for name, value in given.items() if value is not None})


def _target(options: argparse.Namespace, sources: Sources) -> FleetTarget:
    chosen = sources.chosen
    qps = options.qps or (None if chosen is None else chosen.qps)
    if qps is None:
        raise CommandError(f"give the target rate with --qps{_because(sources.left_out)}")
    factor = options.headroom or (_DEFAULT_HEADROOM if chosen is None else chosen.headroom)
    return FleetTarget(
        qps=positive(qps, "--qps"),
        headroom=headroom(factor, "--headroom"),
        gpus=None if options.gpus is None else whole(options.gpus, "--gpus"),
    )


def _limit(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--slo {text}: write NAME=VALUE, such as e2e_p95=20s or goodput=95%")
    return name.strip(), value.strip()


def _workload(options: argparse.Namespace, chosen: MeasuredRate | None) -> Workload:
    base = Workload(output_tokens=Length.fixed(_DEFAULT_TOKENS)) if chosen is None else chosen.service.workload
    read, written, shared = options.input_tokens, options.output_tokens, options.shared_prefix_tokens
    return Workload(
        input_tokens=base.input_tokens if read is None else Length.parse(read, "--input-tokens"),
        output_tokens=base.output_tokens if written is None else Length.parse(written, "--output-tokens"),
        shared_prefix_tokens=(
            base.shared_prefix_tokens if shared is None else whole(shared, "--shared-prefix-tokens", 0)
        ),
        arrivals=base.arrivals,
    )
