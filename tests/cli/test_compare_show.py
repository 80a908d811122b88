"""``compare`` and ``show``: what they print, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.history import store
from pytest_gpucap.results.result import Result
from tests.history.made import STARTED, named, result, session, windows

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "gpucap-baselines"


def save(folder: Path, name: str, *results: Result, simulated: bool = False, days: int = 0) -> None:
    content = session(*results, started=STARTED + timedelta(days=days))
    store.save_run(store.path_of(folder, name), content, simulated=simulated)


def run(*arguments: str) -> int:
    return main(arguments)


@pytest.fixture
def two_runs(folder: Path) -> None:
    other = named("code")
    save(folder, "base", result(25.0), result(10.0, requirement=other, test="t.py::code"))
    head = result(21.0, server="vLLM 0.27.0", samples=windows(slower=1.4))
    save(folder, "head", head, result(10.0, requirement=other, test="t.py::code", gpu_class="h100"), days=1)


@pytest.mark.usefixtures("two_runs")
def test_compare_as_text_puts_the_worst_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "base", "head") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base: gpucap-baselines/base.json, 2026-11-20 03:00+00:00, pytest-gpucap 0.1.0"
    decisions = [line.split("  ")[0] for line in lines if line.startswith(("REGRESSED", "NOT COMPARABLE"))]
    assert decisions == ["REGRESSED", "NOT COMPARABLE"]
    row = next(line for line in lines if line.startswith("REGRESSED"))
    assert row.split()[1:] == ["chat", "25", "(24.4-25.6)", "21", "(20.5-21.5)", "-16.0%", "(-19.9%", "to", "-12.0%)"]
    text = "\n".join(lines)
    assert "- chat: more than 5.0% lost, in one measurement" in text
    assert "changed: server: vLLM 0.26.0 -> vLLM 0.27.0" in text
    at = next(number for number, line in enumerate(lines) if line.startswith("  at 16.2 req/s "))
    latency = next(line for line in lines[at:] if line.startswith("  p95 E2E "))
    assert latency.split()[2:7] == ["2.5", "s", "3.5", "s", "+40.0%"]
    assert latency.split()[-1] == "REGRESSED"
    assert "- code: no comparable baseline" in text
    assert "differs: GPU class: h200 -> h100" in text


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_compare_shows_whole_names(
    folder: Path, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"test_chat_capacity_of_a_long_context_model[32k-{kind}]" for kind in ("bf16", "fp8")]
    for run_name in ("base", "head"):
        save(folder, run_name, *(result(25.0, requirement=named(name), test=f"t.py::{name}") for name in names))
    monkeypatch.setenv("COLUMNS", columns)
    assert run("compare", "base", "head") == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[3 : lines.index("", 3)]
    for name in names:
        assert sum(name in line for line in table) == 1
    assert " ".join(" ".join(table).split()).count("25 (24.4-25.6)") == 4
    assert max(map(len, table)) <= max(int(columns), len(f"  {names[0]}"))


@pytest.mark.usefixtures("two_runs")
def test_compare_as_json_holds_the_documented_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "base", "head", "--format", "json", "--max-regression", "20%") == 0
    found = json.loads(capsys.readouterr().out)
    decisions = {each["name"]: each["comparison"]["decision"] for each in found["results"]}
    assert decisions == {"chat": "SAME", "code": "NOT COMPARABLE"}
    assert found["results"][0]["comparison"]["max_regression"] == 0.2


@pytest.mark.usefixtures("two_runs")
def test_compare_as_markdown_escapes_what_files_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = named("<img src=x> | @everyone")
    save(folder, "evil", result(25.0, requirement=evil), days=2)
    assert run("compare", "evil", "evil", "--format", "markdown") == 0
    shown = capsys.readouterr().out
    assert "<img" not in shown
    assert "@everyone" not in shown
    assert "✅ SAME" in shown
    assert run("compare", "base", "head", "--format", "markdown") == 1
    shown = capsys.readouterr().out
    assert shown.startswith("**🔻 1 REGRESSED, ⚪ 1 NOT COMPARABLE**")
    assert "| 🔻 REGRESSED | chat | 25 (24.4-25.6) → 21 (20.5-21.5) | -16.0% (-19.9% to -12.0%) |" in shown


def test_simulated_runs_say_so_and_do_not_mix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, "sim", result(25.0, simulated=True), simulated=True)
    save(folder, "real", result(25.0))
    assert run("compare", "real", "sim") == 0
    shown = capsys.readouterr().out
    assert "differs: measured or SIMULATED: measured -> SIMULATED" in shown
    assert "SIMULATED: no GPU and no server was measured" in shown


def test_real_files_by_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(H200 / "suite.json"), str(H200 / "loose-slo.json")) == 0
    assert "differs: limit e2e_p95: 4 -> 20" in capsys.readouterr().out
    assert run("show", str(H200 / "suite.json")) == 0
    shown = capsys.readouterr().out
    assert "check" not in shown.splitlines()[0].partition("suite.json")[2]  # folders before it may have any name
    for title in ("PASS: holds (", "FAIL: fails (", "measure: bf16 (", "sweep: curve (", "sample: closed 64 ("):
        assert title in shown


H200_X2 = H200.parent / "h200-x2"


def test_variants_of_one_run_may_be_served_differently(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(H200_X2 / "prefix.json")
    assert run("compare", file, file, "--variants", "prefix caching off", "prefix caching on") == 0
    shown = capsys.readouterr().out
    assert "IMPROVED: prefix caching on\n  58.4 (" in shown
    assert max(map(len, shown.splitlines()[2:])) <= 80
    assert "changed: server argument enable_prefix_caching: false -> true" in shown
    # The other way round, and by node id.
    off, on = (f"benchmarks/h200/test_h200.py::test_prefix[{state}]" for state in ("off", "on"))
    assert run("compare", file, file, "--variants", on, off) == 1
    assert "REGRESSED" in capsys.readouterr().out


def test_variants_of_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bf16, fp8, prefix = (str(H200_X2 / f"{name}.json") for name in ("repeat-1", "fp8", "prefix"))
    assert run("compare", bf16, fp8, "--variants", "bf16", "fp8") == 0
    assert "changed: quantisation: none -> fp8" in capsys.readouterr().out
    # What is asked of the server must still be equal.
    assert run("compare", bf16, prefix, "--variants", "bf16", "prefix caching on") == 0
    shown = capsys.readouterr().out
    assert "NOT COMPARABLE" in shown
    assert "workload input_tokens: 256 -> 2048" in shown


def test_two_engines_of_one_model_are_variants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = result(25.0, requirement=named("on vllm"), test="t.py::vllm", engine="vllm")
    other = result(21.0, requirement=named("on sglang"), test="t.py::sglang", engine="sglang", server="SGLang 0.5.23")
    save(folder, "both", one, other)
    assert run("compare", "both", "both", "--variants", "on vllm", "on sglang") == 1
    shown = capsys.readouterr().out
    assert "REGRESSED" in shown
    assert "changed: engine: vllm -> sglang" in shown


def test_a_variant_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(H200_X2 / "prefix.json")
    assert run("compare", file, file, "--variants", "prefix caching off", "on") == 2
    assert "has no test 'on'; it has prefix caching off, prefix caching on" in capsys.readouterr().err


def test_show_in_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, "main", result(25.0))
    assert run("show", "main", "--format", "json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"][0]["sustainable_rate"]["value"] == 25.0
    assert run("show", "main", "--format", "markdown") == 0
    assert "| requirement |" in capsys.readouterr().out
    assert run("show", "main") == 0
    shown = capsys.readouterr().out
    for part in (
        "gpucap-baselines/main.json",
        "PASS: chat (tests/test_chat.py::test_chat)",
        "25 (24.4-25.6) req/s",
        "h200",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "gone"), "there is no file gone, and no run of that name in gpucap-baselines"),
        (("show", "gone.json"), "gone.json: No such file"),
        (("compare", "main", "gone", "--baselines", "kept"), "no run of that name in kept"),
        (("compare", "main", "broken.json"), "broken.json: not JSON"),
        (("compare", "main", "main", "--max-regression", "much"), "--max-regression must be a number"),
        (("compare", "main", "main", "--max-regression", "0"), "--max-regression must lie above 0%"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("gpucap-baselines", "kept"):
        save(tmp_path / folder, "main", result(25.0))
    (tmp_path / "broken.json").write_text("{")
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert len(output.err.splitlines()) == 1


def test_a_terminal_that_cannot_show_a_character_gets_its_escape(folder: Path) -> None:
    save(folder, "main", result(25.0))
    command = [sys.executable, "-m", "pytest_gpucap", "compare", "main", "main", "--format", "markdown"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "\\u2705 1 SAME" in ended.stdout
