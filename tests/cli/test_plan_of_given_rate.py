"""``gpucap plan --rate``: who knows only T gets the formula's answer, and what it assumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.planning.plan import Plan

REPOSITORY = Path(__file__).parents[2]
KNOWN = ("--rate", "3.85", "--gpu-class", "a10g", "--target-qps", "100")
PRICES = 'currency = "USD"\n[per_hour]\na10g = 1.006\nh200 = 4.5\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a result file of its own."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("prices.toml").write_text(PRICES)


def test_the_formula_answers(plan: Any) -> None:
    document = plan(*KNOWN, "--prices", "prices.toml", "--format", "json")
    (fleet,) = document["fleets"]
    assert (fleet["gpu_class"], fleet["provenance"], fleet["gpus"]) == ("a10g", "as given", 34)  # 130 / 3.85 = 33.77
    assert (fleet["memory_gb"], fleet["cost_per_hour"]) == (34 * 24, 34.204)
    assert fleet["evidence"] == "N = ceil(QPS x headroom / T) = ceil(100 x 1.3 / 3.85) = ceil(33.77) = 34"
    assert (document["model"], document["workload"], document["cheapest"]) == (None, None, None)
    assert list(document) == list(Plan.__struct_fields__)
    assert json.loads(msgspec.json.encode(msgspec.convert(document, Plan, strict=True))) == document


def test_the_answer_is_exact(plan: Any) -> None:
    """Floats give 2 GPUs for the first, and nine digits would give 1 for the second."""
    beyond = plan("--rate", "12.09999", "--qps", "11", "--headroom", "1.1", "--format", "json")["fleets"][0]
    assert beyond["evidence"].endswith("= ceil(just above 1) = 2")
    rates = {"12.1": ("11", "1.1", 1), "129.9999999999": ("100", "1.3", 2)}
    for rate, (qps, headroom, gpus) in rates.items():
        document = plan("--rate", rate, "--qps", qps, "--headroom", headroom, "--format", "json")
        assert document["fleets"][0]["gpus"] == gpus


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_the_assumptions_are_named(plan: Any, style: str) -> None:
    text = " ".join(plan(*KNOWN, "--format", style).split())
    assert "as given: N = ceil(QPS x headroom / T) = ceil(100 x 1.3 / 3.85) = ceil(33.77) = 34" in text
    for said in (
        "assumed: T is as given, and nobody measured it here",
        "assumed: T is a point without an interval: if it is 10% lower, N is 38 GPUs and not 34",  # 130 / 3.465 = 37.5
        "assumed: replicas add up",
        # 34 x 3.85 / 100 = 1.309, and 33 x 3.85 / 100 = 1.2705
        "the GPUs carry 1.31 times the rate, and with one replica down 1.27 times",
    ):
        assert said in text
    assert "marks an estimate" not in text
    assert "may be cheaper" not in text


def test_nothing_is_said_of_what_is_not_known(plan: Any) -> None:
    text = plan("--rate", "3.85", "--qps", "10")  # 13 / 3.465 = 3.75, so it is 4 either way
    assert "if it is 10% lower, N is still 4 GPUs" in " ".join(text.split())
    headers, line, row, *_ = text.splitlines()[2:]
    assert headers.split("  ")[0] == "GPU class"
    assert "memory" not in headers
    assert len(line.split()) == 4
    assert row.split() == ["any", "class", "3.85", "as", "given", "4"]


def test_a_budget_and_other_rates(plan: Any) -> None:
    text = plan(*KNOWN, "--gpus", "20", "--qps-table", "10,200", "--prices", "prices.toml")
    assert "over the budget of 20" in text
    assert "20 GPUs of a10g carry 59.2 req/s with the headroom" in text  # 20 x 3.85 / 1.3
    document = plan(*KNOWN, "--gpus", "40", "--qps-table", "10,200", "--format", "json")
    assert document["fleets"][0]["fits"]
    assert [cell["gpus"] for cell in document["table"]["gpus"]["a10g"]] == [4, 68]


def test_replicas_of_several_gpus(plan: Any) -> None:
    document = plan(*KNOWN, "--tensor-parallel-size", "2", "--format", "json")
    (fleet,) = document["fleets"]
    assert (fleet["gpus"], fleet["gpus_per_replica"]) == (68, 2)
    assert fleet["evidence"].endswith("= ceil(33.77) = 34 replicas, x 2 GPUs = 68 GPUs")


def test_no_class_is_needed_without_prices(plan: Any) -> None:
    (fleet,) = plan("--rate", "3.85", "--qps", "10", "--format", "json")["fleets"]
    assert (fleet["gpu_class"], fleet["gpus"], fleet["memory_gb"]) == ("any class", 4, None)
    said = plan("--rate", "3.85", "--qps", "10", "--prices", "prices.toml", fails=True)
    assert "--prices is by GPU class: name the class of --rate with --gpu-class" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "0", "--qps", "1"), "--rate must be above 0"),
        (("--rate", "fast", "--qps", "1"), "--rate must be a number, not 'fast'"),
        (("--rate", "3.85"), "give the target rate with --qps"),
        ((*KNOWN, "--gpu-class", "t4"), "--rate is the rate on one GPU class, not on 2: give --gpu-class once"),
        ((*KNOWN, "--model", "synthetic:tiny"), "so --model would change nothing: leave one out"),
        ((*KNOWN, "--slo", "e2e_p95=2s"), "so --slo would change nothing"),
        ((*KNOWN, "--max-num-seqs", "64"), "so --max-num-seqs would change nothing"),
        ((*KNOWN, "--result", "none.json"), "so --result would change nothing"),
        ((*KNOWN, "--tensor-parallel-size", "two"), "tensor_parallel_size"),
        ((*KNOWN, "--qps-table", "1,many"), "--qps-table must be a number"),
        (("--rate", "1", "--qps", "1", "--gpu-class", "a11g"), "GPU class 'a11g' is not known: did you mean a10g"),
    ],
)
def test_mistakes_are_one_line(plan: Any, arguments: tuple[str, ...], said: str) -> None:
    assert said in plan(*arguments, fails=True)


def test_the_page_shows_what_is_printed(plan: Any) -> None:
    page = (REPOSITORY / "docs" / "sizing.md").read_text(encoding="utf-8")
    command = "$ gpucap plan --rate 3.85 --gpu-class a10g --target-qps 100 --prices prices.toml\n"
    shown = page.partition(command)[2].partition("\n```")[0]
    assert shown == plan(*KNOWN, "--prices", "prices.toml").rstrip("\n")
