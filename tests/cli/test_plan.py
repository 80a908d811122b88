"""``gpucap plan``: what it prints, what it takes for known, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.planning.plan import Plan

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200" / "suite.json"
MODEL = ("--model", "synthetic:qwen2-1.5b", "--output-tokens", "512")
ENDS = {"rate": "value", "low": "low", "high": "high"}
PRICES = 'currency = "USD"\n[per_hour]\nt4 = 0.526\na10g = 1.006\nh100 = 3.9\nh200 = 4.5\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a result file of its own."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("prices.toml").write_text(PRICES)


def row(document: Any, gpu_class: str) -> Any:
    return next(fleet for fleet in document["fleets"] if fleet["gpu_class"] == gpu_class)


def test_without_a_measurement_every_class_has_its_limit(plan: Any) -> None:
    document = plan("--qps", "100", *MODEL, "--format", "json")
    assert len(document["fleets"]) >= 14
    assert {fleet["provenance"] for fleet in document["fleets"]} == {"physical limit"}
    assert document["cheapest"] is None
    t4 = row(document, "t4")
    assert t4["gpus"] == 5  # ceil(130 / 28.26)
    assert t4["rate_rps"] == pytest.approx(28.26, abs=0.01)
    assert t4["memory_gb"] == 80
    assert document["model"]["parameters"] == 1777088000
    text = plan("--qps", "100", *MODEL)
    assert "<= 28.3" in text
    assert ">= 5" in text


def test_a_measured_class_and_estimates_from_it(plan: Any) -> None:
    known = ("--result", str(H200), "--name", "fails", "--qps", "100", "--gpus", "8", "--prices", "prices.toml")
    document = plan(*known, "--format", "json")
    h200, h100, t4 = (row(document, name) for name in ("h200", "h100-sxm", "t4"))
    assert h200["provenance"] == "measured here"
    assert (h200["gpus"], h200["fewest"], h200["most"]) == (5, 5, 5)  # 130 / 29.1 (26.4 to 32)
    assert h200["low_rps"] < h200["rate_rps"] < h200["high_rps"]
    assert h200["evidence"] == f"fails in {H200}"
    assert h200["cost_per_hour"] == 22.5
    assert h100["provenance"] == "estimate"
    assert h100["low_rps"] < h100["rate_rps"] < h100["high_rps"]
    assert h100["evidence"].startswith("scaled from h200, 8% of its limit: bandwidth x0.70")
    assert t4["provenance"] is None
    assert "cannot keep the latency limits" in t4["evidence"]
    assert document["cheapest"] == "h200"
    assert document["worth_measuring"] == ["a10g", "h100-sxm"]
    text = plan(*known)
    assert "cheapest class that fits, of those measured: 5 GPUs of h200 at 22.50 USD per hour" in text
    assert "may be cheaper, worth measuring: a10g, h100-sxm" in text
    assert "8 GPUs of h200 carry 179 req/s with the headroom" in text
    assert "cannot serve it" in text


@pytest.mark.parametrize(("source", "provenance"), [("--result", "measured here"), ("--baseline", "baseline")])
@pytest.mark.parametrize(
    ("file", "name", "rate", "gpus", "memory_gb", "cost"),
    [
        # 520 req/s over 29.09168 (26.43797 to 32.01175), 18.39922 (16.78494 to 20.16875), as the files have them
        ("suite.json", "fails", "29.1 (26.4-32)", (18, 17, 20), 18 * 141, "81.00"),
        ("loose-slo.json", "fails", "18.4 (16.8-20.2)", (29, 26, 31), 29 * 141, "130.50"),
        # 26 req/s (its own target) over 20.13322 (5.917673 to 68.49763)
        ("loose-slo.json", "holds", "20.1 (5.92-68.5)", (2, 1, 5), 2 * 141, "9.00"),
    ],
)
def test_the_measured_runs_of_the_h200_become_fleets(
    plan: Any,
    source: str,
    provenance: str,
    file: str,
    name: str,
    rate: str,
    gpus: tuple[int, int, int],
    memory_gb: int,
    cost: str,
) -> None:
    path = H200.with_name(file)
    known = (source, str(path), "--name", name, "--prices", "prices.toml", "--gpus", "32")
    document = plan(*known, "--format", "json")
    found = row(document, "h200")
    (recorded,) = (each for each in json.loads(path.read_text())["results"] if each["name"] == name)
    interval = {f"{key}_rps": recorded["sustainable_rate"][value] for key, value in ENDS.items()}
    assert found | interval == found
    assert (found["provenance"], found["evidence"]) == (provenance, f"{name} in {path}")
    assert (found["gpus"], found["fewest"], found["most"]) == gpus
    assert (found["memory_gb"], f"{found['cost_per_hour']:.2f}") == (memory_gb, cost)
    assert found["largest_qps"] == pytest.approx(32 * interval["rate_rps"] / 1.3)
    assert document["cheapest"] == "h200"
    spread = f"{gpus[0]} ({gpus[1]}-{gpus[2]})"
    cells = ["h200", rate, provenance, spread, f"{memory_gb} GB", cost, "cheapest that fits"]
    text, markdown = plan(*known), plan(*known, "--format", "markdown")
    assert [re.split(r"\s{2,}", line) for line in text.splitlines() if line.startswith("h200 ")] == [cells]
    (line,) = (line for line in markdown.splitlines() if line.startswith("| h200 "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == cells


def test_the_printed_document_is_the_typed_plan(plan: Any) -> None:
    known = ("--result", str(H200), "--name", "fails", "--qps-table", "10,50", "--guide", "--prices", "prices.toml")
    document = plan(*known, "--format", "json")
    assert list(document) == list(Plan.__struct_fields__)
    assert json.loads(msgspec.json.encode(msgspec.convert(document, Plan, strict=True))) == document


def test_what_is_over_the_budget_at_its_best_is_not_worth_measuring(plan: Any) -> None:
    known = ("--result", str(H200), "--name", "fails", "--prices", "prices.toml", "--format", "json")
    assert plan(*known, "--gpus", "20")["worth_measuring"] == ["a10g", "h100-sxm"]  # the A10G's best end needs 20
    assert plan(*known, "--gpus", "19")["worth_measuring"] == ["h100-sxm"]


def test_other_arrivals_are_another_load(plan: Any, tmp_path: Path) -> None:
    content = json.loads(H200.read_text())
    named = {record["name"]: record for record in content["results"]}
    named["holds"]["workload"] |= {"arrivals": "gamma", "burstiness": 3.0}
    tmp_path.joinpath("bursty.json").write_text(json.dumps(content))
    document = plan("--result", "bursty.json", "--name", "holds", "--format", "json")
    assert row(document, "h200")["evidence"] == "holds in bursty.json"
    assert "fails in bursty.json: another model, workload or limits" in document["left_out"]


def test_a_class_that_was_only_declared_is_said_to_be(plan: Any, tmp_path: Path) -> None:
    content = json.loads(H200.read_text())
    for record in content["results"]:
        record["environment"]["url"] = "http://127.0.0.1:8000/v1"
    tmp_path.joinpath("url.json").write_text(json.dumps(content))
    document = plan("--result", "url.json", "--name", "fails", "--format", "json")
    assert row(document, "h200")["evidence"] == "fails in url.json, GPU class as declared"


def test_a_budget_that_is_too_small(plan: Any) -> None:
    known = ("--result", str(H200), "--name", "fails", "--qps", "100", "--gpus", "4", "--prices", "prices.toml")
    assert "over the budget of 4" in plan(*known)
    assert plan(*known, "--format", "json")["cheapest"] is None
    assert "no class is known to fit" in plan(*known)


def test_the_last_measurement_gives_target_model_and_load(plan: Any) -> None:
    document = plan("--result", str(H200), "--name", "fails", "--format", "json")
    assert document["target"] == {
        "qps": 400,
        "headroom": 1.3,
        "gpus": None,
        "limits": {"ttft_p95": 0.5, "e2e_p95": 4.0},
        "goodput": None,
        "thresholds": {},
    }
    assert document["workload"]["output_tokens"] == 512
    assert document["model"]["name"] == "synthetic:qwen2-1.5b"


def test_another_load_or_other_limits_are_another_question(plan: Any) -> None:
    changed = plan("--result", str(H200), "--qps", "10", "--output-tokens", "128", "--format", "json")
    assert row(changed, "h200")["provenance"] == "physical limit"
    assert any("another model, workload or limits" in entry for entry in changed["left_out"])
    stricter = plan("--result", str(H200), "--qps", "10", "--slo", "e2e_p95=2s", "--format", "json")
    assert row(stricter, "h200")["provenance"] == "physical limit"
    quantised = plan("--result", str(H200), "--qps", "10", "--quantization", "fp8", "--format", "json")
    assert row(quantised, "h200")["provenance"] == "physical limit"


def test_a_baseline_is_known_too_but_a_measurement_comes_first(plan: Any) -> None:
    only = plan("--baseline", str(H200), "--name", "fails", "--qps", "10", "--format", "json")
    assert row(only, "h200")["provenance"] == "baseline"
    both = plan("--result", str(H200), "--baseline", str(H200), "--name", "fails", "--qps", "10", "--format", "json")
    assert row(both, "h200")["provenance"] == "measured here"


def test_simulated_results_are_no_measurements(plan: Any, tmp_path: Path) -> None:
    content = json.loads(H200.read_text())
    for record in content["results"]:
        record["simulated"] = True
    tmp_path.joinpath(".gpucap").mkdir()
    tmp_path.joinpath(".gpucap", "result.json").write_text(json.dumps(content))
    document = plan("--qps", "10", *MODEL, "--format", "json")
    assert {fleet["provenance"] for fleet in document["fleets"]} == {"physical limit"}
    assert all("SIMULATED" in entry for entry in document["left_out"])
    assert "SIMULATED" in plan("--qps", "10", *MODEL)
    # Where nothing else is known, the error says why the file that is there does not help.
    why = "left out: holds in .gpucap/result.json: SIMULATED, which is no measurement; left out: fails in "
    for arguments in (("--qps", "10"), MODEL, ("--qps", "10", "--name", "holds")):
        assert why in plan(*arguments, fails=True)


def test_the_result_of_the_last_run_is_found(plan: Any, tmp_path: Path) -> None:
    tmp_path.joinpath(".gpucap").mkdir()
    tmp_path.joinpath(".gpucap", "result.json").write_text(H200.read_text())
    assert row(plan("--qps", "10", "--format", "json"), "h200")["provenance"] == "measured here"


@pytest.mark.parametrize(
    ("quantization", "gpu_class", "rate", "times"),
    [("none", "t4", 2.38, 11.8), ("int8", "t4", 2.63, 7.5), ("none", "a10g", 3.45, 9.1), ("awq", "a10g", 3.85, 3.8)],
)
def test_the_guides_rates_are_set_aside(
    plan: Any, quantization: str, gpu_class: str, rate: float, times: float
) -> None:
    document = plan("--qps", "10", *MODEL, "--quantization", quantization, "--format", "json")
    (entry,) = (each for each in document["set_aside"] if each["gpu_class"] == gpu_class)
    assert entry["rate_rps"] == rate
    assert entry["share"] == pytest.approx(times, abs=0.05)
    assert row(document, gpu_class)["provenance"] == "physical limit"


def test_a_plausible_reference_is_used(plan: Any, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    tmp_path.joinpath("config.json").write_text(json.dumps(config))
    asked = ("--model", ".", "--quantization", "fp8", "--kv-cache-dtype", "fp8", "--qps", "30")
    document = plan(*asked, "--input-tokens", "1000", "--output-tokens", "1000", "--format", "json")
    assert row(document, "h200")["provenance"] == "published"
    assert row(document, "h200")["rate_rps"] == pytest.approx(17.744)
    assert row(document, "h200")["gpus"] == 3
    assert "TensorRT-LLM performance overview, v1.0" in row(document, "h200")["evidence"]
    assert row(document, "a10g")["provenance"] == "physical limit"  # estimates are scaled from measurements only
    assert (document["model"]["precision"], document["set_aside"]) == ("fp8", [])


def test_the_guide_is_reproduced_with_the_rows_that_disagree(plan: Any) -> None:
    guide = plan("--qps", "10", *MODEL, "--guide", "--format", "json")["guide"]
    assert [(r["gpu_class"], r["build"], r["rate_rps"], r["plausible"]) for r in guide["references"]] == [
        ("t4", "fp16", 2.38, False),
        ("t4", "INT8", 2.63, False),
        ("a10g", "fp16", 3.45, False),
        ("a10g", "AWQ", 3.85, False),
    ]
    assert guide["batching_gain"] == [1.5, 2.5]
    saving = guide["awq_saving"]
    assert saving["said"] == 0.6
    assert saving["by_its_rows"] == pytest.approx(0.44)
    assert saving["of_the_weights"] == pytest.approx(0.546, abs=0.001)
    assert [tier["agrees"] for tier in guide["tiers"]] == [False] * 8 + [None] * 2
    text = plan("--qps", "10", *MODEL, "--guide")
    assert text.count("implausible") >= 4
    assert text.count("DISAGREES") == 8
    assert "4 x A100 80GB or an H100 cluster" in text


def test_markdown_has_tables_and_the_same_conclusions(plan: Any) -> None:
    known = (
        "--result",
        str(H200),
        "--name",
        "fails",
        "--qps",
        "100",
        "--prices",
        "prices.toml",
        "--format",
        "markdown",
    )
    text = plan(*known)
    assert "| GPU class" in text
    assert "| h200 " in text
    assert "- cheapest class that fits, of those measured: 5 GPUs of h200" in text


def test_names_from_files_are_harmless(plan: Any, tmp_path: Path) -> None:
    content = json.loads(H200.read_text())
    for record in content["results"]:
        record["name"] = "a\x1b[31m|b\n<img src=x>"
    tmp_path.joinpath("odd.json").write_text(json.dumps(content))
    known = ("--result", "odd.json", "--qps", "10")
    assert "\x1b" not in plan(*known)
    shown = plan(*known, "--format", "markdown")
    assert "<img" not in shown
    assert "\x1b" not in shown


def test_classes_can_be_chosen_and_added(plan: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("mine.toml").write_text(
        '[[gpu]]\nname = "mycard"\nnvml_names = ["My Card"]\nmemory_gb = 48\nbandwidth_gb_s = 1000\nbf16_tflops = 200\n'
    )
    chosen = ("--gpu-file", "mine.toml", "--gpu-class", "mycard", "--gpu-class", "H100")
    document = plan("--qps", "10", *MODEL, *chosen, "--format", "json")
    assert [fleet["gpu_class"] for fleet in document["fleets"]] == ["mycard", "h100-sxm"]


def test_several_gpus_a_replica(plan: Any) -> None:
    document = plan("--qps", "10", *MODEL, "--tensor-parallel-size", "2", "--gpu-class", "t4", "--format", "json")
    (fleet,) = document["fleets"]
    assert (fleet["gpus_per_replica"], fleet["gpus"]) == (2, 2)
    assert fleet["rate_rps"] == pytest.approx(2 * 28.26, abs=0.1)
    document = plan("--qps", "10", *MODEL, "--data-parallel-size", "2", "--gpu-class", "t4", "--format", "json")
    (fleet,) = document["fleets"]
    assert (fleet["gpus_per_replica"], fleet["gpus"]) == (2, 2)
    assert fleet["rate_rps"] == pytest.approx(2 * 28.26, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--qps", "10"), "name a model (--model config.json or synthetic:NAME), a result file (--result) or the rate"),
        (MODEL, "give the target rate with --qps"),
        (("--qps", "0", *MODEL), "--qps must be above 0"),
        (("--qps", "10", "--headroom", "0.5", *MODEL), "--headroom must be at least 1"),
        (("--qps", "10", "--gpus", "1.5", *MODEL), "--gpus must be a whole number"),
        (("--qps", "10", "--model", "nobody/nothing"), "--model nobody/nothing: no config.json there"),
        (("--qps", "10", "--model", "synthetic:tinny"), "did you mean synthetic:tiny"),
        (("--qps", "10", *MODEL, "--slo", "e2e_p95"), "--slo e2e_p95: write NAME=VALUE"),
        (("--qps", "10", *MODEL, "--slo", "speed=2s"), "speed is no latency limit"),
        (("--qps", "10", *MODEL, "--slo", "ttft=2s"), "ttft='2s' has no percentile"),
        (("--qps", "10", *MODEL, "--quantization", "magic"), "quantization 'magic' is not understood"),
        (("--qps", "10", *MODEL, "--gpu-class", "h300"), "GPU class 'h300' is not known"),
        (("--qps", "10", *MODEL, "--prices", "none.toml"), "--prices none.toml: No such file"),
        (("--qps", "10", *MODEL, "--result", "none.json"), "none.json: No such file"),
        (("--qps", "10", "--result", str(H200), "--name", "what"), "there is no such measurement; there are: holds"),
    ],
)
def test_mistakes_are_one_line(plan: Any, arguments: tuple[str, ...], said: str) -> None:
    assert said in plan(*arguments, fails=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a10g = 1.0", "write currency = "),
        ("[per_hour]\na11g = 1.0", "GPU class 'a11g' is not known: did you mean a10g"),
        ("[per_hour]\na10g = -1", "the price of a10g must be above 0"),
        ("[per_hour]\na10g = 'dear'", "the price of a10g must be a number"),
        ("per_hour = ", "--prices prices.toml: "),
    ],
)
def test_mistakes_in_the_price_file_are_one_line(plan: Any, content: str, said: str, tmp_path: Path) -> None:
    tmp_path.joinpath("prices.toml").write_text(content)
    assert said in plan("--qps", "10", *MODEL, "--prices", "prices.toml", fails=True)


def test_prices_are_exact(plan: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("prices.toml").write_text("[per_hour]\nt4 = 0.1\n")
    document = plan("--qps", "60", *MODEL, "--gpu-class", "t4", "--prices", "prices.toml", "--format", "json")
    assert document["fleets"][0]["gpus"] == 3
    assert document["fleets"][0]["cost_per_hour"] == 0.3  # 3 * 0.1 is 0.30000000000000004 in floats


def test_it_is_a_command_of_the_package() -> None:
    command = [sys.executable, "-m", "pytest_gpucap", "plan", "--qps", "10", *MODEL, "--gpu-class", "t4"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "physical limit" in finished.stdout


def test_naming_the_model_of_a_measurement_keeps_it_and_naming_another_leaves_it_out(plan: Any, tmp_path: Path) -> None:
    known = ("--result", str(H200), "--qps", "10")
    same = plan(*known, "--model", "synthetic:qwen2-1.5b", "--format", "json")
    assert row(same, "h200")["provenance"] == "measured here"
    other = plan(*known, "--model", "synthetic:tiny", "--format", "json")
    assert row(other, "h200")["provenance"] == "physical limit"
    assert other["target"]["limits"] == {}
    # A hub model whose config is not in the cache: a file says what it is.
    content = json.loads(H200.read_text())
    for record in content["results"]:
        record["environment"]["model"] = "nobody/secret"
    tmp_path.joinpath("secret.json").write_text(json.dumps(content))
    tmp_path.joinpath("config.json").write_text(json.dumps(dict(architecture("synthetic:qwen2-1.5b").config)))
    unknown = plan("--result", "secret.json", "--name", "fails", "--format", "json")
    assert row(unknown, "h200")["provenance"] == "measured here"
    assert "no limit known" in row(unknown, "t4")["evidence"]
    told = plan("--result", "secret.json", "--name", "fails", "--model", "config.json", "--format", "json")
    assert row(told, "h200")["provenance"] == "measured here"
    assert row(told, "h100-sxm")["provenance"] == "estimate"


def test_a_baseline_is_found_by_the_name_it_was_saved_under(plan: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("gpucap-baselines").mkdir()
    tmp_path.joinpath("gpucap-baselines", "main.json").write_text(H200.read_text())
    document = plan("--baseline", "main", "--name", "fails", "--format", "json")
    assert row(document, "h200")["provenance"] == "baseline"
    assert row(document, "h200")["evidence"] == "fails in gpucap-baselines/main.json"
    assert "no run of that name" in plan("--baseline", "other", "--qps", "1", fails=True)


def test_gpus_for_several_rates(plan: Any) -> None:
    known = ("--result", str(H200), "--name", "fails", "--qps", "100", "--gpu-class", "h200", "--gpu-class", "b200")
    document = plan(*known, "--qps-table", "10,100,1000", "--format", "json")
    assert document["table"]["qps"] == [10, 100, 1000]
    assert [cell["gpus"] for cell in document["table"]["gpus"]["h200"]] == [1, row(document, "h200")["gpus"], 45]
    cell = document["table"]["gpus"]["h200"][-1]
    assert cell["fewest"] < cell["gpus"] < cell["most"]
    text = plan(*known, "--qps-table", "10,1000")
    assert "GPUs for    10 req/s    1000 req/s" in text
    assert "--qps-table must be a number" in plan(*known, "--qps-table", "10,many", fails=True)


def test_goodput_is_planned_for_as_a_limit(plan: Any) -> None:
    limits = ("--slo", "goodput=95%", "--slo", "tpot=30ms", "--slo", "e2e=20s")
    document = plan("--qps", "10", *MODEL, *limits, "--format", "json")
    assert document["target"]["goodput"] == 0.95
    assert document["target"]["thresholds"] == {"tpot": 0.03, "e2e": 20.0}
    assert document["target"]["limits"] == {}
    assert "95% goodput (TPOT 30 ms, E2E 20 s)" in plan("--qps", "10", *MODEL, *limits)
    # Its thresholds bound the physical limit as those of percentiles do.
    alone = plan("--qps", "10", *MODEL, "--slo", "tpot_p95=30ms", "--slo", "e2e_p95=20s", "--format", "json")
    assert row(document, "t4")["rate_rps"] == row(alone, "t4")["rate_rps"]


def test_the_limits_of_a_measurement_are_read_back_from_its_file(plan: Any, tmp_path: Path) -> None:
    content = json.loads(H200.read_text())
    (content["results"][0]["slo"],) = [{"limits": {"e2e_p99": 120.0}, "max_error_rate": 0.01, "goodput": 0.95}]
    content["results"][0]["slo"]["thresholds"] = {"ttft": 0.5, "e2e": 90.0}
    content["results"] = content["results"][:1]
    path = tmp_path / "goodput.json"
    path.write_text(json.dumps(content))
    target = plan("--result", str(path), "--qps", "10", "--format", "json")["target"]
    assert (target["limits"], target["goodput"]) == ({"e2e_p99": 120.0}, 0.95)
    assert target["thresholds"] == {"ttft": 0.5, "e2e": 90.0}
