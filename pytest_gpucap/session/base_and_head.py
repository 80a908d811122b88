"""The pull request's base beside its head: what ``--gpucap-base-python`` and ``--gpucap-base-args`` mean for a test.

Both servers stand on the same leased devices and one of them idles while the other is measured, so on a GPU the memory
must hold both. Where their shares of it (``gpu_memory_utilization``) fit, the base starts beside the head that is
there. Where they do not, both start anew for the comparison with their shares scaled down to fit, and the record says
so.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.decisions.paired import PAIR_START_SD
from pytest_gpucap.decisions.regression import RegressionDecision
from pytest_gpucap.engines.errors import ServerError
from pytest_gpucap.engines.vllm_arguments import ServerSpec
from pytest_gpucap.gpu.lease import LeaseError
from pytest_gpucap.history import latencies
from pytest_gpucap.markers import Declaration
from pytest_gpucap.measure.comparing import Paired, PairedServer, compare, describe, windows_of
from pytest_gpucap.measure.constants import DRIFT_SD
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.options import Options
from pytest_gpucap.requirement import Requirement, positive
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.record import Record, plain, slo_record
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.served import roofline_of
from pytest_gpucap.session.harness import load_on
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.server_manager import ServerManager

DEFAULT_SHARE: Final = 0.92
"""vLLM's ``gpu_memory_utilization`` where none is given."""
MOST_SHARE: Final = 0.95
"""Of the GPU's memory that both servers may plan with: each also needs what CUDA and its graphs take beside it."""
SEED_STEP: Final = 1_000_003
"""Prompts of a comparison are not those of the check before it: the head would have them in its prefix cache."""
BASE: Final = "base"
LATENCY_SD: Final = math.hypot(PAIR_START_SD, DRIFT_SD)
"""Of ln(pace) between the open loops of base and head: their starts, and what a minute changes."""
NOT_REGRESSED: Final = frozenset(RegressionDecision) - {RegressionDecision.REGRESSED}


class PairInvalid(Exception):  # noqa: N818 - like the verdict's own word
    """Base and head were not compared; says why, and never a word on either's capacity."""


def base_of(head: Placement, options: Options) -> Placement | None:
    """Where the base stands that a test's head is compared with; None where the session names no base.

    Raises:
        ValueError: one line, for arguments that cannot be meant.
    """
    if (options.base_python is None and options.base_args is None) or head.skip is not None:
        return None
    if options.baseline is not None:
        raise ValueError("--gpucap-compare and --gpucap-base-...: a result holds one comparison; give one of the two")
    if head.url is not None:
        raise ValueError("--gpucap-base-... needs servers of our own to start, and --gpucap-url names one that runs")
    if options.base_python is not None and "/" in options.base_python and not Path(options.base_python).exists():
        raise ValueError(f"--gpucap-base-python: there is no interpreter at {options.base_python}")
    try:
        given = parsed(options.base_args or "")
        if head.profile is not None:
            return replace(head, profile=_simulated(head.profile, given))
        if head.spec is None:
            return None
        return replace(head, spec=_spec(head.spec, given, options.base_python))
    except ValueError as error:
        raise ValueError(f"--gpucap-base-args: {error}") from None


def parsed(text: str) -> dict[str, Any]:
    """Server arguments as they stand on a command line, by name with underscores.

    ``--max-num-seqs 64 --no-enable-prefix-caching`` is ``{"max_num_seqs": "64", "no_enable_prefix_caching": True}``;
    several values become a tuple, and ``--max-num-seqs=`` is None: the head's own argument is left out.

    Raises:
        ValueError: for a word that belongs to no argument, or an unclosed quote.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--") and len(word) > 2:  # noqa: PLR2004 - more than the dashes
            name, given, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = (value or None) if given else True
        elif not name:
            raise ValueError(f"{word!r} follows no --argument")
        elif found[name] is True:
            found[name] = word
        else:
            before = found[name] if isinstance(found[name], tuple) else (found[name],)
            found[name] = (*before, word)
    return found


def _spec(head: ServerSpec, given: Mapping[str, Any], python: str | None) -> ServerSpec:
    changed = {_plain_name(name) for name in given}
    kept = {name: value for name, value in head.args.items() if _plain_name(name) not in changed}
    return replace(head, args={**kept, **given}, python=python or head.python)


def _plain_name(name: str) -> str:
    return name.replace("-", "_").removeprefix("no_")


def _simulated(head: Any, given: Mapping[str, Any]) -> Any:
    """A simulated base: the arguments are those of ``python -m pytest_gpucap.simulator`` and vLLM's that it models."""
    from pytest_gpucap.simulator.profile import load

    rest = dict(given)
    profile = load(str(rest.pop("profile"))) if "profile" in rest else head
    engine = profile.engine
    if "time_scale" in rest:
        engine = engine.scaled(float(positive(rest.pop("time_scale"), "--time-scale")))
    if "max_num_seqs" in rest:
        engine = replace(engine, max_num_seqs=int(positive(rest.pop("max_num_seqs"), "--max-num-seqs")))
    if rest:
        unknown = ", ".join("--" + name.replace("_", "-") for name in rest)
        raise ValueError(f"{unknown}: a simulated base knows --profile, --time-scale and --max-num-seqs")
    return replace(profile, engine=engine)


@dataclass(frozen=True, slots=True)
class BaseAndHead:
    """Compares a test's head with its base.

    Attributes:
        base, head: where they stand.
        rig: that holds the head's server, if it is running.
        declared: by the test.
        options, live: of the session, and of the test.
    """

    base: Placement
    head: Placement
    rig: ServerManager
    declared: Declaration
    options: Options
    live: LiveLine

    def comparison(self, requirement: Requirement, record: Record) -> Record:
        """Measure both in alternation, a REGRESSED twice and from fresh servers; the record's ``comparison``.

        Raises:
            PairInvalid: if the alternation cannot be trusted, or the base does not start.
        """
        known = record["sustainable_rate"]
        head_rate = None if known is None else Interval(known["value"], known["low"], known["high"])
        allowed = self.options.max_regression
        first = self._once(requirement, head_rate, start=0)
        record["spent_s"]["comparison with base"] = plain(first.about.spent_s)
        reason, found, confirmed = describe(first, allowed), first, None
        if first.change is RegressionDecision.REGRESSED:
            self.live.say(f"{describe(first, allowed)}: measuring both again from fresh servers")
            second = self._once(requirement, head_rate, start=1)
            record["spent_s"]["confirmation"] = plain(second.about.spent_s)
            confirmed = second.change is RegressionDecision.REGRESSED
            # The first was looked at because it was low; the second is not biased by that.
            found, first_said = second, "" if first.ratio is None else f" after {first.ratio.value - 1:+.1%}"
            said = "confirmed" if confirmed else f"{second.change}"
            reason = f"from fresh servers{first_said}, {said}: {describe(second, allowed)}"
        return {
            "baseline": {"name": BASE, "path": None, "started": None, "plugin_version": None},
            "decision": (RegressionDecision.INCONCLUSIVE if confirmed is False else found.change).value,
            "ratio": plain(found.ratio),
            "base_rate": plain(found.base_rate),
            "head_rate": plain(found.head_rate),
            "second_rate": None,
            "max_regression": plain(allowed),
            "differs": [],
            "changed": self._changed(),
            "more_gpu_s": plain(found.more_s),
            "confirmed": confirmed,
            "reason": reason,
            "latencies": self._latencies(requirement, found),
            "paired": {
                "concurrency": found.about.concurrency,
                "pace": plain(found.pace),
                "elasticity": plain(found.elasticity),
                "pairs": plain(windows_of(found.pairs)),
            },
        }

    def _once(self, requirement: Requirement, head_rate: Interval | None, start: int) -> Paired:
        allowed = self.options.max_regression
        # After a first REGRESSED the second comparison is the one reported.
        after = RegressionDecision if start > 0 else NOT_REGRESSED
        with self._sides(start) as (base, head):
            found = compare(base, head, requirement, allowed, head_rate, self.live, latencies_after=tuple(after))
        if found.problems:
            raise PairInvalid(f"{self.declared.name}: {describe(found, allowed)}")
        return found

    def _latencies(self, requirement: Requirement, found: Paired) -> list[dict[str, Any]]:
        """Percentiles of both servers at the equal rate; empty where none was measured."""
        if found.equal_rate is None:
            return []
        base, head = (
            {"slo": slo_record(requirement.slo), "samples": plain(samples)}
            for samples in (found.equal_rate.base, found.equal_rate.head)
        )
        return latencies.compared(base, head, self.options.max_regression, start_sd=LATENCY_SD)

    @contextmanager
    def _sides(self, start: int) -> Iterator[tuple[PairedServer, PairedServer]]:
        seed = self.declared.seed + SEED_STEP * (start + 1)
        settings = Settings(max_time_s=self.declared.max_time_s, seed=seed)
        try:
            if self.head.profile is not None and self.base.profile is not None:
                yield self._simulated(settings)
                return
            with self._served(settings, fresh=start > 0) as sides:
                yield sides
        finally:
            self.live.done()

    def _simulated(self, settings: Settings) -> tuple[PairedServer, PairedServer]:
        from pytest_gpucap.simulator.machine import Machine, SharedRunner

        machine = Machine()
        sides = []
        for number, placement in enumerate((self.base, self.head)):
            assert placement.profile is not None  # noqa: S101 - the caller's condition
            engine = placement.profile.engine
            known = replace(settings, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
            sides.append(PairedServer(SharedRunner(engine, machine, 2 * settings.seed + number), known))
        return sides[0], sides[1]

    @contextmanager
    def _served(self, settings: Settings, *, fresh: bool) -> Iterator[tuple[PairedServer, PairedServer]]:
        base, head = fitting(self.base, self.head)
        try:
            with self.rig.pair(base, head, self.live, fresh=fresh) as (targets, trust):
                sides = []
                try:
                    for target in targets:
                        workload, workers = self.declared.workload, self.options.workers
                        loaded = load_on(target.endpoint, workload, settings, workers, trust)
                        limit = roofline_of(target, self.declared)
                        sides.append(PairedServer(*loaded, limit if isinstance(limit, Roofline) else None))
                    yield sides[0], sides[1]
                finally:
                    for side in sides:
                        side.runner.close()
        except (LeaseError, ServerError) as error:
            shares = ""
            if base is not self.base and base.spec is not None:
                share = base.spec.args.get("gpu_memory_utilization")
                shares = f" (base and head share the GPU's memory; the base asked for {share} of it)"
            raise PairInvalid(f"{self.declared.name} was not compared with its base{shares}: {error}") from error

    def _changed(self) -> list[str]:
        """What the base has otherwise than the head, and what both have otherwise than the check."""
        found = []
        base, head = fitting(self.base, self.head)
        if self.base.profile is not None and self.head.profile is not None:
            one, other = self.base.profile, self.head.profile
            if one != other:
                found.append(f"simulated server: {one.name} -> {other.name}" if one.name != other.name else "engine")
        if (
            base.spec is not None
            and head.spec is not None
            and self.base.spec is not None
            and self.head.spec is not None
        ):
            if self.base.spec.python != self.head.spec.python:
                found.append(f"interpreter: {self.base.spec.python} -> {self.head.spec.python}")
            before, after = shlex.join(self.base.spec.flags()), shlex.join(self.head.spec.flags())
            if before != after:
                found.append(f"arguments: {before or 'none'} -> {after or 'none'}")
            if base is not self.base:
                share = head.spec.args["gpu_memory_utilization"]
                found.append(f"for the comparison alone, gpu_memory_utilization {share} each, so that both fit")
        return found


def fitting(base: Placement, head: Placement) -> tuple[Placement, Placement]:
    """The same placements where their shares of GPU memory fit together; otherwise with their shares scaled down."""
    on_cpu = head.gpu_class is not None and head.gpu_class.is_cpu
    if base.spec is None or head.spec is None or on_cpu:
        return base, head
    shares = [_share(placement.spec) for placement in (base, head)]
    if sum(shares) <= MOST_SHARE:
        return base, head
    factor = DEFAULT_SHARE / sum(shares)
    scaled = [
        replace(placement, spec=_with_share(placement.spec, round(share * factor, 3)))
        for placement, share in zip((base, head), shares, strict=True)
    ]
    return scaled[0], scaled[1]


def _share(spec: ServerSpec | None) -> float:
    args = {} if spec is None else {_plain_name(name): value for name, value in spec.args.items()}
    given = args.get("gpu_memory_utilization")
    return DEFAULT_SHARE if given is None else float(given)


def _with_share(spec: ServerSpec | None, share: float) -> ServerSpec:
    assert spec is not None  # noqa: S101 - the caller's condition
    kept = {name: value for name, value in spec.args.items() if _plain_name(name) != "gpu_memory_utilization"}
    return replace(spec, args={**kept, "gpu_memory_utilization": share})
