"""``gpucap history``, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from tests.history.nightly import rates, write_nights


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """75 nights with 5% lost from night 60 on, and a file that is none."""
    folder = tmp_path / "nightly"
    write_nights(folder, rates(75, drop=0.05, at=60, seed=1))
    (folder / "notes.json").write_text("{}")
    return folder


def test_a_standing_drop_fails_where_that_is_asked_for(dropped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(dropped)]) == 0
    assert main(["history", str(dropped), "--fail-on-drop"]) == 1
    shown = capsys.readouterr().out
    assert "DROP of " in shown
    assert "since 2027-01-19 (night-060.json)" in shown
    assert f"skipped {dropped / 'notes.json'}: not a result of pytest-gpucap" in shown


def test_a_drop_is_accepted_by_starting_after_it(dropped: Path) -> None:
    assert main(["history", str(dropped), "--fail-on-drop", "--since", "2027-01-19"]) == 0


def test_a_suspicion_asks_for_one_more_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = rates(40, seed=2)
    write_nights(tmp_path, [*values, 26.0])
    assert main(["history", str(tmp_path), "--fail-on-drop"]) == 3
    assert "drop suspected since" in capsys.readouterr().out
    write_nights(tmp_path, [*values, 26.0, 30.0])
    assert main(["history", str(tmp_path), "--fail-on-drop"]) == 0


def test_json_and_markdown_and_a_plot(dropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["history", str(dropped), "--format", "json", "--plot", str(tmp_path / "trend.svg")]) == 0
    assert json.loads(capsys.readouterr().out)["trends"][0]["changes"][0]["index"] == 60
    assert "<svg" in (tmp_path / "trend.svg").read_text()
    assert main(["history", str(dropped), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("|")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["."], "no result with a sustainable rate"),
        ([".", "--plot", "trend.gif"], "must end in .svg, .png or .pdf"),
        ([".", "--since", "today"], "must be a date such as 2026-11-22, not 'today'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(["history", *arguments])
    except SystemExit as stopped:  # argparse ends by itself
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_terminal_that_knows_ascii_only_is_served(dropped: Path) -> None:
    command = [sys.executable, "-m", "pytest_gpucap", "history", str(dropped)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"DROP of " in done.stdout


@pytest.mark.slow
def test_what_the_plugin_writes_is_what_it_reads(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
        def test_it(gpucap):
            gpucap.check()
    """)
    for seed in (1, 2):
        done = pytester.runpytest_subprocess(
            "--gpu-class=sim:fast", f"--gpucap-seed={seed}", f"--gpucap-json=results/{seed}.json"
        )
        done.assert_outcomes(passed=1)
    capsys.readouterr()
    assert main(["history", str(pytester.path / "results")]) == 0
    shown = capsys.readouterr().out
    assert "SIMULATED " in shown
    assert "2 runs, " in shown
    assert "skipped" not in shown
