"""Files of recorded sessions: what each format says, and what is wrong with a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.requirement import (
    ApiKind,
    ArrivalKind,
    Arrivals,
    Length,
    RecordedSessions,
    RequirementError,
    Wording,
    Workload,
)
from pytest_gpucap.workloads.recorded import implied_hit_rate
from pytest_gpucap.workloads.session_file import SessionFile, read_sessions
from pytest_gpucap.workloads.sessions import file_of_sessions, names_a_file, with_sessions_of_file

CANARY = "canary-51c0"


def written(folder: Path, rows: list[Any], name: str = "own.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(file: SessionFile) -> list[list[str]]:
    """The texts of the messages of each turn."""
    found = (json.loads(b"[%b]" % file.text[begin:end]) for begin, end in file.span.tolist())
    return [[message["content"] for message in messages] for messages in found]


def recorded(folder: Path, rows: list[Any], words: str = "", **workload: Any) -> RecordedSessions:
    written(folder, rows)
    outputs = workload.pop("output_tokens", None)
    found = with_sessions_of_file(Workload(**workload), file_of_sessions(f"own.jsonl {words}", folder), outputs)
    assert found.recorded is not None
    return found.recorded


TALK = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "one?"},
    {"from": "gpt", "value": "1"},
    {"from": "human", "value": "two?"},
    {"from": "gpt", "value": "2, of course"},
    {"from": "human", "value": "never answered"},
]


def test_each_answered_question_of_sharegpt_is_a_turn_with_all_before_it(tmp_path: Path) -> None:
    split = [{"from": "gpt", "value": "of another part"}, *TALK[1:3]]
    rows = [{"id": "a", "conversations": TALK}, {"conversations": TALK[:2]}, {"conversations": split}]
    odd = [*TALK[1:3], {"from": [1], "value": "of nobody"}, *TALK[3:]]
    assert said(read_sessions(written(tmp_path, [{"conversations": odd}], "odd.jsonl"))) == [["one?"]]
    file = read_sessions(written(tmp_path, rows))
    assert said(file) == [["Be brief.", "one?"], ["Be brief.", "one?", "1", "two?"], ["one?"]]
    assert file.begin.tolist() == [0, 2, 3]
    assert file.answers == ("1", "2, of course", "1")
    assert file.extends.tolist() == [False, True, False]
    assert (file.left_out, file.start_s, file.personal) == (1, None, True)
    # The messages of a session are kept once.
    assert file.text.count(b"one?") == 2
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert read_sessions(packed).sha256 == file.sha256


def test_messages_of_openai_are_turns_at_each_answer(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "assistant", "content": "it is 1"},
        {"role": "user", "content": "two?"},
    ]
    file = read_sessions(written(tmp_path, [{"messages": messages, "max_tokens": 7}]))
    assert [len(each) for each in said(file)] == [2, 4, 6]
    assert file.answers == (None, "it is 1", None)
    assert file.output.tolist() == [0, 0, 7]


def test_sessions_of_aiperf_have_pauses_and_stand_ins_for_answers(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "text": "Be brief."},
        {"text": "one?", "output_length": 5},
        {"texts": ["two", "three?"], "delay": 1500},
    ]
    rows = [
        {"session_id": "a", "turns": turns},
        {"session_id": "b", "turns": [{"timestamp": 9000, "text": "x"}]},
        {"session_id": "b", "turns": [{"timestamp": 4000, "text": "y"}]},
    ]
    file = read_sessions(written(tmp_path, rows))
    first, second, *others = said(file)
    assert first == ["Be brief.", "one?"]
    assert second[:2] == first
    assert len(second[2].split()) == 5
    assert second[3] == "two\nthree?"
    assert others == [["y"], ["x"]]
    assert file.think_s.tolist() == [0.0, 1.5, 0.0, 5.0]
    assert file.output.tolist() == [5, 0, 0, 0]
    # Single turns of one session follow each other, each by itself.
    single = [{"session_id": "s", "text": "one?", "delay": 0}, {"session_id": "s", "text": "two?", "delay": 200}]
    file = read_sessions(written(tmp_path, [*single, {"text": "alone"}], "single.jsonl"))
    assert said(file) == [["one?"], ["two?"], ["alone"]]
    assert file.begin.tolist() == [0, 2, 3]
    assert file.think_s.tolist() == [0.0, 0.2, 0.0]


def test_spans_of_one_trace_are_a_session(tmp_path: Path) -> None:
    def span(start: str, end: str, messages: object, **attributes: object) -> dict[str, object]:
        return {
            "start_time": f"2026-02-25T10:00:{start}",
            "end_time": f"2026-02-25T10:00:{end}Z",
            "attributes": {"gen_ai.input.messages": messages, **attributes},
        }

    one = [{"role": "user", "content": "one?"}]
    two = [
        *one,
        {"role": "assistant", "parts": [{"type": "text", "content": "1"}]},
        {"role": "user", "content": "two?"},
    ]
    spans = [
        span("04.5", "06", json.dumps(two), **{"gen_ai.usage.output_tokens": 9}),
        {"start_time": 3, "attributes": {}},
        span("00", "02", one, **{"gen_ai.output.text": "1"}),
    ]
    file = read_sessions(written(tmp_path, [{"trace_id": "t", "spans": spans}, {"spans": []}]))
    assert said(file) == [["one?"], ["one?", "1", "two?"]]
    assert file.think_s.tolist() == [0.0, 2.5]
    assert (file.output.tolist(), file.answers, file.left_out) == ([0, 9], ("1", None), 1)


def mooncake(at_ms: float, blocks: list[int], tokens: int | None = None, **more: object) -> dict[str, object]:
    length = 512 * len(blocks) if tokens is None else tokens
    return {"timestamp": at_ms, "input_length": length, "output_length": 9, "hash_ids": blocks, **more}


def test_requests_of_mooncake_share_the_blocks_that_earlier_ones_had(tmp_path: Path) -> None:
    rows = [
        mooncake(3000, [0, 1, 2, 9], 1900),
        mooncake(0, [0, 1]),
        mooncake(3000, [0, 4, 2], 1030),
        mooncake(4000, [0, 1, 2, 9], 1700),
        {**mooncake(5000, []), "input_length": 0},
    ]
    found = recorded(tmp_path, rows)
    assert found.prompt.tolist() == [1024, 1900, 1030, 1700]
    # Block 2 is only known behind 0 and 1, and of the last block 364 tokens.
    assert found.shared.tolist() == [0, 1024, 512, 1699]
    assert found.own.tolist() == [0, 0, 0, 0]
    assert found.in_order
    assert found.start_s is not None
    assert found.start_s.tolist() == [0.0, 3.0, 3.0, 4.0]
    assert implied_hit_rate(found) == (1024 + 512 + 1699) / found.prompt.sum()
    # As AIPerf extends the format.
    session = [mooncake(0, [1], session_id="s"), mooncake(0, [1, 2], session_id="s", delay=250)]
    found = recorded(tmp_path, session, "block=64")
    assert (found.turns.tolist(), found.block, found.own.tolist()) == ([2], 64, [0, 64])
    assert found.think_s.tolist() == [0.0, 0.25]


def bailian(chat: int, parent: int, at_s: float, blocks: list[int]) -> dict[str, object]:
    row = {"chat_id": chat, "parent_chat_id": parent, "timestamp": at_s, "turn": 1, "type": "text"}
    return {**row, "input_length": 16 * len(blocks), "output_length": 4, "hash_ids": blocks}


def test_chats_of_bailian_follow_their_parents(tmp_path: Path) -> None:
    rows = [
        bailian(1, -1, 0.0, [1, 2]),
        bailian(2, -1, 1.0, [3]),
        bailian(3, 1, 7.5, [1, 2, 4]),
        bailian(4, 1, 8.0, [1, 2, 5]),  # branches off
        bailian(5, 99, 9.0, [6]),  # its parent is not in this part of the trace
        bailian(6, 3, 10.0, [1, 2, 4, 7]),
    ]
    found = recorded(tmp_path, rows)
    assert found.turns.tolist() == [3, 1, 1, 1]
    assert found.prompt.tolist() == [32, 48, 64, 16, 48, 16]
    assert found.think_s.tolist() == [0.0, 7.5, 2.5, 0.0, 0.0, 0.0]
    assert found.own.tolist() == [0, 32, 48, 0, 0, 0]
    assert found.shared.tolist() == [0, 32, 48, 0, 32, 0]


def test_words_behind_the_file_change_pauses_and_end_sessions(tmp_path: Path) -> None:
    rows = [
        bailian(1, -1, 0.0, [1, 2]),
        bailian(2, 1, 9.0, [1, 2, 3]),
        bailian(3, 2, 10.0, [1]),
        bailian(4, -1, 11, [5] * 9),
    ]
    whole, cut = recorded(tmp_path, rows), recorded(tmp_path, rows, "think=2s context=40")
    assert whole.turns.tolist() == [3, 1]
    assert (cut.turns.tolist(), cut.count) == ([1], 1)
    assert cut.think_s[1] == 2.0
    assert whole.sha256 != cut.sha256
    assert whole.file_sha256 == cut.file_sha256
    assert whole != cut
    assert whole == recorded(tmp_path, rows)
    assert hash(whole) == hash(recorded(tmp_path, rows))
    with pytest.raises(RequirementError, match="no session has a first turn of context=3 tokens"):
        recorded(tmp_path, rows, "context=3")


def test_an_answer_is_as_long_as_the_turn_says_else_as_declared_else_as_recorded(tmp_path: Path) -> None:
    turns = [{"text": "one?", "output_length": 5}, {"text": "two?"}]
    assert recorded(tmp_path, [{"turns": turns}]).output.tolist() == [5, 256]
    assert recorded(tmp_path, [{"turns": turns}], output_tokens=Length.fixed(9)).output.tolist() == [5, 9]
    talk = [{"conversations": TALK}]
    assert recorded(tmp_path, talk).output.tolist() == [1, 3]  # four characters stand for a token
    assert recorded(tmp_path, talk, output_tokens=Length.fixed(9)).output.tolist() == [9, 9]


ONE = {"text": "one?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "not a JSON object"),
        ({"prompt": CANARY}, "the object is of no known format; a line is a conversation"),
        ({"conversations": CANARY}, "conversations must be a list"),
        ({"conversations": [{}] * 2001}, "a session may have up to 2000 messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0] holds image_url: only text can be sent",
        ),
        ({"turns": []}, "turns must be a list that is not empty"),
        ({"turns": [{"image": CANARY}]}, r"turns[0]: holds image: only text can be sent"),
        ({"turns": [ONE, {"text": " "}]}, 'turns[1]: needs a "text" that is not empty'),
        ({"turns": [{**ONE, "delay": -1}]}, "turns[0]: delay must be a number of milliseconds, and not below 0"),
        ({"turns": [{**ONE, "delay": CANARY}]}, "turns[0]: delay must be a number of milliseconds"),
        ({"turns": [{**ONE, "output_length": 0}]}, "turns[0]: output_length must be a whole number from 1"),
        ({"turns": [{**ONE, "extra": {"a": 1}}]}, "turns[0]: fields in extra are not sent"),
        ({"turns": [ONE], "session_id": [1]}, "session_id must be a text"),
        ({"turns": [ONE, {**ONE, "delay": 1e12}]}, "1e+09 s lie between two turns of a session"),
        ({"text": "a\x00b"}, "holds a NUL character, which servers refuse"),
        (
            {"spans": [{"attributes": {"gen_ai.input.messages": CANARY}}]},
            "spans[0]: start_time must be a date and time",
        ),
        ({**mooncake(0, [1]), "hash_ids": None}, "hash_ids must be a list of whole numbers: without them replay"),
        ({**mooncake(0, [1]), "hash_ids": [1, CANARY]}, "hash_ids must be a list of whole numbers"),
        ({**mooncake(0, [1]), "input_length": -3}, "input_length must be a whole number from 0"),
        ({**mooncake(0, [1]), "timestamp": CANARY}, "timestamp must be a number of milliseconds"),
        ({**mooncake(0, [1]), "timestamp": 1e300}, "timestamp must be a number of milliseconds, and 4e+12 at most"),
        ({**bailian(1, -1, 0, [1]), "timestamp": None}, "timestamp must be a number of seconds"),
        ({**bailian(1, -1, 0, [1]), "parent_chat_id": CANARY}, "parent_chat_id must be a whole number"),
    ],
)
def test_a_mistake_names_the_line_and_not_what_it_holds(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(RequirementError) as error:
        read_sessions(path)
    assert f"own.jsonl:2: {message}" in str(error.value)
    assert CANARY not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_whole_file(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"own\.jsonl:2: is of another format \(Mooncake\) than the rows before"):
        read_sessions(written(tmp_path, [{"text": "a"}, mooncake(0, [1])]))
    with pytest.raises(RequirementError, match=r"no session; 1 rows have no question with an answer"):
        read_sessions(written(tmp_path, [{"conversations": TALK[:2]}], "b.jsonl"))
    (tmp_path / "c.jsonl").write_text(CANARY)
    with pytest.raises(RequirementError, match=r"c\.jsonl:1: not JSON; a line is a conversation"):
        read_sessions(tmp_path / "c.jsonl")
    with pytest.raises(RequirementError, match="block= is about traces with hash_ids"):
        recorded(tmp_path, [{"text": "a"}], "block=16")
    with pytest.raises(RequirementError, match='does not say when sessions began, which arrivals="trace" needs'):
        recorded(tmp_path, [{"text": "a"}], arrivals=Arrivals(ArrivalKind.TRACE))
    with pytest.raises(RequirementError, match="the sessions cannot be read: is a folder, not a file"):
        read_sessions(tmp_path)


def test_what_does_not_go_with_the_file(tmp_path: Path) -> None:
    text, blocks = [{"text": "a", "output_length": 3}], [mooncake(0, [1])]
    with pytest.raises(RequirementError, match="every turn says how long its answer is: leave output_tokens out"):
        recorded(tmp_path, text, output_tokens=Length.fixed(3))
    with pytest.raises(RequirementError, match="sessions and output_tokens exclude each other"):
        recorded(tmp_path, blocks, output_tokens=Length.fixed(3))
    with pytest.raises(RequirementError, match="output_tokens beside a file is one number"):
        recorded(tmp_path, text, output_tokens=Length.parse("uniform:1-3", "output_tokens"))
    with pytest.raises(RequirementError, match='holds messages, which need endpoint="chat"'):
        recorded(tmp_path, text, endpoint=ApiKind.COMPLETIONS)
    with pytest.raises(RequirementError, match="system stands around prompts that are texts"):
        recorded(tmp_path, text, wording=Wording(system="Be brief."))
    assert not recorded(tmp_path, blocks, endpoint=ApiKind.COMPLETIONS).personal
    for words, message in (
        ("turns=3", "'turns=3' is none of think, context, block"),
        ("think=lognormal:mean=3s,cv=1", "think behind a file is one time for all turns"),
        ("block=0", "sessions: block must be"),
    ):
        with pytest.raises(RequirementError, match=message):
            file_of_sessions(f"own.jsonl {words}", tmp_path)
    with pytest.raises(
        RequirementError, match=r"there is no file .*none\.jsonl; without a file write turns= and think="
    ):
        file_of_sessions("none.jsonl", tmp_path)


def test_a_file_may_have_spaces_in_its_name(tmp_path: Path) -> None:
    written(tmp_path, [{"text": "a"}], "my own  sessions.jsonl")
    found = file_of_sessions("my own  sessions.jsonl think=2s", tmp_path)
    assert (found.path.name, found.think_s, found.text) == (
        "my own  sessions.jsonl",
        2.0,
        "my own  sessions.jsonl think=2s",
    )
    assert [names_a_file(each) for each in ("a.jsonl", "turns=3 think=1s", "", Path("a"), 3)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert np.array_equal(read_sessions(found.path).begin, [0, 1])
