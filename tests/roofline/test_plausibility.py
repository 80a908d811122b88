"""Measurements as a share of their limit, and those that physics rules out."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.requirement import Length, Requirement, Workload
from pytest_gpucap.results.measured import Interval, Latency, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.roofline.deployment import Deployment
from pytest_gpucap.roofline.limits import NoLimit, Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.plausibility import (
    checked,
    checked_sample,
    checked_verdict,
    impossible,
    share_of,
    whole_windows,
)
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.roofline.served import hardware_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"
CONFIG = architecture("synthetic:qwen2-1.5b").config


def roofline(gpu_class: str = "h200", **changes: Any) -> Roofline:
    hardware = hardware_of(find_class(gpu_class))
    assert hardware is not None
    workload = Workload(input_tokens=Length.fixed(256), output_tokens=Length.fixed(512))
    return replace(Roofline(model_of(CONFIG), precision_of(CONFIG), hardware, workload), **changes)


HOLD = WindowId(Phase.HOLD, 1)


def sample(
    tokens_per_s: float, in_flight: float, window: WindowId = HOLD, length_s: float = 7.0, **latencies: float
) -> Sample:
    return Sample(
        kind="closed",
        window=window,
        start_s=0.0,
        end_s=length_s,
        offered_rps=None,
        concurrency=round(in_flight),
        requests=100,
        completed_rps=tokens_per_s / 512,
        output_tokens_per_s=tokens_per_s,
        in_flight_mean=in_flight,
        in_flight_end=round(in_flight),
        latencies={name: Latency(100, value, value, value, value, value) for name, value in latencies.items()},
    )


def windows_of_labels(label: str) -> WindowId:
    """A window of its own for every label of a recorded file; ``hold 1 (2/3)`` and its like are slices of one."""
    name, _, part = label.removesuffix(")").partition(" (")
    number, _, count = part.partition("/")
    phase = Phase.ALONE if name == "one at a time" else Phase.HOLD
    return WindowId(phase, zlib.crc32(name.encode())).part(int(number or 0), int(count or 0))


def recorded(name: str) -> list[tuple[str, list[Sample]]]:
    """Every measurement of a result file of the H200: its name and windows."""
    found = []
    for record in json.loads((RESULTS / name).read_text(encoding="utf-8"))["results"]:
        samples = []
        for window in record["samples"]:
            latencies = {
                metric: Latency(
                    each["count"], *(each[f"{k}_s"] or math.nan for k in ("mean", "p50", "p90", "p95", "p99"))
                )
                for metric, each in window["latencies"].items()
            }
            plain = sample(window["output_tokens_per_s"], window["in_flight_mean"], windows_of_labels(window["label"]))
            samples.append(
                msgspec.structs.replace(plain, start_s=window["start_s"], end_s=window["end_s"], latencies=latencies)
            )
        found.append((record["name"], samples))
    return found


RECORDED = [
    pytest.param(samples, id=f"{file}-{name}")
    for file in ("suite.json", "loose-slo.json")
    for name, samples in recorded(file)
]


@pytest.mark.parametrize("samples", RECORDED)
def test_nothing_measured_on_the_h200_is_above_its_limit(samples: list[Sample]) -> None:
    found = roofline()
    assert impossible(samples, replace(found, least_experts=True)) is None
    for window in whole_windows(samples):
        assert window.output_tokens_per_s < 0.5 * found.at(max(1.0, window.in_flight)).output_tokens_per_s
    share = share_of(samples, found)
    assert share is not None
    assert 0.05 < share.share < 0.35


def test_one_request_alone_on_the_h200_reached_31_percent() -> None:
    (curve,) = (samples for name, samples in recorded("suite.json") if name == "curve")
    alone = [each for each in curve if each.window.phase is Phase.ALONE]
    share = share_of(alone, roofline())
    assert share is not None
    assert share.share == pytest.approx(0.31, abs=0.01)
    assert share.measured_rps == pytest.approx(0.952, abs=0.005)


def test_the_line_that_reports_show() -> None:
    share = share_of([sample(19932, 64)], roofline())
    assert share is not None
    assert share.text() == "38.9 req/s, 26% of the bandwidth limit at 64 in flight (149 req/s)"
    assert share.text("engine CPU").endswith("(149 req/s): engine CPU")
    limit = share.physical_limit("engine CPU")
    assert (limit.bound, limit.text, limit.share) == ("bandwidth", share.text("engine CPU"), share.share)
    assert limit.formula.startswith("a pass reads 3.09 GB of weights and 0.94 GB of KV cache (64 x 512 tokens) at 4800")


def test_what_was_declared_and_not_seen_is_said() -> None:
    declared = roofline(declared="GPU class")
    share = share_of([sample(19932, 64)], declared)
    assert share is not None
    assert share.text("engine CPU").endswith("in flight (149 req/s; GPU class as declared): engine CPU")
    said = impossible([sample(1.15 * LIMIT_AT_8, 8)], declared)
    assert said is not None
    assert said.endswith("with arguments that vllm(...) does not name (quantization, speculation, more GPUs)")


def test_a_single_window_above_the_limit_is_a_problem_of_its_own() -> None:
    good, bad = sample(0.9 * LIMIT_AT_8, 8), sample(1.15 * LIMIT_AT_8, 8)
    assert checked_sample(good, roofline()) is good
    assert "above the bandwidth limit" in checked_sample(bad, roofline()).problems[-1].text
    assert checked_sample(bad, NoLimit("nobody knows")) is bad


def test_a_stuck_server_may_hold_answers_longer_than_the_mean_ones() -> None:
    lengths = Workload(
        input_tokens=Length.fixed(256), output_tokens=Length.parse("lognormal:mean=512,cv=2,high=8192", "")
    )
    mixed = roofline(workload=lengths)
    handed_out = 0.9 * mixed.most_tokens_per_s(8) + 8 * 8192 / 7  # all eight were nearly through their longest answer
    assert impossible([sample(handed_out, 8)], mixed) is None
    assert impossible([sample(1.2 * handed_out, 8)], mixed) is not None


def test_slices_of_one_phase_are_one_window_and_short_ones_none() -> None:
    slices = [sample(1000 * i, 8, HOLD.part(i, 3), 1.0) for i in (1, 2, 3)]
    blink = sample(9e9, 1, WindowId(Phase.HOLD, 2), 0.5)
    (window,) = whole_windows([*slices, blink])
    assert (window.window, window.duration_s, window.output_tokens_per_s) == (HOLD, 3.0, 2000)
    assert share_of([blink], roofline()) is None


LIMIT_AT_8 = roofline().most_tokens_per_s(8)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (
            sample(1.15 * LIMIT_AT_8, 8),
            r"tokens/s with 8 in flight is above the bandwidth limit of 12,200 tokens/s on 1x h200",
        ),
        (sample(1.04 * LIMIT_AT_8, 8), None),
        (sample(0.9 * LIMIT_AT_8 + 8 * 512 / 3, 8, length_s=3), None),  # stuck before, then all at once
        (sample(100, 8, tpot=0.0), None),  # a busy API server hands out all tokens of an answer at once
        (sample(100, 8, e2e=0.29), r"a median E2E of 290 ms is below the least possible of 330 ms"),
        (sample(100, 8, e2e=0.34), None),
    ],
)
def test_what_is_faster_than_physics_is_named(measured: Sample, said: str | None) -> None:
    found = impossible([measured], roofline())
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert said in found
        assert "the server stops early, has seen these prompts before or is not this model, or the GPU" in found


def test_a_server_on_a_faster_class_than_named_is_found() -> None:
    (closed,) = (samples for name, samples in recorded("suite.json") if name == "closed 64")
    assert impossible(closed, roofline("h200")) is None
    found = impossible(closed, roofline("t4"))
    assert found is not None
    assert "on 1x t4" in found


def test_answers_may_be_short_where_the_workload_lets_them() -> None:
    free = roofline(workload=replace(roofline().workload, ignore_eos=False))
    assert impossible([sample(100, 8, e2e=0.05)], free) is None
    assert impossible([sample(1.15 * LIMIT_AT_8, 8)], free) is not None


def test_speculative_decoding_may_be_faster_than_one_pass_a_token() -> None:
    drafting = roofline(deployment=Deployment(tokens_per_pass=4))
    assert impossible([sample(3 * LIMIT_AT_8, 8, tpot=0.0003, e2e=0.15)], drafting) is None
    assert impossible([sample(5 * LIMIT_AT_8, 8)], drafting) is not None


@pytest.mark.parametrize(("low", "ruled_out"), [(400.0, False), (500.0, True)])
def test_an_estimate_is_ruled_out_only_with_its_whole_interval(low: float, ruled_out: bool) -> None:
    requirement = Requirement("chat", Fraction(1), 1, workload=roofline().workload)
    rate = Interval(550, low, 600)
    measurement = Measurement(requirement, (sample(1000, 8),), rate)
    found = checked(measurement, roofline())  # computing bounds it to 430 req/s
    assert (found.sustainable_rate is None) == ruled_out
    assert bool(found.problems) == ruled_out
    if ruled_out:
        assert (
            "the sustainable rate of 550 req/s (500 to 600) is above the compute limit of 430 req/s"
            in found.problems[0].text
        )


@pytest.mark.parametrize("outcome", [Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE])
def test_a_verdict_on_an_impossible_measurement_is_invalid(outcome: Outcome) -> None:
    requirement = Requirement("chat", Fraction(1), 1, workload=roofline().workload)
    measurement = Measurement(requirement, (sample(2 * LIMIT_AT_8, 8),), Interval(5, 4, 6), binding="e2e_p95")
    verdict = Verdict(outcome, measurement, 1.3, 1, (1, 1), Interval(1, 0.5, 2), "fine")
    found = checked_verdict(verdict, roofline())
    assert found.outcome is Outcome.INVALID
    assert found.reason == found.measurement.problems[-1].text
    assert (found.gpus_required, found.slack, found.measurement.sustainable_rate) == (None, None, None)
    honest = replace(verdict, measurement=replace(measurement, samples=(sample(0.3 * LIMIT_AT_8, 8),)))
    assert checked_verdict(honest, roofline()) is honest


def test_a_mixture_is_ruled_out_only_by_what_no_routing_can_undercut() -> None:
    config = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False,
        "num_local_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    mixture = roofline(model=model_of(config), precision=precision_of(config))
    requirement = Requirement("chat", Fraction(1), 1, workload=mixture.workload)
    spread = mixture.at(64).output_tokens_per_s
    skewed = Measurement(requirement, (sample(1.5 * spread, 64),), Interval(5, 4, 6))
    assert checked(skewed, mixture) is skewed  # dummy weights may send every token to the same experts
    beyond = Measurement(requirement, (sample(5 * spread, 64, length_s=60.0),), Interval(5, 4, 6))
    assert checked(beyond, mixture).problems


def test_short_draws_and_young_requests_are_not_called_impossible() -> None:
    drawn = Length.parse("lognormal:mean=512,cv=1,low=16,high=4096", "output_tokens")
    varied = roofline(workload=replace(roofline().workload, output_tokens=drawn))
    quick = varied.shortest_e2e_s() * 1.1
    assert impossible([sample(100, 8, e2e=quick)], varied) is None
    # All requests at their first tokens: the cache to be read is still small.
    long = roofline(workload=replace(roofline().workload, output_tokens=Length.fixed(4096)))
    young = 256 / long.tpot_s(256, 300)
    assert young > 1.5 * long.at(256).output_tokens_per_s
    assert impossible([sample(young, 256)], long) is None
