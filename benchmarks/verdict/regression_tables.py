"""REGRESSIONS.md, from the raw results of `regressions.py`: comparisons are drawn from measurements."""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

import msgspec
import numpy as np
import slower  # type: ignore[import-not-found,unused-ignore]
import tables  # type: ignore[import-not-found,unused-ignore]

sys.path.append(str(Path(__file__).parents[1]))
import regression  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.decisions.pooling import pooled
from pytest_gpucap.decisions.regression import START_SD, ComparedRate, median_of, own_errors
from pytest_gpucap.history.compare import PRECISE
from pytest_gpucap.results.measured import Interval

LOSSES = (0.0, *slower.LOSSES)
OUTCOMES = (*regression.OUTCOMES, "no rate")
TIMES = 400
"""Comparisons drawn for each server and loss."""
SIDE = 5
NOISE_SD = 0.04
WIDE = 0.10
"""The published conditions: runs a side, their standard deviation from run to run, and the loss allowed."""
STARTS_SD = math.sqrt(NOISE_SD**2 - regression.OWN_SD**2)
"""What starts differ by, if a precise measurement of each is to repeat to `NOISE_SD`."""
IDEAL_TIMES = 4000
PUBLISHED = {0.0: "98%, 0%", 0.05: "60%, 0%", 0.10: "about 5%, about 5%", 0.15: "0%, 65%", 0.20: "0%, 99%"}
"""SAME and REGRESSED (there: PASS and FAIL) by true loss: README of inference-doctor 0.4.1, 4,000 trials."""
RESAMPLES = 2000

Rng = np.random.Generator
Shares = Mapping[str, float]
Resampled = Mapping[tuple[str, float], Shares]


def rate_of(row: Mapping[str, str]) -> Interval | None:
    """The rate that a measurement found; None if it found none that can be trusted."""
    if row["outcome"] != "OK" or row["rate"] == "nan":
        return None
    return Interval(*(float(row[key]) for key in ("rate", "low", "high")))


@dataclass(frozen=True, slots=True)
class Server:
    """A drawn server's measurements.

    Attributes:
        name: of the server.
        truth_rps: what it sustains unchanged.
        runs: loss and rate of each measurement; None where it found none.
        gpu_s: of one measurement, median.
    """

    name: str
    truth_rps: float
    runs: tuple[tuple[float, Interval | None], ...]
    gpu_s: float

    @classmethod
    def read(cls, results: Path, name: str) -> Server:
        """From the cells; empty where they were not run."""
        cells = {loss: tables.read(results, "slower", name, loss) for loss in slower.LOSSES}
        cells[0.0] = tables.read(results, "measure", name, tables.MEASURED_AT)
        runs = [(loss, rate_of(row)) for loss, rows in cells.items() for row in rows]
        spent = [float(row["gpu_s"]) for rows in cells.values() for row in rows]
        truth, _ = tables.truths(tables.SERVERS)[name]
        return cls(name, truth, tuple(runs), median(spent) if spent else math.nan)

    @property
    def complete(self) -> bool:
        """Whether every loss has a head and its second run, and there is a base besides."""
        counts = Counter(loss for loss, _ in self.runs)
        return counts[0.0] >= 3 and all(counts[loss] >= 2 for loss in slower.LOSSES)

    def errors(self, *losses: float) -> list[float]:
        """ln(measured / true) at some losses; at all where none is named."""
        true = {loss: (1 - loss) * self.truth_rps for loss in LOSSES}
        return [math.log(rate.value / true[loss]) for loss, rate in self.runs if rate and loss in (losses or LOSSES)]

    def half_width(self) -> float:
        """Half the logarithmic width of an interval, median."""
        return median(math.log(rate.high / max(rate.low, 1e-9)) / 2 for _, rate in self.runs if rate)

    def precise(self) -> bool:
        """Whether the plugin calls the rate of a typical measurement precise enough to compare."""
        return median(max(own_errors(rate)) for _, rate in self.runs if rate) <= PRECISE

    def drawn(self, rng: Rng, loss: float, nights: int = 1) -> str:
        """The decision on a comparison whose measurements are drawn, none of them twice.

        The head and its second run were measured at this loss. One base was measured unchanged. Several are drawn from
        the measurements at all losses, each divided by what is left of the rate.
        """
        first, second = rng.permutation([i for i, (at, _) in enumerate(self.runs) if at == loss])[:2]
        left = [i for i in range(len(self.runs)) if i not in {first, second} and self.runs[i][1] is not None]
        if nights == 1:
            left = [i for i in left if self.runs[i][0] == 0.0]
        bases = [self.moved(i, 0.0, rng, START_SD) for i in rng.permutation(left)[:nights]]
        heads = [self.moved(i, loss, rng, START_SD) for i in (first, second) if self.runs[i][1] is not None]
        if len(heads) < 2 or not bases:
            return "no rate"
        base = median_of(bases) if nights > 1 else ComparedRate(bases[0])
        return str(regression.decided(base, iter(heads).__next__))

    def sides(self, rng: Rng, loss: float) -> str:
        """The first decision on `SIDE` starts a side, from measurements at all losses, none of them twice."""
        usable = rng.permutation([i for i, (_, rate) in enumerate(self.runs) if rate is not None])
        if usable.size < 2 * SIDE:
            return "no rate"
        base, head = (
            pooled([self.moved(i, lost, rng, STARTS_SD) for i in usable[begin : begin + SIDE]]).rate
            for begin, lost in ((0, 0.0), (SIDE, loss))
        )
        compared = regression.decided(ComparedRate(base, math.inf), lambda: head, WIDE, repeated=True, again=False)
        return str(compared)

    def moved(self, index: int, loss: float, rng: Rng, start_sd: float) -> Interval:
        """A measurement as it would be at another loss and from another start, with the same relative error."""
        at, rate = self.runs[index]
        assert rate is not None
        factor = (1 - loss) / (1 - at) * math.exp(rng.normal(0.0, start_sd))
        return msgspec.structs.replace(
            rate, value=rate.value * factor, low=max(rate.low, 0.0) * factor, high=rate.high * factor
        )


def shares(outcomes: Iterable[str]) -> dict[str, float]:
    """Share of each outcome."""
    counts = Counter(outcomes)
    return {outcome: count / counts.total() for outcome, count in counts.items()}


def resampled(servers: Sequence[Server], once: Callable[[Server, Rng, float], str]) -> Resampled:
    """Shares of outcomes by server and loss."""
    return {
        (server.name, loss): shares(once(server, rng, loss) for _ in range(TIMES))
        for server in servers
        for loss in LOSSES
        for rng in [np.random.default_rng([round(100 * loss), *server.name.encode()])]
    }


def mean_share(by_server: Sequence[Shares], outcome: str) -> tuple[float, float, float]:
    """Mean of a share over servers, with its 95% interval from drawing the servers again."""
    values = np.array([each.get(outcome, 0.0) for each in by_server])
    again = np.random.default_rng(1).integers(values.size, size=(RESAMPLES, values.size))
    low, high = np.quantile(values[again].mean(axis=1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def shown(by_server: Sequence[Shares], outcome: str) -> str:
    """``12% (5 to 20)``."""
    mean, low, high = mean_share(by_server, outcome)
    return f"{mean:.0%} ({100 * low:.0f} to {100 * high:.0f})"


def row(cells: Iterable[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(cells), row(["---"] * len(cells))]


def groups(servers: Sequence[Server]) -> dict[str, list[str]]:
    """Names by kind of server."""
    found = {
        "all": [each.name for each in servers],
        "unseen": [each.name for each in servers if each.name.startswith("unseen")],
        "precise": [each.name for each in servers if each.precise()],
        "imprecise": [each.name for each in servers if not each.precise()],
    }
    return {f"{label} ({len(names)})": names for label, names in found.items() if names}


def baseline_table(servers: Sequence[Server], one_run: Resampled) -> list[str]:
    """Shares of the decisions against a baseline."""
    folder = resampled(servers, functools.partial(Server.drawn, nights=regression.NIGHTS))
    lines = head(["baseline", "servers", "true loss", *OUTCOMES])
    for label, all_shares in (("one run", one_run), ("a folder of ten", folder)):
        for group, names in groups(servers).items():
            for loss in LOSSES:
                each = [all_shares[name, loss] for name in names]
                lines.append(row([label, group, f"{loss:.0%}", *(shown(each, outcome) for outcome in OUTCOMES)]))
    return lines


def paired_rows(results: Path, name: str, loss: float) -> tables.Rows:
    """Whole comparisons in alternation."""
    return tables.read(results, "paired", name, loss)


def paired_table(results: Path, servers: Sequence[Server]) -> list[str]:
    """Shares of the decisions in alternation, what they report, and server seconds."""
    outcomes = (*regression.OUTCOMES, "INVALID")
    columns = ["servers", "true loss", "comparisons", *outcomes, "reported, mean", "its sd", "server s, median and p90"]
    lines = head(columns)
    for group, names in groups(servers).items():
        for loss in LOSSES:
            cells = [cell for name in names if (cell := paired_rows(results, name, loss))]
            if not cells:
                continue
            each = [shares(found["outcome"] for found in cell) for cell in cells]
            rows = [found for cell in cells for found in cell]
            spent = [float(found["gpu_s"]) for found in rows]
            logs = [math.log(float(found["rate"])) for found in rows if found["rate"] != "nan"]
            lines.append(
                row(
                    [
                        group,
                        f"{loss:.0%}",
                        len(rows),
                        *(shown(each, outcome) for outcome in outcomes),
                        f"{math.exp(fmean(logs)) - 1:+.1%}",
                        f"{stdev(logs):.1%}",
                        f"{median(spent):.0f}, {np.quantile(spent, 0.9):.0f}",
                    ]
                )
            )
    return lines


def server_table(results: Path, servers: Sequence[Server], one_run: Resampled) -> list[str]:
    """What each server does to both gates."""
    lines = head(
        [
            "server", "measured", "sd", "half interval", "error at 0%, at 10 to 20%",
            "baseline: REGRESSED at 0, 5, 10, 15, 20%", "SAME at 10%", "GPU s a side",
            "alternation: comparisons a loss", "REGRESSED at 0, 5, 10, 15, 20%", "SAME at 10%", "reported at 10%",
            "server s",
        ]
    )  # fmt: skip
    for server in servers:
        cells = {loss: paired_rows(results, server.name, loss) for loss in LOSSES}
        counts = {loss: shares(found["outcome"] for found in cell) for loss, cell in cells.items()}
        ratios = [float(found["rate"]) for found in cells[0.10] if found["rate"] != "nan"]
        spent = [float(found["gpu_s"]) for cell in cells.values() for found in cell]
        heads = Counter(loss for loss, _ in server.runs)
        lines.append(
            row(
                [
                    server.name,
                    f"{heads[0.0]} + {min(heads[loss] for loss in slower.LOSSES)} a loss",
                    f"{stdev(server.errors()):.1%}",
                    f"{min(server.half_width(), 9.99):.1%}",
                    f"{fmean(server.errors(0.0)):+.1%}, {fmean(server.errors(0.10, 0.15, 0.20)):+.1%}",
                    ", ".join(f"{one_run[server.name, loss].get('REGRESSED', 0):.0%}" for loss in LOSSES),
                    f"{one_run[server.name, 0.10].get('SAME', 0):.0%}",
                    f"{server.gpu_s:.0f}",
                    min(map(len, cells.values())),
                    ", ".join(f"{counts[loss].get('REGRESSED', 0):.0%}" if cells[loss] else "-" for loss in LOSSES),
                    f"{counts[0.10].get('SAME', 0):.0%}" if cells[0.10] else "-",
                    f"{math.exp(fmean(map(math.log, ratios))) - 1:+.0%}" if ratios else "-",
                    f"{median(spent):.0f}" if spent else "-",
                ]
            )
        )
    return lines


def published_table(servers: Sequence[Server]) -> list[str]:
    """Ours under the conditions of a published table: SAME and REGRESSED by the true loss."""
    lines = head(["gate", "runs a side", *(f"{loss:.0%} lost: SAME, REGRESSED" for loss in LOSSES)])
    lines.append(row(["inference-doctor 0.4.1, as it publishes", SIDE, *(PUBLISHED[loss] for loss in LOSSES)]))
    for again, label in ((False, "first decision"), (True, "REGRESSED confirmed by as many runs more")):
        for runs in (SIDE, 1):
            cells = [ideal(loss, runs, again=again) for loss in LOSSES]
            lines.append(row([f"ours, normal noise, {label}", runs, *cells]))
    all_shares = resampled(servers, Server.sides)
    for group, names in groups(servers).items():
        each = {loss: [all_shares[name, loss] for name in names] for loss in LOSSES}
        cells = [f"{shown(each[loss], 'SAME')}, {shown(each[loss], 'REGRESSED')}" for loss in LOSSES]
        lines.append(row([f"ours, drawn servers, {group}, first decision", SIDE, *cells]))
    return lines


def ideal(loss: float, runs: int, *, again: bool) -> str:
    """SAME and REGRESSED of runs whose errors are normal."""
    rng = np.random.default_rng([runs, round(100 * loss), int(again)])

    def one() -> str:
        if runs > 1:
            return str(regression.several(rng, loss, runs, STARTS_SD, WIDE, again=again))
        base = ComparedRate(regression.run(rng, 0.0, STARTS_SD, 0.0))
        return str(regression.decided(base, lambda: regression.run(rng, loss, STARTS_SD, 0.0), WIDE, again=again))

    each = shares(one() for _ in range(IDEAL_TIMES))
    return f"{each.get('SAME', 0.0):.1%}, {each.get('REGRESSED', 0.0):.1%}"


def slower_table(servers: Sequence[Server]) -> list[str]:
    """How much longer the steps of each slower server are, and what that costs over long runs of other seeds."""
    longer = ", ".join(f"{100 * loss:.0f}" for loss in slower.LOSSES)
    lines = head(["server", f"steps longer by, at {longer}%", *(f"lost at {loss:.0%}" for loss in slower.CHECKED)])
    for server in servers:
        factors = ", ".join(f"{slower.known()[server.name, loss][0] - 1:.1%}" for loss in slower.LOSSES)
        checked = [f"{slower.known()[server.name, loss][1]:.1%}" for loss in slower.CHECKED]
        lines.append(row([server.name, factors, *checked]))
    return lines


def write(results: Path, target: Path, machine: str) -> None:
    """The page."""
    every = [Server.read(results, name) for name in tables.truths(tables.SERVERS)]
    servers = [server for server in every if server.complete]
    one_run = resampled(servers, Server.drawn)
    parts = [
        "# Regression gates on the drawn servers",
        "",
        (
            "SIMULATED. `regressions.py` writes this page; its `--help` says how. The servers are those of "
            "[RESULTS.md](RESULTS.md#servers-with-traits-that-the-model-does-not-have), drawn at random with one trait "
            "or two each. A head is the same server with longer steps, which lower its true rate by a known share. "
            f"Machine: 2 cores, {machine}, shared with other work (which changes nothing in virtual time)."
        ),
        "",
        (
            "A share is the mean over the servers of a row. In brackets is its 95% interval from drawing the servers "
            "again. A server is *precise* if the standard error that a typical measurement gives itself is at most "
            f"{PRECISE:.1%}: the plugin then takes the rate of a check as it is."
        ),
        "",
        "## Against a baseline",
        "",
        (
            f"5% may be lost. {TIMES} comparisons for each server and loss are drawn from a few measurements by "
            "`measure()`: the servers' table has their numbers. Each has a seed of its own. A comparison uses no "
            "measurement twice. The base was measured unchanged, the head and its confirming second run at the loss. "
            "Every measurement is also multiplied by a start of its own (sd 1.2%). The ten runs of a folder come from "
            "all losses, each divided by what is left of the rate. So the shares of one server rest on as few "
            "measurements as it has, and those of all servers on the number of servers."
        ),
        "",
        *baseline_table(servers, one_run),
        "",
        "## In alternation",
        "",
        (
            "5% may be lost. Whole comparisons as the plugin runs them: a REGRESSED is confirmed with both servers "
            "started afresh, and latencies at an equal rate are included in the server seconds. The check before is "
            "not. Paces differ by 0.4% (sd) from start to start, and both servers share the drift of one machine. "
            "`reported` is the change of rate that the last comparison reported."
        ),
        "",
        *paired_table(results, servers),
        "",
        "## Beside a published table",
        "",
        (
            f"The Python package inference-doctor publishes such a table: {NOISE_SD:.0%} of "
            f"normal noise from run to run, {SIDE} runs a side, a threshold of {WIDE:.0%}. PASS there is SAME here, "
            "and FAIL is REGRESSED. The rules differ. inference-doctor fails if the whole 90% interval is beyond the "
            "threshold. Ours is REGRESSED if the estimate is beyond the threshold and the 95% interval leaves no "
            "change out. So ours finds more. It also says REGRESSED more often at a loss near the threshold."
        ),
        "",
        (
            f"{SIDE} runs a side are `--gpucap-repeat={SIDE}`, which confirms a REGRESSED by as many starts more. In "
            f"the rows of normal noise a measurement's own error is {regression.OWN_SD:.1%} of the {NOISE_SD:.0%}, and "
            "starts make up the rest. On the drawn servers the same difference between starts comes on top of their "
            "own errors, so their noise is above that of the table. Their runs come from measurements at all losses, "
            "moved to the loss, none of them twice. There are too few for a confirmation."
        ),
        "",
        *published_table(servers),
        "",
        "## Server by server",
        "",
        (
            "`sd`: of ln(measured / true) over all measurements. `half interval`: half the width of a 95% interval, "
            "median. `error`: mean of ln(measured / true), which a comparison does not see as long as it stays the "
            "same."
        ),
        "",
        *server_table(results, servers, one_run),
        "",
        "## How much slower the slower servers are",
        "",
        (
            "`slower.py` finds by how much all steps must be longer for the loss. `lost` is the fall of the rate over "
            "long runs of other seeds."
        ),
        "",
        *slower_table(servers),
        "",
    ]
    target.write_text("\n".join(parts))
