"""Whether the process that answers is still the one that answered first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat

import pytest

from pytest_gpucap.engines.answering import Answering, listeners, port_of
from pytest_gpucap.engines.errors import EndpointError

LOOK_S = 1_000_000.0
"""Of the first look, on the clock of the pages."""
LISTENS = """
import socket, sys
made = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
print(made.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.communicate()


def page_of(*started: float) -> str:
    return "".join(f"process_start_time_seconds {each!r}\n" for each in started) or "up 1\n"


def answering(*pages: str, port: int | None = None) -> Answering:
    told = chain(pages, repeat(pages[-1]))
    return Answering(port, lambda: next(told), lambda: LOOK_S)


def no_page() -> str:
    raise EndpointError("there is none", status=404)


def test_a_port_that_passes_to_another_process() -> None:
    with listening() as (first, port):
        assert listeners(port) == {first.pid}
        known = Answering(port, no_page)
        assert (known.ended(), known.replaced()) == ("", "")
        with listening(port) as (second, _):
            assert listeners(port) == {first.pid, second.pid}
            assert known.ended() == ""
            first.kill()
            first.wait()
            assert listeners(port) == {second.pid}
            assert known.ended() == known.replaced() == f"the process {first.pid} that answered has ended"
            assert Answering(port, no_page).ended() == ""


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    with listening() as (first, port):
        known = Answering(port, no_page)
        first.kill()
        while known.ended() == "":  # it is a zombie until `wait`
            pass


def test_a_port_where_nobody_listens_tells_nothing() -> None:
    with listening() as (first, port):
        first.kill()
        first.wait()
        known = Answering(port, no_page)
        assert (known.ended(), known.replaced()) == ("", "")


def test_a_start_after_the_first_look_is_a_restart() -> None:
    known = answering(page_of(LOOK_S - 900.5), page_of(LOOK_S + 31.2))
    assert known.ended() == ""  # the page is read when asked to only
    assert known.replaced() == "a process started 31 s after the first answer, and now answers"


@pytest.mark.parametrize(
    "pages",
    [
        (page_of(LOOK_S - 9),),
        (page_of(LOOK_S - 9), page_of(LOOK_S - 5), page_of(LOOK_S - 9)),
        (page_of(LOOK_S + 400.0), page_of(LOOK_S + 400.0)),
        (page_of(), page_of(LOOK_S + 9)),
        (page_of(LOOK_S - 9), page_of()),
        (page_of(LOOK_S - 9), "process_start_time_seconds nan\nprocess_start_time_seconds ....\n"),
        (page_of(LOOK_S - 9), f"# process_start_time_seconds {LOOK_S + 9}\nx_process_start_time_seconds {LOOK_S + 9}"),
        (page_of(LOOK_S - 9, LOOK_S - 5), page_of(LOOK_S - 5)),
    ],
    ids=["same", "balancer", "fast clock", "told late", "told no more", "no number", "other figures", "one of two"],
)
def test_what_is_no_restart(pages: tuple[str, ...]) -> None:
    known = answering(*pages)
    assert [known.replaced() for _ in range(4)] == [""] * 4


@pytest.mark.parametrize(
    "line",
    [
        f"process_start_time_seconds {LOOK_S + 9}",
        "process_start_time_seconds 1.000009e+06\r",
        f'process_start_time_seconds{{pod="a"}} {LOOK_S + 9} 1700000000000',
    ],
)
def test_forms_of_the_figure(line: str) -> None:
    page = f"# TYPE process_start_time_seconds gauge\n{line}\nother 1\n"
    assert answering(page_of(LOOK_S - 9), page).replaced() != ""


def test_a_page_that_is_refused_later_tells_nothing() -> None:
    pages = iter([page_of(LOOK_S - 9)])

    def page() -> str:
        for each in pages:
            return each
        return no_page()

    assert Answering(None, page, lambda: LOOK_S).replaced() == ""


def test_the_port_of_a_url() -> None:
    assert [port_of(url) for url in ("http://[::1]:8000/v1", "http://localhost/v1", "https://localhost/v1")] == [
        8000,
        80,
        443,
    ]
