"""Whole runs with sessions from a file: measured, told apart, and no word of them anywhere."""

from __future__ import annotations

import json

import pytest

from pytest_gpucap.history.comparable import differences
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result
from tests.plugin.test_own_prompts import CANARY, REPORTS, told, written

SAMPLED = """
import pytest

@pytest.mark.gpucap(sessions="own.jsonl")
def test_sample(gpucap):
    gpucap.sample(rate=5, duration="5s")
"""
TALK = [{"from": "human", "value": f"{CANARY} one?"}, {"from": "gpt", "value": f"{CANARY} " * 20}] * 3


def results(pytester: pytest.Pytester) -> tuple[Result, ...]:
    return result_file.read(pytester.path / ".gpucap" / "result.json").results


def talks(count: int) -> str:
    return "".join(json.dumps({"conversations": [*TALK, *TALK[: 2 * (n % 4)]]}) + "\n" for n in range(count))


def trace(requests: int) -> str:
    """Chats of Bailian's of one to four requests; all begin with one block, and a request repeats those before it."""
    rows = []
    for number in range(requests):
        chat, turn = divmod(number, 4)
        blocks = [0, *range(100 * chat + 1, 100 * chat + 10 * turn + 9)]
        row = {"chat_id": number, "parent_chat_id": number - 1 if turn else -1, "timestamp": 2.0 * chat + 3.0 * turn}
        rows.append({**row, "input_length": 16 * len(blocks), "output_length": 40, "hash_ids": blocks})
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_sessions_of_a_file_are_measured_and_named_and_not_quoted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(sessions="talks.jsonl think=1s", qps=1, gpus=1, headroom=1, e2e_p95="9s", workload="chat")
        def test_check(gpucap):
            gpucap.check()

        @pytest.mark.gpucap(sessions="trace.jsonl", arrivals="trace")
        def test_sample(gpucap):
            gpucap.sample(rate=5, duration="60s")
        """
    )
    talk_file, trace_file = pytester.path / "talks.jsonl", pytester.path / "trace.jsonl"
    talk_file.write_text(talks(30))
    trace_file.write_text(trace(400))
    run = pytester.runpytest("--gpu-class=sim:few", *REPORTS)
    run.assert_outcomes(passed=2)
    checked, sampled = results(pytester)
    workload = checked.workload
    assert (workload.sessions, workload.session_count) == ("talks.jsonl think=1s", 30)
    assert str(workload.output_tokens).endswith("60") or workload.output_tokens == 60  # four characters for a token
    assert any("talks.jsonl has 30: each began" in remark for remark in checked.environment.remarks)
    shown = f"30 of talks.jsonl think=1s (sha256 {str(workload.sessions_sha256)[:12]})"
    for place in ("r.html", "r.md"):
        assert shown in dict(written(pytester, run))[place]
    assert told(pytester, run) == []
    # A cache finds what the trace implies: of 100 chats, the first block and all turns before.
    assert (sampled.workload.session_count, sampled.workload.arrivals) == (100, "trace")
    again = [16 * (1 if turn == 0 else 9 + 10 * (turn - 1)) for turn in range(4)]
    every = [16 * (9 + 10 * turn) for turn in range(4)]
    assert sampled.prefix_hit_rate == pytest.approx(sum(again) / sum(every), abs=0.1)
    # The name of the file does not matter, and what it holds does.
    other: dict[str, Result] = {}
    for name, content in (("talks.jsonl", talks(30)), ("renamed.jsonl", talks(30)), ("changed.jsonl", talks(31))):
        (pytester.path / name).write_text(content)
        pytester.makepyfile(test_other=SAMPLED.replace("own.jsonl", name))
        pytester.runpytest("--gpu-class=sim:few", "test_other.py").assert_outcomes(passed=1)
        (other[name],) = results(pytester)
    same, changed = (differences(other["talks.jsonl"], other[name]) for name in ("renamed.jsonl", "changed.jsonl"))
    assert same == []
    assert [each.partition(":")[0] for each in changed] == ["workload sessions' contents"]


MISTAKES = {
    'sessions="none.jsonl"': "sessions: there is no file ",
    "sessions=3": "sessions must be a text, or the path of a file, not 3",
    'sessions="bad.jsonl"': "bad.jsonl:2: not JSON",
    'sessions="talks.jsonl turns=3"': "'turns=3' is none of think, context, block",
    'sessions="talks.jsonl", input_tokens=5': "sessions and input_tokens exclude each other",
    'sessions="talks.jsonl", shared_prefix_tokens=5': "sessions and shared_prefix_tokens exclude each other",
    'sessions="talks.jsonl", images="64x64"': "sessions and images exclude each other",
    'sessions="talks.jsonl", audio="10s"': "sessions and audio exclude each other",
    'sessions="talks.jsonl", prompts="talks.jsonl"': "prompts and sessions exclude each other",
    'sessions="talks.jsonl", trace="t.csv"': "sessions and trace exclude each other",
    'sessions="talks.jsonl", arrivals="trace"': 'does not say when sessions began, which arrivals="trace" needs',
    'sessions="talks.jsonl", system="Be brief."': "system stands around prompts that are texts",
    'sessions="talks.jsonl", stream=False': "sessions need answers that come token by token",
    'sessions="trace.jsonl", output_tokens=5': "sessions and output_tokens exclude each other",
    'sessions="trace.jsonl"': "or let sessions end sooner, with context= in sessions",
    'arrivals="trace"': 'arrivals="trace" goes with trace=FILE, or with sessions=FILE',
    'trace="t.csv", input_tokens=5': "trace and input_tokens exclude each other: requests of a trace are as long as it",
    'trace="t.csv", output_tokens=5': "trace and output_tokens exclude each other",
}


def test_every_mistake_is_one_line_before_anything_starts(pytester: pytest.Pytester) -> None:
    tests = [
        "@pytest.mark.vllm('synthetic:tiny', max_model_len=600)\n"
        f"@pytest.mark.gpucap(qps=1, gpus=1, {given})\ndef test_{number}(gpucap): gpucap.check()\n"
        for number, given in enumerate(MISTAKES)
    ]
    tests.append(
        '@pytest.mark.vllm(enable_log_requests=True)\n@pytest.mark.gpucap(qps=1, sessions="talks.jsonl")\n'
        "def test_log(gpucap): gpucap.check()\n"
    )
    pytester.makepyfile("import pytest\n" + "\n".join(tests))
    (pytester.path / "talks.jsonl").write_text(talks(3))
    (pytester.path / "trace.jsonl").write_text(trace(12))
    (pytester.path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,50,3\n1,50,3\n")
    (pytester.path / "bad.jsonl").write_text(talks(1) + f'{{"prompt": "{CANARY}\n')
    result = pytester.runpytest("--gpu-class=cpu", "-l", "-vv")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = [line for line in result.stderr.str().splitlines() if ".py:" in line]
    wanted = [*MISTAKES.values(), "enable_log_requests would write the prompts of the file into the server's log"]
    assert [text for text, line in zip(wanted, said, strict=True) if text not in line] == []
    assert told(pytester, result) == []
    assert not (pytester.path / ".gpucap" / "logs").exists()


def test_a_file_in_a_preset_or_a_marker_comes_before_lengths_of_a_preset(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("presets of ours")
    (folder / "trace.jsonl").write_text(trace(40))
    (folder / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,50,3\n1,50,3\n")
    (folder / "own.toml").write_text(
        '[desk]\nextends = "chat"\nsessions = "trace.jsonl think=2s"\n[day]\nextends = "chat"\ntrace = "t.csv"\n'
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(workload="desk")
        def test_desk(gpucap):
            gpucap.sample(rate=5, duration="5s")

        @pytest.mark.gpucap(workload="day")
        def test_day(gpucap):
            gpucap.sample(rate=5, duration="5s")
        """
    )
    file = "--gpucap-workload-file=presets of ours/own.toml"
    pytester.runpytest("--gpu-class=sim:fast", file).assert_outcomes(passed=2)
    desk, day = results(pytester)
    assert desk.workload.sessions == "trace.jsonl think=2s"
    assert (day.workload.trace, day.workload.output_tokens) == ("t.csv", 3)
