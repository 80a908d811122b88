"""How much a server's pace moves, and for how long: ``python benchmarks/pace.py RESULT.json ...``.

From the telemetry in result files: the seconds that a token takes each request (requests running over tokens
a second, in bins of a second), its logarithm, less a straight line in the requests running (Huber's loss). Prints the
standard deviation of what is left and its autocorrelation, all pairs of bins so far apart taken together.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from tabulate import tabulate

EDGES_S = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5)
HEADS = ("1 s", "2 s", "3-4 s", "5-8 s", "9-16 s", "17-32 s")
BUSY = 8
"""With fewer running, a phase begins or ends."""


def moves(series: dict[str, Any]) -> tuple[int, float, list[float]]:
    """Bins, the standard deviation, and the autocorrelations."""
    columns = series["columns"]
    at_s, running, rate = (
        np.array(column, float) for column in (series["t_s"], columns["running"], columns["output_tokens_per_s"])
    )
    busy = (running >= BUSY) & (rate > 0)
    at_s, running, pace_s = at_s[busy], running[busy], running[busy] / rate[busy]

    def off(line: Any) -> Any:
        return np.log(pace_s) - np.log(np.maximum(line[0] + line[1] * running, 1e-9))

    line = least_squares(off, (float(np.median(pace_s)), 0.0), loss="huber", f_scale=0.05).x
    left = off(line) - np.mean(off(line))
    apart = np.abs(at_s[:, None] - at_s[None, :])
    alike = left[:, None] * left[None, :] / np.var(left)
    lags = [float(alike[(apart > least) & (apart <= most)].mean()) for least, most in pairwise(EDGES_S)]
    return at_s.size, float(np.std(left)), lags


def main() -> None:
    """Print a row for every measurement."""
    rows = []
    for path in map(Path, sys.argv[1:]):
        for result in json.loads(path.read_text())["results"]:
            bins, spread, lags = moves(result["series"])
            rows.append([path.name, result["name"], bins, f"{spread:.0%}", *(f"{lag:+.2f}" for lag in lags)])
    print(tabulate(rows, ["file", "name", "bins", "sd", *HEADS], "github"))


if __name__ == "__main__":
    main()
