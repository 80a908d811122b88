"""The host: who used its cores, what held them back, and when that spoils a measurement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.telemetry.host_files import HostFiles, Process
from pytest_gpucap.telemetry.host_health import MOST_TAKEN
from pytest_gpucap.telemetry.host_watch import HostWatch
from pytest_gpucap.telemetry.over_time import binned_series
from pytest_gpucap.telemetry.sampler import Telemetry
from pytest_gpucap.telemetry.serving import OwnServer
from tests.telemetry.recorded_host import PYTEST, SERVER, RecordedHost

STRESS, PYTHON = 123, 124


@pytest.fixture
def host(tmp_path: Path) -> RecordedHost:
    """Two cores, two other processes, and everything can be seen."""
    made = RecordedHost(tmp_path)
    made.whole()
    made.process(STRESS, "stress-ng")
    made.process(PYTHON, "python")
    return made


def only(problems: list[Problem]) -> tuple[ProblemKind, str]:
    [problem] = problems
    assert problem.source is ProblemSource.HOST
    return problem.kind, problem.text


def test_processes_that_take_the_last_core_are_named(host: RecordedHost) -> None:
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 0.7, PYTEST: 0.2, STRESS: 0.8, PYTHON: 0.3})
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.OTHERS
    assert text.startswith(
        "other processes used 1.1 of 2 cores: pid 123 stress-ng 0.8, pid 124 python 0.3, and no core was left idle; "
    )
    seen = watch.summary(*window)
    assert (seen.busy_cores, seen.own_cores, seen.other_cores) == pytest.approx((2.0, 0.9, 1.1))
    assert [each.pid for each in seen.others] == [STRESS, PYTHON]
    assert [each.text for each in seen.disturbances] == [text]


@pytest.mark.parametrize(
    ("others", "waiting", "disturbed"),
    [
        pytest.param(0.04, 1.0, False, id="little, though no core is idle"),
        pytest.param(0.15, 0.0, True, id="more, and no core is idle"),
    ],
)
def test_with_no_idle_core_the_share_that_others_take_decides(
    host: RecordedHost, others: float, waiting: float, *, disturbed: bool
) -> None:
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 2.0 - others, STRESS: others}, waiting=waiting)
    assert bool(watch.problems(*window)) is disturbed
    assert watch.summary(*window).other_cores == pytest.approx(others)


@pytest.mark.parametrize(("waiting", "disturbed"), [(0.02, False), (0.4, True)])
def test_with_part_of_a_core_idle_pressure_decides(host: RecordedHost, waiting: float, *, disturbed: bool) -> None:
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 0.4, STRESS: 1.0}, waiting=waiting)
    assert bool(watch.problems(*window)) is disturbed


def test_on_a_large_machine_with_idle_cores_others_are_only_shown(tmp_path: Path) -> None:
    host = RecordedHost(tmp_path, cores=96)
    host.whole()
    host.process(STRESS, "stress-ng")
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 3.0, STRESS: 1.0}, waiting=0.6)
    assert watch.problems(*window) == []
    assert watch.summary(*window).other_cores == pytest.approx(1.0)
    window = host.run(watch, cores={SERVER: 3.0, STRESS: 92.9}, waiting=0.9)
    assert only(watch.problems(*window))[0] is ProblemKind.OTHERS


@pytest.mark.parametrize(
    ("name", "command", "title"),
    [
        ("python3.11", "python3\0-X\0dev\0/srv/train.py\0--token=secret\0", "python3.11 train.py"),
        ("python", "python\0-u\0/srv/train.py\0--token=secret\0", "python train.py"),
        ("python", "python\0-m\0pytest\0-n2\0", "python pytest"),
        ("python", "python\0-c\0secret()\0", "python"),
        ("bash", "bash\0", "bash"),
        ("stress-ng", "stress-ng\0--cpu\0", "stress-ng"),
    ],
)
def test_an_interpreter_is_named_with_its_script_and_without_arguments(
    host: RecordedHost, name: str, command: str, title: str
) -> None:
    host.put(f"proc/{STRESS}/cmdline", command)
    assert host.title(Process(STRESS, name, 1, 5, 0.0, 0.0)) == title


def test_only_measured_windows_are_judged(host: RecordedHost) -> None:
    watch = host.watch()
    start, _ = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0})
    quiet = host.run(watch, cores={SERVER: 1.9})
    _, end = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0})
    assert watch.problems(*quiet) == []
    assert watch.summary(start, end).disturbances == ()
    assert watch.summary(start, end).other_cores == pytest.approx(2 / 3)


def test_a_disturbance_can_be_a_remark(host: RecordedHost) -> None:
    watch = host.watch(strict=False)
    first = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0})
    second = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0})
    assert watch.problems(*first) == watch.problems(*second) == []
    [told] = watch.summary(first[0], second[1]).disturbances
    assert told.text.startswith("other processes used 1 of 2 cores: pid 123 stress-ng 1")
    assert told.text.endswith("; so in 2 windows")


def test_all_that_the_measurement_started_is_its_own_even_when_the_parent_has_ended(host: RecordedHost) -> None:
    host.process(200, "watchdog", parent=SERVER)
    host.process(201, "VLLM::EngineCore", parent=200)
    watch = host.watch()
    host.end(200, waited_for_by=SERVER)
    host.alive[201][1] = 1
    host.process(202, "worker", parent=201)
    window = host.run(watch, cores={201: 1.0, 202: 1.0})
    assert watch.problems(*window) == []
    assert watch.summary(*window).own_cores == pytest.approx(2.0)


def test_an_other_measuring_session_is_an_other_process(host: RecordedHost) -> None:
    host.process(90, "pytest")
    host.alive[PYTEST][1] = 90
    host.process(91, "[pytest-xdist]", parent=90)
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 1.0, 91: 1.0})
    assert "pid 91 [pytest-xdist] 1" in only(watch.problems(*window))[1]


def test_short_lived_processes_count_for_their_parent_and_none_counts_twice(host: RecordedHost) -> None:
    host.process(300, "make")
    host.process(301, "daemon", parent=300)
    host.alive[301][3] = 5000.0  # it has run for long
    watch = host.watch()
    start = host.now_s
    for second in range(10):
        host.process(400 + second, "cc1", parent=300, started=1000 + second)
        host.alive[400 + second][3] = 1.0
        host.end(400 + second, waited_for_by=300)
        host.run(watch, 1.0, cores={SERVER: 1.0}, unseen=1.0)
    host.end(301, waited_for_by=300)
    host.run(watch, 1.0, cores={SERVER: 1.0})
    seen = watch.summary(start, host.now_s - 1.0)
    assert seen.other_cores == pytest.approx(1.0)
    assert [(each.pid, each.name) for each in seen.others] == [(300, "make")]
    assert watch.summary(host.now_s - 1.0, host.now_s).other_cores == pytest.approx(0.0)


def test_in_a_container_the_hosts_cores_show_what_no_process_list_does(tmp_path: Path) -> None:
    host = RecordedHost(tmp_path)
    host.process(STRESS, "stress-ng")
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 0.9, STRESS: 0.3}, unseen=0.8)
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.OTHERS
    assert text.startswith(
        "other processes used 1.1 of 2 cores: pid 123 stress-ng 0.3, "
        "0.8 by processes that cannot be seen from here, as outside a container, "
    )
    # What sampling alone may make up is nobody's.
    window = host.run(watch, cores={SERVER: 1.9}, unseen=0.05)
    assert watch.problems(*window) == []
    assert watch.summary(*window).other_cores == pytest.approx(0.0)


def test_only_the_cores_that_the_measurement_may_use_count(tmp_path: Path) -> None:
    host = RecordedHost(tmp_path, cores=4, allowed=(2, 3))
    host.whole()
    host.process(STRESS, "stress-ng")
    host.allowed[STRESS] = frozenset({0, 1})
    watch = host.watch()
    elsewhere = host.run(watch, cores={STRESS: 2.0}, on=(0, 1))
    assert watch.problems(*elsewhere) == []
    assert watch.summary(*elsewhere).cores == 2
    assert watch.summary(*elsewhere).other_cores == pytest.approx(0.0)
    host.allowed[STRESS] = frozenset({2})
    here = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0}, on=(2, 3))
    assert "other processes used 1 of 2 cores: pid 123 stress-ng 1" in only(watch.problems(*here))[1]


@pytest.mark.parametrize(("stolen", "disturbed"), [(0.02, False), (0.3, True)])
def test_steal_counts_against_the_time_that_was_wanted(host: RecordedHost, stolen: float, *, disturbed: bool) -> None:
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 1.2}, stolen=stolen)
    if not disturbed:
        assert watch.problems(*window) == []
        return
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.STEAL
    assert "gave 20% of the time that this virtual machine wanted to run to others" in text


COUNTERS = "nr_periods {periods}\nnr_throttled {throttled}\n"


@pytest.mark.parametrize(
    ("version", "name", "root", "limit", "counters"),
    [
        pytest.param(
            2,
            "/user.slice/run.scope",
            "/",
            {"cpu__max": "150000 100000\n", "cgroup__type": "domain\n"},
            "usage_usec {used}\n" + COUNTERS + "throttled_usec {held}\n",
            id="version 2",
        ),
        pytest.param(
            2,
            "/",
            "/",
            {"cpu__max": "150000 100000\n"},
            COUNTERS + "throttled_usec {held}\n",
            id="version 2, container",
        ),
        pytest.param(
            1,
            "/docker/4711",
            "/docker/4711",
            {"cpu__cfs_quota_us": "150000\n", "cpu__cfs_period_us": "100000\n"},
            COUNTERS + "throttled_time {held}000\n",
            id="version 1, container",
        ),
        pytest.param(
            1,
            "/batch",
            "/",
            {"cpu__cfs_quota_us": "150000\n", "cpu__cfs_period_us": "100000\n"},
            COUNTERS + "throttled_time {held}000\n",
            id="version 1",
        ),
    ],
)
def test_a_quota_that_is_used_up(
    host: RecordedHost, version: int, name: str, root: str, limit: dict[str, str], counters: str
) -> None:
    def count(periods: int, throttled: int, used_s: float = 0.0) -> None:
        told = counters.format(periods=periods, throttled=throttled, held=throttled * 50_000, used=used_s * 1e6)
        host.group(name, version, root, **limit, cpu__stat=told)

    count(1000, 500)
    watch = host.watch()
    count(1100, 503, used_s=6.0)
    window = host.run(watch, cores={SERVER: 1.2})
    assert watch.problems(*window) == []
    assert watch.summary(*window).quota_cores == 1.5
    assert watch.summary(*window).throttled == pytest.approx(0.03)

    host.now_s += 1.0
    watch.sample()
    count(1200, 543, used_s=6.0 + 7.5)
    window = host.run(watch, cores={SERVER: 1.2})
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.QUOTA
    assert "the CPU quota of 1.5 cores was used up in 40% of its periods, for 2 s in all" in text
    assert ("other processes used 0.3 cores of it" in text) is ("usage_usec" in counters)


def test_without_a_quota_nothing_is_throttled(host: RecordedHost) -> None:
    host.group("/user.slice", 2, cpu__max="max 100000\n", cpu__stat="usage_usec 5\n", cgroup__type="domain\n")
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 1.9})
    assert watch.problems(*window) == []
    assert watch.summary(*window).quota_cores is None


def test_the_pressure_of_the_own_group_comes_before_the_machines(host: RecordedHost) -> None:
    own = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
    host.group("/user.slice", 2, cgroup__type="domain\n", cpu__pressure=own.format(1_000_000))
    watch = host.watch()
    host.group("/user.slice", 2, cpu__pressure=own.format(3_500_000))
    window = host.run(watch, cores={SERVER: 1.0}, waiting=0.9)
    assert watch.summary(*window).waiting == pytest.approx(0.5)


def test_heat_and_low_clocks(host: RecordedHost) -> None:
    heated = "cpu/cpu0/thermal_throttle/package_throttle_total_time_ms"
    host.put(heated, "7000\n")
    for core in (0, 1):
        host.put(f"cpu/cpu{core}/cpufreq/scaling_cur_freq", "2600000\n")
        host.put(f"cpu/cpu{core}/cpufreq/base_frequency", "2500000\n")
    watch = host.watch()
    host.put(heated, "7050\n")
    window = host.run(watch, cores={SERVER: 1.9})
    assert watch.problems(*window) == []
    assert (watch.summary(*window).clock_mhz, watch.summary(*window).base_clock_mhz) == (2600, 2500)
    host.put(heated, "8550\n")
    window = host.run(watch, cores={SERVER: 1.9})
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.SLOWED_DOWN
    assert text.startswith("heat held the processor back in 30% of the time, at 2600 MHz, base clock 2500 MHz (")
    for core in (0, 1):
        host.put(f"cpu/cpu{core}/cpufreq/scaling_cur_freq", "800000\n")
    window = host.run(watch, cores={SERVER: 1.9})
    assert "busy cores were held back, at 800 MHz, base clock 2500 MHz" in only(watch.problems(*window))[1]
    idle = host.run(watch, cores={SERVER: 0.1})
    assert watch.problems(*idle) == []  # idle cores clock down


def test_a_machine_that_is_short_of_memory(host: RecordedHost) -> None:
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 0.5}, stalled=0.12)
    kind, text = only(watch.problems(*window))
    assert kind is ProblemKind.MEMORY
    assert "all tasks waited for it in 12% of the time" in text


def test_without_pressure_figures_the_rest_is_read(host: RecordedHost) -> None:
    host.pressure = {}
    watch = host.watch()
    host.pressure = {}
    start = host.now_s
    for _ in range(10):
        host.now_s += 1.0
        host.alive[SERVER][3] += 1.0  # type: ignore[operator]
        host.alive[STRESS][3] += 1.0  # type: ignore[operator]
        for times in host.times.values():
            times["user"] += 1.0
        host.write()
        watch.sample()
    assert only(watch.problems(start, host.now_s))[0] is ProblemKind.OTHERS
    assert watch.summary(start, host.now_s).waiting is None


def test_in_a_sandbox_that_counts_no_core_times_processes_tell(host: RecordedHost) -> None:
    for times in host.times.values():
        times.clear()
        times.update(user=float("nan"), idle=0.0, steal=0.0)
    zeros = "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n"

    def write() -> None:
        RecordedHost.write(host)
        host.put("proc/stat", zeros)

    host.write = write  # type: ignore[method-assign]
    watch = host.watch()
    window = host.run(watch, cores={SERVER: 1.0, STRESS: 1.0})
    assert "other processes used 1 of 2 cores: pid 123 stress-ng 1" in only(watch.problems(*window))[1]
    assert watch.summary(*window).stolen is None


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    now = [0.0]
    watch = HostWatch(clock=lambda: now[0], files=HostFiles(tmp_path / "proc", tmp_path / "cpu"))
    for _ in range(3):
        watch.sample()
        now[0] += 1.0
    assert watch.problems(0.0, 2.0) == []
    seen = watch.summary(0.0, 2.0)
    assert (seen.stolen, seen.throttled, seen.waiting, seen.clock_mhz, seen.heated) == (None,) * 5
    assert watch.problems(100.0, 200.0) == []


def test_malformed_files_are_not_known_either(host: RecordedHost) -> None:
    watch = host.watch()
    for path in ("proc/stat", "proc/pressure/cpu", "proc/pressure/memory", f"proc/{STRESS}/stat"):
        host.put(path, "cpu0 x y\nsome nothing\n) (\n")
    host.now_s += 1.0
    watch.sample()
    assert watch.problems(1000.0, 1001.0) == []


def test_this_machine_is_read() -> None:
    watch = HostWatch()
    watch.sample()
    start = watch._before.time_s if watch._before else 0.0
    watch.sample()
    seen = watch.summary(start, start + 1.0)
    assert seen.readings >= 1
    assert seen.own_cores is not None
    assert seen.busy_cores is not None


def test_telemetry_carries_the_host_into_problems_summary_and_series(host: RecordedHost) -> None:
    watch = host.watch()
    telemetry = Telemetry((), tuple, clock=lambda: host.now_s, host=watch)
    window = host.run(watch, cores={SERVER: 0.9, STRESS: 1.1}, waiting=0.5)
    assert only(telemetry.problems(*window))[0] is ProblemKind.OTHERS
    found = telemetry.summary(*window).host
    assert found is not None
    assert found.disturbing_cores is not None
    assert found.disturbing_cores > MOST_TAKEN * found.cores
    series = binned_series(telemetry.series(), *window)
    assert series is not None
    assert series.columns["other_cpu_cores"] == pytest.approx((1.1,) * 5)
    assert series.columns["host_cpu_cores"] == pytest.approx((2.0,) * 5)
    assert series.columns["cpu_pressure"] == pytest.approx((0.5,) * 5)


def test_where_the_servers_processes_are_not_known_others_are_not_judged(host: RecordedHost) -> None:
    class Unknown(OwnServer):
        def look(self, processes: Mapping[int, Process], own: Collection[int]) -> None:
            del processes, own
            self.known = False

    host.write()
    watch = HostWatch(clock=lambda: host.now_s, files=host, pid=PYTEST, server=Unknown(8000))
    watch.sample()
    window = host.run(watch, cores={SERVER: 0.9, STRESS: 1.1})
    assert watch.problems(*window) == []
    seen = watch.summary(*window)
    assert (seen.other_cores, seen.disturbing_cores, seen.others) == (None, None, ())
    assert seen.busy_cores == pytest.approx(2.0)
