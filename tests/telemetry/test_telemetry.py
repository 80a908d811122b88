from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pytest_gpucap.engines.vllm import METRICS
from pytest_gpucap.gpu.inventory import detect_class, take_inventory
from pytest_gpucap.gpu.occupancy import GpuProcess, Neighbours
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.telemetry.probes import API_SERVER, ENGINE, HELPER, WORKER, DeviceProbe, read_metrics, role_of
from pytest_gpucap.telemetry.sampler import ReadingPace, Telemetry
from tests.gpu import fake_nvml
from tests.waiting import until

PAGE = (Path(__file__).parents[1] / "gpu" / "recordings" / "vllm_0_32_metrics.txt").read_text()


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ThreadTime(threading.local):
    """Virtual time of a sampling thread: it passes only while that thread waits for its next reading."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class VirtualStop(threading.Event):
    """Ends the sampling threads; until then their first waits pass in virtual time, and the next one is a real one."""

    def __init__(self, clock: ThreadTime, waits: int) -> None:
        super().__init__()
        self._clock, self._virtual, self._waited = clock, waits, threading.local()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._clock.now += timeout
        self._waited.times = getattr(self._waited, "times", 0) + 1
        return super().wait() if self._waited.times > self._virtual else self.is_set()


class Machine:
    """Telemetry of a fake machine, sampled by hand in fake time."""

    def __init__(self, nvml: fake_nvml.Answers, pids: set[int]) -> None:
        self.nvml, self.clock, self.pids = nvml, Hand(), pids
        self.figures: dict[str, float] = {}
        self.telemetry = Telemetry(take_inventory({}).devices, lambda: self.pids, self._page, self.clock, names=METRICS)
        self.telemetry.attach()

    def run(self, seconds: float, **fields: Any) -> tuple[float, float]:
        """Sample for so long, with these answers from then on; the window."""
        if fields:
            self.nvml.set(**fields)
        start = self.clock.now
        for tick in range(round(seconds * 10)):
            self.telemetry.sample_devices()
            if tick % 5 == 0:
                self.telemetry.sample_server()
            self.clock.now = start + (tick + 1) / 10
        return start, self.clock.now - 0.05

    def _page(self) -> str:
        return "".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in self.figures.items())


@contextmanager
def machine(name: str = "h200", pids: set[int] | None = None) -> Iterator[Machine]:
    with fake_nvml.answers(name) as nvml:
        made = Machine(nvml, {os.getpid()} if pids is None else pids)
        try:
            yield made
        finally:
            made.telemetry.stop()


BUSY: dict[str, Any] = {
    "utilization": {"gpu": 95, "memory": 60},
    "clocks": {"sm": 1980, "memory": 3201},
    "clock_reasons": 0,
}


def test_a_device_is_summed_up() -> None:
    with machine() as m:
        start, _ = m.run(1.0, **BUSY, power=500_000, temperature=55, energy=1_000_000, pcie={"tx": 1000, "rx": 2000})
        m.run(1.0, energy=1_550_000)
        m.run(1.0, utilization={"gpu": 85, "memory": 40}, power=600_000, temperature=61, energy=2_100_000)
        _, end = m.run(1.0, energy=2_650_000)
        seen = m.telemetry.summary(start, end)
    (device,) = seen.devices
    assert device.readings == 40
    assert device.gpu_use == pytest.approx(0.90)
    assert device.memory_use == pytest.approx(0.50)
    assert device.power_w == pytest.approx(550)
    assert device.power_max_w == 600
    assert device.temperature_max_c == 61
    assert (device.sm_clock_mhz, device.sm_clock_min_mhz, device.memory_clock_mhz) == (1980, 1980, 3201)
    assert device.pcie_sent_bytes_per_s == 1000 * 1024
    assert device.pcie_received_bytes_per_s == 2000 * 1024
    assert device.slowdowns == {}
    # The counter is read once a second.
    assert device.energy_j == pytest.approx(550 * 3.95)
    assert seen.energy_j == device.energy_j


def test_readings_keep_to_their_share_of_a_core() -> None:
    pace = ReadingPace(0.1, 1.0, 0.01)
    assert pace.period_s(0.1) == 0.1  # the first counts for nothing
    assert pace.period_s(0.0002) == 0.1  # cheap: as often as wished
    dear = [pace.period_s(0.005) for _ in range(100)]
    assert dear == sorted(dear)
    assert dear[-1] == pytest.approx(0.5, rel=1e-3)  # 5 ms at 1% of a core
    assert pace.period_s(1.0) == 1.0  # never less often than this
    after = [pace.period_s(0.0002) for _ in range(100)]
    assert after[-1] == 0.1
    slow = [period for period in after if period > 0.1]
    assert sum(slow) < 10  # seconds: what one reading cost is soon forgotten


def test_a_driver_that_makes_readings_dear_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine() as m:
        read = DeviceProbe.read

        def dear(probe: DeviceProbe, now_s: float) -> list[float]:
            until_s = time.thread_time() + 0.004  # as an H100 under driver 580
            while time.thread_time() < until_s:
                pass
            return read(probe, now_s)

        monkeypatch.setattr(DeviceProbe, "read", dear)
        clock = ThreadTime()
        telemetry = Telemetry(take_inventory({}).devices, lambda: m.pids, clock=clock)
        telemetry._stop = VirtualStop(clock, waits=5)
        (watched,) = telemetry.devices
        with telemetry:
            until(lambda: watched.series.all()["time_s"].size > 5)
    periods = np.diff(watched.series.all()["time_s"])
    assert periods[1:].min() > 0.4  # 4 ms each and under 1% of a core


def test_slow_figures_are_read_once_a_second_and_quick_ones_every_time() -> None:
    with machine() as m:
        m.run(3.0, **BUSY)
        columns = m.telemetry.devices[0].series.all()
    for name in ("gpu_use", "power_w", "sm_clock_mhz", "reasons"):
        assert np.count_nonzero(~np.isnan(columns[name])) == 30
    for name in ("memory_bytes", "memory_clock_mhz", "temperature_c", "energy_j"):
        assert np.count_nonzero(~np.isnan(columns[name])) == 3


@pytest.mark.parametrize(
    ("name", "gpu_class", "power_w", "clock_mhz"),
    [("h100-busy", "h100-sxm", 698.6, 1455), ("h200-idle", "h200", 79.7, 345)],
)
def test_what_real_drivers_answered(name: str, gpu_class: str, power_w: float, clock_mhz: float) -> None:
    with machine(f"real/{name}", {398, os.getpid()}) as m:
        assert detect_class(take_inventory({})).name == gpu_class
        window = m.run(3.0)
        seen, problems = m.telemetry.summary(*window), m.telemetry.problems(*window)
    (device,) = seen.devices
    assert not m.telemetry.faults
    assert device.power_w == pytest.approx(power_w, abs=0.1)
    assert device.sm_clock_mhz == clock_mhz
    assert None not in msgspec.structs.astuple(device)
    # The H100 ran at its own power limit, which is what an H100 under such a load does: told, and no fault.
    assert device.slowdowns == ({"power cap": 1.0} if name == "h100-busy" else {"idle": 1.0})
    assert problems == []


def test_energy_without_a_counter_comes_from_power() -> None:
    with machine("t4") as m:
        window = m.run(3.0, power=60_000)
        seen = m.telemetry.summary(*window)
    assert seen.energy_j == pytest.approx(60 * (window[1] - window[0]))


def test_a_slices_share_of_the_energy_is_not_known() -> None:
    with machine("a100-mig") as m:
        seen = m.telemetry.summary(*m.run(1.0))
    assert [device.energy_j for device in seen.devices] == [None, None, None]
    assert seen.energy_j is None
    assert [device.gpu_use for device in seen.devices] == [None, None, None], "NVML does not tell it for slices"
    assert [device.power_w for device in seen.devices] == [75, 75, 75], "the whole board's"


def test_energy_for_a_thousand_tokens() -> None:
    with machine() as m:
        m.figures = {"num_requests_running": 4.0}
        for second in range(4):
            m.figures["generation_tokens_total"] = 1000.0 * second
            began, _ = m.run(1.0, energy=2_000_000 * second)
        seen = m.telemetry.summary(began - 2.0, began)
    assert seen.energy_j is not None
    assert seen.server.output_tokens is not None
    assert seen.energy_per_1000_tokens_j == pytest.approx(seen.energy_j / seen.server.output_tokens * 1000)
    assert seen.energy_per_1000_tokens_j == pytest.approx(2000, rel=0.05)


def test_the_server_is_summed_up() -> None:
    with machine() as m:
        m.figures = {"num_requests_running": 8, "num_requests_waiting": 0, "kv_cache_usage_perc": 0.5}
        m.figures |= {"num_preemptions_total": 3, "prefix_cache_queries_total": 0, "prefix_cache_hits_total": 0}
        start, _ = m.run(2.0)
        m.figures |= {"num_requests_waiting": 4, "kv_cache_usage_perc": 0.99, "num_preemptions_total": 5}
        m.figures |= {"prefix_cache_queries_total": 100, "prefix_cache_hits_total": 25}
        _, end = m.run(2.0)
        server = m.telemetry.summary(start, end).server
    assert (server.running, server.waiting, server.waiting_max) == (8, 2, 4)
    assert server.waiting_share == 0.5
    assert server.full_while_waiting == 0.5
    assert server.kv_use == pytest.approx(0.745)
    assert server.kv_use_max == 0.99
    assert server.preemptions == 2
    assert server.prefix_hit_rate == 0.25


def test_requests_that_wait_beside_a_roomy_cache_do_not_wait_for_it() -> None:
    with machine() as m:
        m.figures = {"num_requests_running": 8, "num_requests_waiting": 5, "kv_cache_usage_perc": 0.9}
        server = m.telemetry.summary(*m.run(2.0)).server
    assert server.waiting_share == 1
    assert server.full_while_waiting == 0


def test_a_counter_that_falls_was_started_anew() -> None:
    with machine() as m:
        m.figures = {"num_preemptions_total": 100.0}
        start, _ = m.run(1.0)
        m.figures = {"num_preemptions_total": 2.0}
        m.run(1.0)
        m.figures = {"num_preemptions_total": 5.0}
        _, end = m.run(1.0)
        assert m.telemetry.summary(start, end).server.preemptions == 3


def test_a_window_sees_only_itself() -> None:
    with machine() as m:
        m.run(2.0, power=100_000)
        window = m.run(2.0, power=200_000)
        m.run(2.0, power=300_000)
        assert m.telemetry.summary(*window).devices[0].power_w == 200


def test_nothing_seen_is_none_and_not_zero() -> None:
    with machine() as m:
        seen = m.telemetry.summary(0.0, 10.0)
    assert seen.devices[0].gpu_use is None
    assert seen.devices[0].energy_j is None
    assert seen.server.running is None
    assert seen.energy_per_1000_tokens_j is None
    json.dumps(msgspec.to_builtins(seen), allow_nan=False)


THERMAL = [(0x20, "software thermal slowdown"), (0x40, "hardware thermal slowdown"), (0x80, "power brake")]


@pytest.mark.parametrize(("bit", "name"), [*THERMAL, (0x8, "hardware slowdown")])
def test_a_slowdown_invalidates(bit: int, name: str) -> None:
    with machine() as m:
        assert m.telemetry.problems(*m.run(3.0, **BUSY)) == []
        window = m.run(3.0, clock_reasons=bit, temperature=91)
        (problem,) = m.telemetry.problems(*window)
        assert m.telemetry.summary(*window).slowdowns == {name: 1.0}
    assert f"GPU 0 (NVIDIA H200) had {name} in 100% of the readings" in problem.text
    assert ("91 C" in problem.text) == ("thermal" in name)


def test_drivers_of_before_the_new_name_tell_their_reasons_too() -> None:
    with machine() as m:
        (problem,) = m.telemetry.problems(*m.run(2.0, **{**BUSY, "clock_reasons": 0x40, "old_driver": 1}))
    assert "hardware thermal slowdown" in problem.text


def test_the_general_bit_says_nothing_beside_a_particular_one() -> None:
    with machine() as m:
        problems = m.telemetry.problems(*m.run(2.0, **{**BUSY, "clock_reasons": 0x8 | 0x40}))
    assert len(problems) == 1
    assert "hardware thermal" in problems[0].text


def test_a_single_reading_in_hundreds_does_not() -> None:
    with machine() as m:
        start, _ = m.run(30.0, **BUSY)
        m.run(0.1, clock_reasons=0x20)
        _, end = m.run(1.0, clock_reasons=0)
        assert m.telemetry.problems(start, end) == []


def test_the_boards_own_power_limit_is_no_fault() -> None:
    with machine("t4") as m:
        window = m.run(3.0, **{**BUSY, "clock_reasons": 0x4})
        assert m.telemetry.problems(*window) == []
        assert m.telemetry.summary(*window).slowdowns == {"power cap": 1.0}


def test_a_lowered_power_limit_is_one() -> None:
    with fake_nvml.answers("h200") as nvml:
        nvml.set(power_limit=400_000)
        m = Machine(nvml, set())
        assert m.telemetry.problems(*m.run(2.0, **BUSY)) == [], "lowered, but not reached"
        (problem,) = m.telemetry.problems(*m.run(2.0, clock_reasons=0x4))
        m.telemetry.stop()
    assert "was held by a power limit of 400 W, lowered from 700 W, in 100% of the readings" in problem.text


def test_clocks_lower_than_before_invalidate() -> None:
    with machine() as m:
        m.run(3.0, **BUSY)
        window = m.run(3.0, clocks={"sm": 1410, "memory": 3201})
        (problem,) = m.telemetry.problems(*window)
    assert problem.text.endswith("ran at an SM clock of 1410 MHz, 29% lower than the 1980 MHz before")


@pytest.mark.parametrize(
    "change",
    [
        {"clocks": {"sm": 1900, "memory": 3201}},  # boost clocks wander
        {"clocks": {"sm": 1410, "memory": 3201}, "clock_reasons": 0x4},  # its own power limit
        {"clocks": {"sm": 345, "memory": 3201}, "utilization": {"gpu": 5, "memory": 0}},  # idle
        {"clocks": {"sm": 345, "memory": 3201}, "clock_reasons": 0x1},
    ],
)
def test_clocks_that_have_a_reason_do_not(change: dict[str, Any]) -> None:
    with machine() as m:
        m.run(3.0, **BUSY)
        assert m.telemetry.problems(*m.run(3.0, **change)) == []


def test_memory_errors_invalidate() -> None:
    with machine() as m:
        start, _ = m.run(2.0, **BUSY)
        _, end = m.run(2.0, ecc={"mode": 1, "uncorrected": 2})
        assert m.telemetry.problems(start, end) == [
            Problem(
                ProblemSource.GPU,
                ProblemKind.MEMORY_ERRORS,
                "GPU 0 (NVIDIA H200) had 2 uncorrected memory errors",
            )
        ]


def test_a_lost_gpu_invalidates() -> None:
    with machine() as m:
        m.run(1.0, **BUSY)
        problems = m.telemetry.problems(*m.run(1.0, power={"error": 15}))
    assert problems == [Problem(ProblemSource.GPU, ProblemKind.LOST, "GPU 0 (NVIDIA H200) was lost: GPU is lost")]


def test_a_field_that_is_not_supported_is_asked_for_once_and_the_others_go_on() -> None:
    with machine("a10g") as m:
        window = m.run(1.0, power={"error": 3})
        m.nvml.set(power=100_000)  # supported all of a sudden: nobody asks any more
        window = window[0], m.run(1.0)[1]
        device = m.telemetry.summary(*window).devices[0]
    assert device.power_w is None
    assert device.temperature_max_c == 31
    assert device.pcie_sent_bytes_per_s is None


def test_a_passing_failure_leaves_a_gap() -> None:
    with machine() as m:
        start, _ = m.run(1.0, power=100_000)
        m.run(1.0, power={"error": 999})
        _, end = m.run(1.0, power=100_000)
        series = m.telemetry.series()["devices"][m.telemetry.devices[0].device.uuid]
        assert m.telemetry.summary(start, end).devices[0].power_w == 100
    assert series["power_w"] == [100.0] * 10 + [None] * 10 + [100.0] * 10


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_neighbour_invalidates_and_is_named() -> None:
    with process() as server, process() as other, machine(pids={server.pid}) as m:
        ours = {"pid": server.pid, "memory": 2**30}
        assert m.telemetry.problems(*m.run(1.0, processes=[ours])) == []
        window = m.run(1.0, processes=[ours, {"pid": other.pid, "memory": 3 * 2**30}])
        after = m.run(1.0, processes=[ours])
        (problem,) = m.telemetry.problems(*window)
        assert m.telemetry.problems(*after) == [], "it is gone"
    assert problem.text.startswith(f"a neighbour was on GPU 0 (NVIDIA H200): pid {other.pid} (")
    assert problem.text.endswith(", 3.0 GiB)")


def test_a_process_that_the_server_starts_later_is_its_own() -> None:
    with process() as server, process() as worker, machine(pids={server.pid}) as m:
        m.run(1.0, processes=[{"pid": server.pid}])
        m.pids = {server.pid, worker.pid}
        assert m.telemetry.problems(*m.run(1.0, processes=[{"pid": server.pid}, {"pid": worker.pid}])) == []


def listed(*pids: int) -> list[GpuProcess]:
    return [GpuProcess(pid, None) for pid in pids]


def test_in_a_container_the_first_unknown_processes_are_the_servers() -> None:
    seen = Neighbours(contained=True)
    assert seen.strangers([], frozenset({10, 11})) == []
    assert seen.strangers(listed(70_001, 70_002), frozenset({10, 11})) == []
    assert [p.pid for p in seen.strangers(listed(70_001, 70_002, 70_003), frozenset({10, 11}))] == [70_003]


def test_in_a_container_more_processes_than_the_server_has_are_not_all_its_own() -> None:
    assert len(Neighbours(contained=True).strangers(listed(70_001, 70_002), frozenset({10}))) == 2


def test_pids_that_mean_something_are_taken_at_their_word() -> None:
    assert [p.pid for p in Neighbours(contained=True).strangers(listed(10, 70_001), frozenset({10, 11}))] == [70_001]
    assert [p.pid for p in Neighbours(contained=False).strangers(listed(70_001), frozenset({10, 11}))] == [70_001]


BURN = "print('x', flush=True)\nwhile True: pass"
REST = "print('x', flush=True)\ninput()"


@contextmanager
def busy_or_idle(script: str) -> Iterator[psutil.Process]:
    """A process that has started, and burns its processor or uses none from now on."""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"x\n"
            yield psutil.Process(started.pid)
        finally:
            started.kill()


def cpu_s(process: psutil.Process) -> float:
    """Processor time that a process has used so far, as the kernel tells it in ticks of 10 ms."""
    times = process.cpu_times()
    return times.user + times.system


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_the_cpu_of_the_servers_processes_is_measured_in_real_time() -> None:
    """How much CPU a process gets is up to the machine; that the kernel's own count says the same is not."""
    with busy_or_idle(BURN) as burning, busy_or_idle(REST) as idle:
        start, before = time.monotonic(), cpu_s(burning)
        with Telemetry((), lambda: {burning.pid, idle.pid}) as telemetry:

            def readings() -> list[int]:
                return [watched.series.all()["time_s"].size for watched in telemetry.processes.copy().values()]

            until(lambda: len(readings()) == 2 and min(readings()) >= 1)
            first = cpu_s(burning)
            until(lambda: cpu_s(burning) > first + 0.5)
            last = cpu_s(burning)
            seen_so_far = readings()
            # The next one may have been under way.
            until(lambda: all(now >= then + 2 for now, then in zip(readings(), seen_so_far, strict=True)))
        end, after = time.monotonic(), cpu_s(burning)
        seen = {p.pid: p for p in telemetry.summary(start, end).processes}
        times_s = telemetry.processes[burning.pid].series.all()["time_s"]
    busy, quiet = seen[burning.pid], seen[idle.pid]
    assert busy.main_thread is not None
    for cores in (busy.cores, busy.main_thread):
        assert last - first - 0.02 <= cores * (times_s[-1] - times_s[0]) <= after - before + 0.02
    assert quiet.cores < 0.1 * busy.cores


def test_a_process_that_ends_is_forgotten_and_asked_for_anew() -> None:
    clock = Hand()
    asked = []
    with process() as first, process() as second:
        pids = {first.pid}

        def server_pids() -> set[int]:
            asked.append(clock.now)
            return pids

        telemetry = Telemetry((), server_pids, clock=clock)
        telemetry.sample_server()
        clock.now += 0.5
        telemetry.sample_server()
        assert len(asked) == 1, "finding descendants is dear"
        first.kill()
        first.wait()
        pids.add(second.pid)
        clock.now += 0.5
        telemetry.sample_server()
        telemetry.sample_server()
        assert len(asked) == 2
        assert set(telemetry.processes) == {first.pid, second.pid}


@pytest.mark.parametrize(
    ("title", "role"),
    [
        (["VLLM::EngineCore"], ENGINE),
        (["VLLM::EngineCore_DP0"], ENGINE),
        (["VLLM::Worker_TP1"], WORKER),
        (["VLLM::APIServer_0"], API_SERVER),
        (["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"], API_SERVER),
        (["/usr/bin/python3", "/usr/local/bin/vllm", "serve", "m"], API_SERVER),
        (["python", "-c", "from multiprocessing.resource_tracker import main;main(31)"], HELPER),
    ],
)
def test_processes_are_told_apart_by_their_titles(title: list[str], role: str) -> None:
    class Process:
        def cmdline(self) -> list[str]:
            return title

    assert role_of(Process()) == role  # type: ignore[arg-type]


def test_both_threads_sample_in_real_time_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gpucap.telemetry.sampler.STOP_S", None)  # however long a thread takes to end
    with fake_nvml.answers("h200"):
        telemetry = Telemetry(take_inventory({}).devices, lambda: [os.getpid()], lambda: PAGE, names=METRICS)
        start = time.monotonic()
        with telemetry:
            until(lambda: len(telemetry.server.all()["time_s"]) >= 3)
            until(lambda: len(telemetry.devices[0].series.all()["time_s"]) >= 12)
        end = time.monotonic()
        telemetry.stop()
        times = telemetry.devices[0].series.all()["time_s"]
        assert telemetry.faults == {}
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpucap-")]
    assert times.size <= (end - start) * 10 + 3, "ten times a second and no more, even after being held up"
    assert telemetry.summary(start, end).server.prompt_tokens == 0
    lists = telemetry.series(points=5)
    assert 1 <= len(lists["server"]["time_s"]) <= 5
    assert len(lists["devices"][telemetry.devices[0].device.uuid]["gpu_use"]) <= 5
    json.dumps(lists, allow_nan=False)


def test_a_server_that_does_not_answer_costs_its_figures_only() -> None:
    def fail() -> str:
        raise ConnectionRefusedError("nobody there")

    with fake_nvml.answers("h200") as nvml:
        nvml.set(**BUSY)
        with Telemetry(take_inventory({}).devices, lambda: [os.getpid()], fail, names=METRICS) as telemetry:
            until(lambda: len(telemetry.devices[0].series.all()["time_s"]) >= 3)
            until(lambda: bool(telemetry.faults))
        assert telemetry.faults == {"/metrics": "ConnectionRefusedError: nobody there"}
        assert telemetry.summary(0, math.inf).server.running is None


def test_a_driver_that_is_gone_costs_the_devices_only() -> None:
    with fake_nvml.answers("h200"):
        devices = take_inventory({}).devices
    with Telemetry(devices, lambda: [os.getpid()], lambda: PAGE, names=METRICS) as telemetry:
        until(lambda: len(telemetry.server.all()["time_s"]) >= 1)
    assert telemetry.faults == {"NVML": "NVML: Driver Not Loaded"}


def test_a_real_page_reads_as_the_reference_parser_reads_it() -> None:
    reference: dict[str, float] = {}
    for family in text_string_to_metric_families(PAGE):
        for sample in family.samples:
            reference[sample.name] = reference.get(sample.name, 0.0) + sample.value
    figures = read_metrics(PAGE, METRICS)
    assert figures.running == reference["vllm:num_requests_running"]
    assert figures.waiting == reference["vllm:num_requests_waiting"]
    assert figures.kv_use == reference["vllm:kv_cache_usage_perc"]
    assert figures.preemptions == reference["vllm:num_preemptions_total"]
    assert figures.prompt_tokens == reference["vllm:prompt_tokens_total"] > 0
    assert figures.output_tokens == reference["vllm:generation_tokens_total"] > 0
    assert figures.prefix_queries == reference["vllm:prefix_cache_queries_total"] > 0
    assert figures.prefix_hits == reference["vllm:prefix_cache_hits_total"]


@given(
    models=st.lists(st.text(max_size=12), min_size=1, max_size=3, unique=True),
    value=st.floats(0, 1e15),
)
@settings(deadline=None)
def test_any_model_name_is_read_as_the_reference_writes_it(models: list[str], value: float) -> None:
    registry = CollectorRegistry()
    running = Gauge("vllm:num_requests_running", "", ["engine", "model_name"], registry=registry)
    by_reason = Gauge("vllm:num_requests_waiting_by_reason", "", ["model_name"], registry=registry)
    tokens = Counter("vllm:generation_tokens", "", ["model_name"], registry=registry)
    use = Gauge("vllm:kv_cache_usage_perc", "", ["model_name"], registry=registry)
    for model in models:
        running.labels("0", model).set(value)
        by_reason.labels(model).set(7)
        tokens.labels(model).inc(value)
        use.labels(model).set(0.25)
    figures = read_metrics(generate_latest(registry).decode(), METRICS)
    assert figures.running == pytest.approx(value * len(models))
    assert figures.output_tokens == pytest.approx(value * len(models))
    assert figures.kv_use == 0.25
    assert math.isnan(figures.waiting), "a longer name that starts the same is another one"


FRONT_END = """
    import sys
    from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
    labels, mode, use = ["model_name", "engine"], sys.argv[1], map(float, sys.argv[2:])
    gauges = [
        Gauge(f"vllm:{name}", "", labels, multiprocess_mode=mode)
        for name in ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
    ]
    answered = Counter("vllm:generation_tokens", "", labels)
    for engine, share in enumerate(use):
        for gauge, factor in zip(gauges, (1, 100, 10)):
            gauge.labels("m", str(engine)).set(share * factor)
        answered.labels("m", str(engine)).inc(50)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
"""


@pytest.mark.parametrize("mode", ["all", "liveall", "mostrecent"])
def test_front_ends_of_one_engine_are_not_engines(mode: str, tmp_path: Path) -> None:
    """Of three front ends one heard of both engines, one of the second alone, and one of none."""
    page = ""
    for use in (["0.2", "0.8"], ["0", "0.6"], ["0", "0"]) if mode != "mostrecent" else (["0", "0"], ["0.2", "0.8"]):
        page = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FRONT_END), mode, *use],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert ("pid=" in page) == (mode != "mostrecent")
    figures = read_metrics(page, METRICS)
    assert figures.kv_use == pytest.approx((0.2 + 0.8) / 2), "the highest of an engine, the mean over engines"
    assert (figures.running, figures.waiting) == pytest.approx((100, 10)), "the sum over engines"
    assert figures.output_tokens == (200 if mode == "mostrecent" else 300), "each front end counts its own"


def test_engines_are_told_apart_by_whatever_labels_they_have() -> None:
    page = """
vllm:kv_cache_usage_perc{pid="7",model_name="a"} 0.9
vllm:kv_cache_usage_perc{model_name="a",pid="8"} 0.0
vllm:kv_cache_usage_perc{model_name="b, pid=\\"9\\"",pid="8"} 0.1
vllm:num_requests_running{engine="0",instance="x:1"} 3
vllm:num_requests_running{engine="0",instance="x:2"} 4
vllm:num_requests_waiting{engine="0"} NaN
"""
    figures = read_metrics(page, METRICS)
    assert figures.kv_use == pytest.approx(0.5)
    assert figures.running == 7
    assert math.isnan(figures.waiting)


@pytest.mark.parametrize(
    "page",
    ["", "vllm:num_requests_running", "vllm:num_requests_running{a} x", "vllm:num_requests_running2 5", "<html>"],
)
def test_a_page_that_is_none_gives_nothing(page: str) -> None:
    assert math.isnan(read_metrics(page, METRICS).running)


def test_names_of_older_versions_are_known() -> None:
    assert read_metrics('vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n', METRICS).kv_use == 0.5
