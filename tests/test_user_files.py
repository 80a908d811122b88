"""Files that a user names: only regular ones of a bounded size are read, nothing waits, and a refusal is one line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap import user_files
from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file
from pytest_gpucap.results.whole_file import append_text, write_text
from pytest_gpucap.user_files import MIB, UserFileError, lines_of, read_bytes, read_text, read_toml, unpacked

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "cpu" / "examples.json"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/zero", "is a device, not a file"),
        ("/dev/null", "is a device, not a file"),
        ("/proc/self/mem", "Input/output error"),
        ("/proc/self/pagemap", "is larger than 1 MiB"),
        ("no/such/file", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "no file can have this name"),
        (".", "is a folder, not a file"),
    ],
)
def test_what_is_no_file_is_one_line(path: str, why: str) -> None:
    with pytest.raises(UserFileError) as caught:
        read_bytes(path, MIB)
    assert caught.value.why == why
    assert str(caught.value).isprintable()


def test_a_pipe_and_a_socket_make_nothing_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
    for name in ("pipe", "socket"):
        with pytest.raises(UserFileError, match=rf"^{name}: is a {name}, not a file$"):
            read_bytes(name, MIB)
    with pytest.raises(OSError, match="No such device or address"):
        write_text(Path("pipe"), "nobody reads")


def _whole(path: str) -> None:
    read_bytes(path, MIB)


def _by_lines(path: str) -> None:
    with lines_of(path) as lines:
        for _ in lines:
            pass


def _unpacked(path: str) -> None:
    with unpacked(path, MIB) as read:
        while read(1000):
            pass


@pytest.mark.parametrize("read", [_whole, _by_lines, _unpacked])
def test_a_log_of_the_kernel_makes_nothing_wait(read: Callable[[str], None]) -> None:
    """Root may read it, and sees nothing once all was read; others may not."""
    for _ in range(3):
        with contextlib.suppress(UserFileError):
            read("/proc/kmsg")
    with pytest.raises(UserFileError, match=r"\A/proc/kmsg: [^\n]+\Z"):
        _whole("/proc/kmsg")


def test_the_largest_size_counts_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * MIB)
    assert len(read_bytes(file, MIB)) == MIB
    with file.open("ab") as more:
        more.write(b"x")
    with pytest.raises(UserFileError, match="is larger than 1 MiB"):
        read_bytes(file, MIB)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a = " + b"[" * 100_000, "not TOML that can be read: too deeply nested"),
        (b".".join([b"a"] * 20_000) + b" = 1", "a key has more than 50 parts"),
        (b'"a".' * 20_000 + b"a = 1", "a key has more than 50 parts"),
        (b"a = " + b"9" * 20_000, "not TOML: Exceeds the limit"),
        (b"a = \xe9", "not UTF-8: "),
        (b"a = 1\n" + b"#" * MIB, "is larger than 1 MiB"),
    ],
)
def test_toml_that_would_take_the_parser_long(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(content)
    with pytest.raises(UserFileError) as caught:
        read_toml(file)
    assert caught.value.why.startswith(why)


def test_toml_of_usual_keys_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    text = f'[{".".join("abc")}]\nsource = "{"https://a.b.c/d. " * 100}"\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_toml(file)["a"]["b"]["c"]["source"].startswith("https://a.b.c")


def test_lines_are_read_one_by_one_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\r\n" + b"x" * (2 * MIB))
    with lines_of(file) as lines:
        assert [next(lines), next(lines)] == ["one\n", "two\r\n"]
        with pytest.raises(UserFileError, match=r"file:3: the line is longer than 1 MiB"):
            next(lines)
    file.write_bytes(b"one\n\xff\n")
    with lines_of(file) as lines, pytest.raises(UserFileError, match=r"file:2: not UTF-8"):
        list(lines)


def test_a_message_stays_on_its_line() -> None:
    error = UserFileError("a\nb\x1b[31m", "why\nnot\udcff")
    assert str(error) == r"a\nb\x1b[31m: why\nnot\udcff"
    assert len(str(UserFileError("x" * 5000, "why"))) < 400


def test_a_text_that_utf_8_cannot_have_is_written_with_its_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "file", "a\udcffb")
    append_text(tmp_path / "new" / "file", "c")
    assert read_text(tmp_path / "new" / "file", MIB) == r"a\udcffbc"


def test_no_home_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserFileError, match=r"^~nosuchuser/x: there is no such home folder"):
        user_files.home_expanded("~nosuchuser/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_294_967_000)  # a user that the system does not know
    with pytest.raises(UserFileError, match=r"^~: there is no such home folder"):
        user_files.home_folder()
    assert main(["plan", "--model=a/b", "--qps=1"]) == 2


def test_a_report_does_not_replace_what_it_is_made_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    result.write_bytes(RESULT.read_bytes())
    (tmp_path / "link.json").symlink_to(result)
    assert main(["report", str(result), "--markdown", str(tmp_path / "link.json")]) == 2
    assert "is one of the result files, and would be replaced" in capsys.readouterr().err
    assert result.read_bytes() == RESULT.read_bytes()
    assert main(["report", str(result), "--markdown", str(tmp_path / "a"), "--junit", str(tmp_path / "a")]) in {0, 2}


def test_a_command_line_of_millions_of_characters_is_not_split(tmp_path: Path) -> None:
    document = json.loads(RESULT.read_bytes())
    document["schema_version"] = 1
    environment = document["results"][0]["environment"]
    environment.pop("server_args", None)
    environment["command"] = "vllm serve model " + "x" * 2_000_000
    (tmp_path / "result.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="a command line has at most 65536 characters"):
        result_file.read(tmp_path / "result.json")


def test_results_are_checked_before_anything_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(RESULT.read_bytes())
    changes: list[tuple[Callable[[Any], object], str | None]] = [
        (lambda result: result["spent_s"].update(hold=-1), "results[0].spent_s.hold must not be below 0, but is -1"),
        (lambda result: result.update(seed=10**25), None),
        (lambda result: result["requirement"].update(qps=1e300), "results[0].requirement.qps must lie within 1e+20"),
        (lambda result: result["samples"][0].update(end_s=0), "results[0].samples[0] must not end before it starts"),
        (
            lambda result: result.update(sustainable_rate={"value": 1, "low": 2, "high": 3}),
            "results[0].sustainable_rate must have low <= value <= high",
        ),
        (lambda result: result["sustainable_rate"].update(confidence=0), "must have a confidence from 0.01 to 1"),
        (lambda result: result["sustainable_rate"].update(confidence=1.5), "must have a confidence from 0.01 to 1"),
        (lambda result: result["sustainable_rate"].update(confidence=1), None),
        (
            lambda result: result["samples"][0].update(histograms={"e2e": {"edges_s": [1, 1], "counts": [1]}}),
            "must have edges_s that rise by a factor of at least 1.001",
        ),
        (
            lambda result: result["samples"][0].update(timeline={"t_s": [1], "in_flight": []}),
            "results[0].samples[0].timeline must have columns of one length",
        ),
    ]
    for change, message in changes:
        document = json.loads(json.dumps(whole))
        change(document["results"][0])
        file = tmp_path / "result.json"
        file.write_text(json.dumps(document))
        status = main(["show", str(file)])
        said = capsys.readouterr().err
        assert (status, message is None or message in said) == (0 if message is None else 2, True), said
