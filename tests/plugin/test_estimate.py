"""``--gpucap-estimate``: what the collected tests will cost. Nothing is started or leased."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.result import Result
from tests.results.made import check, session

SUITE = """
    import pytest

    pytestmark = [
        pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="20s"),
        pytest.mark.vllm(model="org/model"),
    ]

    @pytest.mark.gpucap(qps=100, gpus=2)
    def test_chat(gpucap): ...

    @pytest.mark.vllm(max_num_seqs=64, tensor_parallel_size=2)
    @pytest.mark.gpucap(qps=100, gpus=4, priority=1)
    def test_wide(gpucap): ...

    @pytest.mark.parametrize("n", [1, 2])
    def test_rate(gpucap, n): ...

    def test_server(vllm_server): ...

    @pytest.mark.skip
    def test_skipped(gpucap): ...

    @pytest.mark.skipif("sys.version_info > (3,)")
    def test_not_here(gpucap): ...

    @pytest.mark.xfail(run=False)
    def test_not_run(gpucap): ...

    @pytest.mark.xfail
    @pytest.mark.gpucap(qps=1000, gpus=1)
    def test_expected(gpucap): ...

    @pytest.mark.gpu_class("a10g")
    def test_elsewhere(gpucap): ...

    def test_plain(): ...
"""
H200 = ("--gpu-class=h200", f"--gpucap-vllm-python={sys.executable}", "--collect-only")
WIDE = "vLLM org/model max_num_seqs=64 tensor_parallel_size=2"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)

    def started(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("pytest_gpucap.session.server_manager.ServerManager.target", started)
    monkeypatch.setattr("pytest_gpucap.gpu.inventory.take_inventory", started)
    return pytester


def estimated(pytester: pytest.Pytester, *options: str) -> dict[str, Any]:
    run = pytester.runpytest(*H200, "--gpucap-estimate-json=cost.json", *options)
    assert run.ret == pytest.ExitCode.OK, run.stderr.str()
    found: dict[str, Any] = json.loads((pytester.path / "cost.json").read_text())
    return found


def times_of(server: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {test["test"].partition("::")[2]: (test["measuring_s"], test["measuring_from"]) for test in server["tests"]}


def saved(path: Path, results: Sequence[Result], *, day: int = 22) -> None:
    content = session(*results)
    result_file.write(path, replace(content, started=content.started.replace(day=day)))


def of_test(name: str, **changes: Any) -> Result:
    return replace(check(Outcome.PASS), **{"test": f"test_suite.py::{name}", **changes})


def test_without_earlier_results_defaults_are_used(suite: pytest.Pytester) -> None:
    found = estimated(suite)
    wide, plain = found["servers"]  # the one of the higher priority first
    assert wide["server"] == WIDE
    assert (wide["gpus"], wide["starts"], wide["startup_s"], wide["startup_from"]) == (2, 1, 96.0, "default")
    assert times_of(wide) == {"test_wide": (68.0, "default")}
    assert wide["gpu_hours"] == pytest.approx(2 * (96 + 68) / 3600)
    assert plain["server"] == "vLLM org/model"
    assert times_of(plain) == {
        "test_chat": (68.0, "default"),
        "test_rate[1]": (137.0, "default"),
        "test_rate[2]": (137.0, "default"),
        "test_server": (0.0, "none"),
        "test_expected": (68.0, "default"),
    }
    assert found["skipped"] == 4
    assert found["server_s"] == 164.0 + 96 + 2 * 68 + 2 * 137
    assert not (suite.path / ".gpucap").exists()


def test_the_terminal_shows_it_below_the_tests(suite: pytest.Pytester) -> None:
    run = suite.runpytest(*H200, "--gpucap-estimate")
    run.stdout.fnmatch_lines(
        [
            "*<Function test_wide>",
            "*<Function test_plain>",
            "GPU capacity: estimate",
            "  68 s[*] test_suite.py::test_wide (priority 1)",
            "  0 s test_suite.py::test_server (server only)",
            "total: 2 servers, 2 starts, 6 tests (4 skipped); 11.2 server minutes; 0.232 GPU*",
            "*11 tests collected*",
        ]
    )
    run.stdout.no_fnmatch_line("*--gpucap-max-total*")


def test_the_last_result_of_a_test_tells_its_time_and_its_start(suite: pytest.Pytester) -> None:
    saved(suite.path / ".gpucap" / "result.json", [of_test("test_chat")])  # 50 s, and 63 s for the start
    older = {"hold": 500.0, "start-up": 1.0}
    saved(
        suite.path / "gpucap-baselines" / "main.json",
        [of_test("test_chat", spent_s=older), of_test("test_rate[1]", spent_s={"hold": 33.0})],
        day=21,
    )
    found = estimated(suite)
    _, plain = found["servers"]
    assert (plain["startup_s"], plain["startup_from"]) == (63.0, "earlier result")
    assert times_of(plain)["test_chat"] == (50.0, "earlier result")
    assert times_of(plain)["test_rate[1]"] == (33.0, "earlier result")
    assert times_of(plain)["test_rate[2]"] == (137.0, "default")
    assert found["sources"] == [".gpucap/result.json", "gpucap-baselines/main.json"]


def test_a_folder_of_nightly_runs_is_read_where_it_is_compared_with(suite: pytest.Pytester) -> None:
    for day in (20, 21):
        spent = {"hold": 10.0 * day, "confirmation": 999.0}
        night = of_test("test_chat", spent_s=spent, sustainable_rate=Interval(52.1, 51.9, 52.3))
        saved(suite.path / "nights" / f"{day}.json", [night], day=day)
    found = estimated(suite, "--gpucap-compare=nights/")
    assert times_of(found["servers"][1])["test_chat"] == (210.0, "earlier result")


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {"gpu_class": "a10g"}},
        {"environment": {"model": "org/other"}},
        {"requirement": {"fleet": 2}},
        {"workload": {"output_tokens": 9}},
        {"simulated": True},
        {"problems": check(Outcome.INVALID).problems},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_result_of_something_else_tells_nothing(suite: pytest.Pytester, changes: dict[str, Any]) -> None:
    result = of_test("test_chat")
    inside = {
        name: replace(getattr(result, name), **new) if isinstance(new, dict) else new for name, new in changes.items()
    }
    saved(suite.path / ".gpucap" / "result.json", [replace(result, **inside)])
    assert times_of(estimated(suite)["servers"][1])["test_chat"] == (68.0, "default")


def test_a_damaged_file_is_named_and_left_out(suite: pytest.Pytester) -> None:
    (suite.path / ".gpucap").mkdir()
    (suite.path / ".gpucap" / "result.json").write_text("{")
    found = estimated(suite)
    [line] = found["left_out"]
    assert line.endswith("result.json: not JSON (Input data was truncated)")
    assert found["sources"] == []


def test_repeats_take_starts_and_measuring(suite: pytest.Pytester) -> None:
    saved(suite.path / ".gpucap" / "result.json", [of_test("test_chat")])
    _, plain = estimated(suite, "--gpucap-repeat=3")["servers"]
    assert plain["starts"] == 1 + 4 * 2  # four tests measure; the first start of each may be the last one's
    assert times_of(plain)["test_chat"] == (150.0, "earlier result")
    assert times_of(plain)["test_expected"] == (204.0, "default")
    assert plain["server_s"] == 9 * 63.0 + 150 + 204 + 2 * 411


def test_a_base_takes_a_start_and_a_comparison(suite: pytest.Pytester) -> None:
    shared, _ = estimated(suite, "--gpucap-base-args=--max-num-seqs 32")["servers"]
    # Both need nine tenths of the memory: the head starts again with less, and once more for the next test.
    assert (shared["starts"], shared["tests"][0]["own_starts"]) == (4, 3)
    assert times_of(shared)["test_wide"] == (68.0 + 137.0, "default")


def test_a_saved_rate_must_be_precise(suite: pytest.Pytester) -> None:
    saved(suite.path / ".gpucap" / "result.json", [of_test("test_chat")])
    wide, plain = estimated(suite, "--gpucap-save=main")["servers"]
    assert times_of(wide)["test_wide"] == (68.0 + 137.0, "default")
    assert times_of(plain)["test_chat"] == (50.0 + 137.0, "earlier result")  # it is known to 2.5%


def test_a_limit_beside_the_rate_takes_a_window(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = [pytest.mark.vllm(model="org/model"), pytest.mark.gpucap(qps=5, gpus=1)]

        @pytest.mark.gpucap(preemptions=0)
        def test_sampled(gpucap): ...

        @pytest.mark.gpucap(kv_tokens=1000)
        def test_read(gpucap): ...
        """
    )
    (server,) = estimated(pytester)["servers"]
    assert times_of(server) == {"test_sampled": (68.0 + 12 + 48, "default"), "test_read": (68.0, "default")}


def test_prices_make_a_cost(suite: pytest.Pytester) -> None:
    (suite.path / "prices.toml").write_text('currency = "USD"\n[per_hour]\nh200 = 4.5\n')
    found = estimated(suite, "--gpucap-prices=prices.toml")
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 4.5)
    assert (found["currency"], found["unpriced"]) == ("USD", [])
    (suite.path / "prices.toml").write_text("[per_hour]\na10g = 1\n")
    assert estimated(suite, "--gpucap-prices=prices.toml")["unpriced"] == ["h200"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--gpucap-prices=none.toml",), "ERROR: --gpucap-prices: *none.toml: No such file or directory"),
        (("--gpucap-estimate-json=.",), "ERROR: --gpucap-estimate-json: *is a folder: name a file in it"),
        (("--gpucap-max-total=0s",), "ERROR: --gpucap-max-total: max total must be above 0, not '0s'"),
        (
            ("--gpucap-json=x.json", "--gpucap-estimate-json=x.json"),
            "ERROR: --gpucap-json and --gpucap-estimate-json name the same file, *",
        ),
    ],
)
def test_a_mistake_is_one_line(suite: pytest.Pytester, options: tuple[str, ...], told: str) -> None:
    run = suite.runpytest(*H200, "--gpucap-estimate", *options)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([told])
    assert len([line for line in run.errlines if line.strip()]) == 1


def test_workers_start_a_server_each(suite: pytest.Pytester) -> None:
    found = estimated(suite, "-n", "3")
    assert [server["starts"] for server in found["servers"]] == [1, 3]
    assert found["workers"] == 3
    assert [server["starts"] for server in estimated(suite, "-n", "3", "--dist=loadfile")["servers"]] == [1, 1]
    each = estimated(suite, "--tx=2*popen", "--dist=each")
    assert [server["starts"] for server in each["servers"]] == [2, 2]
    assert each["server_s"] == 2 * estimated(suite)["server_s"]


def test_a_session_that_runs_shows_it_first(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=1, gpus=1)
        def test_it(gpucap):
            gpucap.sample(rate=20, duration="2s")
        """
    )
    pytester.makeini("[pytest]\ngpucap_estimate = true\n")
    run = pytester.runpytest("--gpu-class=sim:fast")
    run.assert_outcomes(passed=1)
    run.stdout.fnmatch_lines(["GPU capacity: estimate", "  68 s[*] test_*::test_it", "test_it: *", "*1 passed*"])
    again = pytester.runpytest("--gpu-class=sim:fast", "--collect-only")
    again.stdout.fnmatch_lines(["  15 s test_*::test_it", "from the last results in .gpucap/result.json"])
    again.stdout.no_fnmatch_line("*a default*")


def test_of_workers_the_first_shows_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(gpucap): ...\ndef test_two(gpucap): ...")
    pytester.makeconftest("import pytest\ndef pytest_runtest_setup(): pytest.skip('it is told before')")
    run = pytester.runpytest_subprocess("--gpu-class=sim:fast", "-n", "2", "--gpucap-estimate")
    run.assert_outcomes(skipped=2)
    assert run.stderr.str().count("GPU capacity: estimate") == 1
    run.stderr.fnmatch_lines(["2 workers share the tests,*"])


def test_a_server_behind_a_url_is_not_started(suite: pytest.Pytester) -> None:
    found = estimated(suite, "--gpucap-url=http://127.0.0.1:9/v1")
    [server] = found["servers"]
    assert (server["starts"], server["startup_s"], server["gpu_class"]) == (0, 0.0, "h200")
    assert server["server"] == "url localhost:9"


def test_a_fleet_takes_the_gpus_of_all_its_replicas(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vllm(model="m", tensor_parallel_size=2)
        @pytest.mark.gpucap(qps=1, gpus=6, replicas="budget")
        def test_it(gpucap): ...
        """
    )
    [server] = estimated(pytester)["servers"]
    assert (server["gpus"], server["server"]) == (6, "3 x vLLM m tensor_parallel_size=2")
    assert times_of(server) == {"test_it": (68.0 + 137.0, "default")}  # one replica alone is measured as well
    [server] = estimated(pytester, "--gpucap-efficiency=skip")["servers"]
    assert times_of(server) == {"test_it": (68.0, "default")}


def test_a_pytest_that_tells_nothing_of_skips_costs_the_skipped_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.skip\ndef test_it(gpucap): ...")
    monkeypatch.delattr("_pytest.skipping.evaluate_skip_marks")
    [server] = estimated(pytester, "--gpucap-model=m")["servers"]
    assert list(times_of(server)) == ["test_it"]


def test_nothing_is_needed_where_nothing_is_measured(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.skip\ndef test_it(gpucap): ...")
    run = pytester.runpytest("--gpu-class=sim:fast", "--collect-only", "--gpucap-estimate")
    run.stdout.fnmatch_lines(["GPU capacity: estimate", "no server is needed (1 skipped)"])


def test_the_documented_example_is_what_is_shown(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()
    documented = page.partition("GPU capacity: estimate\n")[2].partition("\n```")[0].splitlines()
    monkeypatch.setenv("COLUMNS", "100")
    pytester.mkdir("tests").joinpath("test_chat.py").write_text(
        textwrap.dedent(
            """
            import pytest

            pytestmark = [pytest.mark.gpucap(input_tokens=256, output_tokens=512), pytest.mark.vllm(model="org/model")]

            @pytest.mark.gpucap(qps=100, gpus=2)
            def test_chat(gpucap): ...

            @pytest.mark.gpucap(qps=10, gpus=2)
            def test_code(gpucap): ...

            def test_rate(gpucap): ...

            def test_server(vllm_server): ...

            @pytest.mark.skip
            def test_skipped(gpucap): ...

            @pytest.mark.vllm(max_num_seqs=64, tensor_parallel_size=2)
            @pytest.mark.gpucap(qps=100, gpus=4, priority=1)
            def test_wide(gpucap): ...
            """
        )
    )
    saved(pytester.path / ".gpucap" / "result.json", [of_test("test_chat", test="tests/test_chat.py::test_chat")])
    (pytester.path / "prices.toml").write_text('currency = "USD"\n[per_hour]\nh200 = 4.5\n')
    run = pytester.runpytest(*H200, "-q", "--gpucap-estimate", "--gpucap-prices=prices.toml")
    start = run.outlines.index("GPU capacity: estimate")
    assert run.outlines[start + 1 : start + 1 + len(documented)] == documented
