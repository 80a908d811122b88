"""The part of the Ray launcher that runs on a node: it starts the server there, watches it and ends it.

One `ReplicaOnNode` runs in one worker process of Ray. The server belongs to that process, as a server on this machine
belongs to pytest: a watchdog (`engines/watchdog.py`) ends it when the process ends, in whatever way.

Calls come in several threads at once. They return plain values, never errors of ours: an error with a constructor of
its own does not survive pickling.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.process import alive, held_until_gone
from pytest_gpucap.engines.protocol import Capabilities, Engine, MetricNames, Server
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.fleet.ray_library import ray_module
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.inventory import WrongGpuClass, devices_of_class, take_inventory
from pytest_gpucap.gpu.lease import Lease, lease
from pytest_gpucap.gpu.occupancy import IdleMemory, wait_memory_returned
from pytest_gpucap.masking import masked
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.telemetry import TelemetrySummary

if TYPE_CHECKING:
    from pytest_gpucap.telemetry.sampler import Telemetry

MARK_VARIABLE: Final = "GPUCAP_REPLICA_ID"
"""In the environment of every process of one replica's server, so that a sweep finds those that are left."""
MEMORY_RETURN_S: Final = 60.0
LEASE_WAIT_S: Final = 60.0
"""Ray has given the GPU away before its former user's memory is free, which takes a moment."""
ABANDONED_S: Final = 15.0
"""The watchdog of a worker that was killed ends its server within seven seconds."""


class _Abandoned(Exception):  # noqa: N818 - no error: the driver wants no server any more
    """The start is to be given up."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Where a replica is.

    Attributes:
        node_id: Ray's id of the node.
        name: its host name.
        address: its IP address in the cluster.
    """

    node_id: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Started:
    """A server that is ready on its node.

    Attributes:
        base_url: where it answers.
        model: the name that requests must carry.
        software: its name in reports.
        startup_s: seconds from start to ready.
        devices: what it has of the node, a line each.
    """

    base_url: str
    model: str
    software: str
    startup_s: float
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A server that did not start.

    Attributes:
        cause: one line.
        log_tail: the last lines of its log.
        known_as: the name of the cause, as `ServerStartError` has it.
    """

    cause: str
    log_tail: str = ""
    known_as: str = ""


@dataclass(frozen=True, slots=True)
class LogPart:
    """Whole lines of a log, secrets masked.

    Attributes:
        text: the lines.
        until: bytes of the log up to their end.
        left_out: bytes before them that were too many.
    """

    text: str
    until: int
    left_out: int = 0


class ReplicaOnNode:
    """One replica's server on this node.

    Args:
        mark: of all its processes.
        env: variables for the server, laid over this node's.
    """

    def __init__(self, mark: str, env: Mapping[str, str]) -> None:
        _forget_ray_settings()
        os.environ.update({**env, MARK_VARIABLE: mark})
        self._folder = folder_of(mark)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server: Server | None = None
        self._lease: Lease | None = None
        self._telemetry: Telemetry | None = None
        self._pids: set[int] = set()
        self._news = ""
        self._abandoned = threading.Event()
        self._busy = threading.Lock()
        """Held while the server is started or ended."""

    def where(self) -> NodeFacts:
        """Where this is."""
        ray = ray_module()
        return NodeFacts(ray.get_runtime_context().get_node_id(), socket.gethostname(), ray.util.get_node_ip_address())

    def pid(self) -> int:
        """The worker process that owns the server."""
        return os.getpid()

    def now(self) -> float:
        """This node's `time.monotonic`."""
        return time.monotonic()

    def start(
        self,
        kind: type[Engine],
        request: Any,
        gpus: int,
        gpu_class: GpuClass | None,
        *,
        spans_nodes: bool,
        idle: IdleMemory | None = None,
    ) -> Started | Failed:
        """Start the server and wait until it answers.

        Args:
            kind: the engine's class.
            request: its `ServerRequest`, whose identity has this node's address.
            gpus: that the replica has of Ray.
            gpu_class: that they must be of; None: any.
            spans_nodes: vLLM's own executor takes the GPUs.
            idle: memory that a GPU may have in use and still count as free.
        """
        with self._busy:
            try:
                if self._abandoned.is_set():
                    raise _Abandoned  # noqa: TRY301 - one way out for every reason
                devices, told = self._take(gpus, gpu_class, idle, spans_nodes=spans_nodes)
                began = time.monotonic()
                _forget_ray_settings()  # Ray 2.40 sets them again at every call
                engine = kind(replace(request, log_dir=self._folder, python=_python(request.python)))
                with held_until_gone(() if self._lease is None else self._lease.descriptors):
                    self._server = engine.start(devices, self._hear)
                startup_s = time.monotonic() - began
            except ServerStartError as error:
                self._give_back()
                return Failed(error.cause, masked(error.log_tail), error.known_as)
            except _Abandoned:
                self._give_back()
                return Failed("it was given up")
            except Exception as error:  # noqa: BLE001 - an engine of a plugin may raise anything
                self._give_back()
                return Failed(_line_of(error))
            self._pids = self._server.pids()
            software = str(getattr(self._server, "software", ""))
            return Started(self._server.base_url, self._server.model, software, startup_s, told)

    def news(self) -> str:
        """What the start waits for; empty if it has not said so."""
        return self._news

    def ended(self) -> str:
        """Why the server can no longer answer, in one line; empty while it can, or before it could."""
        asked = getattr(self._server, "ended", None)
        return "" if asked is None else masked(asked())

    def capabilities(self) -> Capabilities:
        """The server's capabilities, as seen from its own machine."""
        return self._ready.capabilities()

    def facts(self) -> dict[str, object]:
        """What a report names of the server."""
        return dict(self._ready.facts())

    def read_log(self, since: int, most: int) -> LogPart:
        """The log's whole lines from byte `since` on; only the last `most` bytes of what there is."""
        return log_part(self._folder, since, most)

    def begin_telemetry(self, names: MetricNames, host: str) -> None:
        """Sample the leased devices, the server's processes and figures, and the host. Safe to call twice.

        Args:
            names: of the figures on the server's ``/metrics``.
            host: ``error`` or ``warn``: whether a disturbed host makes a window invalid; ``off``: it is not watched.
        """
        from pytest_gpucap.telemetry.host_watch import HostWatch
        from pytest_gpucap.telemetry.sampler import Telemetry

        if self._telemetry is not None:
            return
        server = self._ready
        watch = None if host == "off" else HostWatch(server.base_url, strict=host == "error")
        held = self._lease
        fetch = None if names == MetricNames() else lambda: server.request("/metrics")
        self._telemetry = Telemetry(
            () if held is None else held.devices,
            server.pids,
            fetch,
            names=names,
            tolerated=() if held is None else held.tolerated,
            host=watch,
        )
        self._telemetry.start()

    def end_telemetry(self) -> None:
        """Stop sampling; what was sampled stays."""
        if self._telemetry is not None:
            self._telemetry.stop()

    def summary(self, start_s: float, end_s: float) -> TelemetrySummary:
        """See `Telemetry.summary`, on this node's clock."""
        return self._watched.summary(start_s, end_s)

    def series(self, start_s: float, end_s: float, points: int) -> dict[str, Any]:
        """See `Telemetry.series`, on this node's clock."""
        return self._watched.series(start_s, end_s, points)

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """See `Telemetry.problems`, on this node's clock."""
        return self._watched.problems(start_s, end_s)

    def faults(self) -> dict[str, str]:
        """What could not be sampled, and the last reason."""
        return {} if self._telemetry is None else dict(self._telemetry.faults)

    def remarks(self) -> list[str]:
        """See `Telemetry.remarks`."""
        return [] if self._telemetry is None else self._telemetry.remarks()

    def close(self) -> str:
        """End the server; returns when its processes are gone. What could not be ended, in one line; else empty."""
        self._abandoned.set()
        with self._busy:
            self.end_telemetry()
            try:
                self._give_back()
            except GpuCapError as error:
                return _line_of(error)
            return ""

    @property
    def _ready(self) -> Server:
        assert self._server is not None  # noqa: S101 - the driver asks once `start` has returned
        return self._server

    @property
    def _watched(self) -> Telemetry:
        assert self._telemetry is not None  # noqa: S101 - the driver asks once `begin_telemetry` has returned
        return self._telemetry

    def _hear(self, line: str) -> None:
        self._news = line
        if self._abandoned.is_set():
            raise _Abandoned

    def _take(
        self, gpus: int, gpu_class: GpuClass | None, idle: IdleMemory | None, *, spans_nodes: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Entries of ``CUDA_VISIBLE_DEVICES`` for the server, and what they are.

        Ray's word on which GPUs these are is checked by NVML: its labels are coarse, and anyone may set them. Ray does
        not know who else uses a GPU, so it is leased as for a server on this machine.
        """
        if not gpus:
            return (), ()
        # Ray counts GPUs in the order of NVML, and so does the server that is started.
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        entries = tuple(filter(None, (given or "").split(",")))
        if spans_nodes:  # vLLM becomes a driver of the same cluster
            os.environ["RAY_ADDRESS"] = ray_module().get_runtime_context().gcs_address
        found = take_inventory(order if spans_nodes or given is None else {**order, "CUDA_VISIBLE_DEVICES": given})
        if not found.devices and not found.hidden:  # no NVML here, so Ray's word is all there is
            return entries, tuple(f"GPU {entry}, as Ray says" for entry in entries)
        if spans_nodes:  # vLLM's executor chooses among all of them
            chosen = found.devices if gpu_class is None else devices_of_class(found, gpu_class)
            return tuple(str(device.index) for device in chosen), tuple(found.describe(chosen))
        devices = found.devices if gpu_class is None else devices_of_class(found, gpu_class)
        if len(devices) < gpus:
            raise WrongGpuClass(f"Ray gave {gpus} GPUs, and {len(devices)} of them are of the class")
        self._lease = lease(devices, gpus, wait_s=LEASE_WAIT_S, idle=idle, on_wait=self._hear)
        return self._lease.cuda_devices, tuple(found.describe(self._lease.devices))

    def _give_back(self) -> None:
        """End the server, then give its devices back."""
        server, self._server = self._server, None
        held, self._lease = self._lease, None
        try:
            if server is not None:
                pids = self._pids | server.pids()
                server.close()
                if held is not None and held.devices:
                    wait_memory_returned(held.devices, held.baseline, pids, MEMORY_RETURN_S)
        finally:
            if held is not None:
                held.release()


_OF_RAY: Final = ("OMP_NUM_THREADS",)


def _forget_ray_settings() -> None:
    """Undo what Ray sets in a worker's environment and a server would inherit.

    Ray sets ``OMP_NUM_THREADS`` to the CPUs of the actor, so a server would compute on one core. What the node's own
    environment says stays: only what this process's first environment lacks is removed.
    """
    first = Path("/proc/self/environ").read_bytes().split(b"\0")
    for name in _OF_RAY:
        if not any(each.startswith(f"{name}=".encode()) for each in first):
            os.environ.pop(name, None)


def folder_of(mark: str) -> Path:
    """The folder of a replica's files on its node."""
    return Path(tempfile.gettempdir()) / f"gpucap-ray-{mark}"


def clean_up(mark: str, since: int, most: int) -> tuple[list[int], LogPart]:
    """What is left of a replica when its worker has ended: wait for its processes to end, and kill those that do not.

    Returns:
        The processes that live on nevertheless, and the end of the log. The replica's folder is removed.
    """
    patient_until = time.monotonic() + ABANDONED_S
    stubborn_until = patient_until + ABANDONED_S
    while (left := _marked(mark)) and time.monotonic() < stubborn_until:
        if time.monotonic() > patient_until:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        psutil.wait_procs(left, timeout=0.2)
    last = log_part(folder_of(mark), since, most, final=True)
    shutil.rmtree(folder_of(mark), ignore_errors=True)
    return [process.pid for process in left], last


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if alive(process) and process.environ().get(MARK_VARIABLE) == mark:
                found.append(process)
    return found


def log_part(folder: Path, since: int, most: int, *, final: bool = False) -> LogPart:
    """The newest log's whole lines from byte `since` on; only the last `most` bytes of what there is.

    Args:
        folder: of the log.
        since: bytes that are known.
        most: bytes to return.
        final: a last line that has no end is one too.
    """
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return LogPart("", since)
    with logs[-1].open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = max(since, size - most)
        file.seek(begin)
        data = file.read(most)
    if begin > since:  # in the middle of a line
        first = data.find(b"\n") + 1
        begin, data = begin + first, data[first:]
    # Only whole lines: a secret could lie across two parts. A line that fills a whole part is no line.
    if not final and len(data) < most:
        data = data[: data.rfind(b"\n") + 1]
    return LogPart(masked(data.decode("utf-8", "replace")), begin + len(data), max(0, begin - since))


def _python(asked: str) -> str:
    """The interpreter of the server: that of this worker, where the driver's own was meant."""
    return asked or sys.executable


def _line_of(error: BaseException) -> str:
    text = masked(str(error)).strip().splitlines()
    return text[0] if text else type(error).__name__
