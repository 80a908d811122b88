"""vLLM's arguments: every spelling means the same, and what cannot be meant is refused by name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.vllm_arguments import VllmArguments, recorded, recorded_command, values
from pytest_gpucap.vllm_arguments.spelling import SHORT, SHORTEST

Given = Mapping[str, Any]


def test_the_flags_of_the_sizing_guide() -> None:
    arguments = VllmArguments(
        {
            "tensor_parallel_size": 1,
            "dtype": "auto",
            "quantization": "awq",
            "max_model_len": 4096,
            "gpu_memory_utilization": 0.8,
            "enforce_eager": True,
            "enable_prefix_caching": True,
        }
    )
    assert " ".join(arguments.flags()) == (
        "--tensor-parallel-size 1 --dtype auto --quantization awq --max-model-len 4096 "
        "--gpu-memory-utilization 0.8 --enforce-eager --enable-prefix-caching"
    )


@pytest.mark.parametrize(
    ("given_as", "flags"),
    [
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"no_enable_prefix_caching": True}, ["--no-enable-prefix-caching"]),
        ({"no_enable_prefix_caching": False}, ["--enable-prefix-caching"]),
        ({"no-enable-prefix-caching": None}, []),
        ({"quantization": None}, []),
        ({"a_flag_of_tomorrow": "x"}, ["--a-flag-of-tomorrow", "x"]),
        ({"speculative_config": {"method": "ngram", "n": 3}}, ["--speculative-config", '{"method": "ngram", "n": 3}']),
        ({"lora_modules": ["a=1", "b=2"]}, ["--lora-modules", "a=1", "b=2"]),
        ({"lora_modules": [{"name": "a"}]}, ["--lora-modules", '{"name": "a"}']),
        ({"middleware": ["a", "b"]}, ["--middleware", "a", "--middleware", "b"]),
        ({"compilation_config.mode": 0}, ["--compilation-config.mode", "0"]),
        ({"compilation_config.pass_config.fuse": True}, ["--compilation-config.pass_config.fuse", "true"]),
        ({"compilation_config.sizes": [1, 2]}, ["--compilation-config.sizes", "[1, 2]"]),
        ({"compilation_config": {"a": 1}, "cc.b": 2}, ["--compilation-config", '{"a": 1, "b": 2}']),
        ({"chat_template": "-x-"}, ["--chat-template=-x-"]),
        ({"download_dir": Path("/models")}, ["--download-dir", "/models"]),
        ({"seed": 0}, ["--seed", "0"]),
        ({"O": 3}, ["--optimization-level", "3"]),
        ({"O": {"mode": 3}}, ["--compilation-config", '{"mode": 3}']),
    ],
)
def test_every_value_has_its_form(given_as: Given, flags: list[str]) -> None:
    assert VllmArguments(given_as).flags() == flags


@pytest.mark.parametrize(
    ("given_as", "message"),
    [
        ({"host": "0.0.0.0"}, "host cannot be set: the server listens on loopback only"),
        ({"port": 8000}, "port cannot be set: the kernel chooses a free port"),
        ({"api_key": "x"}, "api_key cannot be set: every server gets a random key"),
        ({"api-key": "x"}, "api-key cannot be set"),
        ({"served_model_name": "x"}, "served_model_name cannot be set: every server gets a unique model name"),
        ({"lora_modules": []}, "lora_modules is an empty list"),
        ({"lora_modules": ["a", "--host"]}, "'--host' in a list would be read as an argument of its own"),
        ({"max_model_len": object()}, "max_model_len=<object object"),
        ({"config": {"a": object()}}, "config=.* cannot be written as JSON"),
        ({"lora_modules": [True]}, "lora_modules=True: write text"),
        ({"lora_modules": [["a"]]}, "lora_modules=.* write text"),
        ({"--dtype": "auto"}, "'--dtype' is no name of a vLLM argument"),
        ({"-dtype": "auto"}, "'-dtype' is no name of a vLLM argument"),
        ({"no_enforce_eager": "yes"}, "no_enforce_eager is a switch: write True or False, not 'yes'"),
        ({"max_model_len": 1, "max-model-len": 2}, "max_model_len given twice: max_model_len=1 and max-model-len=2"),
        ({"enforce_eager": True, "no_enforce_eager": True}, "enforce_eager given twice: .* and no_enforce_eager=True"),
        ({"tp": 2, "tensor-parallel-size": 4}, "tensor_parallel_size given twice: tp=2 and tensor-parallel-size=4"),
        ({"cc": {"mode": 1}, "compilation_config.mode": 2}, "compilation_config.mode given twice: cc=.* and .*mode=2"),
        ({"spec_tokens": 1, "sc": {"num_speculative_tokens": 2}}, "given twice: sc=.* and spec_tokens=1"),
        ({"cc": "fast", "cc.mode": 2}, "compilation_config='fast' is no JSON object"),
        ({"tp": 0}, "tensor_parallel_size must be a whole number of at least 1, not 0"),
        ({"dp": "two"}, "data_parallel_size must be a number, not 'two'"),
        ({"pp": 1.5}, "pipeline_parallel_size must be a whole number"),
        ({"pcp": True}, "prefill_context_parallel_size must be a whole number"),
        ({"dcp": [1, 2]}, "decode_context_parallel_size must be a whole number"),
        ({"max_num_seqs": "many"}, "max_num_seqs must be a number"),
        ({"max_model_len": "1.5K"}, "max_model_len must be a number"),
        ({"device_memory_utilization": "most"}, "gpu_memory_utilization must be a number"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given_as: Given, message: str) -> None:
    with pytest.raises(RequirementError, match=message):
        VllmArguments(given_as)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-tp 2 --tensor_parallel_size=4", "tensor_parallel_size given twice: -tp 2 and --tensor_parallel_size=4"),
        ("--max-num-seqs 4 --max-num-seqs 8", "max_num_seqs given twice: --max-num-seqs 4 and --max-num-seqs 8"),
        ("--enforce-eager --no-enforce-eager", "enforce_eager given twice: --enforce-eager and --no-enforce-eager"),
        ("--port 1", "port cannot be set"),
        ("64", "'64' follows no --argument"),
        ("--chat-template -x-", "no argument -x-; a value with a dash is written --argument=-x-"),
        ("-z'\n'x", r"no argument -z\\nx; a value with a dash is written --argument=-z\\nx"),
        ("--a 'x\n' --a y", r"a given twice: --a x\\n and --a y"),
        ("--a 'b", "No closing quotation"),
    ],
)
def test_what_no_command_line_can_mean_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmArguments.parse(text)


def test_a_command_line_is_read_as_vllm_reads_it() -> None:
    text = "--max-num-seqs 64 --no-enable-prefix-caching --x=1 --y= --z '' --many a 'b c' --seed -1 -tp=2 -qfp8 -ep -O3"
    assert VllmArguments.parse(text).values == {
        "max_num_seqs": "64",
        "enable_prefix_caching": False,
        "x": "1",
        "y": None,
        "z": "",
        "many": ("a", "b c"),
        "seed": "-1",
        "tensor_parallel_size": "2",
        "quantization": "fp8",
        "enable_expert_parallel": True,
        "optimization_level": "3",
    }


SPELLINGS: list[tuple[Given, int]] = [
    ({}, 1),
    ({"tensor_parallel_size": None}, 1),
    *(({spelling: 2}, 2) for spelling in (
        "tensor_parallel_size", "tensor-parallel-size", "tensor_parallel-size", "tp", "-tp", "tensor_parallel",
        "tensor",
        "pipeline_parallel_size", "pipeline-parallel-size", "pp", "-pp", "pipeline",
        "data_parallel_size", "data-parallel-size", "dp", "-dp",
        "prefill_context_parallel_size", "prefill-context-parallel-size", "pcp", "-pcp",
    )),
    ({"tp": "2"}, 2),
    ({"tp": 2, "pp": 2, "dp": 2}, 8),
    ({"tensor-parallel-size": 4, "dcp": 4, "decode_context_parallel_size": 4}, 4),
    ({"tp": 2, "dp": 4, "ep": True, "no_enable_eplb": True}, 8),
    ({"tp": 2, "pcp": 2}, 4),
    ({"dp": 4, "dpl": 2, "dpr": 0, "asc": 2}, 4),
]  # fmt: skip


@pytest.mark.parametrize(("given_as", "gpus"), SPELLINGS, ids=json.dumps)
def test_gpus_per_replica_do_not_depend_on_the_spelling(given_as: Given, gpus: int) -> None:
    arguments = VllmArguments(given_as)
    assert arguments.gpus_per_replica == gpus
    assert VllmArguments(recorded(given_as)).gpus_per_replica == gpus
    assert VllmArguments.parse(" ".join(arguments.flags())).gpus_per_replica == gpus


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("-tp 2", 2), ("-tp=2", 2), ("--tensor-parallel-size 2", 2), ("--tensor_parallel_size=2", 2), ("--tensor 2", 2),
        ("-dp 2 -pp 2", 4), ("-pcp 2 -dcp 2", 2), ("-tp 2 -ep", 2), ("-tp=", 1),
    ],
)  # fmt: skip
def test_gpus_per_replica_of_a_command_line(text: str, gpus: int) -> None:
    assert VllmArguments.parse(text).gpus_per_replica == gpus


@pytest.mark.parametrize(
    ("given_as", "ask", "answer"),
    [
        ({"max-num-seqs": "64"}, lambda each: each.max_num_seqs, 64),
        ({}, lambda each: each.max_num_seqs, None),
        ({"max_model_len": "4k"}, lambda each: each.max_model_len, 4000),
        ({"max-model-len": "4K"}, lambda each: each.max_model_len, 4096),
        ({"max_model_len": "25.6k"}, lambda each: each.max_model_len, 25600),
        ({"max_model_len": "auto"}, lambda each: each.max_model_len, None),
        ({"max_model_len": -1}, lambda each: each.max_model_len, None),
        ({"device-memory-utilization": "0.5"}, lambda each: each.gpu_memory_utilization, 0.5),
        ({"q": "fp8"}, lambda each: each.quantization, "fp8"),
        ({"kv-cache-dtype": "fp8"}, lambda each: each.kv_cache_dtype, "fp8"),
        ({"dtype": "half"}, lambda each: each.dtype, "half"),
        ({}, lambda each: each.speculative_tokens, 0),
        ({"sc": None}, lambda each: each.speculative_tokens, 0),
        ({"speculative_config": {"num_speculative_tokens": 3}}, lambda each: each.speculative_tokens, 3),
        ({"sc": '{"num_speculative_tokens": 3}'}, lambda each: each.speculative_tokens, 3),
        ({"speculative-config.num_speculative_tokens": "3"}, lambda each: each.speculative_tokens, 3),
        ({"spec_tokens": 3, "spec_method": "ngram"}, lambda each: each.speculative_tokens, 3),
        ({"sc": {"method": "ngram"}, "spec-tokens": 3}, lambda each: each.speculative_tokens, 3),
    ],
)
def test_what_the_arguments_say(given_as: Given, ask: Callable[[VllmArguments], object], answer: object) -> None:
    assert ask(VllmArguments(given_as)) == answer


@pytest.mark.parametrize("config", ["ngram", {}, {"method": "mtp"}, {"num_speculative_tokens": None}])
def test_speculation_without_a_number_of_tokens_is_not_known(config: object) -> None:
    with pytest.raises(RequirementError, match="speculative_config names no num_speculative_tokens"):
        _ = VllmArguments({"speculative_config": config}).speculative_tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tp": 2, "seed": 1}, {"seed": "1", "tensor-parallel-size": "2"}),
        ({"compilation_config": {"mode": 3, "x": [1]}}, {"cc.x": [1], "cc.mode": 3}),
        ({"compilation_config": '{"a": {"b": 1}, "c": true}'}, {"O": {"c": True, "a": {"b": 1}}}),
        ({"cc.a.b": 1, "cc.a.c": 2}, {"cc.a": {"c": 2, "b": 1}}),
        ({"cc.sizes+": "1,2"}, {"cc": {"sizes": ["1", "2"]}}),
        ({"max_num_batched_tokens": "8k"}, {"max-num-batched-tokens": 8000}),
        ({"enforce_eager": False}, {"no-enforce-eager": True}),
        ({"lora_modules": ["a"]}, {"lora_modules": "a"}),
    ],
)
def test_equality_does_not_depend_on_spelling_or_order(one: Given, other: Given) -> None:
    assert VllmArguments(one) == VllmArguments(other)
    assert hash(VllmArguments(one)) == hash(VllmArguments(other))


@pytest.mark.parametrize(
    ("own", "top", "flags"),
    [
        ({"tp": 2, "seed": 1}, {"tensor-parallel-size": 4}, ["--seed", "1", "--tensor-parallel-size", "4"]),
        ({"enforce_eager": True}, {"no_enforce_eager": True}, ["--no-enforce-eager"]),
        ({"dtype": "half"}, {"dtype": None}, []),
        ({"cc": {"mode": 3, "x": 1}}, {"cc.mode": 0}, ["--compilation-config", '{"mode": 0, "x": 1}']),
        ({"cc.mode": 3, "cc.x": 1}, {"cc": {"y": 2}}, ["--compilation-config", '{"y": 2}']),
        ({"cc.mode": 3, "cc.x": 1}, {"cc.x": 2}, ["--compilation-config.mode", "3", "--compilation-config.x", "2"]),
        ({"cc": None}, {"cc.x": 2}, ["--compilation-config.x", "2"]),
    ],
)
def test_what_is_laid_over_wins(own: Given, top: Given, flags: list[str]) -> None:
    assert VllmArguments(own).overlaid(VllmArguments(top)).flags() == flags


def test_defaults_never_override_what_was_given() -> None:
    own = VllmArguments({"no_enforce_eager": True, "max-model-len": 10, "dtype": None, "cc.mode": 1})
    defaults = {"enforce_eager": True, "max_model_len": 20, "dtype": "half", "compilation_config": {}, "seed": 3}
    flags = ["--no-enforce-eager", "--max-model-len", "10", "--compilation-config.mode", "1", "--seed", "3"]
    assert own.with_defaults(defaults).flags() == flags


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--model m --host 127.0.0.1 --port 0 --served-model-name n", {}),
        ("--max-model-len 4096 --rope=-1 --empty=", {"max_model_len": "4096", "rope": "-1", "empty": ""}),
        ("--enforce-eager --no-enable-chunking", {"enforce_eager": True, "enable_chunking": False}),
        ("--lora-modules a b c --seed 1", {"lora_modules": ["a", "b", "c"], "seed": "1"}),
        ("-tp 2 --tensor_parallel_size 4", {"tensor_parallel_size": "4"}),
        ("--tensor-parallel 2 --odd -x", {"tensor_parallel_size": "2", "odd": "-x"}),
    ],
)
def test_what_was_recorded_is_never_refused(command: str, expected: Given) -> None:
    assert recorded_command(f"python3 -m vllm.entrypoints.openai.api_server {command}") == expected
    for start in (
        "/v/bin/vllm serve",
        "python3 -m vllm.entrypoints.cli.main serve",
        "/v/bin/python /v/engines/vllm_serve.py",
    ):
        assert recorded_command(f"{start} some/model {command}") == expected


def test_recorded_arguments_have_long_names() -> None:
    arguments = {"tensor-parallel-size": 2, "no_enforce_eager": True, "no_x": "y", "port": [], "seed": 1}
    assert recorded(arguments) == {
        "tensor_parallel_size": 2, "enforce_eager": False, "no_x": "y", "port": [], "seed": 1,
    }  # fmt: skip


# Values that a command line keeps: text, numbers, JSON, several of them.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
JSON = st.recursive(
    st.booleans() | st.integers() | TEXTS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
ITEMS = TEXTS.filter(lambda text: not text.startswith("-")) | st.integers()
VALUES = (
    st.booleans() | st.none() | TEXTS | NUMBERS | st.dictionaries(KEYS, JSON, max_size=3)
    | st.lists(ITEMS, min_size=1, max_size=3)
)  # fmt: skip
# Names that mean themselves: no short name, no abbreviation, none that is ours or asked for a number.
NAMES = st.from_regex(r"zz[a-z0-9]{0,3}(_[a-z0-9]{1,4}){0,2}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)
LONG_NAMES = sorted(SHORT.values())


@given(ARGUMENTS)
def test_flags_become_the_same_arguments_and_the_same_flags(given_as: Given) -> None:
    arguments = VllmArguments({name: value for name, value in given_as.items() if value is not None})
    words = arguments.flags()
    again = VllmArguments.parse(" ".join(map(_quoted, words)))
    assert again == arguments
    assert again.flags() == words
    assert VllmArguments(arguments.values) == arguments


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


@given(ARGUMENTS, st.randoms(use_true_random=False))
def test_no_spelling_changes_what_is_meant(given_as: Given, random: Any) -> None:
    other: dict[str, Any] = {}
    for name in random.sample(sorted(given_as), len(given_as)):
        value, often = given_as[name], random.random() < 0.5
        spelling = "".join(random.choice("_-") if letter == "_" else letter for letter in name)
        if isinstance(value, bool) and often:
            other[f"no{random.choice('_-')}{spelling}"] = not value
        else:
            other[spelling] = json.dumps(value) if isinstance(value, dict) and often else value
    assert VllmArguments(other) == VllmArguments(given_as)
    assert VllmArguments(recorded(other)) == VllmArguments(recorded(given_as))


@given(st.sampled_from(sorted(SHORT)), st.integers(1, 9), st.booleans())
def test_a_short_name_is_its_long_name(short: str, value: int, dashed: bool) -> None:
    long = VllmArguments({SHORT[short]: value})
    assert VllmArguments({f"-{short}" if dashed else short: value}) == long
    assert VllmArguments.parse(f"-{short} {value}") == VllmArguments.parse(f"-{short}={value}") == long


@given(st.dictionaries(KEYS, JSON.filter(lambda value: value is not None), min_size=1, max_size=4))
def test_keys_given_one_by_one_are_the_json_they_make(config: dict[str, Any]) -> None:
    # Text behind a key is read as JSON if it is some, by vLLM too: it then says something else than in JSON.
    assume(not any(isinstance(value, str) and _reads_otherwise(value) for value in config.values()))
    assume(not any(value == [] or isinstance(value, list) for value in config.values()))
    keyed = VllmArguments({f"zz.{key}": value for key, value in config.items()})
    assert keyed == VllmArguments({"zz": config}) == VllmArguments({"zz": json.dumps(config)})


def _reads_otherwise(text: str) -> bool:
    return values._json(text) != text


@given(ARGUMENTS, ARGUMENTS)
def test_laid_over_is_what_was_given_last(own: Given, top: Given) -> None:
    laid = VllmArguments(own).overlaid(VllmArguments(top))
    assert laid == VllmArguments({**own, **top})
    assert laid.overlaid(VllmArguments(top)) == laid


@pytest.mark.vllm_cpu
def test_short_names_and_abbreviations_are_those_of_vllms_parser(vllm_python: str) -> None:
    code = """
import json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
print("FOUND" + json.dumps([action.option_strings for action in parser._actions]))
"""
    done = subprocess.run([vllm_python, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.partition("FOUND")[2])
    short = {name[1:]: names[0][2:].replace("-", "_") for names in found for name in names if not name.startswith("--")}
    del short["h"]
    assert {name: SHORT.get(name) for name in short} == short
    every = [name[2:].replace("-", "_") for names in found for name in names if name.startswith("--")]
    for full, least in SHORTEST.items():
        assert [name for name in every if name.startswith(least)] == [full]
