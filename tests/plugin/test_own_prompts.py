"""Whole runs with prompts of the user's own: measured, told apart, and no word of them anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.load.event_loop import NOT_KEPT
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.workloads.prompt_file import read_prompts
from tests.load.tokenserver import TokenServer

CANARY = "canary-6b1f"
REPORTS = (
    *("--gpucap-json=r.json", "--gpucap-html=r.html", "--gpucap-markdown=r.md", "--junit-xml=j.xml"),
    *("-vv", "-rA"),
)


def results(folder: Path) -> tuple[Result, ...]:
    return result_file.read(folder / ".gpucap" / "result.json").results


def chats(count: int) -> str:
    """So many chats of different lengths; an answer is as long as its line says."""
    said = [f"{CANARY} " * (1 + number % 7) for number in range(count)]
    rows = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": 100 + number}
        for number, text in enumerate(said)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(pytester: pytest.Pytester, result: pytest.RunResult) -> Iterator[tuple[str, str]]:
    """What a run printed, and every file that it left but for the suite and the prompts."""
    yield "terminal", result.stdout.str() + result.stderr.str()
    for path in pytester.path.rglob("*"):
        if path.is_file() and path.suffix not in {".jsonl", ".py", ".pyc"}:
            yield path.name, path.read_bytes().decode("utf-8", "replace")


def told(pytester: pytest.Pytester, result: pytest.RunResult) -> list[str]:
    """Where a prompt's text stands."""
    return [place for place, text in written(pytester, result) if CANARY in text]


def test_a_file_of_prompts_is_measured_and_named_and_not_quoted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        EXTRA = {"chat_template_kwargs": {"enable_thinking": False}}
        pytestmark = pytest.mark.gpucap(prompts="own.jsonl", qps=16, gpus=1, e2e_p95="4s", extra_body=EXTRA)

        def test_check(gpucap):
            gpucap.check()

        @pytest.mark.gpucap(gpus=2, replicas=2)
        def test_sample(gpucap):
            gpucap.sample(rate=5, duration="20s")
        """
    )
    own = pytester.path / "own.jsonl"
    own.write_text(chats(50))
    result = pytester.runpytest("--gpu-class=sim:fast", *REPORTS)
    result.assert_outcomes(passed=2)
    checked, sampled = results(pytester.path)
    workload = checked.workload
    assert (workload.prompts, workload.prompt_count) == ("own.jsonl", 50)
    assert workload.prompts_sha256 == read_prompts(own).sha256 == sampled.workload.prompts_sha256
    # Four characters stand for a token, and there are 12 to 84.
    assert str(workload.input_tokens).endswith("low=3,high=21")
    assert str(workload.output_tokens).endswith("low=100,high=149")
    assert workload.extra_body == '{"chat_template_kwargs": {"enable_thinking": false}}'
    (remark,) = checked.environment.remarks
    assert "own.jsonl has 50 prompts: each was sent" in remark
    for place in ("r.html", "r.md", "r.json"):
        text = dict(written(pytester, result))[place]
        assert "own.jsonl" in text
        assert "thinking" in text
    assert told(pytester, result) == []


def test_base_and_head_get_the_same_prompts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(prompts="own.jsonl", qps=16, gpus=1, e2e_p95="4s", output_tokens=256)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    rows = ({"prompt": f"{number} " * number} for number in range(1, 30))
    (pytester.path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pytester.runpytest("--gpu-class=sim:fast", "--gpucap-base-args=--time-scale 1").assert_outcomes(passed=1)
    (found,) = results(pytester.path)
    assert found.comparison is not None
    assert found.comparison.ratio is not None
    assert found.comparison.ratio.low < 1 < found.comparison.ratio.high
    assert (found.workload.endpoint, found.workload.output_tokens) == ("completions", 256)


MISTAKES = {
    'prompts="none.jsonl"': "prompts: there is no file ",
    'prompts="bad.jsonl"': "bad.jsonl:2: not JSON",
    'prompts="own.jsonl", input_tokens=5': "prompts and input_tokens exclude each other",
    'prompts="own.jsonl", shared_prefix_tokens=5': "prompts and shared_prefix_tokens exclude each other",
    'prompts="own.jsonl", images="64x64"': "prompts and images exclude each other",
    'prompts="own.jsonl", audio="10s"': "prompts and audio exclude each other",
    'prompts="own.jsonl", system="Be brief."': "system stands around prompts that are texts, and ",
    'prompts="own.jsonl", endpoint="completions"': 'own.jsonl:1: "messages" need endpoint="chat"',
    "prompts=3": "prompts must be the name of a file, not 3",
    'extra_body={"stream": True}': "extra_body: stream is not for it",
}


def test_every_mistake_is_one_line_before_anything_starts(pytester: pytest.Pytester) -> None:
    tests = [
        f"@pytest.mark.gpucap(qps=1, gpus=1, {given})\ndef test_{number}(gpucap): gpucap.check()\n"
        for number, given in enumerate(MISTAKES)
    ]
    tests.append(
        '@pytest.mark.vllm(enable_log_requests=True)\n@pytest.mark.gpucap(qps=1, prompts="own.jsonl")\n'
        "def test_log(gpucap): gpucap.check()\n"
    )
    pytester.makepyfile("import pytest\n" + "\n".join(tests))
    (pytester.path / "own.jsonl").write_text(chats(3))
    (pytester.path / "bad.jsonl").write_text(chats(1) + f'{{"prompt": "{CANARY}\n')
    result = pytester.runpytest("--gpu-class=cpu", "-l", "-vv")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = [line for line in result.stderr.str().splitlines() if ".py:" in line]
    wanted = [*MISTAKES.values(), "enable_log_requests would write the prompts of the file into the server's log"]
    assert len(said) == len(wanted)
    assert all(text in line for text, line in zip(wanted, said, strict=True))
    assert told(pytester, result) == []
    assert not (pytester.path / ".gpucap" / "logs").exists()


def test_load_from_other_nodes_is_refused_since_prompts_stay_here(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.vllm(model='m')\n"
        "@pytest.mark.gpucap(qps=1, gpus=2, replicas=2, prompts='own.jsonl')\n"
        "def test_it(gpucap): gpucap.check()\n"
    )
    (pytester.path / "own.jsonl").write_text(chats(3))
    result = pytester.runpytest("--gpucap-launcher=ray", "--gpucap-load-from=replicas", "--gpu-class=a10g")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gpucap-load-from=replicas: prompts of a file stay on this machine: leave the *"])


async def _counts_and_refuses(request: web.Request) -> web.Response:
    """Answers probes, and repeats what is to be streamed in its refusal."""
    text = await request.text()
    body = json.loads(text)
    if body.get("stream"):
        return web.json_response({"error": {"message": f"cannot parse {text}"}}, status=400)
    return web.json_response({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})


@pytest.mark.usefixtures("lateness_forgiven")
def test_a_server_that_repeats_prompts_in_its_errors_tells_nobody(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(prompts="own.jsonl", qps=4, gpus=1)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    (pytester.path / "own.jsonl").write_text(chats(50))
    with TokenServer(handler=_counts_and_refuses) as server:
        result = pytester.runpytest(f"--gpucap-url={server.url}", "--gpucap-model=m", *REPORTS)
    assert told(pytester, result) == []
    (found,) = results(pytester.path)
    assert found.outcome is Outcome.INVALID
    assert found.failed_requests is not None
    assert {each.text for each in found.failed_requests.kinds} == {NOT_KEPT}


@pytest.mark.vllm_cpu
@pytest.mark.slow
@pytest.mark.usefixtures("short_phases")
def test_a_real_vllm_counts_the_prompts_and_gets_what_their_lines_say(
    pytester: pytest.Pytester, vllm_cpu_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", f"{vllm_cpu_server.api_key}")
    pytester.makepyfile(
        """
        import pytest

        EVERY_TOKEN = {"stop_token_ids": list(range(2048))}

        @pytest.mark.gpucap(prompts="own.jsonl", qps=1, gpus=1, ignore_eos=False, extra_body=EVERY_TOKEN)
        def test_it(gpucap):
            gpucap.sample(rate=2, duration="8s")
        """
    )
    rows = [
        {"messages": [{"role": "user", "content": f"{CANARY} {number} " * (1 + number % 5)}], "max_tokens": 5}
        for number in range(40)
    ]
    (pytester.path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"--gpucap-url={vllm_cpu_server.base_url}"
    result = pytester.runpytest_subprocess(url, "--gpucap-api-key-env=MY_KEY", *REPORTS)
    result.assert_outcomes(passed=1)
    (found,) = results(pytester.path)
    assert found.workload.prompt_count == 40
    assert found.failed_requests is None
    # Prompts were counted exactly, and every answer ended with its first token.
    assert found.environment.remarks == ("5 output tokens were asked for on average, and 1 came",)
    assert told(pytester, result) == []
