"""The forms that public traces are published in, told apart by their header or their keys.

| form | columns or keys | times | source |
| --- | --- | --- | --- |
| ours | ``arrival_s, input_tokens, output_tokens`` | seconds | |
| Azure LLM inference 2023, 2024 | ``TIMESTAMP, ContextTokens, GeneratedTokens`` | dates | Azure/AzurePublicDataset |
| BurstGPT 1 to 3 | ``Timestamp, Request tokens, Response tokens`` | seconds | HPMLL/BurstGPT |
| Mooncake | ``timestamp, input_length, output_length`` | milliseconds | kvcache-ai/Mooncake |
| Bailian | the same, and ``chat_id`` | seconds | alibaba-edu/qwen-bailian-usagetraces-anon |
| RAGPulse | the same, and passages in ``hash_ids`` | seconds, as text | flashserve/RAGPulse |

Rows of published traces without tokens one way or the other are requests that failed (so BurstGPT's description says)
and are left out; in our own form they are a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final


def _seconds(value: Any) -> float:
    return float(value)


def _milliseconds(value: Any) -> float:
    return float(value) / 1000.0


def _date(value: Any) -> float:
    """Seconds of a date, with a zone or without, whatever the number of decimals."""
    when = datetime.fromisoformat(str(value))
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One form: where arrival, input and output tokens stand, and how its times become seconds.

    Attributes:
        columns: arrival, input tokens, output tokens.
        seconds: of a time as it is written; raises ValueError or TypeError on what is none.
        time_is: what a time must be, for messages.
        published: failed requests (no tokens) are left out and rows are put in order; in our own form both are
            mistakes.
        beside: a column that must be there as well; of a JSON object also ``key.key`` of one inside it.
    """

    name: str
    columns: tuple[str, str, str]
    seconds: Callable[[Any], float] = _seconds
    time_is: str = "a number"
    published: bool = True
    beside: str | None = None


OURS: Final = TraceFormat("ours", ("arrival_s", "input_tokens", "output_tokens"), published=False)

CSV_FORMATS: Final = (
    OURS,
    TraceFormat("Azure LLM inference", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date, "a date and time"),
    TraceFormat("BurstGPT", ("Timestamp", "Request tokens", "Response tokens")),
)
JSON_FORMATS: Final = (
    OURS,
    TraceFormat("Bailian", ("timestamp", "input_length", "output_length"), beside="chat_id"),
    TraceFormat("RAGPulse", ("timestamp", "input_length", "output_length"), beside="hash_ids.passages_ids"),
    TraceFormat("Mooncake", ("timestamp", "input_length", "output_length"), _milliseconds),
)


def recognise(formats: tuple[TraceFormat, ...], names: Collection[str]) -> tuple[TraceFormat, list[str]] | None:
    """The form that has most of its columns among the names, and those that it lacks; None where no form has any."""
    possible = [form for form in formats if form.beside is None or form.beside in names]
    best = max(possible, key=lambda form: len({*form.columns} & {*names}))  # the first of equals
    lacking = [name for name in best.columns if name not in names]
    return None if len(lacking) == len(best.columns) else (best, lacking)
