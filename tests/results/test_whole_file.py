"""Files are whole or not written at all: on a full device, in a process that may write no more, behind a link."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest

from pytest_gpucap.results.whole_file import append_text, clear_partial, write_text, write_whole
from tests.results.made import check, session

LIMIT = 4096
"""Bytes that a file of the child process may have: its full disk."""
HEAD = f"""
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))
target = Path(sys.argv[1])
"""
WRITERS = {
    "a text": "from pytest_gpucap.results.whole_file import write_text\nwrite_text(target, 'x' * 9999)",
    "pieces": "from pytest_gpucap.results.whole_file import write_whole\nwrite_whole(target, [b'x' * 999] * 9)",
    "an appended text": "from pytest_gpucap.results.whole_file import append_text\nappend_text(target, 'x' * 9999)",
    "a result file": """
        from pytest_gpucap.results import result_file
        result_file.write(target, result_file.read(Path(sys.argv[2])))
        """,
    "a baseline": """
        from pytest_gpucap.history import store
        from pytest_gpucap.results import result_file
        store.save_run(target, result_file.read(Path(sys.argv[2])), simulated=False, forced=True)
        """,
    **{
        f"the command's {option}": f"""
        from pytest_gpucap.__main__ import main
        sys.exit(main(["report", sys.argv[2], "--{option}", str(target)]))
        """
        for option in ("html", "text", "junit", "markdown")
    },
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    from pytest_gpucap.results import result_file

    path = tmp_path / "results.json"
    result_file.write(path, session(*(check(name=f"test {number}") for number in range(40))))
    assert path.stat().st_size > LIMIT
    return path


@pytest.mark.parametrize("before", ["", "of before\n"])
@pytest.mark.parametrize("code", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, results: Path, code: str, before: str) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    target = folder / "out.json"
    if before and "save_run" in code:
        target.write_bytes(results.read_bytes())
        before = results.read_text()
    elif before:
        target.write_text(before)
    done = subprocess.run(
        [sys.executable, "-B", "-c", HEAD + textwrap.dedent(code), str(target), str(results)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "File too large" in done.stderr
    if before or target.exists():
        assert target.read_text() == before
    assert [path.name for path in folder.iterdir()] in ([], ["out.json"])


def test_a_full_device_is_said_and_stays() -> None:
    for write in (write_text, append_text):
        with pytest.raises(OSError, match="No space left"):
            write(Path("/dev/full"), "x")
    assert Path("/dev/full").is_char_device()


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "file", tmp_path / "link"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_links_in_a_circle_are_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for act in (write_text, append_text):
        for path in (tmp_path / "loop", tmp_path / "loop" / "file"):
            with pytest.raises(OSError, match=r"Too many levels of symbolic links|File exists"):
                act(path, "x")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        clear_partial(tmp_path / "loop")
    assert [each.name for each in tmp_path.iterdir()] == ["loop"]


def test_an_interrupt_while_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    def pieces() -> Iterable[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", pieces())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = tmp_path / f".file.{os.getpid()}.tmp"
    foreign = [tmp_path / f".file.{name}.tmp" for name in ("x", 2**40, 10**30, "\u00b2")]
    for path in (mine, tmp_path / f".file.{ended.pid}.tmp", *foreign):
        path.write_text("")
    clear_partial(tmp_path / "file")
    assert sorted(tmp_path.iterdir()) == sorted([mine, *foreign])


def test_the_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != LIMIT
