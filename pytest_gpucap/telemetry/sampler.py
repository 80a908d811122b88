"""Samples what the GPUs, the server and its processes do during a measurement.

Several threads sample, so that a server that answers late delays no other reading. One reads the devices through NVML,
up to ten times a second, and takes what the driver has reported of them meanwhile (`xid_events.py`). One reads the
server's ``/metrics``, the CPU time of its processes, PCIe traffic and the neighbours, twice a second. One reads the
host (`host_watch.py`), once a second. Devices of another machine are read from the page of a DCGM exporter (`dcgm.py`),
each page by a thread of its own. Some drivers spend half a millisecond of CPU on every field (an H100 under driver 580:
4.3 ms for all nine), on cores that the server needs. So devices and host are read as often as a fixed share of one core
allows.
All times are `time.monotonic`, the clock of the load generator, so the windows of a measurement can be looked up.

On a machine without GPUs only the server and its processes are sampled.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from functools import partial
from types import TracebackType
from typing import Any, Self

import psutil

from pytest_gpucap.engines.protocol import MetricNames
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.nvml import NvmlUnavailable, nvml_session, process_list
from pytest_gpucap.gpu.occupancy import GpuProcess, Neighbours
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.telemetry import TelemetrySummary
from pytest_gpucap.telemetry import health
from pytest_gpucap.telemetry.dcgm import LOOK_S, DcgmExporter
from pytest_gpucap.telemetry.host_watch import HOST_PERIOD_S, HOST_SHARE, LONGEST_HOST_PERIOD_S, HostWatch
from pytest_gpucap.telemetry.probes import (
    DEVICE_FIELDS,
    PROCESS_FIELDS,
    DeviceProbe,
    ProcessProbe,
    ServerReading,
    read_metrics,
)
from pytest_gpucap.telemetry.summary import summarise
from pytest_gpucap.telemetry.time_series import TimeSeries, thinned
from pytest_gpucap.telemetry.xid import problems_of
from pytest_gpucap.telemetry.xid_events import XidEvents

DEVICE_PERIOD_S = 0.1
LONGEST_PERIOD_S = 1.0
"""Devices are read at least this often, whatever it costs: a slowdown of a few seconds must not go unseen."""
DEVICE_SHARE = 0.006
"""Share of one core for reading devices. With the server's figures (0.3 to 0.4%) and the host's (0.2%) the total is
about 1%."""
PACE_MEMORY_S = 1.0
"""Time constant of the mean cost of a reading, which decides how often readings are taken."""
SERVER_PERIOD_S = 0.5
PIDS_PERIOD_S = 5.0
STOP_S = 5.0
"""How long `stop` waits for a reading under way. A server that does not answer must not delay its own end."""
SERVER_FIELDS = tuple(field.name for field in fields(ServerReading))
LINK_FIELDS = ("pcie_sent_bytes_per_s", "pcie_received_bytes_per_s", "ecc_errors")


@dataclass
class WatchedDevice:
    """A device and its readings."""

    device: Device
    series: TimeSeries
    link: TimeSeries


@dataclass
class WatchedProcess:
    """A process of the server and its readings."""

    pid: int
    role: str
    series: TimeSeries


@dataclass(frozen=True, slots=True)
class Sighting:
    """Another user's process, seen on a device at a time."""

    time_s: float
    uuid: str
    pid: int
    text: str


class ReadingPace:
    """The period between readings, chosen so that they cost no more than a share of one core.

    The cost of the first reading is ignored: it sets up the driver's side, and takes as long as a hundred others.

    Args:
        shortest_s, longest_s: bounds of the period.
        share: of one core, that readings may take.
    """

    def __init__(self, shortest_s: float, longest_s: float, share: float) -> None:
        self._shortest_s, self._longest_s, self._share = shortest_s, longest_s, share
        self._cost_s = 0.0
        self._weight = 0.0
        """Of the next reading, in the mean cost."""

    def period_s(self, cost_s: float) -> float:
        """The period to wait after a reading that took `cost_s` of CPU time; it follows the mean cost."""
        self._cost_s += (cost_s - self._cost_s) * self._weight
        period_s = min(max(self._cost_s / self._share, self._shortest_s), self._longest_s)
        # Weighted by time, not by readings: one expensive reading must not slow down the next minute.
        self._weight = 1 - math.exp(-period_s / PACE_MEMORY_S) if self._weight else 1.0
        return period_s


class Telemetry:
    """Samples from `start` (or the start of a ``with`` block) until `stop`.

    Args:
        devices: the leased ones; empty for the CPU.
        server_pids: the server's processes at the moment of the call.
        fetch: reads the server's ``/metrics``; None where it has none.
        clock: seconds, monotonic.
        names: of the figures on that page.
        tolerated: pids of other programs that are allowed on the devices; see `Lease.tolerated`.
        host: watches the host as well; None: nobody does.
        exporters: of devices on other machines, which they have found.

    Attributes:
        host, exporters: as given.
        devices: the devices, those of exporters last, each with what was read of it.
        server: what was read of the server's page of metrics.
        processes: those of the server by pid, each with what was read of it.
        sightings: other processes that were seen on the devices.
        faults: what could not be sampled, and the last reason.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        server_pids: Callable[[], Iterable[int]],
        fetch: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        names: MetricNames | None = None,
        tolerated: Iterable[int] = (),
        host: HostWatch | None = None,
        exporters: Sequence[DcgmExporter] = (),
    ) -> None:
        self.host, self.exporters = host, tuple(exporters)
        self._server_pids, self._fetch, self._clock = server_pids, fetch, clock
        self._names = names or MetricNames()
        elsewhere = [device for exporter in self.exporters for device in exporter.devices]
        self.devices = [
            WatchedDevice(d, TimeSeries(DEVICE_FIELDS), TimeSeries(LINK_FIELDS)) for d in (*devices, *elsewhere)
        ]
        self._leased = tuple(devices)
        self.server = TimeSeries(SERVER_FIELDS)
        self.processes: dict[int, WatchedProcess] = {}
        self.sightings: list[Sighting] = []
        self.faults: dict[str, str] = {}
        self._pids: frozenset[int] = frozenset()
        self._pids_due_s = -math.inf
        self._dead: set[int] = set()
        self._probes: dict[str, DeviceProbe] = {}
        self._xids: dict[str, XidEvents] = {}
        self._process_probes: dict[int, ProcessProbe] = {}
        tolerated = frozenset(tolerated)
        self._neighbours = {d.uuid: Neighbours(tolerated=tolerated) for d in devices}
        self._turn = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open = ExitStack()
        self._pynvml: Any = None

    def attach(self) -> None:
        """Find the devices, without sampling yet; `start` does both."""
        if not self._leased or self._pynvml is not None:
            return
        try:
            self._pynvml = self._open.enter_context(nvml_session())
        except NvmlUnavailable as error:
            self.faults["NVML"] = str(error)
            return
        for device in self._leased:
            try:
                probe = self._probes[device.uuid] = DeviceProbe(self._pynvml, device)
            except Exception as error:  # noqa: BLE001 - lost, or a broken binding; the figures are missing then
                self.faults[device.label] = str(error)
                continue
            events = XidEvents(self._pynvml, device, probe.board, probe.handle, self._clock())
            self._open.callback(events.close)
            if (earlier := self._xids.get(device.uuid)) is not None:  # sampling was stopped, and begins again
                events.reports += earlier.reports
            self._xids[device.uuid] = events

    def start(self) -> None:
        """Begin to sample, in daemon threads."""
        if self._threads:
            return
        self.attach()
        # The server is always read at the full rate: its figures decide what the bottleneck is, and they are cheap.
        loops = [("gpucap-server", ReadingPace(SERVER_PERIOD_S, SERVER_PERIOD_S, 1.0), self.sample_server)]
        if self._probes:
            pace = ReadingPace(DEVICE_PERIOD_S, LONGEST_PERIOD_S, DEVICE_SHARE)
            loops.append(("gpucap-devices", pace, self.sample_devices))
        if self.host is not None:
            pace = ReadingPace(HOST_PERIOD_S, LONGEST_HOST_PERIOD_S, HOST_SHARE)
            loops.append(("gpucap-host", pace, self.sample_host))
        pace = ReadingPace(LOOK_S, LOOK_S, 1.0)
        loops += [("gpucap-dcgm", pace, partial(self.sample_exporter, exporter)) for exporter in self.exporters]
        self._stop.clear()
        for name, pace, sample in loops:
            thread = threading.Thread(target=self._loop, args=(pace, sample), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop sampling; what was sampled stays. Safe to call twice."""
        self._stop.set()
        for thread in self._threads:
            thread.join(STOP_S)
        self._threads.clear()
        self._open.close()
        self._pynvml = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def sees_server(self) -> bool:
        """Whether anything of the server is watched, and not the host alone."""
        return bool(self.devices) or self._fetch is not None

    def now(self) -> float:
        """Seconds on the clock that readings are stamped by."""
        return self._clock()

    def summary(self, start_s: float, end_s: float) -> TelemetrySummary:
        """The summary of a window on `clock`; its figures are None where nothing was sampled."""
        return summarise(
            start_s,
            end_s,
            devices=[(watched.device, watched.series, watched.link) for watched in self.devices],
            server=self.server,
            processes=[(watched.pid, watched.role, watched.series) for watched in self.processes.copy().values()],
            host=None if self.host is None else self.host.summary(start_s, end_s),
        )

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """Why a measurement in that window cannot be trusted; none if it can."""
        found: list[Problem] = []
        for watched in self.devices:
            found += health.device_problems(watched.device, watched.series, watched.link, start_s, end_s)
            seen = {
                s.pid: s.text
                for s in self.sightings.copy()
                if s.uuid == watched.device.uuid and start_s <= s.time_s <= end_s
            }
            found += [
                Problem(ProblemSource.HOST, ProblemKind.SHARED, f"a neighbour was on {watched.device.label}: {text}")
                for text in seen.values()
            ]
            probe = self._probes.get(watched.device.uuid)
            if probe is not None and probe.lost is not None:
                text = f"{watched.device.label} was lost: {probe.lost}"
                found.append(Problem(ProblemSource.GPU, ProblemKind.LOST, text))
            events = self._xids.get(watched.device.uuid)
            if events is not None:
                # What came at the end of the window counts, though no turn of the sampling has come since.
                events.look(self._clock())
                found += problems_of(watched.device.label, events.reports.copy(), start_s, end_s)
        for exporter in self.exporters:
            found += exporter.problems(start_s, end_s)
        return found if self.host is None else [*found, *self.host.problems(start_s, end_s)]

    def remarks(self) -> list[str]:
        """What weakens the evidence of the devices' figures, a sentence each."""
        unseen: dict[str, list[str]] = {}
        for events in self._xids.copy().values():
            if events.unseen:
                unseen.setdefault(events.unseen, []).append(events.device.label)
        said = [
            f"XID errors of {', '.join(labels)} could not be seen: NVML gives no events ({why})"
            for why, labels in unseen.items()
        ]
        return [*said, *(remark for exporter in self.exporters for remark in exporter.remarks())]

    def series(self, start_s: float = 0.0, end_s: float = float("inf"), points: int = 600) -> dict[str, Any]:
        """All series as plain lists, for reports: at most `points` rows each, every row a mean of readings."""
        return {
            "devices": {
                watched.device.uuid: {
                    **thinned(watched.series.window(start_s, end_s), points),
                    "link": thinned(watched.link.window(start_s, end_s), points),
                }
                for watched in self.devices
            },
            "server": thinned(self.server.window(start_s, end_s), points),
            "processes": {
                str(watched.pid): {"role": watched.role, **thinned(watched.series.window(start_s, end_s), points)}
                for watched in self.processes.copy().values()
            },
            "host": {} if self.host is None else thinned(self.host.series.window(start_s, end_s), points),
        }

    def sample_devices(self) -> None:
        """Read every device once now. Call it only while the threads do not run."""
        for watched in self.devices:
            probe = self._probes.get(watched.device.uuid)
            if probe is not None:
                now_s = self._clock()
                watched.series.append(now_s, probe.read(now_s))
                self._xids[watched.device.uuid].look(self._clock())

    def sample_server(self) -> None:
        """Read the server, its processes, the neighbours and one device's PCIe link once now; see `sample_devices`."""
        if self._clock() >= self._pids_due_s:
            self._ask_for_pids()
        self._sample_processes()
        self._sample_figures()
        if self._probes:
            self._sample_neighbours()
            self._sample_link()

    def sample_exporter(self, exporter: DcgmExporter) -> None:
        """Look at an exporter's page once now."""
        for uuid, (time_s, figures, link) in exporter.sample().items():
            watched = next(each for each in self.devices if each.device.uuid == uuid)
            watched.series.append(time_s, figures)
            watched.link.append(time_s, link)
        if exporter.fault:
            self.faults[exporter.page.url] = exporter.fault

    def sample_host(self) -> None:
        """Read the host once now."""
        if self.host is not None:
            self.host.server_pids = self._pids
            self.host.sample()

    def _loop(self, pace: ReadingPace, sample: Callable[[], None]) -> None:
        due = self._clock()
        while not self._stop.is_set():
            began = time.thread_time()
            try:
                sample()
            except Exception as error:  # noqa: BLE001 - one failed reading must not end the sampling; `faults` has it
                self.faults[getattr(sample, "__name__", "sample_exporter")] = f"{type(error).__name__}: {error}"
            period_s = pace.period_s(time.thread_time() - began)
            # After a late reading, the next one is due at the next full period.
            due += period_s * max(1, -(-(self._clock() - due) // period_s))
            self._stop.wait(max(0.0, due - self._clock()))

    def _ask_for_pids(self) -> None:
        """Ask which processes the server has. That is expensive: it reads all processes of the machine."""
        # The server's former processes stay in the set: the driver may still list a process that has ended.
        self._pids |= frozenset(self._server_pids())
        self._pids_due_s = self._clock() + PIDS_PERIOD_S

    def _sample_processes(self) -> None:
        for pid in self._pids - self._dead:
            try:
                probe = self._process_probes.get(pid) or self._process_probes.setdefault(pid, ProcessProbe(pid))
                values = probe.read()
            except psutil.Error:
                self._dead.add(pid)
                self._pids_due_s = self._clock()
                continue
            watched = self.processes.setdefault(pid, WatchedProcess(pid, probe.role, TimeSeries(PROCESS_FIELDS)))
            watched.role = probe.role
            watched.series.append(self._clock(), values)

    def _sample_figures(self) -> None:
        if self._fetch is None:
            return
        asked = self._clock()
        try:
            page = self._fetch()
        except Exception as error:  # noqa: BLE001 - whatever the caller's way of fetching raises
            self.faults["/metrics"] = f"{type(error).__name__}: {error}"
            return
        # The server wrote the page somewhere between question and answer.
        self.server.append((asked + self._clock()) / 2, astuple(read_metrics(page, self._names)))

    def _sample_neighbours(self) -> None:
        for watched in self.devices:
            uuid = watched.device.uuid
            probe = self._probes.get(uuid)
            if probe is None:
                continue
            try:
                listed = [GpuProcess(*process) for process in process_list(self._pynvml, probe.handle)]
            except Exception as error:  # noqa: BLE001 - not told, or a broken binding
                self.faults[f"processes of {watched.device.label}"] = str(error)
                continue
            strangers = self._neighbours[uuid].strangers(listed, self._pids)
            if strangers:  # possibly a process that the server has started since the last time
                self._ask_for_pids()
                strangers = self._neighbours[uuid].strangers(listed, self._pids)
            now = self._clock()
            self.sightings += [Sighting(now, uuid, stranger.pid, stranger.describe()) for stranger in strangers]

    def _sample_link(self) -> None:
        """Read one device's link per turn: NVML counts PCIe traffic for 20 ms per direction before it answers."""
        self._turn += 1
        watched = self.devices[self._turn % len(self._leased)]
        probe = self._probes.get(watched.device.uuid)
        if probe is not None:
            watched.link.append(self._clock(), (*probe.pcie_bytes_per_s(), probe.ecc_errors()))
