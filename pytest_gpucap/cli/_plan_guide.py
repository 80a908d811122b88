"""The published sizing guide: its table held against physics, its tiers against its own formula."""

from __future__ import annotations

from typing import Any, Final

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.fleet import BATCHING_GAIN, TierCheck, check_tiers
from pytest_gpucap.planning.references import judge, references, roofline_for
from pytest_gpucap.roofline.served import hardware_of
from pytest_gpucap.sizing import decimal_text

GUIDE: Final = "DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026"
AWQ_SAVING: Final = 0.6
"""The same: its AWQ build is said to take about 60% less memory."""


def guide_document() -> dict[str, Any]:
    """The guide as plain values: ``references`` with their plausibility, ``tiers`` with GPUs by the formula."""
    rows, rates, sizes = [], {}, {}
    for reference in references():
        hardware = hardware_of(find_class(reference.gpu_class))
        if reference.source != GUIDE or hardware is None:
            continue
        judged = judge(reference, hardware)
        sizes[reference.gpu_class, reference.build] = (
            reference.memory_gb or 0.0,
            roofline_for(reference, hardware).weight_bytes,
        )
        rates[reference.gpu_class, reference.build] = decimal_text(reference.rate_rps)
        rows.append(
            {
                "gpu_class": reference.gpu_class,
                "build": reference.build,
                "batch": reference.batch,
                "latency_s": reference.latency_s,
                "rate_rps": reference.rate_rps,
                "memory_gb": reference.memory_gb,
                "floor_s": judged.floor_s,
                "plausible": judged.plausible,
                "text": judged.text,
            }
        )
    return {
        "source": GUIDE,
        "batching_gain": [float(gain) for gain in BATCHING_GAIN],
        "references": rows,
        "awq_saving": {
            "said": AWQ_SAVING,
            "by_its_rows": 1 - sizes["a10g", "AWQ"][0] / sizes["a10g", "fp16"][0],
            "of_the_weights": 1 - sizes["a10g", "AWQ"][1] / sizes["a10g", "fp16"][1],
        },
        "tiers": [_tier(check) for check in check_tiers(rates)],
    }


def _tier(check: TierCheck) -> dict[str, Any]:
    tier = check.tier
    return {
        "above_qps": float(tier.above),
        "up_to_qps": None if tier.up_to is None else float(tier.up_to),
        "recommends": tier.text,
        "memory": tier.memory,
        "cost_stars": tier.cost_stars,
        "purpose": tier.purpose,
        "gpus": check.gpus,
        "gpu_class": check.gpu_class,
        "build": check.build,
        "rate_rps": None if check.rate_rps is None else float(check.rate_rps),
        "needed": check.needed,
        "needed_with_batching": None if check.needed_batching is None else list(check.needed_batching),
        "carries_qps": None if check.carries_qps is None else float(check.carries_qps),
        "agrees": check.agrees,
    }
