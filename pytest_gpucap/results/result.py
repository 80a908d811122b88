"""The result file as types: one `ResultFile` per session, one `Result` per measurement.

Times are seconds, rates requests a second of one replica, sizes tokens. Every report is made from these values alone.
`result.schema.json` beside this file is generated from them (`results.schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec

from pytest_gpucap.requirement import ApiKind, ArrivalKind, LatencyLimit, Metric, Wording, limited_percentile, share
from pytest_gpucap.results.comparison import Comparison, RegressionDecision
from pytest_gpucap.results.encoding import Figure
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.failures import FailedRequests
from pytest_gpucap.results.fleet import FleetResult
from pytest_gpucap.results.imported import ImportedFrom
from pytest_gpucap.results.measured import (
    Accuracy,
    AdapterLatencies,
    Interval,
    MeasuredStart,
    MoreTime,
    Outcome,
    Sample,
    SecondaryResult,
)
from pytest_gpucap.results.problems import Problem, ProblemKind
from pytest_gpucap.results.requests import RequestsFile
from pytest_gpucap.results.telemetry import Bottleneck, TelemetryOverTime, TelemetrySummary

SCHEMA_VERSION: Final = 2
"""Increased when a reader of the old form would misread the new one or could not read it."""
START_UP: Final = "start-up"
"""The key in `Result.spent_s` of the time before the first request."""


class ResultKind(StrEnum):
    """The method of `gpucap` that made a result, or that another tool did."""

    CHECK = "check"
    MEASURE = "measure"
    SWEEP = "sweep"
    SAMPLE = "sample"
    IMPORTED = "imported"
    """A point that another tool measured."""


Declared = Annotated[float, msgspec.Meta(ge=1e-12)]
"""A number that a declaration can mean (`requirement.exact`), so that the arithmetic on it takes it. The
largest is that of every number (`sound`)."""


class DeclaredBudget(msgspec.Struct, frozen=True):
    """The requirement's rate and GPUs as floats; placeholders if a test declares no budget.

    Attributes:
        qps: requests a second that all replicas together must carry.
        gpus: the budget.
        headroom: factor on `qps`.
        gpus_per_replica: GPUs that one server takes.
        fleet: replicas that were measured together; rates are each one's share.
        efficiency: share of its rate that a replica keeps where all serve, where one was measured alone; 1 assumes that
            replicas add up.
    """

    qps: Declared
    gpus: Annotated[int, msgspec.Meta(ge=1)]
    headroom: Declared
    gpus_per_replica: Annotated[int, msgspec.Meta(ge=1)]
    fleet: Annotated[int, msgspec.Meta(ge=1)] = 1
    efficiency: Declared = 1.0


class DeclaredAdapter(msgspec.Struct, frozen=True):
    """A LoRA adapter of the mix.

    Attributes:
        name: that requests send as their model; ``base``: they send the server's own.
        share: of the requests.
    """

    name: str
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]


class DeclaredWorkload(msgspec.Struct, frozen=True):
    """The workload as it was declared.

    Attributes:
        input_tokens, output_tokens: a number, or a distribution as it is written in a marker. Output tokens are 0 where
            the endpoint's answers have none.
        burstiness: standard deviation of the gaps between arrivals over their mean.
        trace: name of the trace file.
        trace_sha256: of what the trace holds: arrivals in microseconds, input and output tokens. None in early files.
        shared_prefix_tokens: at the start of every prompt, the same in all.
        ignore_eos: exactly the output tokens asked for are generated.
        sampling: sampling parameters of the requests.
        preset: the workload preset that it is based on.
        questions: name of the file of questions.
        wording: the text around every prompt.
        prompts: name of the file of prompts; None: prompts were made. Its text is in no result.
        prompts_sha256: of everything that the file sends and asks for.
        prompt_count: prompts in the file.
        extra_body: further fields of every request, as JSON text; only its beginning where it is long.
        extra_body_sha256: of all of that text.
        images: the size of each image of a prompt, such as ``512x384``: width and height in pixels.
        audio_s: the length of each audio clip of a prompt, in seconds.
        stream: answers come token by token; False too for endpoints whose answers have no tokens.
        documents: in each request of the rerank endpoint; None for others.
        adapters: the mix of LoRA adapters that requests name; empty: all are for the server's model.
        adapter_rank: of adapters that were made for a synthetic model; None: none were.
        sessions: as they are written in a marker, with the tokens that each turn adds as ``new=``; `input_tokens` are
            those of whole prompts. Of sessions from a file its name and what is said beside it; their text is in no
            result. None: no two requests belong together.
        sessions_sha256: of everything that the file sends and asks for, and when; None: sessions are drawn.
        session_count: sessions in the file.
    """

    input_tokens: int | str
    output_tokens: int | str
    arrivals: ArrivalKind
    burstiness: float
    endpoint: ApiKind
    trace: str | None = None
    trace_sha256: str | None = None
    shared_prefix_tokens: int = 0
    ignore_eos: bool = True
    sampling: Mapping[str, float | int] = msgspec.field(default_factory=dict)
    preset: str | None = None
    questions: str | None = None
    wording: Wording = Wording()
    prompts: str | None = None
    prompts_sha256: str | None = None
    prompt_count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    extra_body: str | None = None
    extra_body_sha256: str | None = None
    images: tuple[str, ...] = ()
    audio_s: tuple[float, ...] = ()
    stream: bool = True
    documents: int | None = None
    adapters: tuple[DeclaredAdapter, ...] = ()
    adapter_rank: int | None = None
    sessions: str | None = None
    sessions_sha256: str | None = None
    session_count: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def tokens_out(self) -> str:
        """Tokens of the answers, for people: ``none`` where they have none."""
        return str(self.output_tokens) if self.endpoint.generates else "none"


class DeclaredSlo(msgspec.Struct, frozen=True):
    """The limits as they were declared.

    Attributes:
        limits: seconds by the name that declares them, such as ``ttft_p95``.
        max_error_rate: share of the requests that may fail.
        min_accuracy: share of the questions that must be answered right; None: answers are not graded.
        goodput: share of the requests that must be good; None: none must.
        thresholds: seconds by metric: what a good request keeps, all together; empty without `goodput`.
    """

    limits: Mapping[str, float]
    max_error_rate: float
    min_accuracy: float | None = None
    goodput: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    thresholds: Mapping[Metric, float] = msgspec.field(default_factory=dict)

    @property
    def percentiles(self) -> Mapping[str, float]:
        """`limits`, and the latencies that goodput alone limits, each at the percentile that goodput asks for."""
        found = dict(self.limits)
        if self.goodput is not None:
            limited = {each.metric for name in self.limits if (each := limited_percentile(name))}
            quantile = share(self.goodput, "goodput")
            for metric, limit_s in self.thresholds.items():
                if metric not in limited:
                    found[LatencyLimit(metric, quantile, limit_s).name] = limit_s
        return found


class PhysicalLimit(msgspec.Struct, frozen=True):
    """The physical limit for this model on this GPU class, at the requests in flight of the fastest window.

    Attributes:
        bound: ``bandwidth`` or ``compute``.
        rate_rps: the highest rate.
        ttft_s: the lowest TTFT, for a single request.
        tpot_s: the lowest TPOT, at this batch.
        output_tokens_per_s: the highest throughput.
        batch: requests in flight.
        share: measured tokens a second over `output_tokens_per_s`.
        text: one line with the share and the limit.
        formula: one line with the arithmetic.
    """

    bound: str
    rate_rps: Figure
    ttft_s: Figure
    tpot_s: Figure
    output_tokens_per_s: Figure
    batch: Figure
    share: Figure
    text: str
    formula: str


FORGETS: Final = 0.03
"""Share of the prompt tokens: a difference of less may come from where windows begin and end."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one test.

    Attributes:
        kind: the method that the test called.
        test: pytest's node id.
        line: of the test in its file, from 1; None where unknown.
        name: of the requirement.
        requirement: the rate that was declared, and the budget for it.
        workload: what requests were sent.
        slo: the limits that they had to keep.
        environment: what was measured on and with: GPU, driver, engine and its arguments, host, versions.
        outcome: None unless `kind` is ``check``.
        reason: one sentence on why this outcome and no other, or why there is no sustainable rate; empty for a rate
            without a verdict.
        expected_failure: the test was marked to fail (xfail) and did.
        ending: how the test ended; None in early files.
        ending_reason: one line on why it did not pass; empty where it did.
        more_time: what more time would decide; None unless `outcome` is INCONCLUSIVE, or the session left no time to
            measure. Then it is the time that the test needs.
        simulated: no real server was measured.
        sustainable_rate: what one replica keeps for good within the SLO and without a growing backlog.
        at_least_rps: the rate that was shown, where `sustainable_rate` is an extrapolation beyond all that was
            measured, or where there is none. Reports then name this bound, not the extrapolation. None otherwise.
        saturated_rate: at the highest concurrency held.
        single_rate: of one request at a time.
        binding: the limit that binds at the sustainable rate: a limit's name, ``backlog`` or ``errors``.
        design_rate_rps: the rate that one replica must sustain; None without a budget.
        gpus_required: from the point estimate by exact arithmetic.
        gpus_interval: GPUs from the high and the low end of the sustainable rate's interval.
        slack: sustainable rate over design rate, minus one.
        knee_rps, batching_gain: of a sweep; see `Curve`.
        points: of a sweep, in rising order. They are also among the samples, which carry the detail.
        samples: the measuring windows, in the order in which they were measured.
        spent_s: seconds of server time by phase, ``start-up`` included.
        start_phases_s: what the start-up was spent on: seconds by phase (``imports``, ``weights``, ``compile`` ...), as
            far as the server's log tells. They may add up to less than it; empty where nothing is known.
        problems: why the measurement cannot be trusted; empty when it can.
        failed_requests: by kind, with the server's words; None where no request failed.
        seed: of arrivals, lengths and prompts.
        starts: what each start of the server showed, if several were measured; then the rate and the verdict are those
            of all of them, and windows, telemetry and bottleneck those of the start that is `detailed`. Else empty.
        start_spread: standard deviation of ln(rate) from start to start as seen; None where there is one start, or a
            rate is an extrapolation.
        telemetry, bottleneck, series: None where nothing was watched.
        comparison: with a baseline; None where nothing was compared.
        accuracy: None if the requirement does not ask for it.
        limit: the physical limit; None where `no_limit` says why.
        no_limit: why it is not known, in one line.
        fleet: how well the replicas of a fleet add up; None for one replica.
        secondary: the limits that were declared beside the rate, and what was measured.
        adapters: what the requests of each LoRA adapter met; empty without a mix of adapters.
        imported: where a point of another tool comes from; None for what this plugin measured.
        prefix_hit_rate: of a workload with sessions, the prompt tokens that the server found in its prefix cache over
            all, in the windows that were judged; None for other workloads, or where it is not known.
        prefix_sent_rate: those of them that had been sent before, in whole blocks: what a server finds that forgets
            nothing; None where `prefix_hit_rate` is, and in early files.
        forgetting_cost: of a workload with sessions, the share of its rate that the server loses in the long run
            because its prefix cache forgets what was said, which `sustainable_rate` allows for; 0: next to nothing.
            None without an estimate, and in early files, whose rates are those of a server that forgets nothing.
        requests: the files with its single requests, one for each start of the server; empty where they were not kept.
    """

    kind: ResultKind
    test: str
    line: int | None = None
    name: str
    outcome: Outcome | None = None
    reason: str = ""
    expected_failure: bool = False
    simulated: bool
    requirement: DeclaredBudget
    workload: DeclaredWorkload
    slo: DeclaredSlo
    sustainable_rate: Interval | None
    at_least_rps: Figure | None = None
    saturated_rate: Interval | None = None
    single_rate: Interval | None = None
    binding: str | None = None
    design_rate_rps: float | None = None
    gpus_required: int | None = None
    gpus_interval: tuple[int, int] | None = None
    slack: Interval | None = None
    accuracy: Accuracy | None = None
    knee_rps: float | None = None
    batching_gain: Interval | None = None
    points: tuple[Sample, ...] = ()
    samples: tuple[Sample, ...]
    spent_s: Mapping[str, float]
    start_phases_s: Mapping[str, float] = msgspec.field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    failed_requests: FailedRequests | None = None
    seed: int = 0
    starts: tuple[MeasuredStart, ...] = ()
    start_spread: Figure | None = None
    environment: Environment
    telemetry: TelemetrySummary | None = None
    bottleneck: Bottleneck | None = None
    comparison: Comparison | None = None
    series: TelemetryOverTime | None = None
    limit: PhysicalLimit | None = None
    no_limit: str | None = None
    ending: Ending | None = None
    ending_reason: str = ""
    more_time: MoreTime | None = None
    fleet: FleetResult | None = None
    secondary: tuple[SecondaryResult, ...] = ()
    adapters: tuple[AdapterLatencies, ...] = ()
    imported: ImportedFrom | None = None
    prefix_hit_rate: float | None = None
    prefix_sent_rate: float | None = None
    forgetting_cost: float | None = None
    requests: tuple[RequestsFile, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether the measurement can be trusted."""
        return not self.problems and self.outcome is not Outcome.INVALID

    @property
    def forgets(self) -> bool:
        """Whether the server had clearly less in its prefix cache than its sessions had sent before."""
        found, sent = self.prefix_hit_rate, self.prefix_sent_rate
        return found is not None and sent is not None and sent - found >= FORGETS

    @property
    def left_unmeasured(self) -> bool:
        """Whether the session's limit (``--gpucap-max-total``) left no time to measure."""
        return any(problem.kind is ProblemKind.NO_TIME for problem in self.problems)

    @property
    def failed(self) -> bool:
        """Whether there is a verdict other than PASS."""
        return self.outcome not in {Outcome.PASS, None}

    @property
    def regressed(self) -> bool:
        """Whether the comparison found a regression."""
        return self.comparison is not None and self.comparison.decision is RegressionDecision.REGRESSED

    @property
    def total_spent_s(self) -> float:
        """Seconds of server time."""
        return sum(self.spent_s.values())


class ResultFile(msgspec.Struct, frozen=True, kw_only=True):
    """One session.

    Attributes:
        schema: identifies the file as a result file of this plugin.
        schema_version: number of its form; a later form has a higher one.
        plugin_version: of this plugin in the session; ``?`` where unknown.
        python_version: that the session ran on; ``?`` where unknown.
        started: when the session began, in UTC.
        arguments: pytest's command line.
        results: in the order in which tests ended.
        written: when the file was written, in UTC.
        simulated: at least one result comes from a simulator; each result says so for itself as well.
        exit_status: pytest's exit code; None if the session had not ended when the file was written: it is still
            running, or its process was killed.
        problems: one line each on what ended tests or the session early: a file that could not be collected, an
            internal error, a worker that crashed, an interruption, the limit of ``-x``. One line says so of a session
            that had not ended.
    """

    schema: Literal["pytest-gpucap"] = "pytest-gpucap"
    schema_version: int = SCHEMA_VERSION
    plugin_version: str = "?"
    python_version: str = "?"
    started: datetime
    arguments: tuple[str, ...] = ()
    results: tuple[Result, ...]
    written: datetime | None = None
    simulated: bool = False
    exit_status: int | None = None
    problems: tuple[str, ...] = ()
