"""Every constant of the measuring procedure, with the reason for its value; `docs/statistics.md` lists them all."""

from __future__ import annotations

# The first holds

WARM_UP_S = 12.0
"""Load that is discarded before anything counts. A fresh engine compiles kernels, captures graphs and fills caches; for
its first seconds it may be a third slower."""
LOW_SHARE = 0.6
"""Each hold of the ramp has this share of the concurrency of the next hold. The last hold has the critical one. Most
checks then need two holds, whose paces differ enough to give the curve its slope."""
FIRST_HOLD = 80
"""Highest concurrency of the first hold. An API server of one process falls behind only well above it, and 80 requests
are enough to measure a pace."""
STEP_SLACK = 0.35
"""The ramp's steps are equal in the logarithm. If the last step would be shorter than this share of a full step, the
other steps grow a little instead: a further hold would cost more time than it tells."""
ENOUGH = 1.3
"""The ramp ends once a hold reaches this multiple of the design rate. Higher concurrency could not change a verdict."""
FALL_SHARE = 0.10
"""Throughput that is lower by this share at a higher concurrency has fallen, if a second hold confirms it. The pace of
one hold is known to about 1%, so this is far beyond noise."""
DOUBTFUL_RISE = 1.03
"""A hold is repeated if its throughput is less than this multiple of the best hold before it. Where throughput falls
slowly, the first seconds at a higher concurrency do not show it yet."""
BELOW_PEAK_SHARE = 0.8
"""Once throughput has fallen, later holds have this share of the peak's concurrency. The peak is known only to the
nearest hold, and a server just beyond it needs long to recover."""
NO_PEAK_SHARE = 0.02
"""If the hold below the peak has less throughput than the hold beyond it, by this share, then the peak was noise."""
PEAK_Z = 2.5
"""Nor is there one if both differ by less than so many standard errors, where those of a hold are large: the pace of
such a server wanders by more than `FALL_SHARE` from one hold to the next."""
PEAK_BINS = 8
"""Parts of a hold, at least, that tell such an error: fewer show no scatter."""
PEAK_ERROR = 0.018
"""Standard error of ln(rate) that is added where throughput has a peak: the peak is known only to the nearest hold."""
BELOW_PEAK_RATE_SHARE = 0.97
"""Where throughput has a peak, `measure` runs its open loops at this share of the estimated rate. An overloaded server
would say little about the rate that it sustains."""
REFILL_S = 2.0
"""Discarded after a server was emptied and filled again: all prompts are prefilled at once, which is no steady
state."""
TOP_UP_S = 1.0
"""Discarded after the concurrency was raised: only the added prompts are prefilled, so it is shorter than
`REFILL_S`."""
LOW_HOLD_S = 4.0
"""Length of a hold on the way up. It only has to show the curve's slope and whether throughput rises, so it is shorter
than `HOLD_S`."""
HOLD_S = 7.0
"""Length of a hold that counts. It contains hundreds of engine steps, which give the pace to about 0.3%."""
UNSTEADY_LN = 0.04
"""A hold is extended if the paces of its halves differ by more than this, in the logarithm. A smaller difference moves
the estimate by less than the interval allows for."""
UNSTEADY_Z = 4.0
"""The halves must also differ by this many standard errors: noise alone reaches that once in 16,000 holds."""
LEAST_LEFT = 0.7
"""A hold of which less than this share is left, once its hot start has begun to answer, is followed by a whole one."""
FAR_BEYOND = 1.25
"""A hold whose usual request takes this many times a limit is far beyond what the server sustains. Nothing is held
there: what is in flight is cancelled, and the next hold has fewer requests."""
FAR_LOWER = 0.4
"""The next hold then has this share of its requests."""
SETTLING_LN = 0.02
"""A hold whose second half is faster than its first by this, in the logarithm, belongs to a server that still warms up:
a cache fills, a compiler works."""
SETTLING_Z = 3.0
"""The halves must also differ by this many standard errors."""
SETTLED_LN = 0.01
"""Such a server is settled once two holds are faster than the two before by no more than this."""
LEAST_SETTLING = 4
"""Holds that tell whether it does: two pairs."""
MOST_SETTLING = 18
"""Holds that are waited for it: two minutes, which is longer than caches of prompts take to fill."""
TREND_LN = 0.015
"""A server gets faster if its times fall by more than this over all windows, in the logarithm."""
TREND_Z = 2.5
"""It clearly does if that is so many of its standard errors. The early windows then do not count."""
WARMING_Z = 1.5
"""With so many it may: it does not fail yet."""
LEAST_WARM = 3
"""Windows that are kept of such a server: fewer would not show a trend."""
LEAST_COMPUTED = 0.01
"""Share of the prompt tokens that a server computes at least: of each prompt the last token."""
FILLING_LN = 0.02
"""A prefix cache still fills if the share of prompt tokens computed fell by more than this over two holds, in the
logarithm. What may be left of it then moves the pace by a fraction of that."""
FILLED_LN = 0.05
"""Windows before which it was larger by this no longer count: chance alone moves it by a few percent."""
LATEST_BEGIN_SHARE = 0.7
"""A phase counts at the latest after this share of it, though first tokens of its hot start may still be missing."""
MOST_EXTENSIONS = 2
"""A hold is extended at most this often. A server that has not settled after three holds drifts, and the interval
covers that instead."""

# Check

OPEN_S = 11.0
"""Length of an open loop at the design rate. It brings enough arrivals to compare the queue model with what happened,
and costs little more than a hold."""
MOST_CYCLES = 13
"""Cycles of hold and open loop: a check of as many takes about three minutes. What is still undecided then is mostly
drift and the queue model's own error, and more cycles reduce neither."""
OVERLOAD = 1.6
"""An open loop is called off once this multiple of the critical concurrency is in flight. The design rate then exceeds
what the server sustains, and the rest of the phase would add nothing."""
OVERLOAD_MARGIN = 12
"""Requests in flight that are allowed on top of `OVERLOAD`. With a critical concurrency of a few requests, chance alone
exceeds the multiple."""
MOST_VIOLATIONS = 0.30
"""PASS requires that the open loop itself breaks no limit in more than this share of its requests. Near the limit, one
busy period breaks a p95 limit in far more than 5% of the requests of 11 seconds."""
ERROR_LEVEL = 0.005
"""Level of the one-sided binomial test of failed requests: a requirement fails only if chance would produce as many
failures less often than this."""
MOST_ERRORS_SEEN = 0.5
"""A phase is called off once more than this share of its requests failed: its latencies would describe nothing. Where
the requirement allows a larger share, that share counts."""
LEAST_ENDED = 20
"""Requests of a phase that must have ended before it is called off: the share of fewer says little."""

# The interval

DRIFT_SD = 0.007
"""Standard deviation of the slow drift of a server's speed. One short measurement cannot see it. The simulated servers
drift by it; a real server that moves more shows it between windows, and its interval grows."""
DRIFT_TAU_S = 90.0
"""Time constant of that drift, an Ornstein-Uhlenbeck process: a longer measurement averages over part of it."""
PACE_PRIOR = (
    (0.007, 0.72, (90.0,)),
    (0.015, 0.08, (3.0, 30.0, 90.0, 90.0)),
    (0.03, 0.12, (3.0, 30.0, 90.0, 90.0)),
    (0.06, 0.03, (3.0, 30.0, 90.0, 90.0)),
    (0.12, 0.025, (3.0, 10.0)),
    (0.24, 0.025, (3.0, 10.0)),
)
"""What moves the pace of servers: standard deviation of its logarithm, the chance of it before anything was seen, and
for how many seconds it is remembered, each as likely. The first is the drift of ordinary servers (`DRIFT_SD`)."""
LEAST_PACES = 8
"""Paces of `GROUP_S` that tell one process from another: twelve seconds of load."""
LEAST_PACE_NOISE = 0.002
"""Standard deviation of such a pace at least, in the logarithm: counts of tokens are whole numbers."""
PACE_NOISES = (0.4, 0.6, 0.8, 1.0)
"""What each pace has of its own, as shares of what the differences of neighbours would have if they had nothing in
common."""
LEAST_CHANCE = 0.004
"""Scenarios less likely than this are told together with the next: a fifth of `WRONG_CHANCE`."""
SAME_ERROR = 1.25
"""So are those whose standard errors differ by less than this factor."""
LONG_MEMORY_S = 30.0
"""What is remembered for so long is drift: requests of one moment all meet the same pace."""
QUEUE_MODEL_ERROR = 0.006
"""Standard error of ln(rate) from the queue model itself: its random numbers, and what it leaves out of the engine. Its
replications alone leave about 0.5%."""
EXAMINED_NEAR = 0.06
"""An estimate reuses an earlier thorough examination if both rates differ by less than this in the logarithm. The
correction hardly changes over that distance, and an examination costs most of an estimate's time."""
FLAT_SLOPE = 0.5
"""Slope of ln(percentile) against ln(rate) below which the queue model's error grows in proportion. On a flat curve, 1%
of latency is several percent of rate."""
STEEPEST = 5.0
"""A slope above this is taken next to a bound, such as saturation, and is not reused as the next estimate's slope."""
STALL_PRIOR_S = 100.0
"""Before any stop of the engine was seen, one stop in this time is assumed: a garbage collection or a slow write."""
STALL_S = 0.3
"""Length of the stop that is assumed beforehand: that of the simulated servers' stops."""
STOP_STRATA = (0.03, 0.22, 0.5, 0.22, 0.03)
"""Chances of the frequencies of long stops that an estimate is made for. The outermost are larger than `WRONG_CHANCE`,
so a verdict needs all of them."""
STOP_LENGTHS = 32
"""Lengths of stops that the queue model draws from, where long ones were seen: they keep the shares to 3%."""
STOP_SPREAD = 0.5
"""Lengths of stops differ by this, before any was seen: standard deviation of the logarithm."""
STOP_SPREAD_STOPS = 4.0
"""That counts for so many stops."""
STOPPED_SHARE = 0.3
"""Where stops leave less than this share of the rate that was guessed, more of them are not examined. Fewer are, from
this share on: a search does not climb from a rate at which stops alone break a limit."""
LEAST_RUNNING = 0.5
"""The engine runs for at least this share of the time for which it ran in the windows, however many stops may come: by
chance a run sees too few of them, but not that few."""
BY_LUCK_LN = 0.5
"""Where what long stops leave open spans this much of ln(rate), how many of them came decides on the latencies seen.
Then those correct nothing, and an open loop that was called off decides nothing by itself."""
EXTRAPOLATED = 1.4
"""An estimate counts as extrapolated if its queue reaches this multiple of the highest concurrency that was measured.
Up to there the fitted curve is simply continued."""
EXTRAPOLATED_MARGIN = 2
"""Requests in flight that are allowed on top of `EXTRAPOLATED`: with a few requests, the next whole number may already
be beyond the multiple."""
EXTRAPOLATED_ERROR = 0.06
"""Standard error of ln(rate) that is added to an extrapolated estimate. The bounds of the curve assume that throughput
does not fall beyond the measured batch sizes, but it may."""

# Observed against modelled latencies

LEAST_KNOWN = 20
"""Requests of which a share that broke a limit is taken: of fewer, it says little."""
LEAST_COMPARED = 30
"""Requests that tell how a percentile departs from the model."""
BLOCK_REQUESTS = 1.0
"""Requests due within this many times the usual end-to-end latency share their queue. They are one block of the
bootstrap (Kuensch 1989), whose blocks are nearly independent of each other."""
BLOCK_S = 1.0
"""A block lasts at least this long: whatever else disturbs a server, such as a write to disk, lasts less."""
ENOUGH_BLOCKS = 5
"""Blocks of open loops alone that are enough. With fewer, requests of closed loops count as well."""
SHORT_ANSWER = 24
"""Answers of fewer tokens, all started together, stay together in a closed loop. Their curve comes from open loops, as
soon as there are any."""
STOPPED_CHANCE = 0.1
"""An open loop that was called off at the design rate decides FAIL where the chance that the server sustains that rate
is below this."""
JOINED_S = 0.5
"""Windows whose ends are no farther apart are one span of load."""
LEAST_BLOCKS = 3
"""Blocks that tell how much they differ."""
LEAST_PROGRESS = 0.1
"""Where requests in flight hardly depend on the pace, they do not tell it: least change of one, in the logarithm, over
that of the other."""
PROGRESS_ERROR = 0.012
"""Standard error of a pace that one open loop's requests in flight tell, in the logarithm."""
RESAMPLES = 200
"""Resamples of the bootstrap: they give a standard error to 5%."""
MISFIT_CHANCE = 0.3
"""Chance, before anything was seen, that a server is built otherwise than the queue model."""
MISFIT_LN = 0.2
"""By how much the model is then off: standard deviation of ln(rate)."""
LEAST_BEYOND = 5.0
"""Requests beyond a percentile that tell it. With fewer, a lower percentile is compared."""
LEVEL_ERROR = 1.0
"""Standard error of a departure, per difference between the percentile compared and that of the limit."""
QUEUEING = 2.5
"""Where a latency changes by this many times as much as all times of the engine do (in the logarithm), it is made of
queueing. A departure is then one of the pace, else one of the latency."""
LIMITED_ERROR = 0.025
"""Standard error of ln(rate) that is added where sequences or KV cache run out. From outside, requests that were
preempted look like requests that run."""
FIRST_TOKEN_TAILS = (1.0, 2.0, 3.0, 4.0)
"""First tokens are compared with modelled ones at the quantile that goodput asks for, and where so many times as many
requests lie beyond. They depart by the same factor there, and the mean of four is known better than one."""
GOODPUT_ERROR = 0.01
"""Standard error of ln(rate) that is added where goodput has a threshold on TTFT. The first tokens that are late are
few, and late in the same moments, so the queue model's replications tell their share worse than a percentile."""
UNSEEN_ERROR = 0.1
"""Standard error of the logarithm of a latency whose departure from the model could not be seen."""
WRONG_CHANCE = 0.02
"""Chance of a wrong verdict that is accepted after each cycle."""
FAR_FROM_LIMIT_LN = 0.5
"""An observed latency that is so far from its limit, in the logarithm, says nothing of the curve near the limit."""
FAR_FROM_MODEL_LN = 0.5
"""A latency that is longer than modelled by more than this, in the logarithm, is made by something that is not in the
model, such as an API server."""
MISFIT_PACE_LN = 0.25
"""So is one that only such a factor on all times, in the logarithm, would explain: the pace itself was measured."""
FAR_WITHIN = 0.2
"""Share of a limit below which it does not matter what makes a latency."""
UNSTEADY_ERROR = 0.08
"""A departure with this standard error or more comes and goes."""
CLEAR = 3.0
"""A departure that is so many times its error is clear."""
CUT_S = 0.05
"""Windows less than this apart follow each other without a pause."""
SIDE_BLOCK_S = 10.0
"""Where the model does not explain a latency, moments this far apart are taken to have nothing to do with each other:
backlogs outside the engine take many seconds to build up and to drain."""
UNKNOWN_LN = 0.12
"""Standard error of ln(rate) where nothing but the share of requests that broke a limit is known."""
MOST_SCORE = 4.0
"""Most standard errors that such a share is believed: it decides beyond doubt with fewer."""
UNKNOWN_SLOPE = 1.0
"""Slope of such a latency against the rate: a queue's is steeper, so the rate is rather too low than too high."""
CARRIED = 0.15
"""A departure seen at one rate is carried over to another with this standard error per difference of the logarithms."""

# A staircase of step times

STAIR_ERROR = 0.015
"""Standard error of ln(rate) that is added where step times are a staircase. A percentile then rises with the rate by
steps, and its slope at one place is not that at another."""
STAIR_MORE = 1.25
"""Where several staircases are possible, one more hold has this multiple of the requests in flight: there they
differ."""

# Where to hold

KV_SHARE = 0.87
"""Share of the KV cache that holds may fill. Lengths vary, so preemption would begin at a fuller cache."""
UNKNOWN_SEQS = 256
"""Highest concurrency of a hold where the server's sequence limit is unknown: vLLM's common default."""
CRITICAL_MARGIN_SD = 1.0
"""The critical concurrency is raised by this many standard deviations of a Poisson count. The queue's busy periods,
which decide a p95, lie above its mean."""
TOKEN_FLOOR_S = 0.0003
"""No server generates the tokens of one request faster than this. It bounds how many requests a closed loop must have
in store."""
FEW_TOKENS = 2.0
"""Answers shorter than this take no time by their tokens. What bounds their number is `MOST_RPS`."""
MOST_RPS = 20_000.0
"""No load generator on one machine sends more requests a second. Without this bound, a closed loop of answers of one
token would keep millions of requests in store."""
SLICES = 3
"""Each phase is recorded as this many windows. Two phases then already give the `LEAST_SAMPLES` that every estimate
needs, and the spread within a phase shows."""
LEAST_ANSWERS = 5
"""Whole answers of several tokens that tell whether their tokens come one after the other."""
AT_ONCE_SHARE = 0.5
"""A stream is buffered if more than this share of the answers bring their tokens faster than `TOKEN_FLOOR_S` each. A
pause of the client's machine delays the reading of a few answers, never of most."""
LUMPED_SHARE = 0.8
"""A stream may come in lumps if more than this share of its events come with another one of the same answer."""
LEAST_LUMP = 4.0
"""Tokens of a lump, on average. A late load worker, or a network that joins packets, brings two or three at a time."""
LUMP_PAUSE_S = 0.02
"""Between two lumps, on average. A load worker that cannot read for so long again and again has problems of its own."""
LEAST_SAMPLES = 5
"""Windows that an estimate needs. With fewer, no rate is reported."""
LOOK_S = 1.0
"""Between two looks at whether the server still runs."""
LAST_LOOK_S = 0.05
"""An idle server is asked whether it is still the one that was measured, and is waited for so long."""
DYING_S = 10.0
"""When requests fail because an engine died, its server ends within this time."""
SETTLE_S = 20.0
"""Longest wait for cancelled requests to end. A healthy server drops them within a second; one that does not is no
longer waited for."""
LEAST_PHASE_S = 3.0
"""Less time than this is not worth a phase: the measurement ends. It is also the length of a sweep's transition from
one rate to the next."""

# The direct run

DIRECT_S = 240.0
"""Length of a direct run in all, where its first part does not separate. Near its limit a queue takes minutes from one
busy period to the next."""
DIRECT_TAIL = 1e-8
"""A direct run is called off where less than this share of the requests would meet so many in flight, if the server
just kept its limits. Busy periods bring a p95 to twice its limit several times in a minute."""
DIRECT_STOP_S = 1.0
"""So many seconds of arrivals may be in flight besides: an engine that stops for a moment is not overloaded."""
DIRECT_STEP = 4.0
"""Where the design rate is far beyond what the server answered before, the direct run begins at this multiple of that
and rises by the same factor. A smaller one would meet a server that keeps the design rate with many steps."""
DIRECT_STEP_S = 5.0
"""Length of such a step: three times what the server answers piles up within a second or two."""
DIRECT_BLOCKS = 8
"""Blocks of the direct run (method of batch means). Each lasts 30 s, longer than most busy periods, so that they are
nearly independent."""
DIRECT_Z = 2.36
"""Student's t at 97.5% with 7 degrees of freedom, for the mean over the 8 blocks."""
DIRECT_LEAST_S = 40.0
"""First part of a direct run at least: 8 blocks of 5 s, for requests that take a fraction of a second."""
DIRECT_BLOCK_REQUESTS_S = 30.0
"""There a block lasts this many times as long as a request. Busy periods of a queue last as long as many requests."""
NONE_SEEN = 3.0
"""No violation in n requests rules out, at 95%, a share of violations above this over n (the rule of three)."""
GROWTH_T = 2.45
"""Student's t at 97.5% with 6 degrees of freedom, for the slope of requests in flight over the 8 blocks."""
GROWTH_SHARE = 0.25
"""A backlog grows if requests in flight rise by more than this share of their mean. The slope alone may be significant
and yet too small to matter."""
GROWTH_REQUESTS = 3.0
"""The rise must also exceed this many requests: a queue of a few requests doubles by chance."""

# Measure

MEASURE_CYCLES = 13
"""Most open loops of `measure`: what is still wide after three minutes is drift."""
LEAST_MEASURE_CYCLES = 3
"""Fewest open loops of `measure`: fewer would not show how a server differs from one ten seconds to the next."""
NARROW_LN = 0.03
"""Half width of the interval, of ln(rate), with which `measure` ends."""
SAME_RATE_LN = 0.1
"""Open loops whose rates differ by no more than this show the same: a departure from the model is taken from them."""
MOVED_LN = 0.08
"""The next open loop has another rate if the estimate moved by more than this."""
TOO_MANY = 1.3
"""A server that holds this many times the requests that a rate leads to is emptied before an open loop at it."""
SEARCH_MOVES = 11
"""Most changes of the held concurrency during the search. From one request, ten steps of `SEARCH_FACTOR` reach 216,
which is near `UNKNOWN_SEQS`."""
SEARCH_HOLD_S = 5.0
"""Length of a hold during the search. It only has to show the direction, but its window also shapes the curve."""
SEARCH_NEAR = 0.25
"""The search ends within this distance of the wanted concurrency, in the logarithm: the curve holds that far beyond
what was measured."""
SEARCH_FACTOR = 1.6
"""Largest factor by which one move raises the concurrency. A guess from few requests in flight must not overload the
server."""
RETRY_RATE_SHARE = 0.85
"""After such an open loop, the next one has this share of the estimated rate: far enough below to be steady, near
enough to test the estimate."""

# What was shown

ALONE_REQUESTS = 2.5
"""A hold of one request at a time lasts this many times as long as a request, so that at least one is whole in it."""

# Beside the rate

STEADY_S = 48.0
"""Length of a steady window, which takes a minute with its lead. The energy per token of a simulated server under a
light load is then known to 7%: as well as the number of its tokens in a block is."""
STEADY_BLOCK_S = 4.0
"""Parts of a steady window that are compared with each other. A device tells its energy once a second."""

# Sweep

SINGLE_S = 6.0
"""Shortest hold of one request at a time. Hundreds of tokens give the pace to 1%."""
POINT_S = 16.0
"""Length of one point of a sweep. Its latencies are shown and decide nothing, so it need not be longer."""
POINT_LEAD_S = 6.0
"""Discarded before each point: the queue needs time to take on the new rate."""
POINT_RISE = 1.5
"""Points are placed by mean latency. The last, beyond the sustainable rate, is taken to have at most this multiple of
the mean latency before it; otherwise the growing queue there would attract all points."""
POINTS = 5
"""Points of a sweep from the lightest load to the sustainable rate; one more lies beyond it. Enough to draw the
bend."""

# A prefix cache that forgets sessions

LEAST_SENT = 0.05
"""Hits say how large the cache is once this share of the prompts had been sent before."""
NO_HITS = 0.02
"""A server that found less than this share of what was sent before has no prefix cache."""
BLOCK_TOKENS = 16
"""A server finds whole blocks, of so many tokens on most."""
FORGETTING_NEAR_LN = 0.06
"""What forgetting costs is simulated anew once the estimate has moved by this, in the logarithm."""
SAME_ROOM_LN = 0.1
"""Nor does it hold for a cache whose size has turned out to be another by this, in the logarithm."""
