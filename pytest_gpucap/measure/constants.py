"""Every constant of the procedure: its value, and why. `docs/statistics.md` lists the same."""

from __future__ import annotations

WARM_UP_S = 12.0
"""Load before anything counts: a fresh engine compiles, captures and caches, and may be a third slower for seconds."""
LOW_SHARE = 0.6
"""Each hold of the climb is at this share of the next; the last is at the critical concurrency."""
FIRST_HOLD = 80
"""The climb begins at this concurrency at most: far below where any server's front end chokes, and enough to see."""
STEP_SLACK = 0.35
"""Steps of a climb are even in the logarithm; so much of a step is rather spread over the others."""
ENOUGH = 1.3
"""A climb ends where throughput is so many times the design rate: more in flight would answer nobody's question."""
FALL_SHARE = 0.10
"""Throughput lower by this share at a higher concurrency, twice, is a fall, beyond the noise of a hold."""
DOUBTFUL_RISE = 1.03
"""Throughput that rose by less than this from one held concurrency to the next is looked at twice: it falls slowly."""
TURNED_SHARE = 0.8
"""After a fall the holds are at this share of the best concurrency, on the safe side of it."""
REFUTED_SHARE = 0.02
"""A hold below the fall with throughput lower by this share than beyond it says that there was no fall."""
TURN_ERROR = 0.018
"""Added error where throughput falls beyond some concurrency: the best is known to the nearest hold only."""
STEEPEST = 5.0
"""A percentile that rises so steeply with the rate is at a bound, and its slope there holds nowhere else."""
TURNED_RATE_SHARE = 0.97
"""Where throughput falls beyond some concurrency, `measure` tries rates so far below its estimate: one that tips the
server over tells little."""
REFILL_S = 2.0
"""Not counted where a server was emptied and filled again."""
LOW_HOLD_S = 4.0
HOLD_S = 7.0
"""A closed-loop hold: hundreds of engine steps, which put the pace within 0.3%."""
TOP_UP_S = 1.0
"""Not counted after concurrency was raised: the prefill of so many prompts at once is nobody's steady state."""
EXTRAPOLATED_ERROR = 0.06
"""Added error of such an estimate: beyond what was measured, throughput may also fall."""
OPEN_S = 11.0
"""An open loop at the design rate: enough arrivals to hold the twin's prediction against what happened."""
MOST_CYCLES = 4
"""Hold and open loop, repeated while undecided. Longer does not help: what is left is drift and the twin's error."""
DECISION_Z = (1.9, 1.6, 1.4, 1.2)
"""Standard errors of ln(rate / design rate) that decide after each cycle: strict while few windows are in."""
HOLD_FAIL_LN = 0.10
"""After a first hold this far below the design rate (in the logarithm), and `HOLD_FAIL_Z` standard errors, it is FAIL:
the server was seen to be slower than the design rate needs, and an open loop would only drown it."""
HOLD_FAIL_Z = 4.0
SHAPE_ERROR = 0.02
"""Added error of an estimate from holds alone: two batch sizes leave the curve's shape to the prior."""
UNSTEADY_LN = 0.04
"""A hold whose halves differ by more (and than `UNSTEADY_Z` standard errors) has not settled, and is extended."""
UNSTEADY_Z = 4.0
MOST_EXTENSIONS = 2
DRIFT_SD = 0.007
"""Slow drift of a server's speed that one short measurement cannot see; see the docs for the measured figures."""
DRIFT_TAU_S = 90.0
"""How slowly: longer measurements average over some of it."""
TWIN_ERROR = 0.006
"""Standard error of the twin itself: its lanes, and what it leaves out of the engine."""
EXAMINED_NEAR = 0.06
"""An estimate within this (in the logarithm) of one that the twin examined thoroughly takes that examination over."""
FLAT_SLOPE = 0.5
"""Where a percentile rises more slowly than this with the rate (both in logarithms), the twin's error of the percentile
is several of the rate."""
STALL_PRIOR_S = 100.0
"""Before anything is seen, one stop of `STALL_S` in this many seconds is assumed: garbage collection, I/O."""
STALL_S = 0.3
OVERLOAD = 1.6
"""An open loop is called off when so many times the critical concurrency is in flight: it is drowning."""
OVERLOAD_MARGIN = 12
GROSS_SHARE = 0.30
"""PASS needs the open loop itself to break no limit in more than this share of the requests."""
PACE_TOLERANCE_LN = 0.05
"""The twin, replaying the open loop's own arrivals, must find the engine's pace within this of the one fitted."""
OFFSET_QUANTILES = 41
"""Quantiles kept of what first tokens took beyond the model."""
OFFSET_SPREAD = 8.0
"""Interquartile ranges from the median beyond which a first token was caught by a stop of the engine."""
LEAST_OFFSETS = 20
"""Fewer first tokens say nothing of their distribution."""
KV_SHARE = 0.87
"""Of the KV cache that holds may fill: beyond, preemption begins."""
UNKNOWN_SEQS = 256
"""Sequences assumed at most in a hold where the server's limit is unknown; vLLM's common default."""
HEAT = 1.0
"""The critical concurrency is raised by this many standard deviations of a Poisson count, so that the curve is measured
where the tail of the queue lives."""
TOKEN_FLOOR_S = 0.0003
"""No server generates a request's tokens faster: bounds the rows a closed loop needs."""
SLICES = 3
"""Windows that each phase is cut into, so that at least 5 samples stand behind every estimate."""
LEAST_SAMPLES = 5
EXTRAPOLATED, EXTRAPOLATED_MARGIN = 1.4, 2
"""An estimate whose queue reaches so many times beyond the requests in flight that were measured, and the margin, gets
the bounds of both extremes."""
DIRECT_S = 240.0
"""The direct run that replaces a twin which disagrees: long, because a queue near its knee is a slow thing."""
DIRECT_BLOCKS = 8
DIRECT_Z = 2.36
"""Student's t at 97.5% for 7 degrees of freedom: the direct run's blocks."""
ERROR_LEVEL = 0.005
"""Errors fail a requirement when so many would be this improbable at the rate allowed."""
MOST_ERRORS_SEEN = 0.5
"""A phase in which more than this share of the requests fails is called off."""
SETTLE_S = 20.0
LEAST_PHASE_S = 3.0
"""Less time than this left is no phase."""
MEASURE_CYCLES = 3
"""Cycles of `measure`; one more of `hold` and `open loop` each narrows the interval little, see the docs."""
SEARCH_MOVES = 11
"""Changes of the held concurrency while `measure` looks for the critical one."""
SEARCH_HOLD_S = 5.0
SPOILT_SHARE = 0.15
"""`measure` learns nothing of first tokens from an open loop in which more than this share of requests broke a limit,
and tries a rate lower by `SPOILT_RATE_SHARE` next."""
SPOILT_RATE_SHARE = 0.92
SEARCH_NEAR = 0.25
"""Concurrency within this share of the critical one is near enough."""
SEARCH_FACTOR = 1.6
"""Most that one move raises the concurrency: a guess from few requests in flight must not drown the server."""
SINGLE_S = 6.0
"""One request at a time, in a sweep."""
POINT_S = 16.0
"""One point of a sweep, after `POINT_LEAD_S` that are discarded."""
POINT_LEAD_S = 6.0
POINT_RISE = 1.5
"""Most by which the mean latency is taken to rise to the point beyond the sustainable rate, when points are placed."""
POINTS = 5
"""Open-loop points of a sweep between the lightest load and the sustainable rate; one more lies beyond."""
