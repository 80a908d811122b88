"""What a start was spent on, from lines as vLLM's versions word them, and from the log of a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpucap.engines.start_phases import start_phases

LOGS = Path(__file__).with_name("start_logs")
STARTED_AT = 1_772_000_000.25
"""When most starts here begin: a quarter of a second after a whole one."""
READY_S = 65.5
ONE_ENGINE = "(EngineCore_DP0 pid=11) "
Line = tuple[float, str]
"""Seconds after the start, and what is logged then."""


@pytest.fixture(params=["UTC", "America/St_Johns", "Asia/Kathmandu"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A log has local time, whatever that is."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def log(*lines: Line, process: str = ONE_ENGINE, started_at: float = STARTED_AT) -> str:
    """Lines with their time as vLLM writes it: the local one, without its year."""
    stamps = [time.strftime("%m-%d %H:%M:%S", time.localtime(started_at + after_s)) for after_s, _ in lines]
    told = zip(stamps, lines, strict=True)
    return "".join(f"{process}INFO {stamp} [some.py:1] {text}\n" for stamp, (_, text) in told)


CONFIGURED = "Initializing a V1 LLM engine (v0.15.1) with config: model='org/model', speculative_config=None"
LOADED = "Model loading took 3.4200 GiB memory and 4.902026 seconds"
COMPILED = "torch.compile takes 16.51 s in total"
CAPTURED = "Graph capturing finished in 17 secs, took 0.48 GiB"
BEGUN = "init engine (profile, create kv cache, warmup model) took 34.11 seconds"

VERSIONS: dict[str, tuple[str, tuple[Line, ...]]] = {
    "0.9": (
        "",
        (
            (20, CONFIGURED),
            (22, "Starting to load model org/model..."),
            (26, "Loading weights took 3.10 seconds"),
            (27, "Model loading took 3.4213 GiB and 4.902026 seconds"),
            (35, "Dynamo bytecode transform time: 7.51 s"),
            (44, COMPILED),
            (61, CAPTURED),
            (61, BEGUN),
        ),
    ),
    "0.15": (
        ONE_ENGINE,
        ((20, CONFIGURED), (26, "Loading weights took 3.10 seconds"), (27, LOADED), (44, COMPILED), (61, CAPTURED))
        + ((61, BEGUN),),
    ),
    "0.20, a cache that is warm and a draft model": (
        "(EngineCore pid=11) ",
        (
            (20, CONFIGURED),
            (27, LOADED),
            (40, "[backbone] torch.compile took 12.51 s in total"),
            (44, "[eagle_head] torch.compile took 4.00 s in total"),
            (45, "[backbone] Initial profiling/warmup run took 0.60 s"),
            (61, CAPTURED),
            (61, "init engine (profile, create kv cache, warmup model) took 34.11 s"),
        ),
    ),
    "0.32": (
        "(EngineCore pid=11) ",
        (
            (20, CONFIGURED),
            (27, LOADED),
            (40, "[backbone] torch.compile took 12.51 s in total"),
            (61, CAPTURED),
            (
                61,
                "init engine (profile, create kv cache, warmup model) took 34.11 s (compilation: 16.51 s - ...)",
            ),
        ),
    ),
}
WHOLE = {
    "imports": 20.25,
    "weights": 4.9,
    "compile": 16.51,
    "profiling": 0.6,
    "graph capture": 17.0,
    "readiness": 4.25,
}
"""A line may have come at any moment of its second, so its middle counts."""


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_start_on_a_gpu(version: str) -> None:
    process, lines = VERSIONS[version]
    found = start_phases(log(*lines, process=process), STARTED_AT, READY_S)
    assert found == WHOLE
    assert list(found) == list(WHOLE)
    assert sum(found.values()) <= READY_S


def test_a_download_is_no_part_of_the_weights() -> None:
    fetched = log((24, "Time spent downloading weights for org/model: 3.500000 seconds"))
    found = start_phases(fetched + log((27, LOADED)), STARTED_AT, READY_S)
    assert found == {"download": 3.5, "weights": 1.4}
    others = fetched + log((27, "Loading weights took 1.25 seconds"))
    assert start_phases(others, STARTED_AT, READY_S) == {"download": 3.5, "weights": 1.25}


def test_processes_side_by_side_take_as_long_as_the_slowest() -> None:
    """Two engines with two workers each. A phase of one process may be logged in parts."""
    text = "".join(
        log(
            (20 + engine, CONFIGURED),
            (61 + engine, f"init engine (profile, create kv cache, warmup model) took {30 + engine}.50 s"),
            process=f"(EngineCore_DP{engine} pid={engine}) ",
        )
        + "".join(
            log(
                (27, f"Model loading took 3.42 GiB memory and {4 + worker}.500000 seconds"),
                (44, f"torch.compile took {9 + engine}.00 s in total"),
                (61, "Graph capturing finished in 3 secs, took 0.48 GiB"),
                (61, f"Graph capturing finished in {worker} secs, took 0.08 GiB"),
                process=f"(Worker_DP{engine}_TP{worker} pid={engine}{worker}) ",
            )
            for worker in (0, 1)
        )
        for engine in (0, 1)
    )
    assert start_phases(text, STARTED_AT, READY_S) == {
        "imports": 21.25,
        "weights": 5.5,
        "compile": 10.0,
        "profiling": 17.5,
        "graph capture": 4.0,
        "readiness": 3.25,
    }


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ((), {}),
        (((20, CONFIGURED),), {"imports": 20.25}),
        (((44, COMPILED),), {"compile": 16.51}),  # and not a word on the rest of the engine's start
        (((61, BEGUN),), {"profiling": 34.11, "readiness": 4.25}),  # with enforce_eager
        (((44, "Starting to load model org/model..."),), {}),  # and no line that ends it
    ],
)
def test_what_a_log_does_not_tell_is_left_out(lines: tuple[Line, ...], known: dict[str, float]) -> None:
    assert start_phases(log(*lines), STARTED_AT, READY_S) == known


def test_lines_without_a_time_tell_what_they_state() -> None:
    """As of `VLLM_LOGGING_CONFIG_PATH`: any form that the user likes."""
    text = "\n".join(["vllm.core: " + each for each in (CONFIGURED, LOADED, COMPILED, CAPTURED, BEGUN)])
    assert start_phases(text, STARTED_AT, READY_S) == {
        name: WHOLE[name] for name in ("weights", "compile", "profiling", "graph capture")
    }


@pytest.mark.parametrize("hours", [-9, 5.5])
def test_times_of_another_zone_are_not_taken(hours: float) -> None:
    _, lines = VERSIONS["0.15"]
    assert start_phases(log(*lines, started_at=STARTED_AT + hours * 3600), STARTED_AT, READY_S) == {
        name: WHOLE[name] for name in ("weights", "compile", "profiling", "graph capture")
    }


def test_a_start_on_new_years_eve() -> None:
    at = time.mktime((2026, 12, 31, 23, 59, 50, 0, 0, -1))
    text = log(
        (20, CONFIGURED), (30, "init engine (profile, create kv cache, warmup model) took 5.00 s"), started_at=at
    )
    assert start_phases(text, at, 32.0) == {"imports": 20.5, "profiling": 5.0, "readiness": 1.5}


def test_a_log_of_another_start_tells_nothing() -> None:
    _, lines = VERSIONS["0.15"]
    assert start_phases(log(*lines), STARTED_AT, 30.0) == {}


def test_whole_seconds_do_not_make_the_parts_more_than_the_whole() -> None:
    _, lines = VERSIONS["0.15"]
    found = start_phases(log(*lines), STARTED_AT, 59.0)
    assert found["imports"] == 19.99  # the others state their time
    assert sum(found.values()) == pytest.approx(59.0)


@pytest.mark.usefixtures("zone")
def test_the_log_of_a_real_server_on_the_cpu() -> None:
    """It states no time of its compilation, and its weights are made, not read."""
    text = (LOGS / "cpu_0_32.txt").read_text()
    began_at = time.mktime((2026, 11, 29, 23, 54, 48, 0, 0, -1)) + 0.7
    assert start_phases(text, began_at, 86.74) == {
        "imports": 44.8,
        "weights": 2.82,
        "compile": 34.0,
        "profiling": 0.18,
        "readiness": 2.94,
    }
