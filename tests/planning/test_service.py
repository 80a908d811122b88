"""When two services are the same, and what the server arguments make of a replica."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.service import Service
from pytest_gpucap.requirement import LatencyLimit, Length, Slo, Workload
from pytest_gpucap.vllm_arguments import VllmArguments

LIMITS = (LatencyLimit.parse("e2e_p95", "4s"), LatencyLimit.parse("ttft_p95", "1s"))
SERVICE = Service("some/model", VllmArguments({"dtype": "bfloat16"}), Workload(), Slo(LIMITS))
CONFIG = architecture("synthetic:qwen2-1.5b").config


def test_the_order_of_limits_and_the_config_make_no_other_service() -> None:
    assert SERVICE.same(replace(SERVICE, slo=Slo(LIMITS[::-1]), config=CONFIG))


@pytest.mark.parametrize(
    "other",
    [
        replace(SERVICE, model="other/model"),
        replace(SERVICE, arguments=VllmArguments()),
        replace(SERVICE, workload=Workload(output_tokens=Length.fixed(7))),
        replace(SERVICE, slo=Slo(LIMITS[:1])),
    ],
    ids=["model", "arguments", "workload", "limits"],
)
def test_another_part_makes_another_service(other: Service) -> None:
    assert not SERVICE.same(other)


def test_a_limit_on_sequences_holds_for_each_data_parallel_engine() -> None:
    known = replace(SERVICE, config=CONFIG, arguments=VllmArguments({"max_num_seqs": "8", "dp": "2"}), slo=Slo())
    roofline = known.roofline(find_class("h200"))
    assert roofline is not None
    assert roofline.deployment.max_num_seqs == 16


def test_without_a_config_or_a_bandwidth_no_limit_is_known() -> None:
    assert SERVICE.roofline(find_class("h200")) is None
    assert replace(SERVICE, config=CONFIG).roofline(find_class("cpu")) is None
