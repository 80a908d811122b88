"""Files of prompts: every form that people have them in, and one line without a word of them for what is none."""

from __future__ import annotations

import gzip
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap import user_files
from pytest_gpucap.installing import pip_install
from pytest_gpucap.requirement import ApiKind, RequirementError
from pytest_gpucap.workloads import prompt_file
from pytest_gpucap.workloads.prompt_file import FilePrompt, read_prompts

CANARY = "canary-6b1f"
CHAT = {"messages": [{"role": "user", "content": "How high is it?"}], "max_tokens": 7, "temperature": 0.5}
PARTS = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "And wide?"},
    ],
    "max_completion_tokens": 5,
    "tools": [{"type": "function", "function": {"name": "measure"}}],
}
TURNS = [{"from": "system", "value": "s"}, {"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi there."}]


def put(folder: Path, content: bytes | str, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def only(folder: Path, row: Any) -> FilePrompt:
    (found,) = read_prompts(put(folder, lines(row))).prompts
    return found


def test_a_chat_body_is_taken_as_it_is_but_for_what_is_ours_to_say(tmp_path: Path) -> None:
    found = only(tmp_path, CHAT | {"model": "gpt-4", "stream": True, "stream_options": {}, "ignore_eos": False, "n": 1})
    assert json.loads(found.body) == {"messages": CHAT["messages"], "temperature": 0.5}
    assert (found.output_tokens, found.whole, found.api, found.characters) == (7, True, ApiKind.CHAT, 15)
    assert found.place.endswith("p.jsonl:1")


def test_parts_tools_and_the_newer_name_of_max_tokens_are_known(tmp_path: Path) -> None:
    found = only(tmp_path, PARTS)
    assert json.loads(found.body) == {"messages": PARTS["messages"], "tools": PARTS["tools"]}
    assert (found.output_tokens, found.characters) == (5, len("Be brief.And wide?"))


def test_a_completion_keeps_its_fields_and_our_own_form_has_none(tmp_path: Path) -> None:
    body = only(tmp_path, {"prompt": "Once", "max_tokens": 3, "stop": ["."]})
    assert (json.loads(body.body), body.output_tokens, body.api) == (
        {"prompt": "Once", "stop": ["."]},
        3,
        ApiKind.COMPLETIONS,
    )
    ours = only(tmp_path, {"prompt": "Once upon", "output_tokens": 9, "topic": "tales", "max_tokens": 4})
    assert (json.loads(ours.body), ours.output_tokens) == ({"prompt": "Once upon"}, 9)
    assert ours.text == "Once upon"


def test_a_line_of_a_batch_holds_its_body(tmp_path: Path) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    assert json.loads(only(tmp_path, row).body) == json.loads(only(tmp_path, CHAT).body)


@pytest.mark.parametrize("spaced", [False, True])
def test_a_sharegpt_list_gives_first_questions_and_recorded_answers(tmp_path: Path, spaced: bool) -> None:
    rows = [
        {"id": "1", "conversations": TURNS},
        {"id": "2", "conversations": [{"from": "gpt", "value": "I begin."}]},
        {"id": "3", "conversations": [{"from": "human", "value": "Unanswered?"}]},
        {"id": "4", "conversations": [{"from": "gpt", "value": "?"}, *TURNS[1:], {"from": "human", "value": "More?"}]},
    ]
    found = read_prompts(put(tmp_path, json.dumps(rows, indent=2 if spaced else None), "sharegpt.json"))
    assert [(each.text, each.answer, each.output_tokens, each.api) for each in found.prompts] == [
        ("Hello?", "Hi there.", None, ApiKind.CHAT)
    ] * 2
    assert found.left_out == 2


def test_a_list_is_read_one_element_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements, commas and characters of several bytes fall across pieces wherever they may."""
    rows = [{"prompt": "é" * number + '\\" ]},{', "max_tokens": number} for number in range(1, 40)]
    text = " [\n" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    for piece in (1, 7, 64, 10_000):
        monkeypatch.setattr(prompt_file, "_PIECE", piece)
        found = read_prompts(put(tmp_path, text, f"list{piece}.json")).prompts
        assert [(each.text, each.output_tokens) for each in found] == [
            (row["prompt"], row["max_tokens"]) for row in rows
        ]
        assert [int(each.place.rpartition(":")[2]) for each in found] == list(range(2, 41))


def test_lines_are_found_wherever_a_piece_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeff" + "\n\r\n" + "\n".join(json.dumps({"prompt": "x" * number}) for number in range(1, 30))
    for piece in (8, 64, 10_000):
        monkeypatch.setattr(prompt_file, "_PIECE", piece)
        found = read_prompts(put(tmp_path, text, f"{piece}.jsonl")).prompts
        assert [(each.text, int(each.place.rpartition(":")[2])) for each in found] == [
            ("x" * number, number + 2) for number in range(1, 30)
        ]


def test_a_packed_file_is_known_by_its_first_bytes_and_is_the_same_file(tmp_path: Path) -> None:
    plain = read_prompts(put(tmp_path, lines(CHAT, PARTS)))
    packed = read_prompts(put(tmp_path, gzip.compress(lines(CHAT, PARTS).encode()), "packed.jsonl"))
    assert packed.sha256 == plain.sha256
    assert [each.body for each in packed.prompts] == [each.body for each in plain.prompts]


def test_the_hash_is_of_what_is_sent_and_asked_for(tmp_path: Path) -> None:
    def sha256(content: str) -> str:
        return read_prompts(put(tmp_path, content, f"{len(list(tmp_path.iterdir()))}.jsonl")).sha256

    first = sha256(lines(CHAT, PARTS))
    spaced = json.dumps([dict(reversed(CHAT.items())), PARTS], indent=1)
    assert sha256(spaced) == sha256(lines(CHAT, PARTS).replace("\n", "\r\n")) == first
    others = [
        lines(PARTS, CHAT),
        lines(CHAT),
        lines(CHAT | {"max_tokens": 8}, PARTS),
        lines(CHAT | {"stop": "x"}, PARTS),
    ]
    assert len({first, *map(sha256, others)}) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "p.jsonl: the file has no prompt"),
        ("\n \n", "p.jsonl: the file has no prompt"),
        ("[]", "p.jsonl: the file has no prompt"),
        (lines(CHAT) + f"{CANARY}\n", 'p.jsonl:2: not JSON; a line is a request body with "messages" or "prompt"'),
        (f'"{CANARY}"\n', "p.jsonl:1: not a JSON object"),
        (lines({"text": CANARY}), "p.jsonl:1: has neither messages nor prompt"),
        (lines({"prompt": CANARY, "messages": []}), "p.jsonl:1: has both messages and prompt"),
        (lines({"prompt": [1, 2]}), "p.jsonl:1: prompt must be a text that is not empty"),
        (lines({"prompt": " "}), "p.jsonl:1: prompt must be a text that is not empty"),
        (lines({"messages": []}), "p.jsonl:1: messages must be a list that is not empty"),
        (lines({"messages": [CANARY]}), "p.jsonl:1: messages[0] must be an object with a role and a content"),
        (lines({"messages": [{"role": "user"}]}), "p.jsonl:1: messages hold no text"),
        (
            lines({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": CANARY}]}]}),
            "p.jsonl:1: messages[0] holds image_url: only text can be sent; leave the line out",
        ),
        (
            lines({"messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
            "p.jsonl:1: messages[0] holds a part that is no text",
        ),
        (lines({"prompt": CANARY, "max_tokens": 0}), "p.jsonl:1: max_tokens must be a whole number from 1 to 16777216"),
        (lines({"prompt": CANARY, "output_tokens": CANARY}), "p.jsonl:1: output_tokens must be a whole number"),
        (lines({"prompt": CANARY, "max_tokens": True}), "p.jsonl:1: max_tokens must be a whole number"),
        (lines({"prompt": CANARY, "n": 2}), "p.jsonl:1: n must be 1: of several answers only one would be measured"),
        (lines({"prompt": CANARY, "n": [2]}), "p.jsonl:1: n must be 1"),
        (lines({"prompt": f"{CANARY}\0"}), "p.jsonl:1: holds a NUL character, which servers refuse"),
        (f'{{"prompt": "{CANARY}\\ud800"}}\n', "p.jsonl:1: holds half a surrogate pair"),
        (f'{{"prompt": "{CANARY}", "x": NaN}}\n', "p.jsonl:1: not JSON"),
        (f'{{"prompt": "{CANARY}", "x": 1e999}}\n', "p.jsonl:1: holds what cannot be sent as JSON"),
        (f'{{"prompt": "{CANARY}", "x": {"9" * 5000}}}\n', "p.jsonl:1: not JSON"),
        (f'{{"prompt": "{CANARY}", "x": {"[" * 100_000}}}\n', "p.jsonl:1: not JSON"),
        (b'{"prompt": "\xff"}\n', "p.jsonl:1: not UTF-8"),
        (lines({"conversations": CANARY}), "p.jsonl:1: conversations must be a list"),
        (
            lines({"conversations": TURNS[:2]}),
            "the file has no prompt; 1 conversations have no question with an answer",
        ),
        (f'[{{"prompt": "{CANARY}"}}\n{{"prompt": "b"}}]', "p.jsonl:2: not a whole JSON list: a comma is missing"),
        (f'[{{"prompt": "{CANARY}"}},\n{{"prompt": "b"', "p.jsonl:2: the JSON list is cut off or damaged"),
        (f'[{{"prompt": "{CANARY}"}}', "p.jsonl:1: not a whole JSON list: it is cut off"),
        (f'[{{"prompt": "{CANARY}"}}]\n{CANARY}', "p.jsonl:2: something follows after the JSON list"),
        (b'[{"prompt": "\xff"}]', "p.jsonl:1: not UTF-8"),
        (gzip.compress(lines(CHAT).encode())[:-9], "p.jsonl: the prompts cannot be read: the gzip file is damaged"),
        (b"\x1f\x8bnonsense", "p.jsonl: the prompts cannot be read: the gzip file is damaged"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line_and_no_word_of_it(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    with pytest.raises(RequirementError) as caught:
        read_prompts(put(tmp_path, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_backslash_before_the_name_of_a_nul_is_no_nul(tmp_path: Path) -> None:
    assert only(tmp_path, {"prompt": r"print('\u0000')"}).text == r"print('\u0000')"


def test_what_is_packed_may_not_be_larger_than_what_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_file, "MOST_LINES", 2 * user_files.MIB)
    bomb = gzip.compress(b" " * (3 * user_files.MIB))
    assert len(bomb) < 10_000
    with pytest.raises(RequirementError, match="holds more than 2 MiB"):
        read_prompts(put(tmp_path, bomb))


@pytest.mark.parametrize("form", ["[%s]", "%s\n"])
def test_an_endless_line_is_refused_before_all_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(prompt_file, "MOST_PROMPT", 3 * user_files.MIB)
    monkeypatch.setattr(prompt_file, "_PIECE", 100_000)
    with pytest.raises(RequirementError, match=r"p\.jsonl:1: (is longer than|no JSON within) 3 MiB"):
        read_prompts(put(tmp_path, form % json.dumps({"prompt": "x" * (20 * user_files.MIB)})))


def test_too_many_prompts_are_refused_with_the_way_to_take_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_file, "MAX_PROMPTS", 2)
    with pytest.raises(RequirementError, match=r"up to 2 prompts .*; take a part of it: shuf -n 10000 FILE > part"):
        read_prompts(put(tmp_path, lines(CHAT, CHAT, CHAT)))


def test_nothing_shows_a_text_where_it_may_be_printed(tmp_path: Path) -> None:
    found = read_prompts(put(tmp_path, lines({"conversations": [*TURNS[1:2], {"from": "gpt", "value": CANARY}]})))
    assert CANARY not in repr(found)
    assert "Hello?" not in repr(found)


def test_the_endpoint_follows_from_the_file_unless_it_is_named(tmp_path: Path) -> None:
    def found(*rows: Any) -> prompt_file.PromptFile:
        return read_prompts(put(tmp_path, lines(*rows), f"{len(list(tmp_path.iterdir()))}.jsonl"))

    text = {"prompt": "Once"}
    assert found(CHAT).endpoint(None) is ApiKind.CHAT
    assert found({"conversations": TURNS}, CHAT).endpoint(None) is ApiKind.CHAT
    assert found(text).endpoint(None) is ApiKind.COMPLETIONS
    assert found(text).endpoint(ApiKind.CHAT) is found(text, CHAT).endpoint(ApiKind.CHAT) is ApiKind.CHAT
    assert found({"conversations": TURNS}).endpoint(ApiKind.COMPLETIONS) is ApiKind.COMPLETIONS
    with pytest.raises(RequirementError, match=r'jsonl:2: is for endpoint=\'chat\', .*: write endpoint="chat" to send'):
        found(text, CHAT).endpoint(None)
    with pytest.raises(RequirementError, match=r'jsonl:2: "messages" need endpoint="chat"'):
        found(text, CHAT).endpoint(ApiKind.COMPLETIONS)


def test_a_parquet_file_has_the_same_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    rows: list[dict[str, Any]] = [
        {"prompt": "Once", "output_tokens": 3, "topic": "a"},
        {"messages": CHAT["messages"], "max_tokens": 7},
        {"conversations": TURNS},
    ]
    path = tmp_path / "p.parquet"
    import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist(_same_keys(rows)), path)
    found = read_prompts(path)
    assert [(each.output_tokens, each.answer, each.whole) for each in found.prompts] == [
        (3, None, False),
        (7, None, True),
        (None, "Hi there.", False),
    ]
    assert re.search(r"p\.parquet: row 2$", found.prompts[1].place)
    damaged = put(tmp_path, path.read_bytes()[:-40], "damaged.parquet")
    with pytest.raises(RequirementError, match="the Parquet file is damaged"):
        read_prompts(damaged)


def _same_keys(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def test_a_parquet_file_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("pytest_gpucap.workloads.parquet_rows.import_module", missing)
    with pytest.raises(
        RequirementError, match=r"p\.jsonl: a Parquet file needs pyarrow: " + re.escape(pip_install("parquet"))
    ):
        read_prompts(put(tmp_path, b"PAR1 and more"))
