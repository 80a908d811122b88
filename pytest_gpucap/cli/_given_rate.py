"""``gpucap plan --rate``: the formula for a rate that the user gives, without a model or a measurement."""

from __future__ import annotations

import argparse
from typing import Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.gpu.classes import find_class, read_classes
from pytest_gpucap.planning.fleet import FleetTarget
from pytest_gpucap.planning.given_rate import GivenRate, plan_of_given_rate
from pytest_gpucap.planning.plan import Plan
from pytest_gpucap.planning.prices import Prices, read_prices
from pytest_gpucap.requirement import positive
from pytest_gpucap.vllm_arguments import VllmArguments

_PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_UNUSED: Final = (
    "model", "slo", "input_tokens", "output_tokens", "shared_prefix_tokens", "dtype", "quantization", "kv_cache_dtype",
    "max_num_seqs", "gpu_memory_utilization", "result", "name", "baseline",
)  # fmt: skip
"""Options that say what a rate was measured for. A given rate has no such circumstances that could be compared."""


def plan_of(options: argparse.Namespace, target: FleetTarget) -> Plan:
    """The plan of ``--rate``.

    Raises:
        CommandError: if an option does not go with ``--rate``.
        RequirementError: if a number is none, or out of its range.
        GpuClassError: if a GPU class is not known.
        PricesError: if the file of prices cannot be used.
    """
    for name in _UNUSED:
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise CommandError(f"--rate gives the rate of one replica, so {flag} would change nothing: leave one out")
    named = options.gpu_class or []
    if len(named) > 1:
        raise CommandError(f"--rate is the rate on one GPU class, not on {len(named)}: give --gpu-class once")
    own = () if options.gpu_file is None else read_classes(options.gpu_file)
    prices = Prices() if options.prices is None else read_prices(options.prices, own)
    if options.prices is not None and not named:
        raise CommandError("--prices is by GPU class: name the class of --rate with --gpu-class")
    given = {name: value for name in _PARALLEL if (value := getattr(options, name)) is not None}
    rate = GivenRate(
        rps=positive(options.rate, "--rate"),
        gpu_class=find_class(named[0], own) if named else None,
        gpus_per_replica=VllmArguments(given).gpus_per_replica,
        prices=prices,
    )
    other = () if options.qps_table is None else options.qps_table.split(",")
    return plan_of_given_rate(rate, target, other_qps=other, guide=options.guide)
