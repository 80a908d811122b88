"""Inputs that fuzzing has found: each took minutes, or gigabytes of memory, and now keeps what the guard asks for."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest

from pytest_gpucap.engines.startup_diagnosis import diagnose
from pytest_gpucap.engines.vllm import _LOG_NO_EFFECT, METRICS
from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.gpu.classes import GpuClassError, find_class
from pytest_gpucap.load.answer import EVENT_TEXT
from pytest_gpucap.masking import masked
from pytest_gpucap.telemetry.probes import read_metrics
from tests.fuzz import readers
from tests.fuzz.campaign import place_of
from tests.fuzz.doors import Place, formats
from tests.fuzz.guard import Guard

pytestmark = pytest.mark.slow

MIB = 2**20
HALF = MIB // 2


def repeated(before: str, part: str, behind: str = "", *, size: int = HALF) -> bytes:
    """A text whose middle is one part again and again."""
    return f"{before}{part * (size // len(part))}{behind}".encode()


@pytest.fixture
def place(pytester: pytest.Pytester) -> Place:
    return place_of(pytester)


@pytest.fixture
def guard(place: Place) -> Guard:
    return Guard(place.kept)


@pytest.mark.parametrize(
    "log",
    [
        repeated("", "/dev/shm "),
        repeated("", " Quadro "),
        repeated("", "named symbol not found "),
        repeated("", "host='"),
        repeated("", "lib"),
        repeated("", " version `"),
        repeated("", "Failed core proc(s): {"),
        repeated("Value 'sm_", "1"),
        repeated("(EngineCore pid=", "1"),
        repeated("RuntimeError: ", "1"),
        repeated("To serve at least one request with the models's max seq len (1) ", "1"),
        repeated("", "eyJ-"),
        repeated("", "-"),
    ],
    ids=lambda log: log[:40].decode().strip(),
)
def test_a_log(guard: Guard, log: bytes) -> None:
    guard.run(lambda content: harmless(diagnose(masked(content.decode()))), log)


def test_a_line_of_dashes_in_what_a_started_server_logs_is_no_ignored_argument(guard: Guard) -> None:
    guard.run(lambda text: str(len(_LOG_NO_EFFECT.findall(text))), repeated("", "--aa").decode())
    told = "WARNING `--a-b_c` is ignored\nIgnoring --e-f\n--g-h is deprecated and has no effect"
    assert _LOG_NO_EFFECT.findall(told) == [("a-b_c", ""), ("", "e-f"), ("g-h", "")]


def test_a_page_of_metrics(guard: Guard) -> None:
    def read(content: bytes) -> None:
        assert read_metrics(content.decode(), METRICS).running == 1

    guard.run(read, b"".join(repeated("vllm:num_requests_running{", "a", "} 1\n") for _ in range(2)))


@pytest.mark.parametrize(
    "body",
    [
        repeated('{"error": {"message": "', "eyJ-", '"}}', size=8 * MIB),
        repeated('{"error": {"message": "', "a b ", '"}}', size=8 * MIB),
        repeated('{"error": {"type": "', "a b ", '"}}', size=8 * MIB),
    ],
    ids=["like a secret", "long", "a long code"],
)
def test_words_of_a_server(guard: Guard, body: bytes) -> None:
    guard.run(readers._words, body)


@pytest.mark.parametrize(
    "answer",
    [
        readers._page(repeated("", "<script", size=64 * 1024), b"HTTP/1.1 500 Oh\r\n"),
        readers._page(repeated("", "<", size=64 * 1024), b"HTTP/1.1 500 Oh\r\n"),
        b"HTTP/1.1 503 " + b"\x12" * 60_000 + b"\r\n\r\n",
    ],
    ids=["scripts", "brackets", "the words behind a status"],
)
def test_an_answer_to_a_plain_request(guard: Guard, answer: bytes) -> None:
    said: list[str | None] = []
    guard.run(lambda content: said.append(readers._answers(content)), answer)
    assert said[0] is not None
    assert len(said[0]) < 3000


def test_a_token_event_takes_about_the_memory_of_its_text() -> None:
    event = repeated('{"id":"c","choices":[{"index":0,"text":"', "\\na", '"}]}', size=4 * MIB)
    tracemalloc.start()
    (text,) = EVENT_TEXT.findall(event)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(text) > 4 * MIB - 3
    assert peak < 16 * MIB


def test_a_problem_in_a_result_file_of_an_old_version(place: Place, guard: Guard) -> None:
    result = {"problems": [repeated("", " limit of ").decode()]}
    document = {"schema": "pytest-gpucap", "schema_version": 1, "results": [result]}
    guard.run(_format(place, "result files"), json.dumps(document).encode())


def test_a_long_name_in_a_damaged_result_file(place: Place, guard: Guard) -> None:
    result = {"name": repeated("", "a b ", size=16 * MIB).decode(), "samples": 1}
    document = {"schema": "pytest-gpucap", "schema_version": 2, "results": [result]}
    guard.run(_format(place, "result files"), json.dumps(document).encode())


def _format(place: Place, name: str) -> Callable[[bytes], str | None]:
    return next(partial(each.enter, place) for each in formats(place) if each.name == name)


def test_a_name_of_a_gpu_class(guard: Guard) -> None:
    def find(name: str) -> str:
        with pytest.raises(GpuClassError) as refused:
            find_class(name)
        return str(refused.value)[:100]

    guard.run(find, "-" * 100_000 + "x")
