"""The public API as a type checker sees it in a user's tests: mypy checks this file, and nothing runs it."""

from __future__ import annotations

from typing import assert_type

import openai

import pytest_gpucap
from pytest_gpucap import (
    Accuracy,
    Curve,
    Device,
    GpuCap,
    GpuCapError,
    GpuClass,
    Interval,
    Lease,
    Measurement,
    MeasurementInvalid,
    Metrics,
    Outcome,
    RequirementError,
    Result,
    ResultFile,
    Sample,
    SecondaryResult,
    Server,
    ServerStartError,
    SystemUnderTest,
    Trend,
    Verdict,
    html_report,
    read_result_file,
    read_trends,
)
from pytest_gpucap.options.table import Options


def a_test_of_the_budget(gpucap: GpuCap) -> None:
    verdict = gpucap.check()
    assert_type(verdict, Verdict)
    assert_type(verdict.outcome, Outcome)
    assert_type(verdict.measurement, Measurement)
    assert_type(verdict.secondary, tuple[SecondaryResult, ...])
    measurement = gpucap.measure()
    assert_type(measurement, Measurement)
    assert_type(measurement.gpus_required, int)
    assert_type(measurement.sustainable_rate, Interval | None)
    assert_type(gpucap.sweep(), Curve)
    assert_type(gpucap.sample(rate="2.5", duration="30s"), Sample)
    assert_type(gpucap.sample(concurrency=8), Sample)
    assert_type(gpucap.accuracy(), Accuracy)


def a_test_of_a_server(vllm_server: Server) -> None:
    assert_type(vllm_server.base_url, str)
    assert_type(vllm_server.client, openai.OpenAI)
    assert_type(vllm_server.async_client, openai.AsyncOpenAI)
    assert_type(vllm_server.metrics(), Metrics)
    assert_type(vllm_server.metrics().value("vllm:num_requests_running"), float)


def a_test_of_devices(gpu: SystemUnderTest) -> None:
    assert_type(gpu.gpu_class, GpuClass | None)
    assert_type(gpu.lease, Lease | None)
    if gpu.lease is not None:
        assert_type(gpu.lease.devices, tuple[Device, ...])


def a_script() -> None:
    content = read_result_file("result.json")
    assert_type(content, ResultFile)
    assert_type(content.results, tuple[Result, ...])
    trends, skipped = read_trends("results")
    assert_type(trends, list[Trend])
    assert_type(skipped, list[str])
    assert_type(html_report(content, trends), str)


def errors(gpucap: GpuCap) -> GpuCapError:
    try:
        gpucap.check()
    except (MeasurementInvalid, RequirementError, ServerStartError) as error:
        return error
    return pytest_gpucap.NoSustainableRate("none")


def options(settings: Options) -> None:
    """The attributes have the types of their rows."""
    assert_type(settings.gpu_class, str | None)
    assert_type(settings.gpus, int | None)
    assert_type(settings.max_time_s, float)
    assert_type(settings.require, bool)
    assert_type(Options.seed.flag, str)
