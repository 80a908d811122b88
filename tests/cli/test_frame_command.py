"""``frame``: result files as a table."""

from __future__ import annotations

import csv
import io
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.installing import pip_install
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result
from tests.results import made

RECORDED = Path(__file__).parents[1] / "other_tools" / "recorded" / "vllm-0.32.0" / "open.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty project."""
    monkeypatch.chdir(tmp_path)


def written(*results: Result, path: str = "result.json") -> str:
    result_file.write(Path(path), made.session(*results))
    return path


def frame(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["frame", *words]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["frame", *words]) == 2
    return capsys.readouterr().err.partition("frame: ")[2].strip()


def test_a_row_for_every_window(capsys: pytest.CaptureFixture[str]) -> None:
    check = made.check()
    rows = frame(capsys, written(check))
    assert len(rows) == len(check.samples)
    for row, sample in zip(rows, check.samples, strict=True):
        assert (row["requirement"], row["outcome"], row["source"]) == ("chat", "FAIL", "measured")
        assert (row["window"], row["phase"], row["loop"]) == (sample.window.text, sample.window.phase, sample.kind)
        assert float(row["completed_rps"]) == pytest.approx(sample.completed_rps)
        assert float(row["e2e_p95_s"]) == pytest.approx(sample.latencies["e2e"].p95_s)
        assert row["goodput"] == ""
        assert datetime.fromisoformat(row["started"]) == made.STARTED


def test_a_row_for_every_result_of_several_files(capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", str(RECORDED), "-o", "points.json"])
    rows = frame(capsys, written(made.check(), made.measured("free")), "points.json", "--rows", "results")
    assert [row["file"] for row in rows] == ["result.json", "result.json", "points.json"]
    chat, free, point = rows
    assert (chat["rate_rps"], chat["gpus_required"], chat["gpus"], chat["qps"]) == ("52.1", "3", "2", "100.0")
    assert (free["qps"], free["gpus"]) == ("", "")  # it declares no budget
    assert (point["source"], point["rate_rps"], point["point_rps"]) == ("vllm bench serve", "", "19.50736")
    assert (point["started"], point["server_time_s"]) == ("2026-11-30T03:23:22+00:00", "")
    assert (point["ttft_p95_s"], point["ttft_p99_s"]) == ("", "0.007943828")


def test_a_row_for_every_load_that_was_held(capsys: pytest.CaptureFixture[str]) -> None:
    path = written(made.check())
    phases, windows = frame(capsys, path, "--rows", "phases"), frame(capsys, path)
    assert sum(int(each["windows"]) for each in phases) == len(windows) > len(phases) > 1
    assert sum(int(each["requests"]) for each in phases) == sum(int(each["requests"]) for each in windows)
    at = 0
    for phase in phases:
        own = windows[at : at + int(phase["windows"])]
        at += len(own)
        assert {each["phase"] for each in own} == {phase["phase"]}
        assert (phase["start_s"], phase["end_s"]) == (own[0]["start_s"], own[-1]["end_s"])
        assert float(phase["e2e_p95_s"]) == max(float(each["e2e_p95_s"]) for each in own)
        assert float(phase["completed_rps"]) == pytest.approx(  # the windows of a phase are equally long
            sum(float(each["completed_rps"]) for each in own) / len(own)
        )


def test_parquet_has_the_same_with_types(capsys: pytest.CaptureFixture[str]) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    path = written(made.check(), made.measured("free"))
    for rows in ("windows", "results"):
        assert main(["frame", path, "-o", "out.parquet", "--rows", rows]) == 0
        found = parquet.read_table("out.parquet").to_pylist()
        texts = frame(capsys, path, "--rows", rows)
        assert len(found) == len(texts) > 1
        for row, text in zip(found, texts, strict=True):
            assert row.keys() == text.keys()
            for name, value in row.items():
                shown = "" if value is None else value.isoformat() if isinstance(value, datetime) else str(value)
                assert shown == text[name]
    types = {field.name: str(field.type) for field in parquet.read_schema("out.parquet")}
    assert (types["rate_rps"], types["gpus"], types["started"]) == ("double", "int64", "timestamp[us, tz=UTC]")
    assert main(["frame", written(path="none.json"), "-o", "none.parquet"]) == 0
    assert parquet.read_table("none.parquet").num_rows == 0


def test_a_count_beyond_64_bits_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow.parquet")
    check = made.check()
    many = tuple(msgspec.structs.replace(sample, requests=10**19) for sample in check.samples)
    path = written(msgspec.structs.replace(check, samples=many))
    said = "out.parquet: a count is too large for the 64 bits that Parquet has; CSV takes it"
    assert refused(capsys, path, "-o", "out.parquet") == said
    assert {row["requests"] for row in frame(capsys, path)} == {str(10**19)}


def test_no_cell_is_a_formula(capsys: pytest.CaptureFixture[str]) -> None:
    for evil in ("=1+1", "@SUM(A1)", "-2+3", "+4"):
        rows = frame(capsys, written(made.check(name=evil)))
        assert {row["requirement"] for row in rows} == {f"'{evil}"}


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(made.check())
    assert refused(capsys, path, "-o", "out.xls") == "-o out.xls: must end in .csv or .parquet"
    assert refused(capsys, "none.json") == "none.json: No such file or directory"
    Path("a.csv").write_bytes(Path(path).read_bytes())
    assert refused(capsys, "a.csv", "-o", "a.csv").endswith("is one of the result files, and would be replaced")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refused(capsys, path, "-o", "x.parquet") == f"-o x.parquet: needs pyarrow: {pip_install('parquet')}"
