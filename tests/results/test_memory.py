"""What a hostile result file costs: one line before it is taken apart, or memory within a bound."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap import user_files
from pytest_gpucap.results import migrate, result_file
from pytest_gpucap.results.result import SCHEMA_VERSION
from pytest_gpucap.user_files import MOST_RESULTS

REAL = Path(__file__).parents[2] / "benchmarks" / "results"
HOLE = '"HOLE"'
MOST_TAKEN = 500 * 2**20


def text_around(version: int, place: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    """The text before and behind the place of a real file that is to hold anything."""
    document: dict[str, Any] = json.loads((REAL / "cpu" / "examples.json").read_text())
    assert document["schema_version"] == 1
    if version == SCHEMA_VERSION:
        document = migrate.current(document, SCHEMA_VERSION, migrate.STEPS)
    place(document)
    before, _, behind = json.dumps(document).partition(HOLE)
    return before, behind


def unknown(document: dict[str, Any]) -> None:
    document["unknown"] = "HOLE"


def problems(document: dict[str, Any]) -> None:
    document["results"][0]["problems"] = "HOLE"


def column(document: dict[str, Any]) -> None:
    document["results"][0]["series"]["columns"]["running"] = "HOLE"


def test_more_values_than_a_file_of_ours_can_hold_are_refused_in_one_line(tmp_path: Path) -> None:
    before, behind = text_around(1, unknown)
    path = tmp_path / "result.json"
    path.write_text(f"{before}[{'[],' * 10_000_000}[]]{behind}")
    with pytest.raises(result_file.ResultFileError) as caught:
        result_file.read(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: holds more values than a result file of its size: reading it would take ")


OURS = [path for path in sorted(REAL.glob("h200*/*.json")) if '"pytest-gpucap"' in path.read_text()[:100]]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_file_of_ours_is_read_up_to_a_size_that_sessions_do_not_reach(path: Path) -> None:
    """A result has 10 to 50 kB, so this is more than a thousand of them."""
    data = path.read_bytes()
    assert user_files.json_memory(data) / len(data) * (50 * 2**20) < result_file.MOST_MEMORY
    assert MOST_RESULTS > 50 * 2**20


READ = """
import sys, resource
from pathlib import Path
from pytest_gpucap.results import result_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    result_file.read(Path(sys.argv[1]))
except result_file.ResultFileError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "place", "unit"),
    [
        (1, problems, '"a"'),  # a sentence, of which a whole object is made
        (2, column, "1e5"),
        (2, unknown, "[[[[[[[[]]]]]]]]"),
        (2, unknown, '{"a":[1.5]}'),
        (2, unknown, '{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6}'),
        (2, unknown, '"\N{GRINNING FACE}"'),
    ],
    ids=["sentences", "numbers", "lists", "objects", "keys", "texts"],
)
def test_what_is_read_takes_memory_within_the_bound(
    tmp_path: Path, version: int, place: Callable[[dict[str, Any]], None], unit: str
) -> None:
    before, behind = text_around(version, place)
    around, each = user_files.json_memory(f"{before}[]{behind}".encode()), user_files.json_memory(f",{unit}".encode())
    path = tmp_path / "result.json"
    path.write_text(f"{before}[{','.join([unit] * ((result_file.MOST_MEMORY - around) // each))}]{behind}")
    assert path.stat().st_size < MOST_RESULTS
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MOST_TAKEN
