"""What people read is right, fits the screen, and says where it comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest

from pytest_gpucap.report import markdown, rows, terminal
from pytest_gpucap.report.formatting import headline, limit_name, seconds, significant
from pytest_gpucap.report.html.cards import result_cards
from pytest_gpucap.report.junit import properties
from pytest_gpucap.requirement import ImageSize, LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.build import Context, check_result
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import Interval, Latency, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.results.windows import Phase, WindowId
from tests.results import made

REQUIREMENT = Requirement(
    "chat",
    qps=Fraction(100),
    gpus=2,
    workload=Workload(Length.fixed(256), Length.parse("lognormal:mean=200,cv=0.5,high=900", "output_tokens")),
    slo=Slo((LatencyLimit.parse("e2e_p95", "20s"), LatencyLimit.parse("ttft_p95", "500ms"))),
)
SAMPLE = Sample(
    kind="open",
    window=WindowId(Phase.DESIGN_RATE, 1),
    start_s=10.0,
    end_s=40.0,
    offered_rps=65.0,
    concurrency=0,
    requests=1950,
    completed_rps=51.7,
    output_tokens_per_s=10340.0,
    in_flight_mean=212.5,
    in_flight_end=401,
    latencies={"ttft": Latency(1900, 0.2, 0.15, 0.4, 0.48, float("nan")), "e2e": Latency(1900, 9, 8, 18, 24.4, 30)},
    attainment={"e2e_p95": 0.81},
    errors={"http_5xx": 3},
    checks={"send_lateness_p99_s": 0.0004},
)
MEASUREMENT = Measurement(
    REQUIREMENT,
    (SAMPLE,),
    Interval(52.1, 50.9, 53.4),
    binding="e2e_p95",
    spent_s={"hold": 20.0, "open loop": 30.0},
    seed=7,
)
FAILED = Verdict(Outcome.FAIL, MEASUREMENT, 65.0, 3, (3, 3), Interval(-0.198, -0.217, -0.178), "capacity is below")
CONTEXT = Context("tests/test_chat.py::test_chat", Environment(gpu="NVIDIA H200", server="vLLM 0.26.0"), startup_s=63.0)


def test_the_headline_is_the_arithmetic() -> None:
    result = check_result(FAILED, CONTEXT)
    assert headline(result) == "chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50"


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "?"), (0.0, "0 req/s")])
def test_without_a_rate_to_divide_by_there_is_no_quotient(value: float, shown: str) -> None:
    found = Interval(value, 0.0, 1.0)
    result = msgspec.structs.replace(check_result(FAILED, CONTEXT), sustainable_rate=found)
    assert headline(result) == f"chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / {shown}"


def test_replicas_of_several_gpus_are_said_so() -> None:
    requirement = replace(REQUIREMENT, gpus=4, gpus_per_replica=2)
    measurement = replace(MEASUREMENT, requirement=requirement)
    result = check_result(replace(FAILED, measurement=measurement, gpus_required=6), CONTEXT)
    assert headline(result) == ("chat needs 6 GPUs, budget 4: 100 req/s x 1.3 / 52.1 req/s = 2.50 replicas of 2 GPUs")


def test_an_undecided_verdict_gives_the_range() -> None:
    verdict = replace(FAILED, outcome=Outcome.INCONCLUSIVE, gpus_interval=(2, 3))
    assert headline(check_result(verdict, CONTEXT)).startswith("chat may need 2 to 3 GPUs, budget 2: 100 req/s x 1.3")


def test_an_invalid_measurement_says_no_word_on_capacity() -> None:
    shared = Problem(ProblemSource.GPU, ProblemKind.SHARED, "GPU 0 is shared with pid 42")
    measurement = replace(MEASUREMENT, sustainable_rate=None, problems=(shared,))
    verdict = Verdict(Outcome.INVALID, measurement, 65.0, None, None, None, "GPU 0 is shared with pid 42")
    report = terminal.failure(check_result(verdict, CONTEXT))
    assert report.startswith("INVALID: chat was not measured: GPU 0 is shared with pid 42\n")
    assert "needs" not in report
    assert "sustainable" not in report


def test_a_failure_names_what_it_rests_on_and_fits_80_columns() -> None:
    report = terminal.failure(check_result(FAILED, CONTEXT))
    first, *rest = report.splitlines()
    assert first.startswith("FAIL: chat needs 3 GPUs, budget 2")
    for part in (
        "52.1 (50.9-53.4) req/s per replica, bound by p95 E2E",
        "-19.8% (-21.7% to -17.8%)",
        "256 tokens in, lognormal:mean=200,cv=0.5,low=1,high=900 out, poisson",
        "p95 E2E 20 s, p95 TTFT 500 ms, errors 1.0%",
        "start-up 63 s, hold 20 s, open loop 30 s",
        "design rate 1",
        "NVIDIA H200",
        "vLLM 0.26.0",
        "seed",
    ):
        assert part in " ".join(report.split()), part
    assert max(map(len, rest)) <= 80


def test_the_summary_puts_the_worst_first_and_fits_80_columns() -> None:
    passed = replace(
        FAILED, outcome=Outcome.PASS, measurement=replace(MEASUREMENT, requirement=replace(REQUIREMENT, name="small"))
    )
    results = [check_result(passed, CONTEXT), check_result(FAILED, CONTEXT)]
    lines = terminal.summary(results).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["FAIL", "PASS"]
    assert max(map(len, lines)) <= 80
    assert any("NVIDIA H200" in line for line in lines)


def test_a_simulated_result_says_so_everywhere() -> None:
    result = check_result(replace(FAILED, measurement=replace(MEASUREMENT, simulated=True)), CONTEXT)
    assert "SIMULATED" in terminal.failure(result)
    assert "SIMULATED" in terminal.summary([result])
    assert ("gpucap_simulated", "SIMULATED") in properties([result])
    assert made.session(result).simulated is True


def test_properties_are_plain_and_lead_with_the_verdict() -> None:
    pairs = properties([check_result(FAILED, CONTEXT)])
    assert pairs[0] == ("gpucap_verdict", "FAIL")
    assert ("gpucap_gpus_required", 3) in pairs
    assert all(type(value) in {str, int, float} for _, value in pairs)


def test_wording() -> None:
    assert [significant(value) for value in (52.137, 0.8812, 1234.5, 100.0, 0, 9.999)] == [
        "52.1", "0.881", "1230", "100", "0", "10",
    ]  # fmt: skip
    assert [seconds(value) for value in (0.0004, 0.412, 1.0, 95, 720)] == ["0.4 ms", "412 ms", "1 s", "95 s", "12 min"]
    assert limit_name("e2e_p99_9") == "p99.9 E2E"
    assert limit_name("backlog") == "backlog"


TINY = 5e-324
"""The smallest number above 0 that a file can hold."""


@pytest.mark.parametrize("rate", [TINY, 1e-13, 1e300])
def test_a_rate_that_nobody_can_count_by_counts_no_gpus(rate: float) -> None:
    """Fuzzing found it: such numbers stand in damaged files only."""
    odd = Interval(rate, rate, rate)
    bound = msgspec.structs.replace(made.check(Outcome.PASS), at_least_rps=rate)
    base = made.compared(made.check(Outcome.FAIL))
    assert base.comparison is not None
    against = msgspec.structs.replace(base, comparison=msgspec.structs.replace(base.comparison, base_rate=odd))
    for result in (bound, against, msgspec.structs.replace(made.check(Outcome.FAIL), sustainable_rate=odd)):
        content = made.session(result)
        assert markdown.pull_request_page(content)
        assert terminal.failure(result)
        assert properties([result])


@pytest.mark.parametrize("part", ["qps", "headroom"])
@pytest.mark.parametrize("number", [TINY, 1e21])
def test_a_declared_number_that_nobody_can_mean_is_refused_where_the_file_is_read(
    tmp_path: Path, part: str, number: float
) -> None:
    path = tmp_path / "result.json"
    result_file.write(path, made.session(made.check()))
    document = json.loads(path.read_text())
    document["results"][0]["requirement"][part] = number
    path.write_text(json.dumps(document))
    with pytest.raises(ResultFileError, match=rf"results\[0\]\.requirement\.{part}"):
        result_file.read(path)


def test_the_images_and_the_audio_of_prompts_stand_in_the_workload() -> None:
    sizes = (ImageSize(512, 512), ImageSize(64, 48), ImageSize(512, 512))
    requirement = replace(REQUIREMENT, workload=replace(REQUIREMENT.workload, images=sizes))
    result = check_result(replace(FAILED, measurement=replace(MEASUREMENT, requirement=requirement)), CONTEXT)
    assert result.workload.images == ("512x512", "64x48", "512x512")
    told = dict(rows.result_rows(result))["workload"]
    assert told.startswith("256 tokens in (images 2 x 512x512, 64x48), lognormal:")
    (card,) = result_cards([result])
    assert "256 tokens (images 2 x 512x512, 64x48)" in [fact.value for fact in card.declared]
    heard = replace(REQUIREMENT.workload, images=sizes[:1], audio_s=(0.5, 12.0, 0.5))
    requirement = replace(REQUIREMENT, workload=heard)
    result = check_result(replace(FAILED, measurement=replace(MEASUREMENT, requirement=requirement)), CONTEXT)
    assert result.workload.audio_s == (0.5, 12.0, 0.5)
    beside = "(images 512x512; audio 2 x 500 ms, 12 s)"
    assert dict(rows.result_rows(result))["workload"].startswith(f"256 tokens in {beside}, lognormal:")
    (card,) = result_cards([result])
    assert f"256 tokens {beside}" in [fact.value for fact in card.declared]
    assert "(images" not in dict(rows.result_rows(check_result(FAILED, CONTEXT)))["workload"]
