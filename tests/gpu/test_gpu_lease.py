from __future__ import annotations

import itertools
import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.gpu import lease as lease_module
from pytest_gpucap.gpu import occupancy
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.inventory import devices_of_class, take_inventory
from pytest_gpucap.gpu.lease import (
    GpuShared,
    Lease,
    LeaseError,
    LeaseTimeout,
    lease,
    lease_cpu,
    lease_server,
    machine_directory,
    passed_on,
)
from pytest_gpucap.gpu.occupancy import (
    GpuProcess,
    IdleMemory,
    MemoryNotReturned,
    Neighbours,
    Occupancy,
    occupancy_of,
    wait_memory_returned,
)
from tests.gpu import fake_nvml
from tests.waiting import FOREVER_S

HOLD = """
    import sys
    from pathlib import Path
    from pytest_gpucap.gpu.classes import find_class
    from pytest_gpucap.gpu.inventory import devices_of_class, take_inventory
    from pytest_gpucap.gpu.lease import lease
    devices = devices_of_class(take_inventory({}), find_class("h200"))
    with lease(devices, int(sys.argv[2]), wait_s=float("inf"), directory=Path(sys.argv[1])) as held:
        print(*(device.uuid for device in held.devices), flush=True)
        sys.stdin.readline()
"""


@contextmanager
def holder(nvml: fake_nvml.Answers, directory: Path, count: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that holds a number of devices; it and their UUIDs."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(directory), str(count)]
    environment = {**os.environ, **nvml.environment}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.kill()
            process.communicate()


def uuids_of(held: Lease) -> list[str]:
    return [device.uuid for device in held.devices]


@contextmanager
def machine(name: str = "h200-x4", wanted: str = "h200") -> Iterator[tuple[fake_nvml.Answers, tuple[Device, ...]]]:
    with fake_nvml.answers(name) as nvml:
        yield nvml, devices_of_class(take_inventory({}), find_class(wanted))


def test_a_lease_names_its_devices_to_the_server(tmp_path: Path) -> None:
    with machine() as (_, devices), lease(devices, 2, wait_s=0, directory=tmp_path) as held:
        assert held.devices == devices[:2]
        assert held.cuda_devices == ("0", "1")
        assert held.baseline == {devices[0].uuid: 0, devices[1].uuid: 0}


def test_two_leases_never_share_a_device(tmp_path: Path) -> None:
    with machine() as (_, devices):
        with lease(devices, 3, wait_s=0, directory=tmp_path) as first:
            with lease(devices, 1, wait_s=0, directory=tmp_path) as second:
                assert not set(uuids_of(first)) & set(uuids_of(second))
            with pytest.raises(LeaseTimeout):
                lease(devices, 2, wait_s=0, directory=tmp_path)
        with lease(devices, 4, wait_s=0, directory=tmp_path) as everything:
            assert len(everything.devices) == 4


def test_a_lease_may_be_given_back_twice(tmp_path: Path) -> None:
    with machine() as (_, devices):
        held = lease(devices, 4, wait_s=0, directory=tmp_path)
        held.release()
        held.release()
        lease(devices, 4, wait_s=0, directory=tmp_path).release()


@pytest.mark.parametrize("count", [0, 5])
def test_more_devices_than_there_are_cannot_be_had(tmp_path: Path, count: int) -> None:
    with machine() as (_, devices), pytest.raises(LeaseError, match=f"{count} GPUs are needed and 4"):
        lease(devices, count, wait_s=10, directory=tmp_path)


def test_a_process_that_holds_all_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    with machine() as (nvml, devices), holder(nvml, tmp_path, 4) as (process, _):
        with pytest.raises(LeaseTimeout, match=f"within 0.5 s: .*leased by pid {process.pid} ") as caught:
            lease(devices, 1, wait_s=0.5, on_wait=said.append, directory=tmp_path)
        assert pwd.getpwuid(os.getuid()).pw_name in str(caught.value)
    assert len(said) == 1, "told once, however long the wait"
    assert str(process.pid) in said[0]


def test_a_process_that_ends_makes_room(tmp_path: Path) -> None:
    with machine() as (nvml, devices), holder(nvml, tmp_path, 4) as (process, uuids):
        assert len(uuids) == 4
        assert process.stdin is not None
        end_of_line = process.stdin

        def let_go(_: str) -> None:
            end_of_line.write("\n")
            end_of_line.flush()

        with lease(devices, 4, wait_s=FOREVER_S, on_wait=let_go, directory=tmp_path) as held:
            assert held.devices == devices


def test_the_kernel_takes_back_the_lease_of_a_killed_process(tmp_path: Path) -> None:
    with machine() as (nvml, devices), holder(nvml, tmp_path, 4) as (process, _):
        process.kill()
        process.wait()
        lease(devices, 4, wait_s=0, directory=tmp_path).release()


CONTENDER = """
    import sys, time
    from pathlib import Path
    from pytest_gpucap.gpu.classes import find_class
    from pytest_gpucap.gpu.inventory import devices_of_class, take_inventory
    from pytest_gpucap.gpu.lease import lease
    directory, log, count, turns = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    devices = devices_of_class(take_inventory({}), find_class("h200"))
    with log.open("a", buffering=1) as lines:
        for turn in range(turns):
            with lease(devices, count, wait_s=float("inf"), directory=directory) as held:
                start = time.monotonic()
                time.sleep(0.02)
                for uuid in (device.uuid for device in held.devices):
                    lines.write(f"{uuid} {start} {time.monotonic()}\\n")
"""


def test_many_processes_of_different_needs_take_turns(tmp_path: Path) -> None:
    """Whoever needs all four is served among those who need one, and nobody's time on a device overlaps another's."""
    log, room = tmp_path / "log", tmp_path / "room"
    room.mkdir()
    needs = [1, 1, 2, 4]
    with machine() as (nvml, _):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(CONTENDER), str(room), str(log), str(count), "6"],
                env={**os.environ, **nvml.environment},
            )
            for count in needs
        ]
        try:
            assert [process.wait() for process in processes] == [0] * len(needs)
        finally:
            for process in processes:
                process.kill()
    seen = [line.split() for line in log.read_text().splitlines()]
    assert len(seen) == 6 * sum(needs)
    assert_no_overlap([(uuid, float(start), float(end)) for uuid, start, end in seen])


def assert_no_overlap(seen: Iterable[tuple[str, float, float]]) -> None:
    """Nobody's time (from, to) on a device may overlap another's."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for uuid, start, end in seen:
        spans.setdefault(uuid, []).append((start, end))
    for on_one_device in spans.values():
        ordered = sorted(on_one_device)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))


XDIST = """
    import json, os, time
    from pathlib import Path
    import pytest
    from pytest_gpucap.gpu.classes import find_class
    from pytest_gpucap.gpu.inventory import devices_of_class, take_inventory
    from pytest_gpucap.gpu.lease import lease

    @pytest.fixture(scope="session")
    def held():
        devices = devices_of_class(take_inventory({}), find_class("h200"))
        with lease(devices[:2], 1, wait_s=float("inf"), directory=Path("room")) as held:
            start = time.monotonic()
            yield held
            span = [held.devices[0].uuid, start, time.monotonic()]
        Path("seen-" + os.environ["PYTEST_XDIST_WORKER"]).write_text(json.dumps(span))

    @pytest.mark.parametrize("number", range(8))
    def test_it(held, number):
        time.sleep(0.05)
"""


def test_each_xdist_worker_leases_its_own(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "test_it.py").write_text(textwrap.dedent(XDIST))
    with machine() as (nvml, _):
        command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "-p", "no:gpucap", "-p", "no:cacheprovider"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **nvml.environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("seen-*")]
    assert len(seen) > 1, "several workers had tests to run"
    assert_no_overlap(seen)


@contextmanager
def foreign_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_device_that_somebody_uses_is_passed_over(tmp_path: Path) -> None:
    with foreign_process() as other, machine() as (nvml, devices):
        nvml.set(0, processes=[{"pid": other.pid, "memory": 5 * 2**30}])
        with lease(devices, 3, wait_s=0, directory=tmp_path) as held:
            assert held.devices == devices[1:]


def test_a_machine_that_somebody_uses_is_refused_with_pid_user_and_memory(tmp_path: Path) -> None:
    with foreign_process() as other, machine() as (nvml, devices):
        nvml.set(0, processes=[{"pid": other.pid, "memory": 5 * 2**30}], memory={"total": 2**37, "used": 2**33})
        user = pwd.getpwuid(os.getuid()).pw_name
        expected = rf"GPU 0 \(NVIDIA H200\) is used by pid {other.pid} \({user}, 5.0 GiB\)"
        with pytest.raises(GpuShared, match=expected):
            lease(devices, 4, wait_s=0, directory=tmp_path)
        with lease(devices[1:], 3, wait_s=0, directory=tmp_path) as held:
            assert len(held.devices) == 3, "nothing stays locked after a refusal"


def test_memory_that_nobody_owns_up_to_is_somebodys(tmp_path: Path) -> None:
    with machine("h200") as (nvml, devices):
        nvml.set(memory={"total": 143771 * 2**20, "used": 40 * 2**30, "reserved": 628 * 2**20})
        with pytest.raises(GpuShared, match=r"has 40\.0 GiB of its memory in use, and NVML names no process"):
            lease(devices, 1, wait_s=0, directory=tmp_path)


def test_what_an_idle_driver_keeps_is_no_use(tmp_path: Path) -> None:
    with machine("h200") as (nvml, devices):
        nvml.set(memory={"total": 143771 * 2**20, "used": 500 * 2**20, "reserved": 628 * 2**20})
        lease(devices, 1, wait_s=0, directory=tmp_path).release()


DESKTOP = {"memory": {"total": 24 * 2**30, "used": int(1.3 * 2**30), "reserved": 400 * 2**20}}


def test_a_refusal_names_the_option_for_a_desktop(tmp_path: Path) -> None:
    with machine("h200") as (nvml, devices):
        nvml.set(**DESKTOP)
        with pytest.raises(GpuShared, match=r"allow it with --gpucap-gpu-idle=2GiB$"):
            lease(devices, 1, wait_s=0, directory=tmp_path)
        with (
            lease(devices, 1, wait_s=0, idle=IdleMemory(share=0.5), directory=tmp_path),
            pytest.raises(LeaseTimeout) as caught,
        ):
            lease(devices, 1, wait_s=0, directory=tmp_path)
        assert "--gpucap-gpu-idle" not in str(caught.value), "somebody's lease is no desktop"


def test_whoever_waits_for_a_desktop_is_told_the_option_too(tmp_path: Path) -> None:
    with machine("h200-x4") as (nvml, devices):
        nvml.set(0, **DESKTOP)
        with lease(devices[1:], 3, wait_s=0, directory=tmp_path), pytest.raises(LeaseTimeout) as caught:
            lease(devices, 2, wait_s=0, directory=tmp_path)
        assert str(caught.value).endswith("allow it with --gpucap-gpu-idle=2GiB")


@pytest.mark.parametrize(
    ("idle", "free"),
    [
        (IdleMemory(bytes=2 * 2**30), True),
        (IdleMemory(share=0.06), True),
        (IdleMemory(bytes=2**30), False),
        (IdleMemory(share=0.05), False),
        (None, False),
    ],
)
def test_a_desktop_is_leased_as_far_as_it_is_allowed(idle: IdleMemory | None, free: bool, tmp_path: Path) -> None:
    with foreign_process() as compositor, machine("h200") as (nvml, devices):
        # A compositor computes too, and WSL tells no memory of a process.
        nvml.set(**DESKTOP, processes=[{"pid": compositor.pid}])
        if not free:
            with pytest.raises(GpuShared, match=f"pid {compositor.pid}.*--gpucap-gpu-idle=2GiB"):
                lease(devices, 1, wait_s=0, idle=idle, directory=tmp_path)
            return
        with lease(devices, 1, wait_s=0, idle=idle, directory=tmp_path) as held:
            (remark,) = held.remarks()
            assert remark.startswith("not empty before the measurement, as --gpucap-gpu-idle allows: GPU 0")
            assert f"1.3 GiB in use, by pid {compositor.pid} (" in remark
            assert held.tolerated == {compositor.pid}
            listed = [GpuProcess(compositor.pid, None), GpuProcess(1, None)]
            told_apart = Neighbours(contained=False, tolerated=held.tolerated).strangers(listed, frozenset())
            assert [process.pid for process in told_apart] == [1], "whoever comes later is still a neighbour"
            nvml.set(memory={**DESKTOP["memory"], "used": int(1.45 * 2**30)})  # a window was opened meanwhile
            wait_memory_returned(held.devices, held.baseline, [], 0)


def test_an_empty_device_has_no_remark(tmp_path: Path) -> None:
    with (
        machine("h200") as (_, devices),
        lease(devices, 1, wait_s=0, idle=IdleMemory(share=0.5), directory=tmp_path) as held,
    ):
        assert held.remarks() == []
        assert held.tolerated == frozenset()


def test_a_process_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    with foreign_process() as other, machine("h200") as (nvml, devices):
        nvml.set(processes=[{"pid": other.pid}])
        said: list[str] = []

        def leave(message: str) -> None:
            said.append(message)
            nvml.set(processes=[])

        with lease(devices, 1, wait_s=FOREVER_S, on_wait=leave, directory=tmp_path) as held:
            assert held.devices == (devices[0],)
        assert f"pid {other.pid}" in said[0]
        assert "memory not told" in said[0]


def test_a_driver_that_does_not_tell_is_in_nobodys_way(tmp_path: Path) -> None:
    with machine("h200") as (nvml, devices):
        nvml.set(processes={"error": 4}, memory={"error": 4})
        with lease(devices, 1, wait_s=0, directory=tmp_path) as held:
            assert held.baseline == {}


def test_slices_are_leased_one_by_one(tmp_path: Path) -> None:
    with (
        machine("a100-mig", "a100-40gb-1g.5gb") as (_, devices),
        lease(devices, 1, wait_s=0, directory=tmp_path) as first,
        lease(devices, 1, wait_s=0, directory=tmp_path) as second,
    ):
        assert first.cuda_devices == (devices[0].uuid,)
        assert second.cuda_devices == (devices[1].uuid,)


def test_there_is_one_lease_of_the_cpu(tmp_path: Path) -> None:
    said: list[str] = []
    with lease_cpu(wait_s=0, directory=tmp_path) as held:
        assert held.devices == ()
        assert held.cuda_devices == ()
        with pytest.raises(LeaseTimeout, match=f"pid {os.getpid()} "):
            lease_cpu(wait_s=0.3, on_wait=said.append, directory=tmp_path)
    assert len(said) == 1
    lease_cpu(wait_s=0, directory=tmp_path).release()


def test_there_is_one_lease_of_each_running_server(tmp_path: Path) -> None:
    with lease_server("localhost:8000/v1", wait_s=0, directory=tmp_path):
        lease_server("localhost:8001/v1", wait_s=0, directory=tmp_path).release()
        with pytest.raises(LeaseTimeout, match=f"pid {os.getpid()} "):
            lease_server("localhost:8000/v1", wait_s=0.1, directory=tmp_path)
    lease_server("localhost:8000/v1", wait_s=0, directory=tmp_path).release()


def test_the_queue_lets_go_when_its_turn_never_comes(tmp_path: Path) -> None:
    with machine() as (_, devices):
        with lease(devices, 4, wait_s=0, directory=tmp_path), pytest.raises(LeaseTimeout):
            lease(devices, 4, wait_s=0.1, directory=tmp_path)
        lease(devices, 4, wait_s=0, directory=tmp_path).release()


def test_lock_files_are_for_every_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lease_module, "MACHINE_DIRECTORY", tmp_path / "gpucap-leases")
    before = os.umask(0o077)
    try:
        lease_cpu(wait_s=0).release()
    finally:
        os.umask(before)
    directory = machine_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o777
    assert stat.S_IMODE((directory / "cpu.lock").stat().st_mode) == 0o666


NOBODY = """
    import os, sys
    from pathlib import Path
    from pytest_gpucap.gpu.lease import LeaseTimeout, lease_cpu
    os.setgid(65534)
    os.setuid(65534)
    try:
        lease_cpu(wait_s=0, directory=Path(sys.argv[1])).release()
    except LeaseTimeout:
        print("waits")
    else:
        print("has it")
"""


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_takes_turns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own is for this user alone
        Path(temporary).chmod(0o755)
        monkeypatch.setattr(lease_module, "MACHINE_DIRECTORY", Path(temporary) / "gpucap-leases")
        command = [sys.executable, "-c", textwrap.dedent(NOBODY), str(machine_directory())]
        with lease_cpu(wait_s=0):
            assert _said(command) == "waits\n"
        assert _said(command) == "has it\n"


def test_a_file_in_the_way_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lease_module, "MACHINE_DIRECTORY", tmp_path / "gpucap-leases")
    (tmp_path / "gpucap-leases").write_text("")
    with pytest.raises(LeaseError, match="is no directory"):
        lease_cpu(wait_s=0)


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LeaseError, match=r"cannot lock .*cpu\.lock: "):
        lease_cpu(wait_s=0, directory=tmp_path / "file")


def _served(nvml: fake_nvml.Answers, devices: tuple[Device, ...], pid: int) -> dict[str, int]:
    baseline = {seen.device.uuid: seen.memory_used_bytes or 0 for seen in map(occupancy_of, devices)}
    nvml.set(
        processes=[{"pid": pid, "memory": 100 * 2**30}],
        memory={"total": 143771 * 2**20, "used": 100 * 2**30, "reserved": 628 * 2**20},
    )
    return baseline


IDLE = {"total": 143771 * 2**20, "used": 20 * 2**20, "reserved": 628 * 2**20}


def test_memory_comes_back_after_the_server() -> None:
    with machine("h200") as (nvml, devices):
        baseline = _served(nvml, devices, 4_000_000)
        nvml.set(processes=[], memory=IDLE)
        assert wait_memory_returned(devices, baseline, [4_000_000], 0) >= 0


def test_memory_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with foreign_process() as server, machine("h200") as (nvml, devices):
        baseline = _served(nvml, devices, server.pid)
        looks = 0

        def counted(device: Device) -> Occupancy:
            nonlocal looks
            looks += 1
            if looks == 3:
                nvml.set(processes=[], memory=IDLE)
            return occupancy_of(device)

        monkeypatch.setattr(occupancy, "occupancy_of", counted)
        wait_memory_returned(devices, baseline, [server.pid], FOREVER_S)
    assert looks == 3


def test_a_server_that_stays_is_named() -> None:
    with foreign_process() as server, machine("h200") as (nvml, devices):
        baseline = _served(nvml, devices, server.pid)
        with pytest.raises(MemoryNotReturned, match=rf"within 0.3 s .* still has pid {server.pid} \(.*100.0 GiB\)"):
            wait_memory_returned(devices, baseline, [server.pid], 0.3)


def test_memory_without_an_owner_is_named() -> None:
    with machine("h200") as (nvml, devices):
        baseline = _served(nvml, devices, 4_000_000)
        nvml.set(processes=[])
        with pytest.raises(MemoryNotReturned, match=r"100\.0 GiB in use, 0\.0 GiB before the server; NVML names no"):
            wait_memory_returned(devices, baseline, [4_000_000], 0)


def test_a_lease_can_be_told_by_sight(tmp_path: Path) -> None:
    with machine("h200") as (_, devices):
        held: Lease = lease(devices, 1, wait_s=0, directory=tmp_path)
        try:
            assert devices[0].uuid in repr(held)
        finally:
            held.release()


def test_a_lease_that_is_left_is_held_until_it_is_passed_on_and_released(tmp_path: Path) -> None:
    with foreign_process() as server, machine("h200") as (nvml, devices):
        left = lease(devices, 1, wait_s=0, directory=tmp_path)
        descriptors, baseline = tuple(map(os.dup, left.descriptors)), left.baseline
        left.leave()
        left.release()
        nvml.set(processes=[{"pid": server.pid, "memory": 2**36}], memory={"total": 2**37, "used": 2**36})
        with pytest.raises(LeaseTimeout):
            lease(devices, 1, wait_s=0, directory=tmp_path)
        passed = passed_on(devices, descriptors, baseline=baseline, server_pids=[server.pid], contained=False)
        assert (passed.devices, passed.baseline, passed.tolerated) == (devices, baseline, frozenset())
        assert passed.remarks() == []
        nvml.set(processes=[], memory={"total": 2**37, "used": 0})
        passed.release()
        lease(devices, 1, wait_s=0, directory=tmp_path).release()


def test_in_a_container_the_server_has_other_pids(tmp_path: Path) -> None:
    with machine("h200") as (nvml, devices):
        left = lease(devices, 1, wait_s=0, directory=tmp_path)
        descriptors = tuple(map(os.dup, left.descriptors))
        left.leave()
        nvml.set(processes=[{"pid": 4_000_000, "memory": 2**36}], memory={"total": 2**37, "used": 2**36})
        passed = passed_on(devices, descriptors, baseline=left.baseline, server_pids=[os.getpid()], contained=True)
        assert passed.tolerated == frozenset()
        passed.release()


@pytest.mark.parametrize("idle", [None, IdleMemory(bytes=2**31)])
def test_others_beside_a_kept_server_are_judged_as_before_its_start(idle: IdleMemory | None, tmp_path: Path) -> None:
    with foreign_process() as other, machine("h200") as (nvml, devices):
        left = lease(devices, 1, wait_s=0, directory=tmp_path)
        descriptors = tuple(map(os.dup, left.descriptors))
        left.leave()
        used = [{"pid": os.getpid(), "memory": 2**36}, {"pid": other.pid, "memory": 2**30}]
        nvml.set(processes=used, memory={"total": 2**37, "used": 2**36 + 2**30})
        passing: dict[str, Any] = {
            "baseline": left.baseline,
            "server_pids": [os.getpid()],
            "idle": idle,
            "contained": False,
        }
        if idle is None:
            with pytest.raises(GpuShared, match=f"is used by pid {other.pid}"):
                passed_on(devices, descriptors, **passing)
        else:
            passed = passed_on(devices, descriptors, **passing)
            assert passed.tolerated == {other.pid}
            (remark,) = passed.remarks()
            assert "1.0 GiB in use" in remark
            passed.release()
        nvml.set(processes=[], memory={"total": 2**37, "used": 0})
        lease(devices, 1, wait_s=0, directory=tmp_path).release()


@pytest.mark.parametrize("cpu", [False, True])
def test_whoever_can_make_room_is_asked(cpu: bool, tmp_path: Path) -> None:
    with machine("h200") as (_, devices):
        take: Callable[..., Lease] = lease_cpu if cpu else partial(lease, devices, 1)
        held = take(wait_s=0, directory=tmp_path)
        asked: list[tuple[str, ...]] = []

        def make_room(names: Sequence[str]) -> bool:
            asked.append(tuple(names))
            held.release()
            return True

        take(wait_s=0, make_room=make_room, directory=tmp_path).release()
        assert asked == [held.locks]
