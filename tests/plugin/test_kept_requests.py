"""``--gpucap-keep-requests``: the single requests of measurements, and the table that ``gpucap frame`` makes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results.requests import read_requests

SIMULATED = ("--gpu-class=sim:fast", "--gpucap-keep-requests=kept")
SUITE = """
    import os

    import pytest

    @pytest.mark.gpucap(name="sampled / chat")
    def test_chat(gpucap):
        gpucap.sample(rate=5, duration="10s")
        if "KILLED" in os.environ:
            os.kill(os.getpid(), 9)
        gpucap.sample(rate=6, duration="10s")
"""


def results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / ".gpucap" / "result.json").read_text())["results"]
    return found


def frame(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["frame", *words]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["frame", *words]) == 2
    return capsys.readouterr().err.partition("frame: ")[2].strip()


def test_requests_become_rows_of_a_table(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest(*SIMULATED).assert_outcomes(passed=1)
    files = [each["requests"][0] for each in results(pytester.path)]
    assert len({each["file"] for each in files}) == 2
    assert all(each["file"].startswith("sampled-chat-") and each["rows"] > 40 for each in files)
    assert main(["report", ".gpucap/result.json", "--junit", "junit.xml", "--markdown", "report.md"]) == 0
    for each in files:
        assert f'<property name="gpucap_requests" value="{each["file"]}" />' in Path("junit.xml").read_text()
        assert f"{each['rows']} in {each['file']}" in Path("report.md").read_text()
    rows = frame(capsys, ".gpucap/result.json", "--rows", "requests", "--requests", "kept")
    assert len(rows) == sum(each["rows"] for each in files)
    window = results(pytester.path)[0]["samples"][0]
    ended = sorted(
        float(row["e2e_s"])
        for row in rows
        if row["end_window"] == "5 req/s" and row["e2e_s"] and row["mid_life"] == "False"
    )
    assert len(ended) == window["latencies"]["e2e"]["count"]
    assert ended[-1 - len(ended) // 20] <= window["latencies"]["e2e"]["p95_s"] * (1 + 1e-6) <= ended[-1] * (1 + 2e-6)
    assert {(row["requirement"], row["source"], row["start"]) for row in rows} == {("sampled / chat", "simulated", "1")}
    assert {row["status"] for row in rows if row["end_s"]} == {"ok"}
    # Beside the result file they are found by themselves.
    Path("kept").rename(".gpucap/requests")
    assert frame(capsys, ".gpucap/result.json", "--rows", "requests") == rows
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    assert main(["frame", ".gpucap/result.json", "--rows", "requests", "-o", "rows.parquet"]) == 0
    table = parquet.read_table("rows.parquet")
    assert table.num_rows == len(rows)
    assert {name: str(table.schema.field(name).type) for name in ("ttft_s", "mid_life", "session", "status")} == {
        "ttft_s": "double",
        "mid_life": "bool",
        "session": "int64",
        "status": "string",
    }
    name = files[0]["file"]
    Path(".gpucap/requests", name).write_bytes(b"x")
    assert f"{name}:1: is no request" in refused(capsys, ".gpucap/result.json", "--rows", "requests")
    Path(".gpucap/requests", name).unlink()
    line = refused(capsys, ".gpucap/result.json", "--rows", "requests")
    assert line.startswith(f"{name}: is not in .gpucap or .gpucap/requests: give the folder of")
    assert refused(capsys, ".gpucap/result.json", "--requests", "x") == (
        "--requests is the folder for --rows requests: give both"
    )


def test_a_session_that_is_killed_leaves_the_measurements_before(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=SUITE)
    monkeypatch.setenv("KILLED", "yes")
    assert pytester.runpytest_subprocess(*SIMULATED).ret == -9
    (only,) = results(pytester.path)
    (path,) = (pytester.path / "kept").iterdir()
    assert path.name == only["requests"][0]["file"]
    assert len(list(read_requests(path))) == only["requests"][0]["rows"]


def test_requests_that_cannot_be_kept_lose_no_result_and_fail_the_session(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makepyfile(
        test_it="""
        from pathlib import Path

        def test_chat(gpucap):
            Path("kept").write_text("")  # since the session began
            gpucap.sample(rate=5, duration="10s")
        """
    )
    run = pytester.runpytest(*SIMULATED)
    run.assert_outcomes(passed=1)
    assert run.ret != 0
    run.stdout.fnmatch_lines(["the requests of test_chat could not be kept in kept: Not a directory"])
    (only,) = results(pytester.path)
    assert only["samples"]
    assert only["requests"][0]["missing"].startswith("the requests of test_chat could not be kept in ")
    assert frame(capsys, ".gpucap/result.json", "--rows", "requests") == []


def test_without_requests_it_says_how_to_keep_them(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest(SIMULATED[0]).assert_outcomes(passed=1)
    assert not (pytester.path / "kept").exists()
    assert refused(capsys, ".gpucap/result.json", "--rows", "requests") == (
        ".gpucap/result.json: no requests were kept: measure with --gpucap-keep-requests=DIR"
    )
