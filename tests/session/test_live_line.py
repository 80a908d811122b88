"""The lines that are shown while it is measured."""

from __future__ import annotations

import math
import os

import pytest

from pytest_gpucap.session.live_line import LiveLine

CLEAR = "\r\x1b[K"


class Screen:
    """What was written, and a clock that stands until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
        self.written: list[str] = []
        self.now_s = 0.0
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr("shutil.get_terminal_size", lambda: size)

    def live(self, name: str = "chat", *, interactive: bool = True) -> LiveLine:
        return LiveLine(name, self.written.append, interactive=interactive, clock=lambda: self.now_s)

    @property
    def line(self) -> str:
        return self.written[-1].removeprefix(CLEAR)


def progress(
    live: LiveLine, screen: Screen, *, spent_s: float = 29.0, completed: int = 190, latency_s: float = 3.86
) -> None:
    screen.now_s += 1
    live.progress(
        "hold 1",
        in_flight=128,
        completed=completed,
        latency="e2e_p95",
        latency_s=latency_s,
        limit_s=4.0,
        spent_s=spent_s,
        left_s=600 - spent_s,
    )


def begin(live: LiveLine, spent_s: float = 19.0) -> None:
    live.phase("hold 1", rate_rps=None, concurrency=128, duration_s=10.0, spent_s=spent_s)


def test_one_line_says_it_all_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live()
    live.gpu = lambda: "GPU 97% 412 W"
    begin(live)
    progress(live, screen)
    assert screen.line == "chat: hold 1, 19 req/s, p95 E2E 3.86 s of 4 s, GPU 97% 412 W, 29 s, 571 s left"
    assert len(screen.line) <= 79
    assert all(each.startswith(CLEAR) and "\n" not in each for each in screen.written)


def test_a_long_name_gives_way_to_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live("a requirement with a long name")
    begin(live)
    progress(live, screen)
    assert screen.line.startswith("a requirement")
    assert screen.line.endswith("...: hold 1, 19 req/s, p95 E2E 3.86 s of 4 s, 29 s, 571 s left")
    assert len(screen.line) == 79


def test_a_wide_screen_has_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, columns=120)
    live = screen.live()
    live.gpu = lambda: "GPU 97% 412 W"
    begin(live)
    progress(live, screen)
    assert screen.line == (
        "chat: hold 1, 128 in flight, 19 req/s, p95 E2E 3.86 s of 4 s, GPU 97% 412 W, 29 s, 571 s left"
    )


def test_what_is_not_known_yet_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live()
    begin(live)
    progress(live, screen, completed=0, latency_s=math.nan)
    assert screen.line == "chat: hold 1, 128 in flight, 29 s, 571 s left"


@pytest.mark.parametrize("columns", [20, 40, 79, 80, 200])
def test_the_line_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = Screen(monkeypatch, columns)
    live = screen.live("a requirement with a long name " * 5)
    begin(live)
    progress(live, screen)
    live.waiting("vLLM starting: " + "x" * 300)
    assert max(len(each.removeprefix(CLEAR)) for each in screen.written) < columns


def test_it_is_renewed_a_few_times_a_second_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live()
    begin(live)
    before = len(screen.written)
    for _ in range(100):
        screen.now_s -= 0.99
        progress(live, screen)
    assert len(screen.written) - before <= 6


def test_without_a_terminal_there_is_a_line_a_phase_and_no_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live(interactive=False)
    begin(live)
    progress(live, screen)
    live.done()
    assert screen.written == ["chat: hold 1 with 128 in flight, 10 s (19 s spent)\n"]


def test_a_wait_is_said_twice_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live(interactive=False)
    for _ in range(61):
        live.waiting("vLLM starting")
        screen.now_s += 1
    assert screen.written == ["chat: vLLM starting\n"] * 3


def test_a_line_that_stays_replaces_the_live_one_and_the_end_leaves_a_fresh_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen(monkeypatch)
    live = screen.live()
    begin(live)
    live.say("vLLM is ready")
    live.say("log here")
    begin(live)
    live.done()
    live.done()
    assert screen.written[1:3] == [f"{CLEAR}chat: vLLM is ready\n", "chat: log here\n"]
    assert screen.written[4:] == [f"{CLEAR}\x1b[A\n"]


def test_nothing_from_outside_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live("evil\x1b[2J\n")
    live.say("a log line\x1b]0;title\x07 and\r more")
    assert screen.written == ["evil\\x1b[2J: a log line\\x1b]0;title\\x07 and more\n"]


def test_silence() -> None:
    live = LiveLine("chat", None, interactive=True)
    live.say("x")
    begin(live)
    live.waiting("x")
    live.done()


def test_goodput_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    live = screen.live()
    begin(live)
    screen.now_s += 1
    live.progress(
        "hold 1",
        in_flight=128,
        completed=190,
        latency="goodput_95",
        latency_s=0.9312,
        limit_s=0.95,
        spent_s=29.0,
        left_s=571.0,
    )
    assert ", goodput 93.1% of 95%, " in screen.line
