"""Every row of docs/faults.md that gives an input is what happens."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.engines.startup_diagnosis import ended

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
RESULT = REPOSITORY / "benchmarks" / "results" / "cpu" / "examples.json"


def rows(section: str) -> list[tuple[str, str]]:
    """What is given and what is answered, by the heading of the table."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [
        (given.strip(), answer.strip("` "))
        for given, answer in re.findall(r"^\| (.*?) \| (`.*`) \|$", text, re.MULTILINE)
    ]


MACHINE = {
    "the working directory": ["cli/test_odd_places.py::test_the_working_directory_is_gone"],
    "home, cache, working directory": [
        "cli/test_odd_places.py::test_nothing_can_be_written",
        "cli/test_odd_places.py::test_a_session_measures_where_nothing_can_be_written",
    ],
    "the user has no home": ["cli/test_odd_places.py::test_a_session_of_a_user_without_a_name_and_a_home"],
    "the disk is full": ["plugin/test_full_disks.py::test_a_disk_that_fills_up"],
    "the disk of a server's log": ["engines/test_server_start.py::test_a_log_on_a_full_disk_costs_the_log_alone"],
    "the server or a load worker": [
        "engines/test_server_start.py::test_a_signal_that_ends_a_server_is_named_even_if_it_has_no_name",
        "load/test_load_runner.py::test_a_workers_death_is_an_error_at_once",
    ],
    "pytest is killed": [
        "engines/test_server_process.py::test_a_lease_outlives_its_process_until_the_server_has_ended"
    ],
    "a server behind `--gpucap-url` is restarted": [
        "plugin/test_dying_servers.py::test_a_server_that_stops_answering_is_given_up",
        "engines/test_answering.py::test_a_start_after_the_first_look_is_a_restart",
    ],
    "the session is suspended": ["plugin/test_suspension.py::test_a_suspended_session_is_no_verdict_about_the_server"],
    "a host name's resolver": ["engines/test_attaching.py::test_a_resolver_that_does_not_answer_is_one_line"],
    "a certificate": [
        "engines/test_attaching.py::test_an_expired_certificate_is_not_trusted",
        "engines/test_attaching.py::test_a_certificate_of_another_name_is_not_trusted",
        "engines/test_attaching.py::test_a_ca_of_one_s_own_is_trusted_by_every_client",
    ],
}
"""How each row of "The machine" begins, and the tests that try it."""


def test_every_row_about_the_machine_has_a_test() -> None:
    text = PAGE.partition("\n## The machine\n")[2].partition("\n## ")[0]
    given = re.findall(r"^\| (?!---|fault )(.*?) \|", text, re.MULTILINE)
    assert len(given) == len(MACHINE)
    for row, (start, tests) in zip(given, MACHINE.items(), strict=True):
        assert row.startswith(start)
        for test in tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def _code(given: str) -> str:
    return given.strip("`")


def test_every_section_has_rows() -> None:
    assert all(len(rows(each)) > 5 for each in ("Options", "Markers", "Commands", "Result files"))


@pytest.fixture
def empty(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_it="def test_it(gpucap): ...")
    return pytester


@pytest.mark.parametrize(("given", "answer"), rows("Options"))
def test_options(empty: pytest.Pytester, given: str, answer: str) -> None:
    result = empty.runpytest(_code(given))
    said = result.stderr.str().strip()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert answer in said
    assert len(said.splitlines()) == 1
    name, _, value = _code(given).partition("=")
    key = "gpucap_" + name.removeprefix("--").removeprefix("gpucap-").replace("-", "_")
    empty.makeini(f"[pytest]\n{key} = {value}\n")
    said = empty.runpytest().stderr.str().strip()
    assert f"tox.ini: {key}: " in said or answer in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("given", "answer"), rows("Markers"))
def test_markers(pytester: pytest.Pytester, given: str, answer: str) -> None:
    pytester.makepyfile(
        test_it=f"import pytest\n\n@pytest.mark.{_code(given)}\ndef test_it(gpucap):\n    gpucap.check()\n"
    )
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-model=synthetic:tiny")
    said = result.stderr.str().strip()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said.startswith(f"ERROR: test_it.py:3: {answer}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("given", "answer"), rows("Commands"))
def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, answer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("result.json").write_bytes(RESULT.read_bytes())
    assert main(shlex.split(_code(given))[1:]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert len(said.splitlines()) == 1
    assert Path("result.json").read_bytes() == RESULT.read_bytes()


def _damaged(given: str) -> Iterator[bytes]:
    whole = RESULT.read_bytes()
    if given.startswith("cut off"):
        yield whole[: len(whole) // 2]
    elif given.startswith("`NaN`"):
        yield re.sub(rb'": [0-9.]+', b'": NaN', whole, count=1)
    else:
        place, value = (_code(each) for each in given.split(" = "))
        *way, last = [int(each) if each.isdigit() else each for each in re.findall(r"\w+", place)]
        document: Any = json.loads(whole)
        parent = document
        for key in way:
            parent = parent[key]
        assert last in parent, f"there is no {place} in the file"
        parent[last] = json.loads(value)
        yield json.dumps(document).encode()


@pytest.mark.parametrize(("given", "answer"), rows("Result files"))
def test_result_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, answer: str) -> None:
    file = tmp_path / "result.json"
    for content in _damaged(given):
        file.write_bytes(content)
        for command in ("show", "report"):
            assert main([command, str(file)]) == 2
            said = capsys.readouterr().err
            assert answer in said
            assert len(said.splitlines()) == 1


def test_a_signal_without_a_name() -> None:
    assert ended(-9).startswith("it was ended by SIGKILL")
    assert ended(-35).startswith("it was ended by signal 35")
