"""A result file that grows by a test at a time: whole at every moment, and no dearer with every test."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.results import result_file
from tests.report import made

STARTED = datetime(2026, 11, 22, tzinfo=UTC)
IO = Path("/proc/self/io")
RECORDS = [made.check(name=f"test {number} \u2028\n") for number in range(20)]

NAMES = [record["name"] for record in RECORDS]


def document(results: int) -> dict[str, Any]:
    return result_file.document(RECORDS[:results], started=STARTED, arguments=["tests"])


def grown(path: Path, upto: int) -> result_file.GrowingResultFile:
    file = result_file.GrowingResultFile(path)
    for results in range(1, upto + 1):
        file.write(document(results))
    return file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_it_is_after_every_test_what_a_file_written_at_once_would_be(tmp_path: Path) -> None:
    file = result_file.GrowingResultFile(tmp_path / "deep" / "result.json")
    for results in (1, 2, 3, 7, 8):
        content = document(results)
        file.write(content)
        result_file.write(tmp_path / "whole.json", content)
        assert file.path.read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert result_file.read(file.path) == result_file.read(tmp_path / "whole.json")
    file.close()
    assert names(file.path.parent) == ["result.json"]


@pytest.mark.skipif(not IO.exists(), reason="this kernel does not count what a process writes")
def test_a_test_costs_what_it_measured_and_not_what_was_measured_before(tmp_path: Path) -> None:
    def written() -> int:
        return int(IO.read_text().partition("wchar: ")[2].split()[0])

    file = result_file.GrowingResultFile(tmp_path / "result.json")
    costs = []
    for results in range(1, len(RECORDS) + 1):
        before = written()
        file.write(document(results))
        costs.append(written() - before)
    # A result is written into both copies, once each.
    assert max(costs) < 3 * file.path.stat().st_size / len(RECORDS)


def test_a_file_of_another_session_in_our_place_is_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    file = grown(path, 3)
    theirs = grown(path, 5)
    held = tmp_path / "held.json"
    held.hardlink_to(path)
    before = held.read_bytes()
    for results in range(4, 8):
        file.write(document(results))
        assert [each["name"] for each in result_file.read(path)["results"]] == NAMES[:results]
    theirs.write(document(6))
    assert held.read_bytes() == before


def test_a_name_that_somebody_else_gave_to_the_file_keeps_what_it_had(tmp_path: Path) -> None:
    file = grown(tmp_path / "result.json", 3)
    (tmp_path / "kept.json").hardlink_to(file.path)
    before = (tmp_path / "kept.json").read_bytes()
    for results in range(4, 9):
        file.write(document(results))
    assert (tmp_path / "kept.json").read_bytes() == before
    assert len(result_file.read(file.path)["results"]) == 8


def test_what_is_deleted_meanwhile_is_written_anew(tmp_path: Path) -> None:
    file = grown(tmp_path / "result.json", 4)
    for entry in tmp_path.iterdir():
        entry.unlink()
    file.write(document(5))
    assert len(result_file.read(file.path)["results"]) == 5
    tmp_path.joinpath("result.json").unlink()
    file.write(document(6))
    assert len(result_file.read(file.path)["results"]) == 6


def test_a_folder_without_hard_links_gets_a_whole_copy_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    file = grown(tmp_path / "result.json", 4)
    assert len(result_file.read(file.path)["results"]) == 4
    assert names(tmp_path) == ["result.json"]


def test_a_result_that_cannot_be_written_costs_nothing_that_was(tmp_path: Path) -> None:
    file = grown(tmp_path / "result.json", 3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.write({**document(3), "results": [*RECORDS[:3], {"name": float("nan")}]})
    assert len(result_file.read(file.path)["results"]) == 3
    file.write(document(5))
    assert [each["name"] for each in result_file.read(file.path)["results"]] == NAMES[:5]


GROW = """
import sys
from pathlib import Path
from tests.results.test_result_file import document, result_file
file = result_file.GrowingResultFile(Path(sys.argv[1]))
for results in range(1, 10**9):
    content = document(20)
    content["results"] = content["results"] * (results // 20) + content["results"][: results % 20]
    file.write(content)
    print(results, flush=True)
"""


def test_whatever_moment_it_is_killed_at_the_file_is_whole_and_the_next_session_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for turn in range(8):
        # Killed as soon as it has said a number, which is somewhere in the next write.
        with subprocess.Popen([sys.executable, "-c", GROW, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(5 + 3 * turn)]
            process.kill()
            said += map(int, filter(str.strip, process.stdout))
        assert process.returncode == -signal.SIGKILL
        found = result_file.read(path)
        assert len(found["results"]) in (said[-1], said[-1] + 1)
        assert len(names(tmp_path)) <= 3
    grown(path, 2).close()
    assert names(tmp_path) == ["result.json"]
