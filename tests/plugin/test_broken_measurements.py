"""However a server, a file or the machine ends a measurement: one line, a result, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest
from aiohttp import web

from tests.load.tokenserver import TokenServer

pytestmark = pytest.mark.usefixtures("no_gpu")

SHORT: dict[str, Any] = {
    **{f"measure.constants.{name}": 0.4 for name in ("WARM_UP_S", "LOW_HOLD_S", "SEARCH_HOLD_S")},
    **{f"measure.constants.{name}": 1.2 for name in ("DIRECT_S", "DIRECT_LEAST_S")},
    "measure.constants.LEAST_PHASE_S": 0.1,
    "measure.constants.NONE_SEEN": 0.05,
    "load.self_check.CPU_LIMIT": 1e6,
}
"""Phases of a second, however busy the client is."""
SUITE = """
import pytest

@pytest.mark.gpucap(qps=5, headroom=1, input_tokens=32, {keywords})
def test_it(gpucap):
    gpucap.{call}
"""


@dataclass(frozen=True)
class Ending:
    """What a server does, what the test asks of it, and what the user must read."""

    name: str
    words: str
    outcome: str | None
    call: str = "check()"
    keywords: str = "output_tokens=1"
    models: Any = field(default_factory=lambda: {"data": [{"id": "m"}]})
    elsewhere: Any = None
    """The answer on every other path, with 200; None: 404."""
    breaks: dict[str, Any] = field(default_factory=dict)
    """What is replaced in the plugin."""
    passes: bool = False


def nothing_found(*_: Any) -> None:
    raise KeyError("it")


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


PAGE = "<!doctype html><title>Welcome</title>"
ENDINGS = [
    Ending("a page on every path", "PASS test_it at least 5 5 <= 1 of 1", "PASS", elsewhere=PAGE, passes=True),
    Ending("a list on every path", "PASS test_it at least 5 5 <= 1 of 1", "PASS", elsewhere=[1], passes=True),
    Ending("odd models", "does not answer as an OpenAI-compatible server", "INVALID", models={"data": "m"}),
    Ending(
        "a context that is too short",
        "a prompt of 32 and an answer of 64 tokens, which the workload may ask for, do not fit max_model_len=90",
        "INVALID",
        keywords="output_tokens=64",
        models={"data": [{"id": "m", "max_model_len": 90}]},
    ),
    Ending(
        "a buffered stream",
        "tpot_p95 cannot be judged: all tokens of an answer arrive at once: does a proxy buffer the stream?",
        "INVALID",
        keywords='output_tokens=16, tpot_p95="1s"',
    ),
    Ending("no rate", "has no sustainable rate: no rate can be estimated: answers of one", None, "measure()"),
    Ending(
        "a bug of the plugin",
        "a bug in pytest-gpucap at pytest_gpucap/measure/ramp.py:",
        "INVALID",
        breaks={"measure.constants.LOW_SHARE": None},
    ),
    Ending(
        "a bug of another plugin",
        "a bug in */test_broken_measurements.py:*: KeyError: 'it'",
        "INVALID",
        breaks={"measure.ramp.missing_pace": nothing_found},
    ),
    Ending(
        "a machine that fails",
        "OSError: [[]Errno 28[]] No space left on device",
        "INVALID",
        breaks={"load.runner.PhaseTable.create": disk_full},
    ),
]


@contextmanager
def serving(ending: Ending) -> Iterator[str]:
    server = TokenServer()

    async def models(_: web.Request) -> web.Response:
        return web.json_response(ending.models)

    async def anything(_: web.Request) -> web.Response:
        text = ending.elsewhere if isinstance(ending.elsewhere, str) else json.dumps(ending.elsewhere)
        return web.Response(text=text, content_type="text/html" if text == PAGE else "application/json")

    server.app.router.add_get("/v1/models", models)
    if ending.elsewhere is not None:
        server.app.router.add_route("*", "/{path:.*}", anything)
    with server:
        yield server.url


@pytest.mark.usefixtures("lateness_forgiven")
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda each: each.name)
def test_an_ending_is_one_line_and_one_result(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ending: Ending
) -> None:
    for name, value in {**SHORT, **ending.breaks}.items():
        monkeypatch.setattr(f"pytest_gpucap.{name}", value)
    pytester.makepyfile(test_suite=SUITE.format(call=ending.call, keywords=ending.keywords))
    with serving(ending) as url:
        result = pytester.runpytest("--gpucap-url", url, "--gpucap-json=out.json")
    result.assert_outcomes(passed=int(ending.passes), failed=int(not ending.passes))
    told = " ".join(result.stdout.str().split())
    assert "Traceback" not in told or "bug" in ending.name
    assert "INTERNALERROR" not in told
    assert fnmatchcase(told, f"*{ending.words}*"), result.stdout.str()
    (record,) = json.loads((pytester.path / "out.json").read_text())["results"]
    assert record["outcome"] == ending.outcome
    assert record["problems"] == [] or ending.outcome == "INVALID"
    if not ending.passes:
        assert record["reason"]
        assert "\n" not in record["reason"]


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (
            "@pytest.mark.vllm('m', max_model_len=300)",
            "*a prompt of 256 and an answer of 256 tokens*max_model_len=300*",
        ),
        ("@pytest.mark.vllm('m', max_model_len='1k')\n@pytest.mark.gpucap(output_tokens='uniform:1-900')", "*1000*"),
        (
            "@pytest.mark.vllm('m', max_model_len=600)\n@pytest.mark.gpucap(trace='t.csv')",
            "*a prompt of 500 and an answer of 101 tokens*",
        ),
        (
            "@pytest.mark.vllm('m')\n@pytest.mark.gpucap(output_tokens=1, itl_p99='1s')",
            "*itl_p99 limits the time between tokens, but output_tokens=1*",
        ),
    ],
)
def test_what_cannot_fit_is_refused_at_collection(pytester: pytest.Pytester, marker: str, words: str) -> None:
    rows = "arrival_s,input_tokens,output_tokens\n0,500,101\n1,20,500\n2,400,100\n"
    (pytester.path / "t.csv").write_text(rows)
    pytester.makepyfile(f"import pytest\n{marker}\ndef test_it(gpucap):\n    gpucap.check()\n")
    result = pytester.runpytest("--target-qps=1", "--gpu-class=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_a_context_that_holds_every_request_of_a_trace_is_enough(pytester: pytest.Pytester) -> None:
    (pytester.path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,500,101\n1,20,500\n")
    marker = "@pytest.mark.vllm('m', max_model_len=601)\n@pytest.mark.gpucap(trace='t.csv')"
    pytester.makepyfile(f"import pytest\n{marker}\ndef test_it(gpucap):\n    gpucap.check()\n")
    assert pytester.runpytest("--target-qps=1", "--collect-only").ret == pytest.ExitCode.OK
