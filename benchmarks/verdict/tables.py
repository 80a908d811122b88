"""RESULTS.md and the operating characteristic curves, from the raw results of the study."""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PROFILES = HERE.parents[1] / "pytest_gpucap" / "simulator" / "profiles"
CURVES = HERE.parents[1] / "docs" / "operating-characteristic.svg"
SERVERS = HERE / "servers"
GOODPUT = HERE / "goodput.toml"
PREFILL_ONLY = HERE / "prefill_only.toml"
SESSIONS = HERE / "sessions.toml"
RATIOS = (0.95, 0.98, 1.02, 1.05)
FAR_RATIOS = (0.1, 0.5, 2.0, 10.0)
MEASURED_AT = 0.7
"""Place of the `measure` cells: the search begins at a guess that the server sustains so many times."""
ESTIMATING = ("sweep", "bisection", "aiperf", "aiperf-rate", "guidellm", "mlperf-peak")
"""Methods whose estimate of the rate decides for every ratio."""
METHODS = ("check", "fixed", "bisection", "sweep", "aiperf", "aiperf-rate", "guidellm", "mlperf", "mlperf-peak")
Rows = Sequence[Mapping[str, str]]


def truths(folder: Path = PROFILES) -> dict[str, tuple[float, bool]]:
    """True rate, and whether held out, by profile."""
    found = {}
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text())
        found[path.stem] = (float(data["true_rate_rps"]), bool(data.get("held_out", False)))
    return found


def read(results: Path, method: str, name: str, ratio: float) -> Rows:
    """A cell's rows, each replication once."""
    path = results / f"{method}-{name}-{ratio:.2f}.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return list({row["rep"]: row for row in csv.DictReader(file)}.values())


def wrong(rows: Rows, ratio: float, truth: float, method: str) -> float:
    """Share of wrong verdicts: PASS below the requirement, FAIL above it."""
    bad = "PASS" if ratio < 1 else "FAIL"
    if method in ESTIMATING:
        passed = np.array([float(r["rate"]) >= truth / ratio for r in rows])
        return float(passed.mean() if ratio < 1 else (~passed).mean())
    return sum(r["outcome"] == bad for r in rows) / len(rows)


def cells_of(results: Path, method: str, name: str) -> dict[float, Rows]:
    """A method's rows for a profile by ratio; one estimate serves them all."""
    return {r: read(results, method, name, 1.0 if method in ESTIMATING else r) for r in RATIOS}


def share(rows: Rows, outcome: str) -> float:
    """Share of an outcome."""
    return sum(r["outcome"] == outcome for r in rows) / max(1, len(rows))


def estimates(rows: Rows, truth: float) -> tuple[float, float, float]:
    """Bias and spread of ln(estimate / truth), and coverage of the interval; NaN without estimates."""
    kept = [r for r in rows if r["rate"] != "nan"]
    if not kept:
        return math.nan, math.nan, math.nan
    log = np.log([max(float(r["rate"]), 1e-9) / truth for r in kept])
    covered = [float(r["low"]) <= truth <= float(r["high"]) for r in kept if r["low"] != "nan"]
    return float(log.mean()), float(log.std()), float(np.mean(covered)) if covered else math.nan


def percent(value: float) -> str:
    """A share in percent."""
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def titled(name: str, *, held_out: bool) -> str:
    """A profile as tables name it."""
    return f"{name} (held out)" if held_out else name


def verdict_table(results: Path) -> list[str]:
    """Error rates and GPU seconds, all methods."""
    lines = [
        (
            "| profile | method | reps per cell | wrong at r = 0.95 / 0.98 / 1.02 / 1.05, % | undecided, same, % | "
            "GPU s median, p90 at r <= 0.95 and >= 1.05 | p90 at 0.98 and 1.02 |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for name, (truth, held_out) in truths().items():
        for method in ("check", "fixed", "bisection", "sweep"):
            cells = cells_of(results, method, name)
            if not any(cells.values()):
                continue
            errors = [percent(wrong(rows, r, truth, method)) if rows else "-" for r, rows in cells.items()]
            undecided = [percent(share(rows, "INCONCLUSIVE")) if rows else "-" for rows in cells.values()]
            clear = [float(row["gpu_s"]) for r in (0.95, 1.05) for row in cells[r]]
            near = [float(row["gpu_s"]) for r in (0.98, 1.02) for row in cells[r]]
            reps = " / ".join(dict.fromkeys(str(len(rows)) for rows in cells.values() if rows))
            lines.append(
                f"| {titled(name, held_out=held_out)} | {method} | {reps} | {' / '.join(errors)} | "
                f"{' / '.join(undecided) if method == 'check' else ''} | "
                f"{np.median(clear):.0f}, {np.quantile(clear, 0.9):.0f} | "
                f"{f'{np.quantile(near, 0.9):.0f}' if near else '-'} |"
            )
    return lines


def estimate_table(results: Path) -> list[str]:
    """Bias, spread and coverage of the sustainable rate."""
    lines = [
        "| profile | procedure | runs | bias % | sd % | 95% interval covers % | GPU s median |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (truth, held_out) in truths().items():
        cells = [("check", r) for r in RATIOS] + [("measure", MEASURED_AT), ("sweep", 1.0), ("bisection", 1.0)]
        for method, ratio in cells:
            rows = read(results, method, name, ratio)
            if not rows:
                continue
            bias, spread, covers = estimates(rows, truth)
            label = f"check, r = {ratio}" if method == "check" else method
            gpu_s = np.median([float(r["gpu_s"]) for r in rows])
            lines.append(
                f"| {titled(name, held_out=held_out)} | {label} | {len(rows)} | {100 * bias:+.2f} | "
                f"{100 * spread:.2f} | {percent(covers)} | {gpu_s:.0f} |"
            )
    return lines


def far_table(results: Path) -> list[str]:
    """Error rates and GPU seconds where the answer is plain."""
    lines = [
        "| profile | checks per cell | wrong or undecided at r = 0.1 / 0.5 / 2 / 10, % | GPU s median, same |",
        "|---|---|---|---|",
    ]
    for name, (_, held_out) in truths().items():
        cells = {r: read(results, "check", name, r) for r in FAR_RATIOS}
        if not all(cells.values()):
            continue
        missed = [percent(1 - share(rows, "FAIL" if r < 1 else "PASS")) for r, rows in cells.items()]
        seconds = [f"{np.median([float(row['gpu_s']) for row in rows]):.0f}" for rows in cells.values()]
        least = min(map(len, cells.values()))
        lines.append(f"| {titled(name, held_out=held_out)} | {least} | {' / '.join(missed)} | {' / '.join(seconds)} |")
    return lines


def http_table(results: Path) -> list[str]:
    """Checks over HTTP against the virtual-time cells."""
    lines = [
        "| profile | r | over HTTP: PASS / FAIL / INCONCLUSIVE / INVALID | virtual time, % | GPU s median, both |",
        "|---|---|---|---|---|",
    ]
    outcomes = ("PASS", "FAIL", "INCONCLUSIVE", "INVALID")
    for path in sorted(results.glob("http-*.csv")):
        _, name, ratio = path.stem.split("-")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        virtual = read(results, "check", name, float(ratio))
        if not rows or not virtual:
            continue
        counts = " / ".join(str(sum(r["outcome"] == o for r in rows)) for o in outcomes)
        shares = " / ".join(percent(share(virtual, o)) for o in outcomes)
        seconds = [np.median([float(r["gpu_s"]) for r in part]) for part in (rows, virtual)]
        lines.append(f"| {name} | {ratio} | {counts} | {shares} | {seconds[0]:.0f} / {seconds[1]:.0f} |")
    return lines


def cpu_table(results: Path) -> list[str]:
    """Repeated measurements of the real CPU vLLM."""
    path = results / "cpu-vllm.csv"
    if not path.is_file():
        return ["Not run."]
    with path.open() as file:
        rows = [r for r in csv.DictReader(file) if r["rate"] != "nan"]
    if not rows:
        return ["Not run: every attempt on a busy 2-core machine ended INVALID (the load generator was short of CPU)."]
    lines = ["| run | sustainable rate | 95% interval | GPU s |", "|---|---|---|---|"]
    lines += [f"| {r['rep']} | {r['rate']} | {r['low']} to {r['high']} | {r['gpu_s']} |" for r in rows]
    if len(rows) > 1:
        log = np.log([float(r["rate"]) for r in rows])
        half = np.mean([math.log(float(r["high"]) / float(r["low"])) / 2 for r in rows])
        centre = math.exp(float(log.mean()))
        inside = sum(float(r["low"]) <= centre <= float(r["high"]) for r in rows)
        lines += [
            "",
            (
                f"Spread of the estimates: sd {100 * log.std(ddof=1):.1f}%; the intervals' mean half width is "
                f"{100 * half:.1f}% (1.96 standard errors); {inside} of {len(rows)} intervals "
                "hold the mean of all runs."
            ),
        ]
    return lines


def curves(results: Path) -> str:
    """Probability of FAIL and of PASS against true capacity over requirement, as SVG; of a profile with enough checks.

    The same rows give the same text with the same version of matplotlib.
    """
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = CURVES.name  # the same picture from the same rows
    import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    ratios = [0.90, 0.95, 0.97, 0.98, 1.0, 1.02, 1.03, 1.05, 1.10]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for name in truths():
        points = [(r, rows) for r in ratios if len(rows := read(results, "check", name, r)) >= 100]
        if len(points) < 2:
            continue
        x = [r for r, _ in points]
        axes[0].plot(x, [share(rows, "FAIL") for _, rows in points], marker=".", label=name)
        axes[1].plot(x, [share(rows, "PASS") for _, rows in points], marker=".", label=name)
    for axis, what in zip(axes, ("FAIL", "PASS"), strict=True):
        axis.set_title(f"probability of {what} (SIMULATED)")
        axis.set_xlabel("true capacity / requirement")
        axis.axvline(1.0, color="grey", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    return drawn.getvalue()


def traits_table(results: Path) -> list[str]:
    """Error rates and estimates on the drawn servers that were run."""
    lines = [
        (
            "| server | checks a cell | false PASS r = 0.95, 0.98 | false FAIL 1.02, 1.05 | undecided, all four | "
            "GPU s, median | `measure()`: bias | sd | interval covers |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (truth, _) in truths(SERVERS).items():
        cells = {ratio: read(results, "check", name, ratio) for ratio in RATIOS}
        measured = read(results, "measure", name, MEASURED_AT)
        if not measured or not all(cells.values()):
            continue
        bad = [f"{wrong(rows, ratio, truth, 'check'):.0%}" for ratio, rows in cells.items()]
        undecided = ", ".join(f"{share(rows, 'INCONCLUSIVE'):.0%}" for rows in cells.values())
        seconds = np.median([float(row["gpu_s"]) for rows in cells.values() for row in rows])
        bias, sd, covered = estimates(measured, truth)
        lines.append(
            f"| {name} | {min(map(len, cells.values()))} | {bad[0]}, {bad[1]} | {bad[2]}, {bad[3]} | {undecided} | "
            f"{seconds:.0f} | {bias:+.1%} | {sd:.1%} | {covered:.0%} |"
        )
    return lines


def goodput_table(results: Path) -> list[str]:
    """Error rates and estimates where goodput is the limit."""
    lines = [
        (
            "| server | thresholds | true rate, req/s (one threshold alone) | checks a cell | false PASS r = 0.95 | "
            "false FAIL 1.05 | undecided, both | `measure()`: runs | bias | sd | interval covers |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, server in tomllib.loads(GOODPUT.read_text()).items():
        cells = {ratio: read(results, "check", name, ratio) for ratio in (0.95, 1.05)}
        measured = read(results, "measure", name, MEASURED_AT)
        if not measured:
            continue
        truth, slo = server["true_rate_rps"], server["slo"]
        checked = all(cells.values())
        bad = [f"{percent(wrong(rows, ratio, truth, 'check'))}%" if checked else "-" for ratio, rows in cells.items()]
        undecided = [f"{percent(share(rows, 'INCONCLUSIVE'))}%" if checked else "-" for rows in cells.values()]
        bias, sd, covered = estimates(measured, truth)
        thresholds = ", ".join(f"{metric.upper()} {limit}" for metric, limit in slo.items() if metric != "goodput")
        alone = ", ".join(f"{metric.upper()} {rate:.4g}" for metric, rate in server.get("alone_rps", {}).items())
        lines.append(
            f"| {name} | {slo['goodput']}: {thresholds} | {truth:.4g}{f' ({alone})' if alone else ''} | "
            f"{min(map(len, cells.values())) if checked else '-'} | {' | '.join(bad)} | {', '.join(undecided)} | "
            f"{len(measured)} | {bias:+.1%} | {sd:.1%} | {covered:.0%} |"
        )
    return lines


def prefill_only_table(results: Path) -> list[str]:
    """Error rates of checks where answers have no tokens."""
    ratios = (0.9, 0.95, 1.05, 1.1)
    lines = [
        (
            "| server | limit | true rate, req/s | checks a cell | wrong at r = 0.9 / 0.95 / 1.05 / 1.1, % | "
            "undecided, same, % | GPU s: median, p90 |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, server in tomllib.loads(PREFILL_ONLY.read_text()).items():
        cells = {ratio: read(results, "check", name, ratio) for ratio in ratios}
        if not all(cells.values()):
            continue
        truth = server["true_rate_rps"]
        limits = ", ".join(f"{limit} {value}" for limit, value in server["slo"].items())
        bad = " / ".join(percent(wrong(rows, ratio, truth, "check")) for ratio, rows in cells.items())
        undecided = " / ".join(percent(share(rows, "INCONCLUSIVE")) for rows in cells.values())
        seconds = np.quantile([float(row["gpu_s"]) for rows in cells.values() for row in rows], (0.5, 0.9))
        lines.append(
            f"| {name} | {limits} | {truth:.4g} | {min(map(len, cells.values()))} | {bad} | {undecided} | "
            f"{seconds[0]:.0f}, {seconds[1]:.0f} |"
        )
    return lines


def sessions_table(results: Path) -> list[str]:
    """Error rates and estimates where requests are turns of sessions."""
    lines = [
        (
            "| server | limits | true rate, req/s (if it forgot nothing; if it had no prefix cache) | checks a cell | "
            "wrong at r = 0.95 / 0.98 / 1.02 / 1.05, % | undecided, same, % | GPU s, median | `check()`: bias at 0.95, "
            "1.05 | `measure()`: runs | bias | sd | interval covers |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, server in tomllib.loads(SESSIONS.read_text()).items():
        cells = cells_of(results, "check", name)
        measured = read(results, "measure", name, MEASURED_AT)
        if not any(cells.values()) or "true_rate_rps" not in server:
            continue
        truth = server["true_rate_rps"]
        bad = " / ".join(percent(wrong(rows, ratio, truth, "check")) if rows else "-" for ratio, rows in cells.items())
        undecided = " / ".join(percent(share(rows, "INCONCLUSIVE")) if rows else "-" for rows in cells.values())
        seconds = float(np.median(seconds_of(results, "check", name)))
        biases = ", ".join(
            f"{estimates(cells[ratio], truth)[0]:+.1%}" if cells[ratio] else "-" for ratio in (0.95, 1.05)
        )
        bias, sd, covered = estimates(measured, truth) if measured else (math.nan, math.nan, math.nan)
        of_measure = f"{len(measured)} | {bias:+.1%} | {sd:.1%} | {covered:.0%}" if measured else "0 | - | - | -"
        count = min(len(rows) for rows in cells.values() if rows)
        limits = ", ".join(f"{limit} {value}" for limit, value in server["slo"].items())
        bounds = "; ".join(f"{server[key]:.4g}" for key in ("keeping_rps", "without_cache_rps") if key in server)
        lines.append(
            f"| {name} | {limits} | {truth:.4g}{f' ({bounds})' if bounds else ''} | {count} | {bad} | {undecided} | "
            f"{seconds:.0f} | {biases} | {of_measure} |"
        )
    return lines


def sessions_section(results: Path) -> list[str]:
    """The section on sessions; nothing where none were run."""
    table = sessions_table(results)
    if len(table) == 2:  # the head alone
        return []
    return [
        "## Multi-turn sessions",
        "",
        (
            "The truth is that of long runs of the same sessions: they arrive, and their turns follow. `sessions.py`, "
            "then `study.py run --parts check,measure --profiles sessions --reps 40 --jobs 1`. Where the KV cache is "
            "too small for the sessions under way, the server forgets what was said "
            "([statistics.md](../../docs/statistics.md#a-server-that-forgets)). The `unseen` servers were looked at "
            "once the procedure was finished. A cell that was not run has a dash, and the checks a cell are those of "
            "the one with the fewest."
        ),
        "",
        *table,
        "",
    ]


def seconds_of(results: Path, method: str, name: str) -> list[float]:
    """GPU seconds of every run, each run once."""
    ratios = (1.0,) if method in ESTIMATING else RATIOS
    return [float(row["gpu_s"]) for ratio in ratios for row in read(results, method, name, ratio)]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return float(np.mean(values)) if values else math.nan


def rivals_summary(results: Path) -> list[str]:
    """Every method over all drawn servers. Each server counts the same."""
    lines = [
        (
            "| method | runs a cell | wrong at r = 0.95 / 0.98 / 1.02 / 1.05, seen servers, % | unseen servers | "
            "undecided, seen | unseen | wrong in all: seen, unseen | right in all: seen, unseen | "
            "estimate / truth: median (5% to 95%) | GPU s: median, p90 |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    known = truths(SERVERS)
    for method in METHODS:
        runs = {name: cells for name in known if all((cells := cells_of(results, method, name)).values())}
        if not runs:
            continue
        errors, undecided = [], []
        for held_out in (False, True):
            half = [(known[name][0], cells) for name, cells in runs.items() if known[name][1] == held_out]
            errors.append([mean([wrong(cells[r], r, truth, method) for truth, cells in half]) for r in RATIOS])
            undecided.append([mean([share(cells[r], "INCONCLUSIVE") for _, cells in half]) for r in RATIOS])
        ratios = [
            float(row["rate"]) / known[name][0]
            for name, cells in runs.items()
            for rows in (cells.values() if method == "check" else (cells[0.95],))
            for row in rows
            if row["rate"] != "nan"
        ]
        spread = [f"{q:.2f}" for q in np.quantile(ratios, (0.5, 0.05, 0.95))] if ratios else []
        seconds = np.quantile([s for name in runs for s in seconds_of(results, method, name)], (0.5, 0.9))
        least = min(len(rows) for cells in runs.values() for rows in cells.values())
        by_ratio = [" / ".join(map(percent, half)) for half in (*errors, *undecided)]
        right = [1 - mean(bad) - mean(open_) for bad, open_ in zip(errors, undecided, strict=True)]
        lines.append(
            f"| {method} | {least} | {by_ratio[0]} | {by_ratio[1]} | "
            f"{' | '.join(by_ratio[2:]) if method == 'check' else ' | '} | "
            f"{', '.join(percent(mean(half)) for half in errors)} | {', '.join(map(percent, right))} | "
            f"{f'{spread[0]} ({spread[1]} to {spread[2]})' if spread else ''} | {seconds[0]:.0f}, {seconds[1]:.0f} |"
        )
    return lines


def rivals_by_server(results: Path) -> tuple[list[str], list[str]]:
    """Two tables with a row a server and a column a method: wrong verdicts at 0.95 and 1.05, and median GPU seconds."""
    head = [f"| server | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS)]
    errors, seconds = [*head], [*head]
    for name, (truth, _) in truths(SERVERS).items():
        cells = {method: cells_of(results, method, name) for method in METHODS}
        if not any(all(rows.values()) for method, rows in cells.items() if method != "check"):
            continue
        wrongs = [
            " / ".join(f"{100 * wrong(rows[r], r, truth, method):.0f}" if rows[r] else "-" for r in (0.95, 1.05))
            for method, rows in cells.items()
        ]
        spent = [seconds_of(results, method, name) for method in METHODS]
        errors.append(f"| {name} | {' | '.join(wrongs)} |")
        seconds.append(f"| {name} | {' | '.join(f'{np.median(s):.0f}' if s else '-' for s in spent)} |")
    return errors, seconds


def starts_table() -> list[str]:
    """Wrong verdicts from one start and from several."""
    import starts  # type: ignore[import-not-found,unused-ignore]  # it imports the study, which imports this file

    return list(starts.table())


def write(results: Path, target: Path, machine: str) -> None:
    """RESULTS.md and the curves."""
    errors, seconds = rivals_by_server(results)
    parts = [
        "# Verdicts: error rates and GPU seconds",
        "",
        (
            "SIMULATED servers of known capacity, unless a section says otherwise. r is the true capacity over the "
            "requirement. A verdict is wrong if it is PASS below r = 1 or FAIL above. GPU seconds leave out the "
            "server's start. Durations and thresholds were set on the profiles that are not marked *held out*. The "
            "queue model and the ramp were examined on all profiles, and four flaws were found on held-out ones and "
            "mended, so *held out* is not strict. The seeds of these checks and measurements are fresh: none was drawn "
            "before the last constant was set. A dash is a cell that was not run. `h200` is calibrated to a server "
            "whose throughput falls beyond about 120 requests in flight."
        ),
        "",
        (
            f"Machine: 2 cores, {machine}, shared with other work (which changes nothing in virtual "
            "time). Commands, in this order: `python benchmarks/verdict/study.py run`, `over_http.py`, "
            "`on_cpu_vllm.py`, `study.py table`."
        ),
        "",
        *verdict_table(results),
        "",
        "## Far from the requirement",
        "",
        *far_table(results),
        "",
        "## The estimate",
        "",
        *estimate_table(results),
        "",
        "## Servers with traits that the model does not have",
        "",
        (
            "Drawn at random from fixed seeds, with one trait or two each: `servers.py draw`, `servers.py truth`, then "
            "`study.py run --parts check,measure --profiles seen-calm,...`. *Seen* servers were looked at while the "
            "procedure was developed; unseen ones are kept for its results."
        ),
        "",
        *traits_table(results),
        "",
        "## Goodput as the limit",
        "",
        (
            "95% of the requests keep both thresholds together. The truth is that of long runs under the same rule. "
            "The interval was mended on the named servers. The drawn ones come from a seed that nobody had looked at. "
            "`goodput.py truth` and `draw`, then `study.py run --parts check --profiles bursty-goodput,... --ratios "
            "0.95,1.05 --reps 10` and `--parts measure --profiles goodput --reps 12` (24 of the drawn ones). "
            "Before, the bias on the named "
            "servers was +1.6, +2.5 and +0.7% in 20 runs each, and the interval held the true rate in 80, 55 and 90%."
        ),
        "",
        *goodput_table(results),
        "",
        "## Answers without tokens",
        "",
        (
            "Embeddings, classes, vectors of tokens and scores: requests are prefilled, and E2E alone is known. Such "
            "answers show no pace, so nothing is fitted. `check()` sends the design rate for 40 to 240 s and judges "
            "what it sees, and `measure()` gives no rate and says why. The servers are drawn from a seed. "
            "Three flaws were found on them and mended. Busy periods that called the run off failed up to half of the "
            "checks of a server that was 10% faster than it had to be. A run that did not separate ended after 40 s. "
            "A run with few busy periods showed too small an error, and passed. "
            "The figures are those of the procedure after that, on the same servers. "
            "`prefill_only.py`, then `study.py run --parts check --profiles prefill_only --ratios 0.9,0.95,1.05,1.1 "
            "--reps 12`."
        ),
        "",
        *prefill_only_table(results),
        "",
        *sessions_section(results),
        "## Other ways to decide, on the same servers",
        "",
        (
            "`study.py run --parts fixed,bisection,sweep,aiperf,aiperf-rate,guidellm,mlperf,mlperf-peak "
            "--profiles seen,unseen --reps 40`. The last five follow the source of load tools, with the tools' own "
            "defaults: AIPerf 0.13.0, GuideLLM 0.8.1 and MLPerf LoadGen 6.0.17. The docstrings in `rivals/` name the "
            "modules and say what is different in virtual time. `aiperf` and `guidellm` search the highest concurrency "
            "that keeps the limits, as these tools do. The throughput they report there is their estimate. "
            "`aiperf-rate` is AIPerf's search on the rate, in whole requests per second. `mlperf` is one run at the "
            "design rate with early stopping. `mlperf-peak` is LoadGen's search for the highest rate."
        ),
        "",
        (
            "PASS is an estimate of at least the design rate. `check` may also answer that it cannot tell; the others "
            "never do. Shares are means over the servers. Every run begins on a server that has just started. How many "
            "requests a server holds at a time within the limits is not what it sustains under random arrivals: there, "
            "more are in flight at times. So a search for the concurrency passes many servers that are too slow."
        ),
        "",
        *rivals_summary(results),
        "",
        "Wrong at r = 0.95 / 1.05, in percent:",
        "",
        *errors,
        "",
        "GPU seconds, median:",
        "",
        *seconds,
        "",
        "## One verdict from several starts",
        "",
        (
            "Every start of profile `fast` has a pace of its own: `starts.py run`, `starts.py table`. One start is the "
            "check as it is; several are `--gpucap-repeat`. The truth is the rate of the mean start. No check counts "
            "twice in a row of the table. A start keeps its pace, so the drift within a check (0.7%) is switched off. "
            "The intervals still allow for it, and cover more than they would on a server that drifts as well."
        ),
        "",
        *starts_table(),
        "",
        "## The same check over real HTTP",
        "",
        (
            "Each check drives a simulated server in a process of its own through the real load generator, in real "
            "time; two checks at a time on 2 cores with nothing else to do."
        ),
        "",
        *http_table(results),
        "",
        "## Repeated measurements of the real CPU build of vLLM (measured, not simulated)",
        "",
        "One server, p95 E2E 1 s; 2 cores with nothing else to do.",
        "",
        *cpu_table(results),
        "",
    ]
    target.write_text("\n".join(parts))
    CURVES.write_text(curves(results), encoding="utf-8")


if __name__ == "__main__":
    import platform

    write(HERE / "results", HERE / "RESULTS.md", platform.machine())
