"""The result file: read as it was written, whole at every moment, and refused in one line where it is damaged."""

from __future__ import annotations

import errno
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from pytest_gpucap.requirement import Slo, declared_limits
from pytest_gpucap.results import encoding, result_file, schema
from pytest_gpucap.results.build import declared_slo
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.result_file import GrowingResultFile, ResultFileError
from tests.results import made

RESULTS = [made.check(name=f"test {number} \u2028\n") for number in range(20)]
RECORDED = Path(__file__).parents[2] / "benchmarks" / "results"
SCHEMA = json.loads(schema.PATH.read_text())


def grown(path: Path, upto: int) -> GrowingResultFile:
    file = GrowingResultFile(path)
    for results in range(1, upto + 1):
        file.write(made.session(*RESULTS[:results]))
    return file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def every_kind() -> list[Result]:
    return [
        *map(made.check, Outcome),
        *(made.compared(made.check(), decision) for decision in RegressionDecision),
        made.measured(),
        made.swept(),
        msgspec.structs.replace(made.check(), expected_failure=True),
    ]


def test_it_is_read_as_it_was_written_and_keeps_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    content = made.session(*every_kind())
    result_file.write(path, content)
    assert result_file.read(path) == content
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False) + "\n"
    assert names(path.parent) == ["result.json"]


def test_goodput_is_kept_and_files_without_it_are_read(tmp_path: Path) -> None:
    slo = declared_slo(Slo(declared_limits({"e2e_p99": "20s", "goodput": "95%", "ttft": "500ms"})))
    samples = tuple(msgspec.structs.replace(each, goodput=0.93) for each in made.SAMPLES)
    content = made.session(msgspec.structs.replace(made.check(), slo=slo, samples=samples))
    path = tmp_path / "x.json"
    result_file.write(path, content)
    assert result_file.read(path) == content
    document = json.loads(path.read_text())
    jsonschema.validate(document, SCHEMA)
    (plain,) = document["results"]
    assert plain["slo"]["thresholds"] == {"ttft": 0.5, "e2e": 20.0}
    for sample in plain["samples"]:
        del sample["goodput"]
    del plain["slo"]["goodput"], plain["slo"]["thresholds"]
    path.write_text(json.dumps(document))
    (early,) = result_file.read(path).results
    assert (early.slo.goodput, early.slo.thresholds, early.slo.percentiles) == (None, {}, {"e2e_p99": 20.0})
    assert {sample.goodput for sample in early.samples} == {None}


@pytest.mark.parametrize("slo", [{"goodput": 95}, {"goodput": 0.95, "thresholds": {"itt": 1}}])
def test_a_goodput_that_nobody_declared_is_refused(tmp_path: Path, slo: dict[str, Any]) -> None:
    result_file.write(tmp_path / "x.json", made.session(made.check()))
    document = json.loads((tmp_path / "x.json").read_text())
    document["results"][0]["slo"] |= slo
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(ResultFileError, match=next(reversed(slo))):
        result_file.read(tmp_path / "x.json")


def test_figures_are_rounded_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    sample = msgspec.structs.replace(made.SAMPLES[0], completed_rps=math.nan, start_s=9_000_000.1234, end_s=9_000_030.0)
    rate = Interval(1 / 3, -math.inf, math.inf)
    result = msgspec.structs.replace(made.check(), samples=(sample,), sustainable_rate=rate)
    result_file.write(tmp_path / "x.json", made.session(result))
    (plain,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert plain["sustainable_rate"] == {"value": 0.3333333, "low": None, "high": None, "confidence": 0.95}
    assert (plain["samples"][0]["completed_rps"], plain["samples"][0]["start_s"]) == (None, 9_000_000.123)
    (found,) = result_file.read(tmp_path / "x.json").results
    assert found.sustainable_rate == Interval(0.3333333, -math.inf, math.inf)
    assert math.isnan(found.samples[0].completed_rps)


def holds(new: Any, old: Any) -> bool:
    """Whether a value has all of an older one: objects may have grown new fields."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and holds(new[key], each) for key, each in old.items())
    return bool(new == old)


@pytest.mark.parametrize(
    "path", sorted({*RECORDED.rglob("*.json")}), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_every_recorded_result_file_is_read(path: Path, tmp_path: Path) -> None:
    before = json.loads(path.read_text())
    if before.get("schema") != "pytest-gpucap":
        with pytest.raises(ResultFileError, match="not a result of pytest-gpucap"):
            result_file.read(path)
        return
    found = result_file.read(path)
    result_file.write(tmp_path / "now.json", found)
    after = json.loads((tmp_path / "now.json").read_text())
    jsonschema.validate(after, SCHEMA)
    assert result_file.read(tmp_path / "now.json") == found
    gone = {"label"} if before["schema_version"] == 1 else set()
    for old, new in zip(before["results"], after["results"], strict=True):
        grown = ("requirement", "workload", "slo", "telemetry")
        for part in grown:
            assert holds(new[part] or {}, old.get(part) or {})
        same = old.keys() - {"samples", "points", "problems", "environment", *grown}
        assert {key: new[key] for key in same} == {key: old[key] for key in same}
        for part in ("samples", "points"):
            for one, other in zip(old.get(part, []), new[part], strict=True):
                assert one.keys() - other.keys() == gone
                assert all(other[key] == one[key] for key in one.keys() - {"label", "problems"})
    if not gone:
        return
    labels = [sample["label"] for result in before["results"] for sample in result["samples"]]
    texts = [sample.window.text for result in found.results for sample in result.samples]
    assert texts == [label.replace("below the fall", "below the peak") for label in labels]


def test_a_newer_build_may_have_added_keys(tmp_path: Path) -> None:
    result_file.write(tmp_path / "x.json", made.session(made.check()))
    content = json.loads((tmp_path / "x.json").read_text())
    content["new"] = content["results"][0]["new"] = content["results"][0]["samples"][0]["new"] = {"a": 1}
    content["results"][0]["environment"]["new"] = 1
    (tmp_path / "y.json").write_text(json.dumps(content))
    assert result_file.read(tmp_path / "y.json") == result_file.read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a result of pytest-gpucap"),
        ('{"schema": "other"}', "not a result of pytest-gpucap"),
        ('{"schema": "pytest-gpucap", "schema_version": 99}', "newer than this plugin's"),
        ('{"schema": "pytest-gpucap", "schema_version": 0}', "schema version 0"),
        ('{"schema": "pytest-gpucap"}', "schema version None"),
        ('{"schema": "pytest-gpucap", "schema_version": 2}', "started.* is missing"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ResultFileError, match=f"x.json: .*{message}") as error:
        result_file.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ResultFileError, match=r"gone.json"):
        result_file.read(tmp_path / "gone.json")


def _remove(value: dict[str, Any], key: str) -> None:
    del value[key]


DAMAGE: list[tuple[Callable[[Any], Any], str, str]] = [
    (lambda c: c.update(results=None), "results", "not null"),
    (lambda c: c["results"].append(7), r"results\[2\]", "not int"),
    (lambda c: c["results"][1].update(outcome="MAYBE"), r"results\[1\].outcome \(of 'second'\)", "MAYBE"),
    (lambda c: _remove(c["results"][1], "slo"), r"results\[1\].slo \(of 'second'\)", "is missing"),
    (lambda c: _remove(c["results"][0]["sustainable_rate"], "low"), r"results\[0\].sustainable_rate.low", "is missing"),
    (lambda c: c["results"][0]["samples"][3].update(start_s="x"), r"results\[0\].samples\[3\].start_s", "not str"),
    (
        lambda c: _remove(c["results"][0]["samples"][3]["window"], "rate_rps"),
        r".*samples\[3\].window",
        "needs rate_rps",
    ),
    (lambda c: c["results"][0]["samples"][3].update(completed_rps="x"), r".*samples\[3\].completed_rps", "not str"),
    (lambda c: c["results"][0]["sustainable_rate"].update(high=[]), r".*sustainable_rate.high", "not array"),
    (lambda c: c["results"][0]["requirement"].update(qps=0), r".*requirement.qps", "must be float >= 1e-12"),
    (lambda c: c["results"][0]["requirement"].update(gpus_per_replica=0), r".*gpus_per_replica", "must be int >= 1"),
]


@pytest.mark.parametrize(("damage", "place", "what"), DAMAGE)
def test_damage_is_named_with_its_place(tmp_path: Path, damage: Callable[[Any], Any], place: str, what: str) -> None:
    path = tmp_path / "x.json"
    result_file.write(path, made.session(made.check(name="first"), made.check(name="second")))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultFileError, match=f"x.json: damaged: {place}.*{what}") as error:
        result_file.read(path)
    assert "\n" not in str(error.value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document, with each of its keys or indices."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [*((value, key) for key in keys), *(place for key in keys for place in _places(value[key]))]


@pytest.mark.parametrize("version", [1, 2])
def test_whatever_is_damaged_the_file_is_read_or_refused_in_one_line(version: int) -> None:
    content = json.loads((RECORDED / "cpu" / "examples.json").read_text())
    for result in content["results"]:
        result["samples"], result["series"] = result["samples"][:1], None
        result["samples"][0] |= {"timeline": {}, "histograms": {}}
    if version != 1:
        content = encoding.to_builtins(result_file.from_document(content))
    refused = 0
    for container, key in _places(content):
        kept = container[key]
        for wrong in (None, "x", -1.5, True, ["x"], {"x": 1}):
            container[key] = wrong
            try:
                result_file.from_document(content)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error), error  # noqa: PT017 - not every damage is seen
        container[key] = kept
    assert refused > 500


def test_a_broken_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    content = made.session(made.check())
    result_file.write(path, content)
    with pytest.raises(TypeError, match="may not hold a object"):
        result_file.write(path, made.session(msgspec.structs.replace(made.check(), reason=object())))
    assert result_file.read(path) == content
    assert names(tmp_path) == ["result.json"]


def test_it_is_after_every_test_what_a_file_written_at_once_would_be(tmp_path: Path) -> None:
    file = GrowingResultFile(tmp_path / "deep" / "result.json")
    for results in (1, 2, 3, 7, 8):
        content = made.session(*RESULTS[:results])
        file.write(content)
        result_file.write(tmp_path / "whole.json", content)
        assert file.path.read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert result_file.read(file.path) == content
        assert names(file.path.parent) == ["result.json"]


def test_every_result_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []
    encode = encoding.encoded

    def counted(value: Any) -> bytes:
        encoded.append(value)
        return encode(value)

    monkeypatch.setattr(result_file, "encoded", counted)
    grown(tmp_path / "result.json", len(RESULTS))
    assert [each for each in encoded if isinstance(each, Result)] == RESULTS


def test_a_file_of_another_session_in_our_place_is_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    file = grown(path, 3)
    theirs = grown(path, 5)
    held = tmp_path / "held.json"
    held.hardlink_to(path)
    before = held.read_bytes()
    file.write(made.session(*RESULTS[:4]))
    assert len(result_file.read(path).results) == 4
    theirs.write(made.session(*RESULTS[:6]))
    assert held.read_bytes() == before


def test_what_is_deleted_meanwhile_is_written_anew(tmp_path: Path) -> None:
    file = grown(tmp_path / "deep" / "result.json", 4)
    file.path.unlink()
    file.path.parent.rmdir()
    file.write(made.session(*RESULTS[:5]))
    assert len(result_file.read(file.path).results) == 5


def test_a_full_disk_costs_nothing_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = grown(tmp_path / "result.json", 3)
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            file.write(made.session(*RESULTS[:4]))
    assert len(result_file.read(file.path).results) == 3
    assert names(tmp_path) == ["result.json"]
    file.write(made.session(*RESULTS[:5]))
    assert [each.name for each in result_file.read(file.path).results] == [each.name for each in RESULTS[:5]]


GROW = """
import sys
from pathlib import Path
from tests.results.test_result_file import GrowingResultFile, RESULTS, made
file = GrowingResultFile(Path(sys.argv[1]))
for results in range(1, 10**9):
    file.write(made.session(*RESULTS * (results // 20), *RESULTS[: results % 20]))
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
        assert len(result_file.read(path).results) in (said[-1], said[-1] + 1)
    grown(path, 2)
    assert names(tmp_path) == ["result.json"]


def test_text_that_a_file_cannot_hold_is_escaped(tmp_path: Path) -> None:
    """A name that is no UTF-8 has halves of surrogate pairs."""
    path = tmp_path / "result.json"
    result = msgspec.structs.replace(made.check(), name="a\udcff", test="b\ud800\u00e4\U0001f600")
    result_file.write(path, msgspec.structs.replace(made.session(result), arguments=("c\udcfe",)))
    found = result_file.read(path)
    assert [(each.name, each.test) for each in found.results] == [("a\\udcff", "b\\ud800\u00e4\U0001f600")]
    assert found.arguments == ("c\\udcfe",)
