"""What a test declares: the requirement, its workload and its latency limits.

Values are frozen. ``markers.py`` and ``options.py`` parse them once. Rates and headroom are exact fractions of the
decimal text that the user wrote, because ``ceil(11 * 1.1 / 12.1)`` is 2 in floats but 1 in exact arithmetic.
Times are seconds as floats. The name of every field carries its unit.
"""

from __future__ import annotations

import numbers
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.errors import GpuCapError, shortened, told

if TYPE_CHECKING:  # every collection of our tests imports this file, and NumPy takes long
    from pytest_gpucap.arrays import Floats, Int32s, Ints

Number = int | float | str | Decimal | Fraction


class Metric(StrEnum):
    """The latencies that a limit can be set on."""

    TTFT = "ttft"
    """Time to first token: from when the request was due to its first generated token."""
    TPOT = "tpot"
    """Time per output token after the first: (end - first token) / (tokens - 1), one figure per request."""
    ITL = "itl"
    """Inter-token latency: each gap between two streamed tokens."""
    E2E = "e2e"
    """End to end: from when the request was due to its last token."""


class RequirementError(GpuCapError, ValueError):
    """A declared value is invalid; the message names the value and the fix."""


LARGEST: Final = 10**20
"""Above every number that a declaration can mean, a random seed of 64 bits included."""
_SMALLEST: Final = Fraction(1, 10**12)
_LONGEST_NUMBER: Final = 100
"""Characters; a float has 24 at most."""
_WRITTEN: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?0*(?P<exponent>[0-9]*))?")
_LONGEST_EXPONENT: Final = 4
"""Digits without leading zeros. `Decimal` itself fails at some eighteen."""
_NOT_FINITE: Final = re.compile(r"[-+]?(?:nan|inf|infinity)", re.IGNORECASE)


def exact(value: Number, what: str) -> Fraction:
    """The exact fraction of a number as it was written: ``exact(1.1, "headroom") == Fraction(11, 10)``.

    Every number that a user writes is read here. Length and exponent are checked first: the fraction of ``1e9999999``
    has ten million digits.

    Raises:
        RequirementError: if the value is no finite number, or so large or small that it can only be a mistake.
    """
    if isinstance(value, bool) or not isinstance(value, str | Decimal | numbers.Real):
        raise RequirementError(f"{what} must be a number, not {told(value)}")
    if isinstance(value, numbers.Rational):  # NumPy's integers too
        return _bounded(Fraction(int(value.numerator), int(value.denominator)), value, what)
    text = str(value).strip()
    if _NOT_FINITE.fullmatch(text):
        raise RequirementError(f"{what} must be a finite number, not {told(value)}")
    written = _WRITTEN.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if written is None or text[-1] in "eE+-":
        raise RequirementError(f"{what} must be a number, not {told(value)}")
    if len(written["exponent"] or "") > _LONGEST_EXPONENT:
        raise _out_of_bounds(value, what)
    number = Decimal(text)
    if number and not -_MOST_DIGITS <= number.adjusted() <= _MOST_DIGITS:
        raise _out_of_bounds(value, what)
    return _bounded(Fraction(number), value, what)


_MOST_DIGITS: Final = 30
"""Of a decimal before or after its point; `_bounded` compares exactly."""


def _bounded(number: Fraction, value: Number, what: str) -> Fraction:
    if number and not _SMALLEST <= abs(number) <= LARGEST:
        raise _out_of_bounds(value, what)
    return number


def _plain(value: Number) -> str:
    """A number for a message, without quotation marks."""
    return shortened(str(value).strip())


def _out_of_bounds(value: Number, what: str) -> RequirementError:
    return RequirementError(f"{what} must be 0, or between 1e-12 and 1e20, not {told(value)}")


def positive(value: Number, what: str) -> Fraction:
    """`exact`, and above zero."""
    number = exact(value, what)
    if number <= 0:
        raise RequirementError(f"{what} must be above 0, not {_plain(value)}")
    return number


def whole(value: Number, what: str, least: int = 1) -> int:
    """A whole number of at least `least`; ``"4"``, ``4`` and ``4.0`` are the same."""
    number = exact(value, what)
    if number.denominator != 1 or number < least:
        raise RequirementError(f"{what} must be a whole number of at least {least}, not {told(value)}")
    return int(number)


MOST_STARTS: Final = 20
"""Of a server for one result: nobody would wait for more, and they would tell little more."""


def starts(value: Number, what: str) -> int:
    """How many starts of a server one result comes from."""
    number = whole(value, what)
    if number > MOST_STARTS:
        raise RequirementError(f"{what} must be a whole number from 1 to {MOST_STARTS}, not {told(value)}")
    return number


MOST_TOKENS: Final = 2**24
"""Of one prompt or answer: more than any model's context, and little enough for 32 bits and for memory."""


def tokens(value: Number, what: str, least: int = 1) -> int:
    """A number of tokens in one prompt or answer."""
    number = whole(value, what, least)
    if number > MOST_TOKENS:
        raise RequirementError(f"{what} must be at most {MOST_TOKENS} tokens, not {told(value)}")
    return number


def headroom(value: Number, what: str) -> Fraction:
    """A factor on the target rate, of at least 1."""
    number = exact(value, what)
    if number < 1:
        raise RequirementError(f"{what} must be at least 1 (1.3 keeps 30% in reserve), not {_plain(value)}")
    return number


def share(value: Number, what: str) -> Fraction:
    """A share between 0 and 1, as ``0.01`` or ``"1%"``."""
    text = value.strip() if isinstance(value, str) else ""
    number = exact(text[:-1], what) / 100 if text.endswith("%") else exact(value, what)
    if not 0 <= number <= 1:
        raise RequirementError(f"{what} must lie between 0 and 1 (0% and 100%), not {_plain(value)}")
    return number


def proper_share(value: Number, what: str) -> float:
    """A share above 0 and below 1."""
    found = float(share(value, what))
    if not 0 < found < 1:
        raise RequirementError(f"{what} must lie above 0% and below 100%, not {_plain(value)}")
    return found


_DURATION = re.compile(
    r"(?P<number>[0-9]{0,50}\.?[0-9]{1,50}(?:e[+-]?[0-9]{1,9})?)\s{0,9}(?P<unit>us|ms|s|m|min|h)?", re.IGNORECASE
)
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


_LONGEST_BARE_S = 60.0
"""A plain number above this is more often milliseconds than seconds."""
_SHORTEST_S, _LONGEST_S = 1e-6, 500 * 3600.0
"""Timers of the system end before 600 hours."""


def duration_s(value: Number, what: str) -> float:
    """Seconds from ``"500ms"``, ``"20s"``, ``"10m"``, ``"1h"`` or a plain number of seconds up to a minute.

    Raises:
        RequirementError: if the text is no duration, not above zero, or above a minute without a unit.
    """
    unit: str | None = None
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise RequirementError(f'{what} must be a duration such as "500ms", "20s" or "10m", not {told(value)}')
        unit = match["unit"]
        seconds = float(match["number"]) * _UNIT_S[(unit or "s").lower()]
    else:
        seconds = float(exact(value, what))
    if not seconds > 0:
        raise RequirementError(f"{what} must be above 0, not {told(value)}")
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise RequirementError(f'{what} must be between "1us" and "500h", not {told(value)}')
    if unit is None and seconds > _LONGEST_BARE_S:
        bare = str(value).strip()
        raise RequirementError(f'{what}={bare} needs a unit, since it is above a minute: "{bare}s" or "{bare}ms"')
    return seconds


_LIMIT_NAME = re.compile(r"(?P<metric>ttft|tpot|itl|e2e)_p(?P<percent>[0-9]{1,2}(?:_[0-9]{1,9})?)")


class LatencyPercentile(NamedTuple):
    """A percentile of one latency; `percent` lies above 0 and below 100."""

    metric: Metric
    percent: Fraction


def limited_percentile(keyword: str) -> LatencyPercentile | None:
    """What the keyword of a latency limit limits, such as ``ttft_p95`` or ``e2e_p99_9``; None for other names."""
    match = _LIMIT_NAME.fullmatch(keyword)
    if match is None or (percent := Fraction(match["percent"].replace("_", "."))) <= 0:
        return None
    return LatencyPercentile(Metric(match["metric"]), percent)


class Threshold(NamedTuple):
    """How long one latency of a request may take, in seconds (each gap of it, for ITL)."""

    metric: Metric
    limit_s: float


class Limit(ABC):
    """A limit on how many requests may be late."""

    __slots__ = ()
    quantile: Fraction
    """Share of the requests (gaps, for ITL) that must keep it at least."""
    failed_break: ClassVar[bool]
    """A failed request breaks it. Otherwise failed requests are left to the error rate."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports and result files call it: ``ttft_p95``, ``goodput_95``."""

    @property
    @abstractmethod
    def thresholds(self) -> tuple[Threshold, ...]:
        """What a request must keep, all at once."""

    @property
    @abstractmethod
    def most(self) -> float:
        """The largest value that keeps it, of what it is set on (`load.latencies.limited`)."""

    @property
    def metrics(self) -> frozenset[Metric]:
        """The latencies that it is about."""
        return frozenset(each.metric for each in self.thresholds)

    @property
    def of_gaps(self) -> bool:
        """It is set on the gaps between tokens, of which a request has many."""
        return Metric.ITL in self.metrics

    @property
    def at_first(self) -> bool:
        """Whether a request keeps it is known once its first token has come."""
        return self.metrics == {Metric.TTFT}


def _named_percent(quantile: Fraction) -> str:
    """The percentage in a limit's name: ``95``, ``99_9``."""
    percent = Decimal(quantile.numerator) * 100 / Decimal(quantile.denominator)
    return format(percent.normalize(), "f").replace(".", "_")


@dataclass(frozen=True, slots=True)
class LatencyLimit(Limit):
    """One limit: at most ``1 - quantile`` of the requests (gaps, for ITL) may take longer than `limit_s`."""

    metric: Metric
    quantile: Fraction
    limit_s: float
    failed_break = False

    @property
    def name(self) -> str:
        """The keyword that declares it, such as ``ttft_p95`` or ``e2e_p99_9``."""
        return f"{self.metric.value}_p{_named_percent(self.quantile)}"

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The one that it is."""
        return (Threshold(self.metric, self.limit_s),)

    @property
    def most(self) -> float:
        """Seconds."""
        return self.limit_s

    @classmethod
    def parse(cls, keyword: str, value: Number) -> LatencyLimit:
        """From a keyword and its value: ``parse("ttft_p95", "500ms")``.

        Raises:
            RequirementError: if the keyword names no metric and percentile, or the value is no duration.
        """
        found = limited_percentile(keyword)
        if found is None:
            raise RequirementError(
                f"{shortened(keyword)} is no latency limit: write METRIC_pPERCENT with a metric of ttft, tpot, itl, "
                "e2e and a percentile above 0 and below 100, such as ttft_p95 or e2e_p99_9"
            )
        return cls(found.metric, found.percent / 100, duration_s(value, keyword))


GOODPUT: Final = "goodput"
"""The keyword of the share of good requests, and the beginning of its limit's name."""
_GOODPUT_NAME: Final = re.compile(r"goodput_(?P<percent>[0-9]{1,2}(?:_[0-9]{1,9})?)")
_FINEST: Final = 10**11
"""A share in a name has nine digits after the point of its percentage at most."""


def goodput_percent(name: str) -> Fraction | None:
    """The percentage in the name of a goodput limit, such as ``goodput_95``; None for other names."""
    match = _GOODPUT_NAME.fullmatch(name)
    return None if match is None else Fraction(match["percent"].replace("_", "."))


@dataclass(frozen=True, slots=True)
class GoodputLimit(Limit):
    """At least the share `quantile` of the requests must be good: keep every threshold, all together.

    This is the goodput of DistServe (Zhong et al. 2024), of vLLM's benchmark and of AIPerf. What the limit is set on is
    a request's largest latency, each as a multiple of its threshold: a good request has at most 1.

    Attributes:
        thresholds: one per metric, in the order of `Metric`; none of ITL.
    """

    quantile: Fraction
    thresholds: tuple[Threshold, ...]
    failed_break = True

    @property
    def name(self) -> str:
        """Such as ``goodput_95`` or ``goodput_99_9``."""
        return f"{GOODPUT}_{_named_percent(self.quantile)}"

    @property
    def most(self) -> float:
        """A multiple of the thresholds."""
        return 1.0

    @property
    def required(self) -> str:
        """The share as people write it: ``95%``."""
        return f"{float(self.quantile * 100):.12g}%"

    def apart_from(self, metric: Metric) -> GoodputLimit | None:
        """The same without a threshold on `metric`, which is easier to keep; None where none is left."""
        others = tuple(each for each in self.thresholds if each.metric is not metric)
        return replace(self, thresholds=others) if others else None


def good_thresholds(limits: Sequence[LatencyLimit], own: Sequence[Threshold] = ()) -> tuple[Threshold, ...]:
    """What a good request keeps: of each metric but ITL one threshold, in the order of `Metric`.

    A threshold of `own` comes before those of the percentiles. Of several percentiles it is that of the highest, which
    is what nearly all requests must keep.
    """
    found = {limit.metric: limit.limit_s for limit in sorted(limits, key=lambda each: each.quantile)}
    found |= dict(own)
    return tuple(Threshold(metric, found[metric]) for metric in Metric if metric in found and metric is not Metric.ITL)


def declared_limits(declared: Mapping[str, Number]) -> tuple[Limit, ...]:
    """The limits that keywords declare: percentiles such as ``ttft_p95``, and ``goodput`` with ``ttft``, ``e2e`` ...

    Raises:
        RequirementError: if a keyword or value is none of a limit, or if goodput and thresholds do not fit together.
    """
    bare = {metric.value for metric in Metric}
    own = [Threshold(Metric(word), duration_s(value, word)) for word, value in declared.items() if word in bare]
    others = {word: value for word, value in declared.items() if word not in bare}
    asked = others.pop(GOODPUT, None)
    limits = tuple(LatencyLimit.parse(word, value) for word, value in others.items())
    if asked is None:
        if own:
            word = own[0].metric.value
            raise RequirementError(
                f"{word}={told(declared[word])} has no percentile: write {word}_p95={told(declared[word])}, or add "
                'goodput="95%" for the share of requests that must keep it'
            )
        return limits
    quantile = share(asked, GOODPUT)
    if not 0 < quantile < 1 or _FINEST % quantile.denominator:
        raise RequirementError(
            f'{GOODPUT} must be a share above 0% and below 100% such as "95%" or "99.9%", not {told(asked)}'
        )
    gaps = [word for word in declared if word == Metric.ITL or word.startswith(f"{Metric.ITL}_")]
    if gaps:
        raise RequirementError(
            f"{gaps[0]} does not go with {GOODPUT}, which counts requests: it limits gaps between tokens, of which a "
            "request has many; limit tpot instead"
        )
    thresholds = good_thresholds(limits, own)
    if not thresholds:
        raise RequirementError(f'{GOODPUT} needs what good requests keep: add ttft="500ms", tpot="50ms" or e2e="20s"')
    return (*limits, GoodputLimit(quantile, thresholds))


@dataclass(frozen=True, slots=True)
class Slo:
    """The limits that requests must keep. All apply at once.

    ``limits`` may be empty. Then only errors and a growing backlog bound the sustainable rate.
    """

    limits: tuple[Limit, ...] = ()
    max_error_rate: Fraction = Fraction(1, 100)
    min_accuracy: Fraction | None = None
    """Share of the workload's questions that must be answered right; None: answers are not graded."""

    @property
    def goodput(self) -> GoodputLimit | None:
        """The limit on the share of good requests; None where there is none."""
        return next((limit for limit in self.limits if isinstance(limit, GoodputLimit)), None)

    @property
    def percentiles(self) -> tuple[LatencyLimit, ...]:
        """The limits on a percentile of one latency."""
        return tuple(limit for limit in self.limits if isinstance(limit, LatencyLimit))

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Those of all limits."""
        return tuple(each for limit in self.limits for each in limit.thresholds)

    @property
    def good(self) -> tuple[Threshold, ...]:
        """What a good request keeps, whether goodput is limited or not; empty where no request is limited."""
        return good_thresholds(self.percentiles) if self.goodput is None else self.goodput.thresholds


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


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """Prompts of the user's own, from a file (`workloads.prompt_file`), without their text.

    Attributes:
        path: of the file.
        sha256: of what the file holds, not of how it is packed.
        count: how many prompts it has.
        order: seed of the order in which they are sent.
        input_tokens: shape (count,), tokens of each prompt as a request has them; empty until they are counted.
        output_tokens: shape (count,), tokens that each asks for; 0: drawn from `drawn`.
        declared: of answers whose prompts do not say how long they are; None: nothing was declared.
        estimated: of how many prompts the tokens are estimated, not counted by the server.
        cached_apart: see `load.prompts.PromptRecipe`.
    """

    path: Path
    sha256: str
    count: int
    order: int = 0
    input_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    declared: Length | None = None
    estimated: int = 0
    cached_apart: bool = False

    def __hash__(self) -> int:
        # What is drawn for a workload is kept by it. A hundred thousand lengths would be hashed each time.
        return hash((self.path, self.sha256, self.order, self.declared, self.estimated))

    @property
    def drawn(self) -> Length:
        """Of answers whose length neither their prompt nor a recorded answer says."""
        return self.declared or Length.fixed(256)


USUAL_OUTPUT: Final = 256
"""Output tokens where nothing is said."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecordedSessions:
    """Sessions from a file (`workloads.session_file`), without their text.

    Two are equal that send the same and whose tokens were counted alike.

    Attributes:
        path: of the file.
        sha256: of what is sent and asked for, and when: what the file holds and what is said beside its name.
        file_sha256: of what the file holds.
        personal: they are texts of the user's own; else prompts are made of blocks of tokens.
        in_order: sessions begin in the order of the file, else in a random one.
        begin: shape (s,), the first of each session's turns among all turns of the file.
        turns: shape (s,), how many of them are sent.
        start_s: shape (s,), when each session began; None: the file does not say.
        prompt, output: shape (t,), tokens of each turn of the file.
        shared: shape (t,), tokens at the start of a prompt that an earlier request of the file had.
        own: shape (t,), tokens at the start of a prompt that the turn before it had.
        think_s: shape (t,), from the end of the answer before; 0 for first turns.
        declared: output tokens of turns that do not say how long their answer is; None: nothing was declared.
        think_given_s: seconds that were declared instead of those of the file; None: those of the file.
        context: see `Sessions`.
        block: tokens of a block; None where there are none.
        order: seed of a random order.
        estimated: of how many prompts the tokens are estimated, not counted by the server.
        cached_apart: see `load.prompts.PromptRecipe`.
        lengths_sha256: of prompt and output tokens.
    """

    path: Path
    sha256: str
    file_sha256: str
    personal: bool
    in_order: bool
    begin: Ints
    turns: Ints
    start_s: Floats | None
    prompt: Int32s
    output: Int32s
    shared: Int32s
    own: Int32s
    think_s: Floats
    declared: int | None = None
    think_given_s: float | None = None
    context: int | None = None
    block: int | None = None
    order: int = 0
    estimated: int = 0
    cached_apart: bool = False
    lengths_sha256: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordedSessions) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        return self.sha256, self.lengths_sha256, self.in_order, self.order, self.estimated, self.cached_apart

    def __repr__(self) -> str:
        return f"RecordedSessions({self.path.name!r}, {self.count} sessions, sha256 {self.sha256[:12]})"

    @property
    def count(self) -> int:
        """How many sessions there are."""
        return int(self.begin.size)

    @property
    def usual_output(self) -> int:
        """Output tokens of turns that do not say how long their answer is."""
        return self.declared or USUAL_OUTPUT


@dataclass(frozen=True, slots=True)
class Sessions:
    """Multi-turn sessions: each turn's prompt is all that was said before, and new tokens (`workloads.sessions`).

    Attributes:
        turns: requests of a session.
        think_s: mean seconds from the end of an answer to the next turn.
        think_cv: standard deviation of that over its mean; 0: it is always the same, else it is lognormal.
        new: tokens that each turn adds to what was said before.
        first: tokens of the first turn; None: as of every other one.
        context: a session ends before a turn whose prompt and answer would have more tokens; None: no turn has.
        text: as it was declared.
        recorded: sessions from a file, which are sent as they are, and which the other attributes describe; None: they
            are drawn.
    """

    turns: Length
    think_s: float
    think_cv: float
    new: Length
    first: Length | None
    context: int | None
    text: str
    # None or `RecordedSessions`. What other nodes are told is typed by these fields, and sessions never go there.
    recorded: Any = None

    @property
    def opening(self) -> Length:
        """Tokens of the first turn."""
        return self.first or self.new


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape of the requests: what is sent, how long it is, when it is due."""

    input_tokens: Length = field(default_factory=lambda: Length.fixed(256))
    output_tokens: Length = field(default_factory=lambda: Length.fixed(256))
    """1 where the endpoint's answers have no tokens: a request ends with the step that prefills the last of it."""
    arrivals: Arrivals = Arrivals()
    endpoint: ApiKind = ApiKind.CHAT
    shared_prefix_tokens: int = 0
    """Tokens at the start of every prompt that all prompts share; 0: no two prompts share a first token block."""
    ignore_eos: bool = True
    """Ask the server to generate exactly the output tokens asked for (vLLM's ``ignore_eos``)."""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Sampling parameters passed through in the request body, such as ``temperature``."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, as JSON has them (`workloads.extra_body`)."""
    wording: Wording = Wording()
    """The text around every prompt of the chat endpoint. Its tokens count as input tokens."""
    preset: str | None = None
    """Name of the preset that it is based on."""
    questions: Path | None = None
    """File of question and answer pairs (JSON Lines). The server's answers are graded by them."""
    answer_tokens: int | None = None
    """Most tokens that one answer may take; None: 2048, or half the server's context where that is less."""
    prompts: OwnPrompts | None = None
    """Prompts from a file; None: they are made on the spot, with exactly the input tokens asked for."""
    images: tuple[ImageSize, ...] = ()
    """Of each of them one is drawn for every prompt of the chat endpoint. Their tokens count as input tokens."""
    stream: bool = True
    """Ask for answers token by token, where the endpoint's answers have tokens."""
    documents: int = 1
    """Documents in each request of the rerank endpoint; its input tokens are those of all of them and of the query."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Share of the requests of each LoRA adapter, by the name that they send as their model (`BASE_MODEL`: the server's
    own); empty: every request is for the server's model."""
    adapter_rank: int | None = None
    """Rank of adapters that are made for a synthetic model; None: they are not made."""
    dialect: ApiDialect = field(default_factory=ApiDialect)
    """How the server that is measured is asked for all this; see `served`."""
    sessions: Sessions | None = None
    """Requests are turns of sessions, whose whole prompts `input_tokens` describes; None: no two belong together."""

    @property
    def recorded(self) -> RecordedSessions | None:
        """The sessions, where they are from a file."""
        found: RecordedSessions | None = None if self.sessions is None else self.sessions.recorded
        return found

    @property
    def own_texts(self) -> Path | None:
        """The file of prompts or sessions whose texts are the user's own; None: prompts are made."""
        if self.prompts is not None:
            return self.prompts.path
        return self.recorded.path if self.recorded is not None and self.recorded.personal else None

    @property
    def streamed(self) -> bool:
        """Whether answers come token by token. Otherwise only their end to end latency is known."""
        return self.stream and self.endpoint.generates

    def served(self, dialect: ApiDialect) -> Workload:
        """The workload as a server that speaks this dialect can be asked for it.

        Where an engine cannot be asked for answers of an exact length, they end where the model ends them.
        """
        exact = self.ignore_eos and dialect.exact_length is not None
        if (dialect, exact) == (self.dialect, self.ignore_eos):
            return self
        return replace(self, dialect=dialect, ignore_eos=exact)

    @property
    def longest(self) -> tuple[int, int]:
        """Input and output tokens of the longest request. Of a trace's rows `load.trace.longest_request` knows."""
        return self.input_tokens.high, self.output_tokens.high


def too_long(request: tuple[int, int], max_model_len: int, place: str | None = None) -> str:
    """Why a request of so many input and output tokens does not fit a server's context; empty if it does.

    Args:
        request: input and output tokens.
        max_model_len: tokens of the context.
        place: the file that the request's prompt is from, if it is from one.
    """
    prompt, answer = request
    if prompt + answer <= max_model_len:
        return ""
    if place is not None:
        return (
            f"{place}: a prompt of {prompt} and an answer of {answer} tokens do not fit max_model_len={max_model_len}: "
            "leave longer prompts out of the file, lower output_tokens, or raise max_model_len"
        )
    return (
        f"a prompt of {prompt} and an answer of {answer} tokens, which the workload may ask for, do not fit "
        f"max_model_len={max_model_len}: lower input_tokens or output_tokens, or raise max_model_len"
    )


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the budget must carry: ``ceil(qps * headroom / rate_per_replica) * gpus_per_replica <= gpus``."""

    name: str
    qps: Fraction
    gpus: int
    headroom: Fraction = Fraction(13, 10)
    gpus_per_replica: int = 1
    workload: Workload = field(default_factory=Workload)
    slo: Slo = Slo()
    fleet: int = 1
    """Replicas that are measured together."""
    lost: int = 0
    """Of these, how many were lost meanwhile and are counted all the same."""
    efficiency: Fraction = Fraction(1)
    """Share of its own rate that each replica keeps where all of the budget's replicas serve. It is for one replica
    that is measured alone; of a fleet the measured rate holds it already."""

    @property
    def replicas(self) -> int:
        """Replicas that fit the budget."""
        return self.gpus // self.gpus_per_replica

    @property
    def design_rate(self) -> Fraction:
        """The rate (requests a second) that one replica must sustain so that the budget holds.

        Of a fleet it is each replica's share. Of one replica that is measured alone it is what the replica must sustain
        alone, to be left with its share where all serve.
        """
        return self.qps * self.headroom / (self.replicas * self.efficiency)

    @property
    def driven_rate(self) -> Fraction:
        """The rate that all replicas under load must sustain together."""
        return self.design_rate * self.fleet

    @property
    def under_load(self) -> str:
        """What is driven, with its verb."""
        if self.fleet == 1:
            return "one replica sustains"
        serving = f"{self.fleet - self.lost} of {self.fleet}" if self.lost else f"{self.fleet}"
        return f"{serving} replicas together sustain"
