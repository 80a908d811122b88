"""Whole runs of pytest that measure a fleet: real processes, real HTTP, a profile whose pace is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_gpucap.fleet.router import missing_router
from pytest_gpucap.report.rows import result_rows
from pytest_gpucap.results import result_file
from pytest_gpucap.routing import Routing
from tests.fleet.replicas import interpreter
from tests.plugin.inner import OWN_LEASE

SUITE = """
import pytest

pytestmark = pytest.mark.vllm("synthetic:tiny")

@pytest.mark.gpucap(qps={qps}, gpus=2, headroom=1, replicas={replicas}, input_tokens=64, output_tokens=32,
                    e2e_p95="{limit}", max_time="1000s"{more})
def test_fleet(gpucap):
    gpucap.{call}()
"""
SLOW = """
true_rate_rps = 1.0
[engine]
base_s = 0.02
per_seq_s = 0.002
per_prompt_token_s = 0.0000035
noise = 0.02
max_num_seqs = 8
max_num_batched_tokens = 2048
kv_tokens = 200000
[workload]
input_tokens = 64
output_tokens = 32
[slo]
e2e_p95 = "1s"
"""
"""About seven requests a second: little load for a machine whose cores are taken."""


def is_replica(process: psutil.Process) -> bool:
    """Whether this is a server, and not its watchdog."""
    words = process.cmdline()
    return any(word.endswith("fast_vllm.py") for word in words) and not any("watchdog" in word for word in words)


@pytest.fixture
def fleet(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    python = interpreter(pytester.path)
    (pytester.path / "slow.toml").write_text('source = "made for a test"\n' + SLOW.lstrip())
    monkeypatch.setenv("FAST_VLLM_PROFILE", str(pytester.path / "slow.toml"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makeini(f"[pytest]\ngpucap_vllm_python = {python}\ngpucap_host_check = off\ngpucap_gpu_class = cpu\n")
    return pytester


def suite(
    pytester: pytest.Pytester,
    *,
    qps: float,
    replicas: object = 2,
    call: str = "check",
    limit: str = "4s",
    more: str = "",
) -> None:
    text = SUITE.format(qps=qps, replicas=repr(replicas), call=call, limit=limit, more=more)
    pytester.makepyfile(test_it=text)


def the_result(pytester: pytest.Pytester) -> Any:
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    return found


QUICK = f"""
{OWN_LEASE}
from pytest_gpucap.load import self_check
from pytest_gpucap.measure import constants

constants.WARM_UP_S = constants.SEARCH_HOLD_S = constants.TOP_UP_S = constants.LOW_HOLD_S = constants.OPEN_S = 3.0
constants.HOLD_S = 4.0
constants.NARROW_LN, constants.LEAST_MEASURE_CYCLES = 10.0, 2  # how precise it is does not matter here
constants.SEARCH_MOVES = 3
self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.STOPPED_S = 1e6
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_a_fleet_is_measured_as_one_and_against_one(fleet: pytest.Pytester) -> None:
    router = "client" if missing_router(Routing.parse("nginx")) else "nginx"
    suite(fleet, qps=4, call="measure", limit="1s")
    fleet.makeconftest(QUICK)
    ran = fleet.runpytest_subprocess(f"--gpucap-router={router}", "-pno:cacheprovider")
    ran.assert_outcomes(passed=1)
    found = the_result(fleet)
    assert found.requirement.fleet == 2
    assert found.fleet is not None
    assert found.fleet.router.startswith(router)
    each, together = found.sustainable_rate, found.fleet.together
    assert together is not None
    assert together.value == pytest.approx(2 * each.value, rel=1e-6)
    # On a busy machine one of the two rates may be only a bound, or wrong; the simulated fleet below has both.
    assert (found.fleet.efficiency is None) == bool(found.fleet.note)
    assert [share.number for share in found.fleet.shares] == [1, 2]
    assert all(share.output_tokens_per_s > 0 for share in found.fleet.shares)
    rows = dict(result_rows(found))
    assert rows["fleet"].startswith(f"2 replicas, {found.fleet.router}, ")
    assert ("of 2 times one replica alone" if found.fleet.efficiency else found.fleet.note) in rows["efficiency"]
    if "a bound" not in found.fleet.note:
        assert found.spent_s["one replica alone"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("more", "outcome"), [("", "INVALID"), (', on_replica_loss="count"', "PASS")])
def test_a_replica_that_is_lost_in_the_middle(fleet: pytest.Pytester, more: str, outcome: str) -> None:
    suite(fleet, qps=3, more=more)
    fleet.makeconftest(QUICK)
    words = ["-m", "pytest", "-pno:cacheprovider", "-pno:benchmark", "--gpucap-efficiency=skip"]
    session = subprocess.Popen(
        [sys.executable, *words],
        cwd=fleet.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        assert session.stdout is not None
        said = []
        for line in session.stdout:
            said.append(line)
            if "warm-up" in line:
                break
        children = psutil.Process(session.pid).children(recursive=True)
        servers = [each.pid for each in children if is_replica(each)]
        assert len(servers) == 2, [each.cmdline() for each in children]
        os.kill(servers[1], signal.SIGKILL)
        said.append(session.communicate()[0])
    finally:
        if session.poll() is None:
            os.killpg(session.pid, signal.SIGKILL)
            session.wait()
    found = the_result(fleet)
    assert found.outcome == outcome, "".join(said)
    if outcome == "INVALID":
        assert "of 2: the vLLM server ended by SIGKILL" in found.reason
    else:
        (lost,) = found.fleet.lost
        assert "of 2: the vLLM server ended by SIGKILL" in lost
        assert dict(result_rows(found))["lost"] == lost
        assert "1 of 2 replicas together sustain" in found.reason
    assert not [each for each in servers if psutil.pid_exists(each) and each != servers[1]]


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("qps=1, gpus=2, replicas=3", "replicas=3 take 3 GPUs, and the budget is gpus=2"),
        ('qps=1, replicas="budget"', 'replicas="budget" needs a budget'),
        ("qps=1, replicas=0", "replicas must be a whole number of at least 1"),
        ('qps=1, replicas="all"', "replicas must be"),
        ("qps=1, replicas=10**9", "a number from 1 to 4096"),
        ('qps=1, on_replica_loss="count"', "on_replica_loss is about a fleet"),
        ('qps=1, gpus=2, replicas=2, on_replica_loss="ignore"', "must be one of invalid, count"),
    ],
)
def test_a_wrong_fleet_is_one_line_before_anything_starts(fleet: pytest.Pytester, mark: str, words: str) -> None:
    fleet.makepyfile(
        f"import pytest\n@pytest.mark.vllm('synthetic:tiny')\n@pytest.mark.gpucap({mark})\n"
        "def test_it(gpucap): gpucap.check()\n"
    )
    ran = fleet.runpytest("-pno:cacheprovider")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"*{words}*".replace("[", "[[]")])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--gpucap-router=haproxy", "the router must be one of client, vllm, nginx"),
        ("--gpucap-router=client:fastest", "client has no policy 'fastest': it has round_robin, least_outstanding"),
        ("--gpucap-efficiency=0%", "must be above 0%"),
        ("--gpucap-efficiency=much", "must be a number"),
        ("--gpucap-efficiency=./none.json", "none.json"),
    ],
)
def test_a_wrong_option_is_one_line(fleet: pytest.Pytester, option: str, words: str) -> None:
    suite(fleet, qps=1, replicas=1)
    ran = fleet.runpytest("-pno:cacheprovider", option)
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"*{words}*".replace("[", "[[]")])


SIMULATED = """
import pytest

pytestmark = pytest.mark.gpucap(gpus=2, replicas="budget", input_tokens=256, output_tokens=512, e2e_p95="4s")

def test_measured(gpucap):
    gpucap.measure()

@pytest.mark.gpucap(qps=10)
def test_far_above(gpucap):
    gpucap.check()

@pytest.mark.gpucap(qps=120)
def test_far_below(gpucap):
    gpucap.check()
"""
ONE = """
import pytest

@pytest.mark.gpucap(qps=20, gpus=2, headroom=1, replicas=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
def test_it(gpucap):
    gpucap.check()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("few_cycles")
def test_a_simulated_fleet_needs_no_server(pytester: pytest.Pytester) -> None:
    """The profile sustains 30.3 requests a second alone, and simulated replicas share nothing."""
    pytester.makepyfile(test_it=SIMULATED)
    ran = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-router=client:least_outstanding", "-pno:cacheprovider")
    ran.assert_outcomes(passed=2, failed=1)
    measured, far, below = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert measured.fleet is not None
    assert measured.fleet.efficiency is not None, measured.fleet.note
    assert 0.93 < measured.fleet.efficiency.value < 1.07
    assert measured.sustainable_rate is not None
    assert 28 < measured.sustainable_rate.value < 33
    assert far.outcome == "PASS"
    assert far.fleet is not None
    assert far.fleet.efficiency is None
    assert "is a bound" in far.fleet.note
    # The budget is judged by the fleet.
    assert far.reason.startswith("2 replicas together sustain")
    assert below.outcome == "FAIL"
    for found, qps in ((far, 10), (below, 120)):
        assert found.requirement.fleet == 2
        assert found.design_rate_rps == pytest.approx(1.3 * qps / 2)


def test_an_efficiency_that_is_known_counts_for_one_replica(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=ONE)
    pytester.runpytest("--gpu-class=sim:fast", "--gpucap-efficiency=80%").assert_outcomes(passed=1)
    found = the_result(pytester)
    assert found.requirement.efficiency == pytest.approx(0.8)
    assert found.design_rate_rps == pytest.approx(20 / 2 / 0.8)
    assert dict(result_rows(found))["efficiency"] == "2 replicas are taken to keep 80.0% of one alone"


def test_without_an_efficiency_the_report_says_what_is_assumed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=ONE)
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=1)
    assert dict(result_rows(the_result(pytester)))["efficiency"].startswith("2 replicas are taken to add up; ")


def test_a_simulated_fleet_has_no_router(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=SIMULATED)
    ran = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-router=nginx", "-pno:cacheprovider")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["*--gpucap-router=nginx:round_robin: a simulated fleet has no router*"])
