"""A session compiles what is not compiled yet while its first server starts, and measures when that is done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_gpucap.session.compiling import CompileAhead, is_compiled
from tests.waiting import FOREVER_S

SERVER = Path(__file__).with_name("fast_vllm.py")
SUITE = """
    import pytest

    @pytest.mark.vllm("synthetic:tiny")
    @pytest.mark.gpucap(input_tokens=32, output_tokens=8)
    def test_window(gpucap):
        gpucap.sample(rate=8, duration="2s")
"""


def test_it_is_done_before_the_first_request_of_the_load(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, short_warm_up: None, lateness_forgiven: None
) -> None:
    """Numba has the code; the plugin does not know that yet."""
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    marker = pytester.path / "marker"
    monkeypatch.setattr("pytest_gpucap.session.compiling.marker_path", lambda: marker)
    monkeypatch.setattr("pytest_gpucap.session.compiling._PATIENCE_S", FOREVER_S)
    begun: list[int | None] = []
    finished: list[bool] = []
    begin, finish = CompileAhead.begin, CompileAhead.finish

    def begin_watched(self: CompileAhead) -> None:
        begin(self)
        begun.append(self.pid)

    def finish_watched(self: CompileAhead, waiting: object) -> None:
        finish(self, waiting)  # type: ignore[arg-type]
        finished.append(is_compiled(marker))

    monkeypatch.setattr(CompileAhead, "begin", begin_watched)
    monkeypatch.setattr(CompileAhead, "finish", finish_watched)
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={python}", "--gpucap-host-check=off").assert_outcomes(
        passed=1
    )
    assert len(begun) == 1
    assert begun[0] is not None
    assert finished == [True]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_simulated_run_says_that_it_compiles(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr("pytest_gpucap.simulator.engine.is_compiled", lambda _: compiled)
    pytester.makepyfile(test_it=SUITE)
    result = pytester.runpytest("--gpu-class=sim:fast")
    result.assert_outcomes(passed=1)
    said = [line for line in result.outlines if "compiling the simulator, once after an installation" in line]
    assert len(said) == (not compiled)
