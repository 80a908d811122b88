"""The keywords of `engine(...)` as words of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.engines import program_arguments
from pytest_gpucap.engines.program_arguments import FlagStyle
from pytest_gpucap.requirement import RequirementError


@pytest.mark.parametrize(
    ("style", "given", "words"),
    [
        (FlagStyle(), {"ctx_size": 4096}, ["--ctx-size", "4096"]),
        (FlagStyle(dashes=False), {"max_batch_size": 8}, ["--max_batch_size", "8"]),
        (FlagStyle(), {"flash_attn": True, "mlock": False, "seed": None}, ["--flash-attn"]),
        (FlagStyle(dashes=False, switch_values=True), {"offload_kqv": False}, ["--offload_kqv", "false"]),
        (FlagStyle(), {"cuda_graph_bs": [1, 2]}, ["--cuda-graph-bs", "1", "2"]),
        (FlagStyle(), {"rope": {"type": "yarn"}}, ["--rope", '{"type": "yarn"}']),
        (FlagStyle(), {"n_gpu_layers": -1}, ["--n-gpu-layers=-1"]),
        (FlagStyle(), {"template": Path("/a b/t.jinja")}, ["--template", "/a b/t.jinja"]),
    ],
)
def test_an_argument_is_spelled_as_the_program_wants_it(
    style: FlagStyle, given: dict[str, object], words: list[str]
) -> None:
    assert style.words(program_arguments.read("e", given, {})) == words


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 1}, "e: port cannot be set: ours"),
        ({"a b": 1}, "e: 'a b' is no name of an argument"),
        ({"a-b": 1, "a_b": 2}, "e: a_b given twice"),
        ({"a": []}, "e: a is an empty list"),
        ({"a": ["--rm"]}, "e: a: '--rm' in a list would be read as an argument of its own"),
        ({"a": "x\x00"}, "no command line can carry this text"),
        ({"a": object}, "write text, a number, a mapping or a list of these"),
        ({"a": 10**101}, "write text, a number, a mapping or a list of these"),
        ({"a": {1: object}}, "cannot be written as JSON"),
    ],
)
def test_an_argument_that_cannot_be_carried_is_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(RequirementError) as raised:
        program_arguments.read("e", given, {"port": "ours"})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_command_line_is_read_back() -> None:
    line = "--ctx-size 4096 --flash-attn --cuda-graph-bs 1 2 --n-gpu-layers=-1"
    found = program_arguments.parse("e", line)
    assert found == {"ctx_size": "4096", "flash_attn": True, "cuda_graph_bs": ["1", "2"], "n_gpu_layers": "-1"}
    assert FlagStyle().words(program_arguments.read("e", found, {})) == line.split()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4096", "'4096' follows no --argument"),
        ('--a "b', "cannot be split into words: No closing quotation"),
        ("--a \x00", "null character"),
        ("x" * 70_000, "has at most 65536 characters"),
        ("--hf-token hf_abcdefghijklmnopqrstuvwxyzabcdefgh", "hf_token holds"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_one_line(line: str, said: str) -> None:
    with pytest.raises(RequirementError) as raised:
        program_arguments.parse("e", line)
    assert said in str(raised.value)
    assert "hf_abc" not in str(raised.value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "two", True, object])
def test_a_size_is_a_whole_number(value: object) -> None:
    with pytest.raises(RequirementError, match=r"^e: tp "):
        program_arguments.product("e", {"tp": value}, [("tp_size", "tp")])


def test_sizes_multiply_under_any_of_their_names() -> None:
    given = {"tensor-parallel-size": "2", "pp": 3}
    sizes = [("tp_size", "tensor_parallel_size"), ("pp_size", "pp"), ("dp_size",)]
    assert program_arguments.product("e", given, sizes) == 6
