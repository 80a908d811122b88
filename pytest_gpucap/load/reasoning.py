"""The reasoning that an answer begins with: which part of an event it is, and how many tokens it took.

vLLM and SGLang stream it as ``reasoning`` or ``reasoning_content`` before the ``content``. Reasoning that comes after
the first token of anything else belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Final

_KEYS: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details"})
_BESIDE: Final = frozenset({"role", "provider_specific_fields", "content_filter_results"})
"""Fields that are no part of an answer, whatever they hold: gateways add the last two."""
_LEVELS: Final = 4
"""That are looked through for anything. What is nested deeper counts as something."""
_OPENING: Final = re.compile(rb'"reasoning(?:_content)?":\s?"')
_WITHIN: Final = 400
"""The text of the reasoning begins within so many bytes of its choice, or the event is not learnt from."""


class Part(Enum):
    """What an event holds of an answer."""

    REASONING = auto()
    """Reasoning, and nothing else."""
    ANSWER = auto()
    """Text, a tool call, or a choice of no known form."""
    NOTHING = auto()
    """Only why the answer ended, or a token that is not shown."""


def part_of(choice: Any) -> Part:
    """What a choice of an event holds."""
    if not isinstance(choice, dict):
        return Part.ANSWER
    held = held_in(choice)
    if not held:
        return Part.NOTHING
    return Part.REASONING if held <= _KEYS else Part.ANSWER


def held_in(choice: Mapping[str, Any]) -> set[str]:
    """Names of the fields of a choice that hold any part of an answer: text, reasoning, a tool call, a refusal."""
    delta = choice.get("delta")
    parts = delta if isinstance(delta, dict) else {"text": choice.get("text")}
    return {name for name, value in parts.items() if name not in _BESIDE and _holds(value)}


def _holds(value: Any, levels: int = _LEVELS) -> bool:
    """Whether there is anything in a value: ``{"refusal": null}`` and ``[{}]`` hold nothing."""
    if not levels or not isinstance(value, dict | list):
        return bool(value)
    return any(_holds(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value))


def text_opens(data: bytes, choice: int) -> int:
    """Where the text of an event with reasoning alone begins; 0 if that is not near its choice, which begins there."""
    found = _OPENING.search(data, choice, choice + _WITHIN) if choice else None
    return found.end() if found else 0


def told_tokens(usage: Mapping[str, Any]) -> int:
    """The tokens of reasoning by an answer's usage; 0 if it does not tell."""
    details = usage.get("completion_tokens_details")
    apart = details if isinstance(details, dict) else usage  # SGLang has them among the others
    value = apart.get("reasoning_tokens")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else 0


def tokens_of(reasoning: int, events: int, counted: int, told: int) -> int:
    """The tokens of an answer's reasoning.

    Args:
        reasoning: events with reasoning.
        events: events with a token.
        counted: tokens of the whole answer as the server counts them; -1 where it does not.
        told: those of the reasoning as the server counts them; 0 where it does not. vLLM tells 0 of an answer whose
            reasoning begins in the prompt's template, so 0 says nothing.
    """
    if counted <= 0 or not events:
        return reasoning
    return min(told or max(round(reasoning * counted / events), min(reasoning, 1)), counted)
