"""Grading: boxed and plain answers, with and without the maths parser."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import pytest

from pytest_gpucap.accuracy import grading
from pytest_gpucap.accuracy.grading import Grade, boxed, exact_number, final_text, grade, has_reasoning

RIGHT, WRONG, UNGRADED = Grade.RIGHT, Grade.WRONG, Grade.UNGRADED
needs_parser = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify comes with the accuracy extra"
)


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "has_maths_parser", lambda: False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("1,024", 1024),
        ("1 000 000", 1_000_000),
        ("1{,}234", 1234),
        ("-3.50", Fraction(-7, 2)),
        ("\u22125", -5),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("1/3", Fraction(1, 3)),
        ("25\\%", Fraction(1, 4)),
        ("$12$", 12),
        ("**12**.", 12),
        ("\\(7\\)", 7),
        ("1,2", None),
        ("twelve", None),
        ("\\sqrt{4}", None),
        ("1/0", None),
        ("\\frac{1}{0}", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_numbers_are_read_exactly(text: str, number: Fraction | int | None) -> None:
    assert exact_number(text) == number


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize(
    ("answer", "expected", "found"),
    [
        ("<think>6 * 7 = 41?</think>So \\boxed{42}", "42", RIGHT),
        ("Let me think.</think>\n\\boxed{42}", "42", RIGHT),
        ("first \\boxed{41}, no: \\boxed{42}", "42", RIGHT),
        ("\\boxed{x = 42}", "42", RIGHT),
        ("\\boxed{42\\text{ km}}", "42", RIGHT),
        ("\\boxed{\\frac{84}{2}}", "42", RIGHT),
        ("\\boxed{41}", "42", WRONG),
        ("\\boxed{0.333}", "1/3", WRONG),
        ("The answer is 42.", "42", RIGHT),
        ("**Answer:** $1,234.50", "1234.5", RIGHT),
        ("The answer is 48 apples, in 4 boxes of 12.", "48", RIGHT),
        ("6 * 7 = 42", "42", RIGHT),
        ("The answer is 43, not 42.", "42", WRONG),
        ("I cannot say.", "42", WRONG),
        # What ends before it is said is wrong, whatever numbers the thinking held.
        ("<think>it may be 42, or", "42", WRONG),
        ("<think>42</think>", "42", WRONG),
        ("", "42", WRONG),
        ("\n\n", "42", WRONG),
        # Without a parser these may be right or wrong, and nothing else is said of them.
        ("\\boxed{\\sqrt{16}}", "4", UNGRADED),
        ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", UNGRADED),
        ("\\boxed{2\\sqrt{3}}", "2\\sqrt{3}", RIGHT),
    ],
)
def test_answers_without_a_parser(answer: str, expected: str, found: Grade) -> None:
    assert grade([(answer, expected)]) == [found]


@pytest.fixture
def parsers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time limit, in our process and in the parser's: a busy machine may take any time to load SymPy."""
    monkeypatch.setattr(grading, "PARSER_S", None)
    name = "pytest_gpucap.accuracy.math_verify_process"
    patient = f"import sys, {name} as parser; parser.TIMEOUT_S = 3600; sys.exit(parser.main())"
    real = grading.subprocess.run  # type: ignore[attr-defined]
    monkeypatch.setattr("subprocess.run", lambda command, **rest: real([command[0], "-P", "-c", patient], **rest))


@needs_parser
def test_answers_with_the_parser(parsers_time: None) -> None:
    answers = [
        ("\\boxed{\\sqrt{16}}", "4", RIGHT),
        ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", RIGHT),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", RIGHT),
        ("so it is $\\frac{\\pi}{2}$", "\\frac{\\pi}{2}", RIGHT),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "sqrt(2)/2", RIGHT),
        ("\\boxed{(x+1)^3}", "x^2+2x+1", WRONG),
        ("\\boxed{\\sqrt{17}}", "4", WRONG),
        ("42", "42", RIGHT),
    ]
    found = grade([(answer, expected) for answer, expected, _ in answers])
    assert found == [wanted for _, _, wanted in answers]


@needs_parser
def test_an_answer_that_would_be_computed_for_ever_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "PARSER_S", None)  # what ends it is the parser's own limit for one answer
    (found,) = grade([("\\boxed{9^{9^{9^{9}}}}", "4")])
    assert found is not RIGHT


@needs_parser
def test_a_parser_that_dies_leaves_answers_ungraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert grade([("\\boxed{\\sqrt{16}}", "4"), ("\\boxed{4}", "4")]) == [UNGRADED, RIGHT]


@needs_parser
def test_what_the_parser_came_to_before_its_time_was_over_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = "import sys; print('true', flush=True); print('null', flush=True); sys.stdin.read()"
    real = grading.subprocess.run  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "subprocess.run",
        lambda command, **rest: real([command[0], "-c", f"{stuck}; import time; time.sleep(60)"], **rest),
    )
    found, time_s = [UNGRADED] * 3, 1.0
    while found == [UNGRADED] * 3:  # a busy machine may not have come to the first answer within the time
        monkeypatch.setattr(grading, "PARSER_S", time_s)
        found, time_s = grade([("\\boxed{\\sqrt{16}}", "4")] * 3), 2 * time_s
    assert found == [RIGHT, UNGRADED, UNGRADED]


def test_the_box_may_hold_braces_and_must_end() -> None:
    assert boxed("\\boxed{\\frac{1}{2}} and more") == "\\frac{1}{2}"
    assert boxed("\\boxed{\\frac{1}{2}") is None
    assert boxed("no box") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>\nso\n</think>\n4", True),
        ("so</think>4", True),
        ("<think>\n\n</think>\n\n4", False),
        ("\n\n</think>4", False),
        ("4", False),
        ("<think>still thinking", True),
    ],
)
def test_empty_thinking_is_noticed(text: str, shown: bool) -> None:
    assert has_reasoning(text) is shown


def test_only_the_end_of_a_long_answer_is_read() -> None:
    assert final_text("x" * 100_000 + "42").endswith("42")
    assert len(final_text("x" * 100_000)) == grading._MOST_TEXT
