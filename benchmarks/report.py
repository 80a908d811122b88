"""What the reports of a large session cost: the result file after each test, the HTML page, a browser that shows it.

    python benchmarks/report.py [--tests 50] [--turns 5]

Each test is a real simulated `check()` or `sweep()` with the telemetry of eight GPUs at its longest (300 points for
each column) laid over it. With a Chromium on this machine the page is opened as well, and every chart of it drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

sys.path.append(str(Path(__file__).parents[1]))

from pytest_gpucap.report.html import render
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.telemetry.over_time import MOST_POINTS, binned_series
from tests.report import pages


def session(tests: int) -> ResultFile:
    """Results of this many tests: four checks to a sweep, each with a name of its own."""
    content = pages.simulated()
    checks = [result for result in content.results if result.kind is ResultKind.CHECK]
    sweeps = [result for result in content.results if result.kind is ResultKind.SWEEP]
    chosen = [*checks, *checks, *sweeps]
    results = tuple(_watched(chosen[number % len(chosen)], f"test {number}") for number in range(tests))
    return msgspec.structs.replace(content, results=results)


def _watched(result: Result, name: str) -> Result:
    start_s = result.samples[0].start_s
    end_s = start_s + MOST_POINTS
    readings = pages.readings(start_s, end_s)
    readings["devices"] = {f"GPU-{number}": readings["devices"]["GPU-a"] for number in range(8)}
    return msgspec.structs.replace(result, name=name, series=binned_series(readings, start_s, end_s))


def shown_s(page: Path) -> tuple[float, float] | None:
    """Seconds until the page is loaded, and until every chart of it is drawn; None without a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    from tests.report.conftest import find_chromium

    with sync_playwright() as driver:
        path = find_chromium(driver.chromium.executable_path)
        if path is None:
            return None
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(page.as_uri())
        loaded = time.perf_counter()
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        drawn = time.perf_counter()
        browser.close()
        return loaded - began, drawn - loaded


def grown_s(path: Path, content: ResultFile) -> list[float]:
    """Seconds that each result costs when its test ends."""
    file, costs = result_file.GrowingResultFile(path), []
    for count in range(1, len(content.results) + 1):
        grown = msgspec.structs.replace(content, results=content.results[:count])
        began = time.perf_counter()
        file.write(grown)
        costs.append(time.perf_counter() - began)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=50)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    content = session(options.tests)
    requests = sum(sample.requests for result in content.results for sample in result.samples)
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder, "result.json"), Path(folder, "report.html")
        costs = grown_s(file, content)
        turns = []
        for _ in range(options.turns):
            began = time.perf_counter()
            page.write_text(render(result_file.read(file)), encoding="utf-8")
            turns.append(time.perf_counter() - began)
        print(f"{options.tests} tests, {requests} requests, result file {file.stat().st_size / 1e6:.2f} MB")
        early, late = (1000 * statistics.median(part) for part in (costs[1:11], costs[-10:]))
        print(f"a result added in {early:.0f} ms (2nd to 11th) and {late:.0f} ms (last ten)")
        print(f"page {page.stat().st_size / 1e6:.2f} MB")
        print(
            f"read, rendered, written in {statistics.median(turns):.2f} s (median of {options.turns}: {_list(turns)})"
        )
        if shown := shown_s(page):
            print(f"loaded in {shown[0]:.2f} s, all charts drawn at once in {shown[1]:.2f} s")
        drawn = content.results[0].series
        assert drawn is not None
        columns = {name: len(column) for name, column in drawn.columns.items()}
        print(f"points of each column: {json.dumps(columns)}")


def _list(turns: list[float]) -> str:
    return ", ".join(f"{turn:.2f}" for turn in turns)


if __name__ == "__main__":
    main()
