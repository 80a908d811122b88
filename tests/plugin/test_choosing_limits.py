"""The examples of docs/choosing-limits.md, as they stand, on a simulated server in virtual time."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome

PAGE = (Path(__file__).parents[2] / "docs" / "choosing-limits.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.fixture
def examples(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with a file for each example."""
    pytester.makepyfile(**{f"test_example_{number}": block for number, block in enumerate(BLOCKS)})
    return pytester


def test_every_example_is_a_test_without_a_mistake(examples: pytest.Pytester) -> None:
    """Markers are read, checked and placed at collection."""
    assert len(BLOCKS) == 4
    run = examples.runpytest("--gpu-class=sim:fast", "--collect-only", "-q")
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["4 tests collected*"])


@pytest.mark.slow
def test_every_example_holds_as_it_stands(examples: pytest.Pytester) -> None:
    examples.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=len(BLOCKS))
    results = result_file.read(examples.path / ".gpucap" / "result.json").results
    assert {result.name for result in results if result.outcome is Outcome.PASS} == {"chat", "search", "agent step"}


def test_a_limit_on_itl_beside_goodput_is_refused_as_the_page_says(pytester: pytest.Pytester) -> None:
    (chat,) = (block for block in BLOCKS if 'workload="chat", qps' in block)
    pytester.makepyfile(chat.replace('tpot="50ms"', 'tpot="50ms", itl_p99="300ms"'))
    run = pytester.runpytest("--gpu-class=sim:fast")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["*itl_p99 does not go with goodput*"])


def test_the_arithmetic_of_a_chain_is_right() -> None:
    """0.95^8 = 66%, 0.99^8 = 92%, and 238 words a minute at 1.3 tokens."""
    for share in ("0.95", "0.99"):
        assert f"{float(share) ** 8:.0%}" in PAGE
    assert f"{240 * 1.3 / 60:.0f} tokens a" in " ".join(PAGE.split())
