"""What a test declares: the requirement, its workload and its latency limits.

Values are frozen. ``markers/`` and ``options.py`` parse them once. Rates and headroom are exact fractions of the
decimal text that the user wrote, because ``ceil(11 * 1.1 / 12.1)`` is 2 in floats but 1 in exact arithmetic.
Times are seconds as floats. The name of every field carries its unit.
"""

from __future__ import annotations

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
from pytest_gpucap.declared_numbers import (
    LARGEST,
    MOST_STARTS,
    MOST_TOKENS,
    Number,
    RequirementError,
    duration_s,
    exact,
    headroom,
    positive,
    proper_share,
    share,
    starts,
    tokens,
    whole,
)
from pytest_gpucap.errors import shortened, told
from pytest_gpucap.workload_parts import (
    BASE_MODEL,
    ApiKind,
    ArrivalKind,
    Arrivals,
    ImageSize,
    Length,
    LengthKind,
    Wording,
)

__all__ = [
    "BASE_MODEL",
    "GOODPUT",
    "LARGEST",
    "MOST_STARTS",
    "MOST_TOKENS",
    "ApiKind",
    "ArrivalKind",
    "Arrivals",
    "GoodputLimit",
    "ImageSize",
    "LatencyLimit",
    "LatencyPercentile",
    "Length",
    "LengthKind",
    "Limit",
    "Metric",
    "Number",
    "OwnPrompts",
    "Requirement",
    "RequirementError",
    "Sessions",
    "Slo",
    "Threshold",
    "Wording",
    "Workload",
    "declared_limits",
    "duration_s",
    "exact",
    "good_thresholds",
    "goodput_percent",
    "headroom",
    "limited_percentile",
    "positive",
    "proper_share",
    "share",
    "starts",
    "tokens",
    "too_long",
    "whole",
]

if TYPE_CHECKING:  # every collection of our tests imports this file, and NumPy takes long
    from pytest_gpucap.arrays import Floats, Int32s, Ints


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
    arrivals: Arrivals = Arrivals()  # noqa: RUF009 - it is frozen
    endpoint: ApiKind = ApiKind.CHAT
    shared_prefix_tokens: int = 0
    """Tokens at the start of every prompt that all prompts share; 0: no two prompts share a first token block."""
    ignore_eos: bool = True
    """Ask the server to generate exactly the output tokens asked for (vLLM's ``ignore_eos``)."""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Sampling parameters passed through in the request body, such as ``temperature``."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, as JSON has them (`workloads.extra_body`)."""
    wording: Wording = Wording()  # noqa: RUF009 - it is frozen
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
