"""Question files: read, checked, and the ones that come with the plugin right."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_gpucap.accuracy import questions
from pytest_gpucap.accuracy.grading import exact_number
from pytest_gpucap.accuracy.questions import Question, questions_file, read_questions
from pytest_gpucap.installing import pip_install
from pytest_gpucap.requirement import RequirementError


def test_our_arithmetic_is_right() -> None:
    """Everything that is written as a formula is computed again here."""
    known = read_questions(questions_file("arithmetic", Path()))
    assert len({question.text for question in known}) == len(known) >= 72
    computed = 0
    for question in known:
        text, answer = question.text, exact_number(question.answer)
        if match := re.fullmatch(r"What is ([\d +*()-]+)\?", text):
            assert eval(match[1]) == answer, text
        elif match := re.fullmatch(r"What is (\d+) divided by (\d+)\?", text):
            assert Fraction(int(match[1]), int(match[2])) == answer, text
        elif match := re.fullmatch(r"What is (\d+)% of (\d+)\?", text):
            assert Fraction(int(match[1]) * int(match[2]), 100) == answer, text
        elif match := re.fullmatch(r"What is the remainder when (\d+) is divided by (\d+)\?", text):
            assert int(match[1]) % int(match[2]) == answer, text
        elif match := re.fullmatch(r"A ticket costs (\d+) .* buys (\d+) of them and pays with (\d+) .*", text):
            assert int(match[3]) - int(match[1]) * int(match[2]) == answer, text
        elif match := re.fullmatch(r"A train goes (\d+) kilometres an hour for (\d+) hours .*", text):
            assert int(match[1]) * int(match[2]) == answer, text
        else:
            pytest.fail(f"not checked: {text}")
        computed += 1
    assert computed == len(known)


def test_a_file_is_read_relative_to_the_test(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": 2, "topic": "sums"}\n\n{"question": "Half?", "answer": "1/2"}\n')
    assert questions_file("sums.jsonl", tmp_path) == path
    assert read_questions(path) == (Question("1 + 1?", "2"), Question("Half?", "1/2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "q.jsonl: the file has no question"),
        ("nonsense\n", 'q.jsonl:1: not a JSON object with "question" and "answer"'),
        ('{"question": "1 + 1?"}\n', 'q.jsonl:1: not a JSON object with "question" and "answer"'),
        ('\n{"question": " ", "answer": 2}\n', "q.jsonl:2: question must be text and not empty"),
        ('{"question": "1 + 1?", "answer": true}\n', "q.jsonl:1: answer must be a number, or text"),
        ('{"question": "1 + 1?", "answer": ""}\n', "q.jsonl:1: answer must be a number, or text"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(RequirementError) as caught:
        read_questions(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_graded_here_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "The root of 2?", "answer": "\\\\sqrt{2}"}\n')
    monkeypatch.setattr(questions, "has_maths_parser", lambda: False)
    with pytest.raises(RequirementError, match=r"q\.jsonl:1: .* " + re.escape(pip_install("accuracy"))):
        read_questions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"there is no file .*none\.jsonl, and of ours only arithmetic"):
        questions_file("none.jsonl", tmp_path)
