"""The parts of a workload that stand for themselves: lengths, arrivals, the endpoint, the wording, images."""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from pytest_gpucap.declared_numbers import (
    Number,
    RequirementError,
    positive,
    tokens,
)
from pytest_gpucap.errors import told


class LengthKind(StrEnum):
    """How a token count is drawn."""

    FIXED = "fixed"
    UNIFORM = "uniform"
    LOGNORMAL = "lognormal"


@dataclass(frozen=True, slots=True)
class Length:
    """A token count, fixed or drawn: its mean, and the bounds that every draw is clipped to.

    For ``lognormal``, `mean` and `cv` (standard deviation / mean) are those of the distribution before
    clipping.
    """

    kind: LengthKind
    mean: float
    low: int
    high: int
    cv: float = 0.0

    @classmethod
    def fixed(cls, tokens: int) -> Length:
        """Always `tokens`."""
        return cls(LengthKind.FIXED, float(tokens), tokens, tokens)

    @classmethod
    def parse(cls, value: Number, what: str) -> Length:
        """From ``256``, ``"uniform:128-512"`` or ``"lognormal:mean=256,cv=0.8,low=16,high=2048"``.

        Raises:
            RequirementError: if the text is none of these, or a bound is out of order.
        """
        text = value.strip() if isinstance(value, str) else ""
        if match := re.fullmatch(r"uniform:\s*([0-9]{1,50})\s*-\s*([0-9]{1,50})", text):
            low, high = tokens(match[1], what), tokens(match[2], what)
            if low > high:
                raise RequirementError(f"{what}: the bounds of {text!r} must be in order")
            return cls(LengthKind.UNIFORM, (low + high) / 2, low, high)
        if text.startswith("lognormal:"):
            return cls._lognormal(text, what)
        if isinstance(value, bool) or not (isinstance(value, numbers.Real) or re.fullmatch(r"[-+0-9.eE]+", text)):
            raise RequirementError(
                f'{what} must be a whole number, "uniform:LOW-HIGH" or '
                f'"lognormal:mean=M,cv=C,low=L,high=H", not {told(value)}'
            )
        return cls.fixed(tokens(value, what))

    @classmethod
    def _lognormal(cls, text: str, what: str) -> Length:
        known = {"mean", "cv", "low", "high"}
        pairs = [part.partition("=") for part in text.removeprefix("lognormal:").split(",")]
        given = {name.strip(): number.strip() for name, _, number in pairs}
        if not {"mean", "cv", "high"} <= set(given) <= known:
            raise RequirementError(f"{what}: {told(text)} takes mean=, cv=, high= and, optionally, low=")
        mean, cv = float(positive(given["mean"], what)), float(positive(given["cv"], what))
        low, high = tokens(given.get("low", 1), what), tokens(given["high"], what)
        if not low <= mean <= high:
            raise RequirementError(f"{what}: the mean of {told(text)} must lie between its low and its high")
        return cls(LengthKind.LOGNORMAL, mean, low, high, cv)


class ArrivalKind(StrEnum):
    """When requests are due."""

    POISSON = "poisson"
    CONSTANT = "constant"
    GAMMA = "gamma"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests arrive in the open loop.

    `burstiness` is the coefficient of variation of the gaps (standard deviation / mean): 1 for Poisson, 0 for constant
    gaps, above 1 for bursts; only ``gamma`` takes another value. `trace` is a file of arrival times and token counts,
    `trace_sha256` a hash of what it holds (`load.trace.Trace.sha256`); None until it is read.
    """

    kind: ArrivalKind = ArrivalKind.POISSON
    burstiness: float = 1.0
    trace: Path | None = None
    trace_sha256: str | None = None


BASE_MODEL: Final = "base"
"""In a mix of adapters: the server's model without one."""


class ApiKind(StrEnum):
    """Which OpenAI-compatible endpoint carries the requests."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    POOLING = "pooling"
    CLASSIFY = "classify"
    RERANK = "rerank"

    @property
    def generates(self) -> bool:
        """Whether its answers have tokens. Otherwise a request is prefilled, and its answer comes as a whole."""
        return self in {ApiKind.CHAT, ApiKind.COMPLETIONS, ApiKind.RESPONSES}

    @property
    def has_messages(self) -> bool:
        """Whether its prompts are messages, with a chat template around them."""
        return self in {ApiKind.CHAT, ApiKind.RESPONSES}


@dataclass(frozen=True, slots=True)
class Wording:
    """The text around the prompt of every chat request, of load and of questions.

    Attributes:
        system: system text; none when empty.
        fold_system: put the system text into the user message, for models that take no system message.
        opening: put before the user's text.
        instruction: put after the user's text.
    """

    system: str = ""
    fold_system: bool = False
    opening: str = ""
    instruction: str = ""

    def messages(self, text: str) -> list[dict[str, str]]:
        """The messages of a chat request whose user says `text`."""
        folded = f"{self.system}\n\n" if self.system and self.fold_system else ""
        closing = f"\n{self.instruction}" if self.instruction else ""
        system = [{"role": "system", "content": self.system}] if self.system and not self.fold_system else []
        return [*system, {"role": "user", "content": f"{self.opening}{folded}{text}{closing}"}]


class ImageSize(NamedTuple):
    """The size of an image in pixels; its text is ``512x384``."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"
