"""Schedules: when requests are due and how long they are, from a seed.

The same seed gives the same schedule on every machine, for every number of workers and under every NumPy release. Only
Philox's raw 64-bit stream is used, whose values its definition fixes. Every distribution is drawn by inverting its
distribution function, because NumPy promises no fixed stream for its own distribution methods. Times are rounded to the
nanosecond, which hides a difference in the last bit between two machines' logarithms.

Arrivals, input lengths and output lengths come from separate random streams. A change of lengths therefore leaves the
arrivals as they were, and a longer phase begins with the very requests of a shorter one.
"""

from __future__ import annotations

import math

import numpy as np

from pytest_gpucap.arrays import Floats, Int32s
from pytest_gpucap.load.draws import Purpose, draw_lengths, random_generator, uniform
from pytest_gpucap.load.prompt_lengths import lengths_of, longest_prompt
from pytest_gpucap.load.protocol import ClosedLoop, OpenLoop
from pytest_gpucap.load.recorded_sessions import recorded_starts_s
from pytest_gpucap.load.sessions import NONE, UnderWay, closed_sessions, mean_turns, open_sessions
from pytest_gpucap.load.trace import Trace, read_trace
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Workload

_LEAST_BURSTINESS = 1e-3
"""Gaps with a smaller coefficient of variation are made constant: gamma quantiles would lose their digits."""


def open_loop(
    workload: Workload,
    rate_rps: float,
    duration_s: float,
    seed: int,
    stream: int,
    first_prompt: int = 0,
    before: UnderWay = NONE,
) -> OpenLoop:
    """Requests at a mean rate, with the workload's arrivals. Of sessions, the first turns arrive so.

    Poisson and gamma arrivals are stationary renewal processes: the first gap is what is left of a gap that was under
    way when the phase began. Constant gaps start half a gap in. A trace is stretched to the rate. Each phase enters the
    trace at a row drawn from (seed, stream), and starts over after the last row.

    Args:
        workload: lengths and arrivals.
        rate_rps: mean arrivals per second.
        duration_s: how long the phase lasts.
        seed: of the whole measurement.
        stream: number of the phase within the measurement; phases with other numbers are independent.
        first_prompt: see `OpenLoop`.
        before: sessions of earlier phases that may be carried on (`sessions.under_way`).

    Raises:
        RequirementError: as `read_trace`.
    """
    rate_rps, duration_s = _above_zero(rate_rps, "rate_rps"), _above_zero(duration_s, "duration_s")
    if workload.sessions is not None:
        sessions_per_s = rate_rps / mean_turns(workload)
        if workload.arrivals.kind is ArrivalKind.TRACE and workload.sessions.recorded is not None:
            due_s = recorded_starts_s(workload.sessions.recorded, sessions_per_s, duration_s, first_prompt)
        else:
            due_s = arrivals_s(workload.arrivals, sessions_per_s, duration_s, seed, stream)
        return open_sessions(workload, due_s, rate_rps, duration_s, (seed, stream), first_prompt, before)
    if workload.arrivals.kind is ArrivalKind.TRACE:
        return _trace_loop(_trace(workload), rate_rps, duration_s, seed, stream, first_prompt)
    due_s = arrivals_s(workload.arrivals, rate_rps, duration_s, seed, stream)
    n = due_s.size
    input_rng, output_rng = (random_generator(seed, stream, purpose) for purpose in (Purpose.INPUT, Purpose.OUTPUT))
    if workload.prompts is not None:
        drawn = draw_lengths(workload.prompts.drawn, output_rng, n)
        inputs, outputs = lengths_of(workload.prompts, first_prompt, drawn)
    else:
        inputs = draw_lengths(workload.input_tokens, input_rng, n)
        outputs = draw_lengths(workload.output_tokens, output_rng, n)
    return OpenLoop(duration_s, np.round(due_s, 9), inputs, outputs, first_prompt)


def arrivals_s(arrivals: Arrivals, rate_rps: float, duration_s: float, seed: int, stream: int) -> Floats:
    """Arrival times within a phase, rising; not of a trace."""
    even = arrivals.kind is ArrivalKind.GAMMA and arrivals.burstiness < _LEAST_BURSTINESS
    if even or arrivals.kind is ArrivalKind.CONSTANT:
        due_s: Floats = (np.arange(math.ceil(rate_rps * duration_s) + 1, dtype=np.float64) + 0.5) / rate_rps
    else:
        variation = 1.0 if arrivals.kind is ArrivalKind.POISSON else arrivals.burstiness
        due_s = _renewals(rate_rps, duration_s, variation, random_generator(seed, stream, Purpose.ARRIVALS))
    return due_s[due_s < duration_s]


def closed_loop(
    workload: Workload,
    concurrency: int,
    duration_s: float,
    max_rate_rps: float,
    seed: int,
    stream: int,
    hot: bool = True,
    first_prompt: int = 0,
    before: UnderWay = NONE,
) -> ClosedLoop:
    """Rows enough to keep `concurrency` requests in flight for the phase, at up to `max_rate_rps` completions a second.

    With `hot`, the first `concurrency` rows are those found in flight on a server that has run for ever: lengths
    biased by how long each is in service, ages uniform within. A request of (input, output) tokens at age a is sent as
    (input + a, output - a). (The inspection paradox of renewal theory; time in service is taken as proportional to the
    output tokens, since a step yields one token to every request in the batch.) A prompt of the user's own stays as it
    is: the next ones are sent, with what is left of such requests' outputs.

    Of sessions, `concurrency` are under way, and each turn follows at once (`sessions.closed_sessions`).
    """
    duration_s, max_rate_rps = _above_zero(duration_s, "duration_s"), _above_zero(max_rate_rps, "max_rate_rps")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    # Requests may happen to be shorter than the mean, and each of the concurrent ones is replaced once more at the end.
    expected = max_rate_rps * duration_s
    n = 2 * concurrency + math.ceil(expected + 4.0 * math.sqrt(expected)) + 16
    if workload.sessions is not None:
        key = seed, stream
        return closed_sessions(workload, concurrency, duration_s, n, key, first_prompt, before, hot=hot)
    if workload.arrivals.kind is ArrivalKind.TRACE:
        trace = _trace(workload)
        rows = (_entry(trace, seed, stream) + np.arange(n)) % trace.arrival_s.size
        inputs, outputs = trace.input_tokens[rows], trace.output_tokens[rows]
        pool = trace.input_tokens, trace.output_tokens
    elif workload.prompts is not None:
        drawn = draw_lengths(workload.prompts.drawn, random_generator(seed, stream, Purpose.OUTPUT), n)
        inputs, outputs = lengths_of(workload.prompts, first_prompt, drawn)
        pool = inputs, outputs
    else:
        input_rng, output_rng = (random_generator(seed, stream, purpose) for purpose in (Purpose.INPUT, Purpose.OUTPUT))
        inputs, outputs = (
            draw_lengths(workload.input_tokens, input_rng, n),
            draw_lengths(workload.output_tokens, output_rng, n),
        )
        # Drawn after the rows, so that they are the same with and without `hot`.
        many = max(8192, 64 * concurrency)
        pool = (
            draw_lengths(workload.input_tokens, input_rng, many),
            draw_lengths(workload.output_tokens, output_rng, many),
        )
    if hot:
        inputs, outputs = inputs.copy(), outputs.copy()
        grown, left = in_flight(*pool, concurrency, random_generator(seed, stream, Purpose.HOT))
        if workload.prompts is None:
            inputs[:concurrency], outputs[:concurrency] = grown, left
        else:
            # What is left of a long answer may not fit the context behind a long prompt.
            most = sum(longest_prompt(workload.prompts)) - inputs[:concurrency]
            outputs[:concurrency] = np.minimum(left, most)
    return ClosedLoop(duration_s, concurrency, inputs, outputs, concurrency if hot else 0, first_prompt)


def in_flight(inputs: Int32s, outputs: Int32s, n: int, rng: np.random.Generator) -> tuple[Int32s, Int32s]:
    """Requests in mid-life: a uniform point among all output tokens is in a length-biased request at a uniform age.

    Args:
        inputs: shape (m,), of the requests to choose from.
        outputs: shape (m,).
        n: how many.
        rng: random generator.

    Returns:
        Tokens held so far and tokens still to come, both shape (n,).
    """
    ends = np.cumsum(outputs, dtype=np.int64)
    points = np.floor(uniform(rng, n) * ends[-1]).astype(np.int64)
    which = np.searchsorted(ends, points, side="right")
    age = (points - (ends[which] - outputs[which])).astype(np.int32)
    return inputs[which] + age, outputs[which] - age


def _renewals(rate_rps: float, duration_s: float, variation: float, rng: np.random.Generator) -> Floats:
    """Arrival times of a stationary renewal process with gamma gaps; the last one is beyond `duration_s`."""
    shape = 1.0 / variation**2
    scale_s = 1.0 / (rate_rps * shape)
    # The gap under way at time 0 is length-biased (a gamma of shape + 1), and time 0 is uniform within it.
    first, within = uniform(rng, 2)
    arrivals = [np.array([within * _gamma(np.array([first]), shape + 1.0)[0] * scale_s])]
    chunk = max(64, math.ceil(rate_rps * duration_s * 1.1))
    while arrivals[-1][-1] < duration_s:
        arrivals.append(arrivals[-1][-1] + np.cumsum(_gamma(uniform(rng, chunk), shape) * scale_s))
    return np.concatenate(arrivals)


def _gamma(uniform: Floats, shape: float) -> Floats:
    """Standard gamma quantiles."""
    if shape == 1.0:
        exponential: Floats = -np.log(uniform)
        return exponential
    from scipy.special import gammaincinv  # imported late: only bursty arrivals need it

    quantiles: Floats = np.asarray(gammaincinv(shape, uniform), np.float64)
    return quantiles


def _trace(workload: Workload) -> Trace:
    if workload.arrivals.trace is None:
        raise ValueError("arrivals of kind trace need a trace file")
    return read_trace(workload.arrivals.trace)


def _entry(trace: Trace, seed: int, stream: int) -> int:
    """The row at which a phase enters the trace."""
    return int(uniform(random_generator(seed, stream, Purpose.ARRIVALS), 1)[0] * trace.arrival_s.size)


def _trace_loop(
    trace: Trace, rate_rps: float, duration_s: float, seed: int, stream: int, first_prompt: int
) -> OpenLoop:
    entry = _entry(trace, seed, stream)
    stretch = trace.rate_rps / rate_rps
    period_s = trace.period_s * stretch
    order = np.roll(np.arange(trace.arrival_s.size), -entry)
    once_s = (trace.arrival_s[order] - trace.arrival_s[entry]) * stretch
    once_s[once_s.size - entry :] += period_s
    rounds = math.ceil(duration_s / period_s)
    due_s = (once_s[np.newaxis, :] + period_s * np.arange(rounds)[:, np.newaxis]).ravel()
    keep = due_s < duration_s
    rows = np.tile(order, rounds)[keep]
    return OpenLoop(
        duration_s, np.round(due_s[keep], 9), trace.input_tokens[rows], trace.output_tokens[rows], first_prompt
    )


def _above_zero(value: float, what: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what} must be a finite number above 0, not {value}")
    return float(value)
