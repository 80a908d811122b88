"""Cold and warm starts, by the lines of vLLM's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.engines.compile_cache import start_kind

START_LOGS = Path(__file__).with_name("start_logs")


def test_a_recorded_start_that_compiled_was_cold() -> None:
    assert start_kind((START_LOGS / "cpu_0_32.txt").read_text()) == "cold"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["[backbone] Directly load AOT compilation from path /root/.cache/vllm/x"], "warm"),
        (["Directly load the compiled graph(s) for compile range (1, 2048) from the cache, took 1.234 s"], "warm"),
        (["Directly load the compiled graph(s) for dynamic shape from the cache, took 1.234 s"], "warm"),
        (["Cache the graph of compile range (1, 2048) for later use"], "cold"),
        (["Compiling a graph for dynamic shape takes 12.34 s"], "cold"),
        (["Directly load the compiled graph(s) for shape 1 from the cache", "Compiling a graph for shape 2"], "cold"),
        (["unable to save AOT compiled function to /root/x: disk full"], "cold"),
        (["init engine (profile, create kv cache, warmup model) took 34.18 s"], None),
        ([], None),
    ],
)
def test_what_lines_say(lines: list[str], kind: str | None) -> None:
    assert start_kind("\n".join(f"(EngineCore pid=1) INFO 11-29 23:56:12 [x.py:1] {each}" for each in lines)) == kind
