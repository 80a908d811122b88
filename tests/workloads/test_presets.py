"""Presets: data whose figures follow from the sources they name, and that markers override and extend."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist

import pytest

from pytest_gpucap.requirement import Length, RequirementError, Wording
from pytest_gpucap.workloads.presets import find_preset

PRESETS = tuple(tomllib.loads(files("pytest_gpucap.workloads").joinpath("presets.toml").read_text()))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    preset = find_preset(name)
    assert preset.about
    assert preset.sources
    for keyword in ("input_tokens", "output_tokens"):
        Length.parse(preset.keywords[keyword], keyword)


@pytest.mark.parametrize(
    ("name", "keyword", "mean", "median"),
    [
        ("rag", "input_tokens", 8596, 6346),
        ("code", "input_tokens", 2048, 1469),
        ("code", "output_tokens", 28, 13),
        ("summarise", "input_tokens", 12035, 6909),
        ("reasoning", "input_tokens", 4763, 3680),
        ("reasoning", "output_tokens", 3651, 1665),
    ],
)
def test_lognormals_have_the_mean_and_the_median_that_were_published(
    name: str, keyword: str, mean: float, median: float
) -> None:
    length = Length.parse(find_preset(name).keywords[keyword], keyword)
    assert length.mean == mean
    # The median of a lognormal is its mean over sqrt(1 + cv^2).
    assert length.mean / math.hypot(1, length.cv) == pytest.approx(median, rel=0.01)
    text = " ".join(find_preset(name).sources)
    assert f"{mean}" in text.replace(" ", "")
    assert f"{median}" in text


@pytest.mark.parametrize(
    ("name", "keyword", "quantile", "said"),
    [
        ("rag", "input_tokens", 0.9, "17 200"),
        ("rag", "input_tokens", 0.99, "38 700"),
        ("rag", "output_tokens", 0.9, "414"),
        ("code", "input_tokens", 0.99, "9780"),
        ("code", "output_tokens", 0.99, "232"),
        ("summarise", "input_tokens", 0.9, "26 600"),
        ("summarise", "input_tokens", 0.99, "80 300"),
        ("summarise", "output_tokens", 0.99, "1050"),
        ("reasoning", "input_tokens", 0.99, "19 500"),
        ("reasoning", "output_tokens", 0.99, "30 700"),
    ],
)
def test_what_is_said_of_a_fit_is_what_it_gives(name: str, keyword: str, quantile: float, said: str) -> None:
    preset = find_preset(name)
    length = Length.parse(preset.keywords[keyword], keyword)
    spread = math.sqrt(math.log1p(length.cv**2))
    found = length.mean * math.exp(spread * NormalDist().inv_cdf(quantile) - spread**2 / 2)
    assert found == pytest.approx(int(said.replace(" ", "")), rel=0.005)
    assert said in " ".join(preset.sources)


def test_help_names_every_preset(pytester: pytest.Pytester) -> None:
    told = " ".join(pytester.runpytest("--help").stdout.str().split())
    assert f"({', '.join(PRESETS)})" in told


def test_deepseek_r1_does_what_its_guide_says() -> None:
    keywords = find_preset("deepseek-r1").keywords
    assert keywords["temperature"] == 0.6
    assert (keywords["input_tokens"], keywords["output_tokens"]) == (256, 512)
    wording = Wording(
        "You are terse.", keywords["fold_system"], opening=keywords["opening"], instruction=keywords["instruction"]
    )
    assert wording.messages("What is 1 + 1?") == [
        {
            "role": "user",
            "content": "\nYou are terse.\n\nWhat is 1 + 1?\n"
            "Please reason step by step, and put your final answer within \\boxed{}.",
        }
    ]


def test_without_folding_the_system_text_is_a_message_of_its_own() -> None:
    assert Wording("You are terse.").messages("Hi") == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Hi"},
    ]


OWN = """
[support]
about = "our support desk"
extends = "chat"
output_tokens = 128
questions = "sums.jsonl"

[chat]
extends = "chat"
input_tokens = 300

[loop]
extends = "pool"
[pool]
extends = "loop"
"""


def test_presets_of_the_users_own_extend_ours_and_one_another(tmp_path: Path) -> None:
    own = tmp_path / "workloads.toml"
    own.write_text(OWN)
    (tmp_path / "sums.jsonl").write_text("")
    support = find_preset("support", own)
    assert support.about == "our support desk"
    assert support.keywords == {
        "input_tokens": 300,
        "output_tokens": 128,
        "questions": str(tmp_path / "sums.jsonl"),
    }
    assert find_preset("rag", own) == find_preset("rag")
    assert find_preset("deepseek-r1", own).keywords["input_tokens"] == 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("raag", "", "workload='raag': there is no such workload preset; did you mean rag?"),
        ("xyzzy", "", "there are chat, rag, code, summarise, reasoning, deepseek-r1"),
        ("loop", OWN, "loop extends pool extends loop: a circle"),
        (
            "mine",
            '[mine]\nextends = "caht"',
            "mine extends 'caht': there is no such workload preset; did you mean chat",
        ),
        ("mine", '[mine]\nextends = "mine"', "mine extends 'mine': there is no such workload preset"),
        ("mine", '[mine]\nworkload = "chat"', "mine: write extends = 'chat' instead of workload"),
        ("mine", "mine = 3", "mine stands outside a table"),
        ("mine", "[mine", "the workload file: not TOML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    own = tmp_path / "workloads.toml"
    own.write_text(content)
    with pytest.raises(RequirementError) as caught:
        find_preset(name, own)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"none\.toml: the workload file: No such file"):
        find_preset("chat", tmp_path / "none.toml")
