"""Traces in the forms they are published in; a few rows of each, as they stand in the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.load import trace as trace_module
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.load.trace import read_trace, with_trace_lengths
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, RequirementError, Workload

AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
2024-05-10 00:00:00.017335+00:00,76,15
"""
BURSTGPT_1 = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
120,GPT-4,360,276,636,Conversation log
"""
BURSTGPT_3 = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log
19440161.0,,2,ChatGPT,36,29,65,API log
"""
MOONCAKE = """\
{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 2366]}
"""
BAILIAN = """\
{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521, "output_length": 132, "turn": 1}
{"chat_id": 160, "parent_chat_id": 159, "timestamp": 64.114, "input_length": 700, "output_length": 12, "turn": 2}
"""
RAGPULSE = """\
{"timestamp": "603677", "input_length": 3023, "output_length": 384, "hash_ids": {"sys_prompt": [8302, 8303, 8318], \
"passages_ids": [7489, 2187], "history": [15207], "web_search": [], "user_input": [20644]}, "session_id": "17-i0m4l9ky"}
{"timestamp": "603582", "input_length": 1052, "output_length": 36, "hash_ids": {"sys_prompt": [8308, 8320, 8310], \
"passages_ids": [], "history": [15200], "web_search": [], "user_input": [20646]}, "session_id": "17-145iefwz"}

"""


@pytest.mark.parametrize(
    ("text", "arrival_s", "tokens", "left_out"),
    [
        (AZURE_2023, [0.0, 4.314579, 4.541977], [(374, 44), (396, 109), (879, 55)], 0),
        (AZURE_2024, [0.0, 0.007405, 0.99007], [(2162, 5), (76, 15), (2399, 6)], 0),
        (BURSTGPT_1, [0.0, 40.0, 115.0], [(472, 18), (1087, 230), (360, 276)], 1),
        (BURSTGPT_3, [0.0, 51.0], [(906, 446), (36, 29)], 0),
        (MOONCAKE, [0.0, 3.053], [(6955, 52), (6472, 26)], 0),
        (BAILIAN, [0.0, 3.0], [(521, 132), (700, 12)], 0),
        (RAGPULSE, [0.0, 95.0], [(1052, 36), (3023, 384)], 0),
    ],
)
def test_published_traces_are_read_as_they_are(
    tmp_path: Path, text: str, arrival_s: list[float], tokens: list[tuple[int, int]], left_out: int
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    trace = read_trace(path)
    np.testing.assert_allclose(trace.arrival_s, arrival_s, atol=2e-6)
    assert list(zip(trace.input_tokens, trace.output_tokens, strict=True)) == tokens
    assert trace.left_out == left_out


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + AZURE_2023.replace("\n", "\r\n").encode())
    assert read_trace(path).input_tokens.tolist() == [374, 396, 879]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            AZURE_2023.replace("18:15:50.9951690", "tomorrow"),
            "t:3: TIMESTAMP must be a date and time, not '2023-11-16 tomorrow'",
        ),
        (
            AZURE_2023.replace("396,109", "396,-1"),
            "t:3: GeneratedTokens must be a whole number of at least 0 and at most 16777216, not -1",
        ),
        (AZURE_2023.replace("ContextTokens", "Context"), "t:1: the header lacks ContextTokens; it must name TIMESTAMP"),
        (BURSTGPT_1.replace("472", ""), "t:2: Request tokens must be a number, not ''"),
        (BURSTGPT_1.replace("230", "0").replace("276", "0"), "at least 2 rows, this one has 1, and 3 of failed"),
        (MOONCAKE.replace('"input_length": 6472, ', ""), "t:2: the object lacks input_length"),
        (MOONCAKE.replace("{", "[", 2).replace("[", "{", 1), "t:2: not a JSON object"),
        (MOONCAKE.replace("30535", '"soon"'), "t:2: timestamp must be a number, not 'soon'"),
        ("when,prompt,answer\n1,2,3\n", "t:1: the header is of no known trace; it must name arrival_s, input_tokens"),
        ('{"time": 1}\n', "t:1: the object is of no known trace; it must name arrival_s"),
        ("\n\n", "t: the trace file is empty"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(RequirementError) as caught:
        read_trace(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_beyond_the_memory_is_refused_with_the_way_to_cut_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "MAX_ROWS", 2)
    path = tmp_path / "week.csv"
    path.write_text(AZURE_2023)
    with pytest.raises(RequirementError, match=r"up to 2 rows; take a part of it: head -n 2 week\.csv > part\.csv"):
        read_trace(path)


def test_a_workload_is_described_by_its_trace(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT_1)
    found = with_trace_lengths(Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path)))
    prompts = np.array([472, 1087, 360])
    assert found.input_tokens.mean == pytest.approx(prompts.mean())
    assert found.input_tokens.cv == pytest.approx(prompts.std() / prompts.mean())
    assert (found.input_tokens.low, found.input_tokens.high) == (360, 1087)
    path.write_text("arrival_s,input_tokens,output_tokens\n0,5,7\n1,6,7\n")
    found = with_trace_lengths(Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path)))
    assert found.output_tokens == Length.fixed(7)
    assert with_trace_lengths(Workload()) == Workload()


def test_traces_with_the_same_requests_have_the_same_hash(tmp_path: Path) -> None:
    def sha256(name: str, text: str) -> str | None:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return with_trace_lengths(Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path))).arrivals.trace_sha256

    first = sha256("azure.csv", AZURE_2023)
    assert first is not None
    assert len(first) == 64
    day_later = AZURE_2023.replace("2023-11-16", "2023-11-17")
    own = "arrival_s,input_tokens,output_tokens,user\n0,374,44,a\n4.314579,396,109,b\n4.541977,879,55,c\n"
    same = {
        "renamed.csv": AZURE_2023,
        "dos.csv": AZURE_2023.replace("\n", "\r\n"),
        "later.csv": day_later,
        "own.csv": own,
    }
    assert {sha256(name, text) for name, text in same.items()} == {first}
    changed = [("4.3145", "4.3146"), (",396,", ",397,"), (",109,", ",108,"), ("4.541977,879,55,c\n", "")]
    assert len({first, *(sha256("own.csv", own.replace(*change)) for change in changed)}) == 1 + len(changed)


def test_a_published_trace_is_stretched_to_the_rate_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT_1)
    workload = Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path))
    loop = open_loop(workload, rate_rps=3.0, duration_s=100.0, seed=1, stream=1)
    assert loop.rate_rps == pytest.approx(3.0, rel=0.02)
    assert set(loop.prompt_tokens.tolist()) == {472, 1087, 360}
