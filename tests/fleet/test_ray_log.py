"""A log that is copied from a node: whole lines, no secrets, and no more than a bounded amount at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.fleet.ray_node import LogPart, clean_up, folder_of, log_part
from pytest_gpucap.fleet.ray_server import LogStream
from pytest_gpucap.masking import Secret


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def test_only_whole_lines_are_given(tmp_path: Path, log: Path) -> None:
    assert log_part(tmp_path, 0, 100) == LogPart("", 0)
    log.write_text("one\ntw")
    part = log_part(tmp_path, 0, 100)
    assert part == LogPart("one\n", 4)
    log.write_text("one\ntwo\n")
    assert log_part(tmp_path, part.until, 100) == LogPart("two\n", 8)
    assert log_part(tmp_path, 8, 100) == LogPart("", 8)
    log.write_text("one\ntwo\nend")
    assert log_part(tmp_path, 8, 100, final=True) == LogPart("end", 11)


def test_a_secret_in_two_parts_is_masked(tmp_path: Path, log: Path) -> None:
    secret = Secret("a-very-secret-word")
    log.write_text(f"before\nthe key is {secret:.8}")
    part = log_part(tmp_path, 0, 1000)
    assert part.text == "before\n"
    log.write_text(f"before\nthe key is {secret}\n")
    assert log_part(tmp_path, part.until, 1000).text == "the key is ***\n"


def test_of_too_much_the_end_is_given(tmp_path: Path, log: Path) -> None:
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    part = log_part(tmp_path, 0, 100)
    assert part.text.startswith("line 9")
    assert part.text.endswith("line 999\n")
    assert part.until == log.stat().st_size
    assert part.left_out == part.until - len(part.text)


def test_a_line_without_end_does_not_stop_the_copy(tmp_path: Path, log: Path) -> None:
    log.write_text("x" * 1000)
    part = log_part(tmp_path, 0, 100)
    assert part.until == 1000
    assert len(part.text) == 100


def test_the_copy_tells_what_is_left_out_and_gets_the_rest_at_the_end(tmp_path: Path, log: Path) -> None:
    log.write_text("one\n")
    stream = LogStream(tmp_path / "copies" / "copy.log", lambda since, most: LogPart("", since))
    stream.add(log_part(tmp_path, stream.until, 100))
    log.write_text("one\n" + "two\n" * 50)
    stream.add(log_part(tmp_path, stream.until, 10))
    stream.add(log_part(tmp_path, 0, 100))  # late, and known already
    log.write_text("one\n" + "two\n" * 50 + "end")
    stream.stop(lambda: log_part(tmp_path, stream.until, 100, final=True))
    stream.stop(lambda: pytest.fail("asked twice"))
    assert stream.log.path.read_text() == "one\n... 192 bytes are left out ...\ntwo\ntwo\nend"


def test_the_folder_of_a_replica_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = folder_of("a-mark")
    folder.mkdir()
    (folder / "server.log").write_text("the last words")
    assert clean_up("a-mark", 4, 100) == ([], LogPart("last words", 14))
    assert not folder.exists()
