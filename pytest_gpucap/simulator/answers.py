r"""What a simulated server says when it is asked a question that comes with the plugin: right at a known rate.

It answers as reasoning models do: some thinking, then the result in ``\boxed{}``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytest_gpucap.accuracy.grading import exact_number
from pytest_gpucap.accuracy.questions import SHIPPED, questions_file, read_questions


class Answers:
    """Knows the questions that come with the plugin.

    Args:
        accuracy: probability that an answer is right, independent from answer to answer.
        seed: of which answers are.
    """

    def __init__(self, accuracy: float = 1.0, seed: int = 0) -> None:
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy must lie between 0 and 1, not {accuracy}")
        self._accuracy, self._seed = accuracy, seed
        self._known = [entry for name in SHIPPED for entry in read_questions(questions_file(name, Path()))]

    def reply(self, body: Mapping[str, Any]) -> str | None:
        """The answer to a chat request; None where it asks nothing that is known."""
        said = str(body["messages"][-1].get("content", ""))
        entry = next((entry for entry in self._known if entry.text in said), None)
        if entry is None:
            return None
        draw = random.Random(f"{self._seed} {body.get('seed')} {entry.text}").random()  # noqa: S311 - a simulation
        right = exact_number(entry.answer) or Fraction(0)
        result = right if draw < self._accuracy else right + 1
        return f"<think>\nLet me work this out step by step.\n</think>\nThe result is \\boxed{{{result}}}."
