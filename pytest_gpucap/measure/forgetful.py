"""The estimate of a server that forgets what its sessions said, in place of one that forgets nothing."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_gpucap.estimate.forgetting import Forgetting, forgetting
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.belief import Belief, Part
from pytest_gpucap.measure.estimate import RateEstimate
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.results.measured import Outcome


def with_forgetting(run: MeasuringRun, found: RateEstimate, before: RateEstimate | None) -> RateEstimate:
    """The estimate with what forgetting costs in it. The same where there are no sessions, or all are remembered.

    Args:
        run: whose journal has what the cache had.
        found: the rate of a server that forgets nothing.
        before: the estimate before, whose simulation holds for a rate nearby.
    """
    if run.requirement.workload.sessions is None:
        return found
    cost = _cost(run, found, before.forgetting if before else None)
    if cost.log_cost == 0.0:
        return replace(found, forgetting=cost)
    # Where only requests that were seen to keep a limit count, they were of a cache that had forgotten little yet.
    moved = Belief(tuple(_moved(part, cost, bound=bool(found.misfits)) for part in found.belief.parts))
    return replace(found.believing(moved), forgetting=cost)


def limited_error(before: RateEstimate | None) -> float:
    """What is added to the error of ln(rate) where sequences or KV cache run out.

    Where forgetting costs something, the rate is that of the simulation of sessions, which admits and preempts as the
    server does, and has an error of its own.
    """
    known = before.forgetting if before else None
    return c.LIMITED_ERROR if known is None or known.log_cost == 0.0 else 0.0


def told_of_forgetting(run: MeasuringRun, found: RateEstimate) -> str:
    """What a verdict says of it, behind a semicolon: what it costs and what helps, or that it cannot be known."""
    cost = found.forgetting
    if cost is None:
        return ""
    room = run.room
    if cost.log_cost < 0.0:
        if cost.room == 0.0:
            return f"; the server has no prefix cache, which costs {cost.share:.1%} of the rate with sessions"
        size = f"of {cost.room:.0f} tokens" if room.told else f"that holds about {cost.room:.2g} tokens, by its hits,"
        return (
            f"; a KV cache {size} forgets what sessions said, which costs {cost.share:.1%} of the rate in the long "
            "run: give it more memory, or leave more headroom"
        )
    if room.told:
        return ""
    if not room.counted:
        return (
            "; the server tells neither the size of its KV cache nor its prefix hits, so whether it forgets is unknown"
        )
    return "; the size of the KV cache is unknown, so it may come to forget what sessions said" if not cost.lost else ""


def if_remembered(run: MeasuringRun, judged: tuple[Outcome, str]) -> tuple[Outcome, str]:
    """A verdict by a direct run; no PASS where the cache began to forget in it: it forgets more in the long run."""
    outcome, reason = judged
    if outcome is not Outcome.PASS or not run.room.forgot:
        return judged
    why = "the KV cache began to forget what sessions said, and forgets more in the long run: give it more memory"
    return Outcome.INCONCLUSIVE, f"{reason}; {why}, or measure with enable_prefix_caching=False"


def _cost(run: MeasuringRun, found: RateEstimate, known: Forgetting | None) -> Forgetting:
    room, rate = run.room, found.modelled_rps
    if (
        known is not None
        and abs(math.log(rate / known.rate_rps)) < c.FORGETTING_NEAR_LN
        and (room.tokens == known.room or abs(math.log(max(room.tokens, 1.0) / max(known.room, 1.0))) < c.SAME_ROOM_LN)
    ):
        return known
    workload, limits = run.requirement.workload, run.requirement.slo.limits
    return forgetting(found.model, workload, limits, rate, room.tokens, told=room.told)


def _moved(part: Part, cost: Forgetting, *, bound: bool) -> Part:
    factor = math.exp(cost.log_cost)
    if bound:
        return replace(part, least=part.least * factor)
    return Part(
        part.weight,
        part.value * factor,
        part.least * factor,
        part.greatest * factor,
        math.hypot(part.error, cost.error),
    )
