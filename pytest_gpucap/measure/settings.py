"""What the caller decides about a measurement, and how it is followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_gpucap.results.problems import Problem


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller decides about one measurement.

    Attributes:
        max_time_s: seconds of server time that the measurement may take; when they end first, the verdict is
            INCONCLUSIVE.
        time_bound: what ends then, for the reason; empty: the GPU-time limit of so many seconds.
        seed: of arrivals, lengths and prompts; the same seed sends the same requests.
        max_num_seqs: sequences that the server runs at once (vLLM's ``max_num_seqs``); None where unknown.
        kv_tokens: tokens that fit the server's KV cache; None where unknown.
        max_num_batched_tokens: tokens of one engine step, prompt and generated; None where unknown.
        trust: reasons to distrust the span [start, end] on the runner's clock, such as a throttled GPU; any reason
            makes the sample of that span, and so the measurement, INVALID.
        steady_s: length of a window at the judged rate after the decision; 0: none.
        hit_rate: share of the prompt tokens of the span [start, end) on the runner's clock that the server found in its
            prefix cache; None where it does not count them.
        ended: why the server can no longer answer; empty while it can. It may wait so many seconds for that to show.
    """

    max_time_s: float = 600.0
    seed: int = 0
    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    max_num_batched_tokens: int | None = None
    trust: Callable[[float, float], Sequence[Problem]] | None = None
    hit_rate: Callable[[float, float], float | None] | None = None
    steady_s: float = 0.0
    ended: Callable[[float], str] | None = None
    time_bound: str = ""

    @property
    def limit(self) -> str:
        """What ends when the time is over, in words."""
        return self.time_bound or f"the GPU-time limit of {self.max_time_s:g} s"

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: if a limit is not above zero.
        """
        for name in ("max_time_s", "max_num_seqs", "kv_tokens", "max_num_batched_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value!r}")


class Observer(Protocol):
    """Follows a measurement while it runs; called from the measuring thread, and must return quickly."""

    def phase(
        self, label: str, *, rate_rps: float | None, concurrency: int | None, duration_s: float, spent_s: float
    ) -> None:
        """A phase begins: an open loop at `rate_rps`, or a closed one at `concurrency`; `spent_s` is gone."""
        ...

    def progress(
        self,
        label: str,
        *,
        in_flight: int,
        completed: int,
        latency: str,
        latency_s: float,
        limit_s: float,
        spent_s: float,
        left_s: float,
    ) -> None:
        """A few times a second while a phase runs.

        Args:
            label: of the phase.
            in_flight: requests in flight now.
            completed: requests completed in this phase.
            latency: the name of the limit that is nearest to binding (``ttft_p95``); empty without limits or before
                the first sample.
            latency_s: what that percentile was in the latest sample; NaN before the first. Of a goodput limit
                (``goodput_95``), the share of good requests.
            limit_s: its limit; NaN without limits. Of a goodput limit, the share that is required.
            spent_s: seconds of server time spent by this measurement.
            left_s: seconds left until its limit.
        """
        ...


class SilentObserver:
    """An observer that shows nothing."""

    def phase(
        self, label: str, *, rate_rps: float | None, concurrency: int | None, duration_s: float, spent_s: float
    ) -> None:
        """See `Observer.phase`."""

    def progress(
        self,
        label: str,
        *,
        in_flight: int,
        completed: int,
        latency: str,
        latency_s: float,
        limit_s: float,
        spent_s: float,
        left_s: float,
    ) -> None:
        """See `Observer.progress`."""
