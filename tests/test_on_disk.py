"""What scripts read and make of results on disk: the same as the commands do."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from pytest_gpucap import GpuCapError, html_report, read_result_file, read_trends
from pytest_gpucap.__main__ import main
from tests.history.made import STARTED
from tests.history.nightly import rates, write_nights


def test_a_result_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path, *_ = write_nights(tmp_path, [30.0])
    content = read_result_file(str(path))
    assert content.started == STARTED
    assert [result.sustainable_rate.value for result in content.results if result.sustainable_rate] == [30.0]
    path.write_text("{}")
    with pytest.raises(GpuCapError, match=r"night-000\.json: not a result of pytest-gpucap"):
        read_result_file(path)


def test_trends_are_those_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nights(tmp_path, rates(40, drop=0.1, at=30, seed=1))
    (tmp_path / "notes.json").write_text("{}")
    found = read_trends(str(tmp_path))
    assert main(["history", str(tmp_path), "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [len(trend.points) for trend in found.trends] == [40]
    assert [change.index for change in found.trends[0].changes] == [
        change["index"] for change in shown["trends"][0]["changes"]
    ]
    assert found.trends[0].changes
    assert found.skipped == shown["skipped"]
    assert len(found.skipped) == 1
    later = read_trends(tmp_path, STARTED + timedelta(days=30))
    assert [len(trend.points) for trend in later.trends] == [10]
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        read_trends(tmp_path / "nowhere")


def test_a_page_is_that_of_the_command(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    path, *_ = write_nights(tmp_path, [30.0])
    assert main(["report", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert html_report(read_result_file(path)) == (tmp_path / "page.html").read_text("utf-8")
