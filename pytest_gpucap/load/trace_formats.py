"""The formats that public traces are published in, told apart by their header or their keys.

| format | columns or keys | times | source |
| --- | --- | --- | --- |
| ours | ``arrival_s, input_tokens, output_tokens`` | seconds | |
| Azure LLM inference 2023, 2024 | ``TIMESTAMP, ContextTokens, GeneratedTokens`` | dates | Azure/AzurePublicDataset |
| BurstGPT 1 to 3 | ``Timestamp, Request tokens, Response tokens`` | seconds | HPMLL/BurstGPT |
| Mooncake | ``timestamp, input_length, output_length`` | milliseconds | kvcache-ai/Mooncake |
| Bailian | the same, and ``chat_id`` | seconds | alibaba-edu/qwen-bailian-usagetraces-anon |
| RAGPulse | the same, and passages in ``hash_ids`` | seconds, as text | flashserve/RAGPulse |

Rows of published traces without input or without output tokens are requests that failed (BurstGPT's description), and
are left out. In our own format they are an error.
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
    """A date and time, in seconds since 1970; UTC where it names no time zone. Any number of decimals."""
    when = datetime.fromisoformat(str(value))
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format: which columns hold arrival, input and output tokens, and how its times become seconds.

    Attributes:
        columns: arrival, input tokens, output tokens.
        seconds: turns a time as it is written into seconds; raises ValueError or TypeError if it is no time.
        time_is: what a time must be, for messages.
        published: failed requests (no tokens) are left out, and rows are sorted. In our own format both are errors.
        beside: another column that must be there; ``key.key`` for a key of an object inside a JSON object.
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
    """The format with most of its columns among the names, and the columns it lacks; None if no format has any."""
    possible = [form for form in formats if form.beside is None or form.beside in names]
    best = max(possible, key=lambda form: len({*form.columns} & {*names}))  # the first of equals
    lacking = [name for name in best.columns if name not in names]
    return None if len(lacking) == len(best.columns) else (best, lacking)
