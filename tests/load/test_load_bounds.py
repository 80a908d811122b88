"""What comes from outside takes no more than its bounds: counts, texts, descriptors, heads of answers."""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.load.shared_memory import read_shared_bytes, shared_bytes
from pytest_gpucap.requirement import ApiKind, Length, Wording, Workload
from pytest_gpucap.simulator.serve import start_simulator
from tests.load.rawserver import HEAD, RawServer, chunk, events, good, token, usage
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

WORKLOAD = Workload(Length.fixed(32), Length.fixed(4), endpoint=ApiKind.COMPLETIONS)


def driven(
    url: str, workload: Workload = WORKLOAD, seconds: float = 0.5, model: str = "m"
) -> tuple[list[Status], list[str], int]:
    """The statuses of a short open loop, what was said of those that failed, and the most memory that a worker held."""
    with HttpLoadRunner(url, model, None, workload, 1, workers=1) as runner:
        runner.run(open_loop(workload, 20.0, seconds, 1, 0))
        assert runner.settle(FOREVER_S)
        held = max(psutil.Process(pid).memory_info().rss for pid in runner.worker_pids)
        statuses = [Status(each) for each in runner.journal().status]
        return statuses, [each.text for each in runner.error_texts()], held


def ending(counted: int, prompt: int = 32) -> list[bytes]:
    """A good answer whose usage counts so many tokens."""
    data = [*events()[:-2], usage(prompt, counted), b"[DONE]"]
    return [HEAD, *(chunk(b"data: %b\n\n" % each) for each in data), b"0\r\n\r\n"]


@pytest.mark.parametrize("counted", [65, 60_000_000, 2**31 - 1])
def test_a_usage_beyond_what_was_asked_for_is_a_protocol_error(counted: int) -> None:
    with RawServer(good()) as server:
        _, _, usual = driven(server.url)
    with RawServer(ending(counted)) as server:
        statuses, texts, held = driven(server.url)
    assert set(statuses) == {Status.PROTOCOL}
    assert f"{counted} tokens came or were counted, and 4 were asked for" in texts[0]
    assert held < 1.5 * usual


@pytest.mark.parametrize("counted", [4, 16, 64])
def test_a_few_times_what_was_asked_for_is_an_answer(counted: int) -> None:
    with RawServer(ending(counted)) as server:
        statuses, _, _ = driven(server.url)
    assert set(statuses) == {Status.OK}


def test_more_events_than_a_few_times_what_was_asked_for_are_a_protocol_error() -> None:
    data = [*(token() for _ in range(99)), token("t", finish="length"), usage(32, 100), b"[DONE]"]
    with RawServer([HEAD, *(chunk(b"data: %b\n\n" % each) for each in data), b"0\r\n\r\n"]) as server:
        statuses, _, _ = driven(server.url)
    assert set(statuses) == {Status.PROTOCOL}


def test_a_prompt_beyond_32_bits_ends_no_worker() -> None:
    big = 2**31 - 1
    data = usage(big, 4).replace(b'"usage":{', b'"usage":{"prompt_tokens_details":{"cached_tokens":%d},' % (2**30 - 1))
    told = [*events()[:-2], data, b"[DONE]"]
    with RawServer([HEAD, *(chunk(b"data: %b\n\n" % each) for each in told), b"0\r\n\r\n"]) as server:
        statuses, _, _ = driven(server.url)
    assert Status.IN_FLIGHT not in statuses


@pytest.mark.parametrize("kilobytes", [1, 240, 600])
def test_texts_around_prompts_may_be_longer_than_a_datagram(kilobytes: int) -> None:
    workload = Workload(Length.fixed(64), Length.fixed(2), wording=Wording(system="s" * 1024 * kilobytes))
    with start_simulator("fast") as server:
        statuses, texts, _ = driven(server.base_url, workload, 0.2, model=server.model)
    assert set(statuses) == {Status.OK}, texts


def test_shared_bytes_come_back_as_they_were() -> None:
    for data in (b"", b"a", bytes(range(256)) * 4096):
        assert read_shared_bytes(shared_bytes(data), len(data)) == data


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As a process has them that holds 1,100 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_beyond_1023_are_as_good_as_others() -> None:
    with TokenServer() as server:
        statuses, texts, _ = driven(server.url)
    assert set(statuses) == {Status.OK}, texts


@pytest.mark.usefixtures("many_descriptors")
def test_a_simulated_server_starts_beyond_1023_descriptors() -> None:
    with start_simulator("fast") as server:
        assert server.models()


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 60_000,
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 600_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 30_000,
        HEAD + b"0\r\n" + b"X-More: 1\r\n" * 60_000,
        HEAD + b"1;" + b"x" * 600_000,
    ],
    ids=["headers", "a header", "interim answers", "trailers", "a chunk's extension"],
)
def test_an_answer_of_heads_alone_is_given_up(flood: bytes) -> None:
    with RawServer([flood[at : at + 65536] for at in range(0, len(flood), 65536)]) as server:
        statuses, texts, _ = driven(server.url, seconds=0.1)
    assert set(statuses) <= {Status.PROTOCOL, Status.RESET}
    assert any("without a body" in text for text in texts)


def test_a_long_log_is_read_from_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    with path.open("wb") as file:
        file.write(b"settings\n")
        file.truncate(2 << 30)  # sparse: it takes no disk
        file.seek(0, os.SEEK_END)
        file.write(b"\nstep 1\rstep 2\r\n" + b"x" * 5000 + b"\nthe cause\n")
    log = ServerLog(path)
    tracemalloc.start()
    text, tail = log.text(), log.tail(3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert text.startswith("settings\n")
    assert text.endswith("the cause\n")
    assert "bytes are left out" in text
    assert tail.splitlines()[0] == "step 2"
    assert tail.splitlines()[1] == "x" * 2000 + "..."
    assert tail.splitlines()[2] == "the cause"


def test_a_short_log_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    assert ServerLog(path).text() == ServerLog(path).tail() == ""
    for lines in (1, 200_000, 400_000):
        text = "".join(f"line {number}\n" for number in range(lines))
        path.write_text(text)
        if len(text) <= 4 << 20:
            assert ServerLog(path).text() == text
        assert ServerLog(path).tail(2).splitlines() == text.splitlines()[-2:]
