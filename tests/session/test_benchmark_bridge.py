"""pytest-benchmark shows our measurements: real pytest-benchmark, its real command line, and who reads its JSON."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.result import Result
from pytest_gpucap.session import benchmark_bridge
from tests.results import made

pytest.importorskip("pytest_benchmark")
# Inner runs in this process start from the modules that are loaded now: NumPy cannot be loaded twice.
for module in ("hypothesis", "pytest_gpucap.session.pytest_session", "pytest_gpucap.simulator.runner"):
    import_module(module)

SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

    @pytest.mark.gpucap(name="fits", qps=10, gpus=1)
    def test_fits(gpucap):
        gpucap.check()

    @pytest.mark.gpucap(name="does not fit", qps=100, gpus=2)
    def test_does_not_fit(gpucap):
        gpucap.check()
"""
SIMULATED = "--gpu-class=sim:fast"
MARKER_SUITE = """
    import pytest

    @pytest.mark.benchmark(group="nightly")
    @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    def test_it(gpucap):
        gpucap.check()
"""


def rates(folder: Path) -> dict[str, float]:
    """Sustainable rates of the last run by test."""
    results = result_file.read(folder / ".gpucap" / "result.json").results
    return {
        each.test: each.at_least_rps or each.sustainable_rate.value
        for each in results
        if each.sustainable_rate is not None
    }


def stored(path: Path) -> dict[str, dict[str, Any]]:
    """What pytest-benchmark wrote, by test."""
    return {bench["fullname"]: bench for bench in json.loads(path.read_text())["benchmarks"]}


def shown_by_github_action_benchmark(path: Path) -> list[dict[str, Any]]:
    """What ``tool: pytest`` of github-action-benchmark charts.

    After `extractPytestResult` and `getHumanReadableUnitValue` of benchmark-action/github-action-benchmark,
    src/extract.ts: one entry a benchmark, from `fullname` and `stats.ops`, `stddev`, `mean` and `rounds` alone; larger
    values are better (`biggerIsBetter`).
    """
    shown = []
    for bench in json.loads(path.read_text())["benchmarks"]:
        stats = bench["stats"]
        scale, unit = next(
            (pair for limit, pair in ((1e-6, (1e9, "nsec")), (1e-3, (1e6, "usec")), (1.0, (1e3, "msec")))
             if stats["mean"] < limit),
            (1.0, "sec"),
        )  # fmt: skip
        shown.append(
            {
                "name": bench["fullname"],
                "value": stats["ops"],
                "unit": "iter/sec",
                "range": f"stddev: {stats['stddev']}",
                "extra": f"mean: {stats['mean'] * scale} {unit}\nrounds: {stats['rounds']}",
            }
        )
    return shown


@pytest.mark.skipif(find_spec("pygal") is None, reason="pytest-benchmark draws its histograms with pygal")
def test_ops_is_the_sustainable_rate_in_everything_pytest_benchmark_writes(suite: pytest.Pytester) -> None:
    # In a process of its own: pygal's importlib_metadata takes the standard library's finder away.
    options = ("--benchmark-save=first", "--benchmark-json=out.json", "--benchmark-histogram=h")
    result = suite.runpytest_subprocess(SIMULATED, *options)
    result.assert_outcomes(passed=1, failed=1)
    found = rates(suite.path)
    assert len(found) == 2
    [saved] = suite.path.glob(".benchmarks/*/0001_first.json")
    for path in (saved, suite.path / "out.json"):
        benches = stored(path)
        assert {name: bench["stats"]["ops"] for name, bench in benches.items()} == pytest.approx(found)
        for bench in benches.values():
            assert bench["group"] == "requests on SIMULATED (fast)"
            assert bench["stats"]["rounds"] >= 3
            assert bench["stats"]["stddev"] > 0
    exact = stored(suite.path / "out.json")["test_suite.py::test_fits"]
    own = exact["extra_info"]["gpucap"]
    assert own["outcome"] == "PASS"
    assert own["simulated"] is True
    assert own["sustainable_rate_rps"]["low"] > 0
    assert own["at_least_rps"] == pytest.approx(exact["stats"]["ops"])  # more was not measured
    assert (own["gpus_required"], own["gpus"]) == (1, 1)
    assert json.loads(saved.read_text())["machine_info"]["gpu"] == {"class": "SIMULATED (fast)"}
    # The terminal's table: the column of rates holds them to four digits.
    line = next(line for line in result.outlines if line.startswith("test_fits"))
    assert f"{found['test_suite.py::test_fits']:.4f}" in line
    [drawing] = suite.path.glob("h-*.svg")
    seconds = re.findall(r"Median: (\d+\.\d+)", drawing.read_text())
    assert sorted(float(each) for each in seconds) == pytest.approx(
        sorted(1000 * bench["stats"]["median"] for bench in stored(suite.path / "out.json").values()), rel=1e-3
    )


def test_saved_runs_stand_side_by_side_on_one_class_and_are_refused_on_another(suite: pytest.Pytester) -> None:
    suite.runpytest(SIMULATED, "--benchmark-save=seed1", "--gpucap-seed=1")
    both = [rates(suite.path)["test_suite.py::test_fits"]]
    same = suite.runpytest(
        *(SIMULATED, "--gpucap-seed=2", "--benchmark-save=seed2", "--benchmark-compare", "--benchmark-json=out.json")
    )
    same.assert_outcomes(passed=1, failed=1)
    same.stdout.fnmatch_lines_random(["test_fits (NOW) *", "test_fits (0001_seed1) *"])
    both.append(rates(suite.path)["test_suite.py::test_fits"])
    # github-action-benchmark charts requests a second.
    shown = shown_by_github_action_benchmark(suite.path / "out.json")
    assert {each["name"]: each["value"] for each in shown} == pytest.approx(rates(suite.path))
    assert all(re.fullmatch(r"mean: [\d.]+ msec\nrounds: \d+", each["extra"]) for each in shown)
    # pytest-benchmark's own command compares both.
    command = [str(Path(sys.executable).parent / "pytest-benchmark"), "compare", "--csv=compared.csv", "--sort=name"]
    told = subprocess.run(command, cwd=suite.path, capture_output=True, text=True, check=True).stdout
    assert "'requests on SIMULATED (fast)': 4 tests" in told
    for seed, rate in zip("12", both, strict=True):
        line = next(line for line in told.splitlines() if f"test_fits (000{seed}_seed{seed})" in line)
        operations = re.findall(r"([\d.]+) \(", line)[-1]
        assert float(operations) == pytest.approx(rate, abs=1e-4)
    assert both[0] != both[1]
    other = suite.runpytest("--gpu-class=sim:slow", "--benchmark-compare")
    assert other.ret == pytest.ExitCode.USAGE_ERROR
    refusal = (
        "ERROR: --benchmark-compare: test_suite.py::test_* was saved on SIMULATED (fast) and this run is on *(slow): *"
    )
    other.stderr.fnmatch_lines([refusal])


def test_benchmarks_of_others_stay_theirs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
        def test_both(gpucap, benchmark):
            gpucap.check()
            assert benchmark(sum, [1, 2]) == 3

        def test_plain(benchmark):
            assert benchmark(sum, [1, 2]) == 3
        """
    )
    pytester.runpytest(SIMULATED, "--benchmark-json=out.json").assert_outcomes(passed=2)
    for bench in stored(pytester.path / "out.json").values():
        assert bench["stats"]["min"] < 0.01  # a busy machine may hold up any but the shortest
        assert bench["options"]["timer"] == "perf_counter"
        assert bench["extra_info"] == {}


def test_a_marker_of_the_users_keeps_its_group(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKER_SUITE)
    pytester.runpytest(SIMULATED, "--benchmark-json=out.json").assert_outcomes(passed=1)
    [bench] = stored(pytester.path / "out.json").values()
    assert bench["group"] == "nightly: requests on SIMULATED (fast)"


@pytest.mark.parametrize(
    "options",
    [
        ("-p", "no:benchmark"),
        ("--benchmark-disable", "--benchmark-json=out.json"),
        ("--benchmark-skip", "--benchmark-json=out.json"),
        ("-n2", "--benchmark-json=out.json"),
        ("-m", "not benchmark"),
    ],
    ids=" ".join,
)
def test_nothing_breaks_and_nothing_wrong_is_stored(suite: pytest.Pytester, options: tuple[str, ...]) -> None:
    # Workers of xdist find nothing that this process has loaded.
    run = suite.runpytest_subprocess if "-n2" in options else suite.runpytest
    run(SIMULATED, "-Wdefault", *options).assert_outcomes(passed=1, failed=1)
    out = suite.path / "out.json"
    assert not out.exists() or stored(out) == {}
    assert len(rates(suite.path)) == 2


def test_benchmark_only_runs_ours_and_stores_nothing_without_a_figure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_suite="""
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s", gpus=1)

        @pytest.mark.gpucap(qps=10)
        def test_measured(gpucap):
            gpucap.check()

        @pytest.mark.gpucap(qps=10, max_time="2s")
        def test_no_time(gpucap):
            gpucap.check()

        def test_asks_for_nothing(gpucap):
            pass

        def test_skips(gpucap):
            pytest.skip("not today")

        def test_other():
            pass
        """
    )
    result = pytester.runpytest(SIMULATED, "--benchmark-only", "--benchmark-json=out.json")
    result.assert_outcomes(passed=2, failed=1, skipped=2)
    assert set(stored(pytester.path / "out.json")) == {"test_suite.py::test_measured"}


CODSPEED = """
    # What pytest-codspeed 5 does to pytest-benchmark when it is enabled (`pytest_configure`, `pytest_sessionstart`,
    # `pytest_collection_modifyitems` of its plugin): its session is blocked, its fixture replaced, tests that do not
    # ask for the fixture are deselected.
    import pytest

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(config):
        config.option.benchmark_disable = True
        config.pluginmanager.set_blocked("pytest-benchmark")

    @pytest.fixture
    def benchmark():
        raise AssertionError("codspeed's fixture was asked for")
"""


def test_a_blocked_session_object_means_hands_off(suite: pytest.Pytester) -> None:
    suite.makeconftest(CODSPEED)
    result = suite.runpytest(SIMULATED)
    result.assert_outcomes(passed=1, failed=1)


@pytest.mark.skipif(find_spec("pytest_codspeed") is None, reason="needs pytest-codspeed")
def test_codspeed_itself_runs_what_is_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE, test_other="def test_fast(benchmark):\n    assert benchmark(int) == 0\n")
    options = ("--codspeed", "--codspeed-max-time=0.1", "--benchmark-json=out.json")
    pytester.runpytest_subprocess(SIMULATED, *options).assert_outcomes(passed=1, deselected=2)
    assert not (pytester.path / "out.json").exists()
    [results] = pytester.path.glob(".codspeed/*.json")
    assert [bench["name"] for bench in json.loads(results.read_text())["benchmarks"]] == ["test_fast"]


def test_a_timer_read_otherwise_is_not_stored(pytester: pytest.Pytester) -> None:
    # A later pytest-benchmark may read its timer more often: an extra read stands for that.
    pytester.makeconftest(
        """
        import pytest
        from pytest_benchmark.fixture import BenchmarkFixture

        original = BenchmarkFixture._make_stats

        def reads_once_more(self, iterations):
            self._timer()
            return original(self, iterations)

        BenchmarkFixture._make_stats = reads_once_more

        @pytest.hookimpl(trylast=True)
        def pytest_unconfigure():
            BenchmarkFixture._make_stats = original
        """
    )
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest(SIMULATED, "-Wdefault", "--benchmark-json=out.json", "-k", "test_fits")
    result.assert_outcomes(passed=1, deselected=1, warnings=1)
    result.stdout.fnmatch_lines(["*pytest-benchmark read its timer 7 times instead of 6: *"])
    assert stored(pytester.path / "out.json") == {}


def held(concurrency: int, tokens_per_s: float) -> Sample:
    return msgspec.structs.replace(
        made.SAMPLES[0], kind="closed", concurrency=concurrency, output_tokens_per_s=tokens_per_s
    )


def result(*samples: Sample) -> Result:
    """A check that found 4 req/s."""
    return msgspec.structs.replace(made.check(), sustainable_rate=Interval(4.0, 3.9, 4.1), samples=samples)


def test_rounds_keep_the_rate_exactly_and_scatter_as_the_hardest_windows_did() -> None:
    samples = [held(8, 400.0), *(held(64, tokens_per_s) for tokens_per_s in (900.0, 1000.0, 1100.0))]
    durations = benchmark_bridge.rounds(result(*samples))
    assert len(durations) / sum(durations) == pytest.approx(4.0)
    assert [durations[0] / each for each in durations] == pytest.approx([1.0, 1000 / 900, 1100 / 900])


@pytest.mark.parametrize("samples", [[], [held(1, 0.0)], [held(1, math.nan)]])
def test_without_windows_one_round_stands_for_all(samples: list[Sample]) -> None:
    assert benchmark_bridge.rounds(result(*samples)) == [0.25]
