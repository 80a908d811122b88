"""One reading of a device, of the server's ``/metrics`` page, or of one of its processes, at little cost.

A vLLM metrics page is mostly histograms. A parser that builds an object for every line of it takes most of the CPU time
that telemetry may use (`benchmarks/telemetry.py` measures both). So only the lines of the wanted names are looked at.
They are found by search: their order and whatever else is on the page do not matter.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

import psutil

from pytest_gpucap.engines.protocol import MetricNames
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.nvml import handle_of, memory_used

DEVICE_FIELDS = (
    "gpu_use",  # share of the last sampling period in which a kernel ran, 0 to 1
    "memory_use",  # share of it in which device memory was read or written, 0 to 1
    "power_w",
    "sm_clock_mhz",
    "reasons",  # NVML's bit mask of why clocks are below their maximum
    "memory_bytes",
    "memory_clock_mhz",
    "temperature_c",
    "energy_j",  # since the driver was loaded
)
SLOW_FROM = 4
"""Position of the first question whose answer changes slowly or is a counter; such questions are asked less often."""
SLOW_PERIOD_S = 1.0
CLOSE_S = 0.01
"""A slow reading that is due within this time is taken now, not in the next turn."""


class DeviceProbe:
    """Reads one device. A field that the device does not support is asked for once; other failures give NaN.

    Power, energy, clocks, temperature and clock reasons of a MIG slice are those of its whole GPU.
    """

    def __init__(self, pynvml: Any, device: Device) -> None:
        self.device = device
        self.lost: str | None = None
        """Why the device is gone, once it is."""
        self._pynvml = pynvml
        own = handle_of(pynvml, device.uuid)
        board = handle_of(pynvml, device.parent_uuid) if device.parent_uuid else own
        self.handle, self.board = own, board
        self._hopeless = {
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_NO_PERMISSION,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_INVALID_ARGUMENT,
        }
        clock, temperature = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetTemperature
        sm, memory, core = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU
        # In the order of DEVICE_FIELDS; the first question answers two of them.
        self._questions: list[Callable[[], tuple[float, ...]] | None] = [
            lambda: _two(pynvml.nvmlDeviceGetUtilizationRates(own)),
            lambda: (pynvml.nvmlDeviceGetPowerUsage(board) / 1000,),
            lambda: (float(clock(board, sm)),),
            lambda: (float(_reasons(pynvml, board)),),
            lambda: (float(memory_used(pynvml, own)[0]),),
            lambda: (float(clock(board, memory)),),
            lambda: (float(temperature(board, core)),),
            lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1000,),
        ]
        self._slow_due_s = -math.inf

    def read(self, now_s: float) -> list[float]:
        """Values in the order of `DEVICE_FIELDS`; NaN for slow fields that are not due yet."""
        slow = now_s >= self._slow_due_s
        if slow:
            self._slow_due_s = now_s + SLOW_PERIOD_S - CLOSE_S
        values: list[float] = []
        for position, question in enumerate(self._questions):
            asked = question if slow or position < SLOW_FROM else None
            answer = self._ask(position, asked)
            values.extend(answer if answer is not None else ((nan, nan) if position == 0 else (nan,)))
        return values

    def pcie_bytes_per_s(self) -> tuple[float, float]:
        """(sent, received) by the GPU over PCIe. NVML counts for 20 ms each, and the call takes as long."""
        pynvml = self._pynvml
        try:
            sent = pynvml.nvmlDeviceGetPcieThroughput(self.board, pynvml.NVML_PCIE_UTIL_TX_BYTES)
            received = pynvml.nvmlDeviceGetPcieThroughput(self.board, pynvml.NVML_PCIE_UTIL_RX_BYTES)
            return sent * 1024.0, received * 1024.0
        except Exception:  # noqa: BLE001 - not told, or an answer of a wrong type from a broken binding
            return nan, nan

    def ecc_errors(self) -> float:
        """Uncorrected memory errors since the driver was loaded; NaN where NVML does not tell."""
        pynvml = self._pynvml
        kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        try:
            return float(pynvml.nvmlDeviceGetTotalEccErrors(self.board, kind, since))
        except Exception:  # noqa: BLE001 - see `pcie_bytes_per_s`
            return nan

    def _ask(self, position: int, question: Callable[[], tuple[float, ...]] | None) -> tuple[float, ...] | None:
        if question is None:
            return None
        try:
            return question()
        except self._pynvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code in self._hopeless:
                self._questions[position] = None
            elif code == self._pynvml.NVML_ERROR_GPU_IS_LOST:
                self.lost = str(error)
        except Exception:  # noqa: BLE001 - a broken binding answers no better the next time
            self._questions[position] = None
        return None


def _reasons(pynvml: Any, handle: Any) -> int:
    """The bit mask of why clocks are below their maximum. Drivers before R535 have it under another name."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _two(rates: Any) -> tuple[float, float]:
    return rates.gpu / 100, rates.memory / 100


_GAUGES = {"running", "waiting", "kv_use"}
"""State of an engine, which each of its front ends shows as it last heard of it; the other figures are counters."""
_MEAN = {"kv_use"}
"""A share; the others add up over engines."""
_PROCESS_LABELS = {
    *("pid", "process", "process_id", "api_server", "api_server_id", "api_server_rank", "client_index"),
    *("tp_rank", "pp_rank", "rank", "local_rank", "worker"),
}
"""Labels that tell apart processes of one engine: its front ends (``pid`` is prometheus_client's) and its ranks."""
_PART = "priority"
"""Of a gauge that has this label, SGLang shows the whole with an empty value, and each priority's part beside it."""
_LABEL = re.compile(r'(?<!\w)(\w++)\s*+=\s*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"')


@dataclass(frozen=True, slots=True)
class ServerReading:
    """One reading of the server's metrics; NaN where it has none. Sums over its engines, except for the mean KV use.

    Several front ends may show one engine, each with what it last heard of it, or with 0. Of a gauge the highest of
    these counts; counters add up, because each front end counts its own requests.

    Attributes:
        running, waiting: requests being decoded, and queued inside the server.
        kv_use: share of the KV cache in use, 0 to 1.
        preemptions, prompt_tokens, output_tokens, prefix_queries, prefix_hits: counters since the server started;
            the last two in tokens.
        draft_tokens, accepted_tokens: counters of speculative decoding.
    """

    running: float = nan
    waiting: float = nan
    kv_use: float = nan
    preemptions: float = nan
    prompt_tokens: float = nan
    output_tokens: float = nan
    prefix_queries: float = nan
    prefix_hits: float = nan
    draft_tokens: float = nan
    accepted_tokens: float = nan


_READ = tuple(field.name for field in fields(ServerReading))


def read_metrics(page: str, names: MetricNames) -> ServerReading:
    """The figures of one page in the Prometheus text format, by the engine's names. Malformed lines are ignored."""
    text = "\n" + page
    return ServerReading(**{field: _figure(text, field, getattr(names, field)) for field in _READ})


def _figure(text: str, field: str, names: tuple[str, ...]) -> float:
    for name in names:
        found = values_named(text, name)
        if found:
            values = _of_engines(found) if field in _GAUGES else [value for _, value in found]
            return sum(values) / len(values) if field in _MEAN else sum(values)
    return nan


def _of_engines(found: list[tuple[str, float]]) -> list[float]:
    """A gauge of each engine: the highest that its processes show. The other labels tell engines apart."""
    if len(found) == 1:
        return [found[0][1]]
    engines: dict[frozenset[tuple[str, str]], float] = {}
    for labels, value in found:
        engine = frozenset(pair for pair in _LABEL.findall(labels) if pair[0] not in _PROCESS_LABELS)
        engines[engine] = max(engines.get(engine, value), value)
    wholes = {engine for engine in engines if (_PART, "") in engine}
    return [value for engine, value in engines.items() if engine in wholes or not _is_part(engine, wholes)]


def _is_part(engine: frozenset[tuple[str, str]], wholes: set[frozenset[tuple[str, str]]]) -> bool:
    """Whether this is one priority's part of a whole that is shown too."""
    return frozenset(pair for pair in engine if pair[0] != _PART) | {(_PART, "")} in wholes


def labels_of(text: str) -> dict[str, str]:
    """Labels by name, from their text on a line: ``{gpu="0",UUID="GPU-1"}``."""
    return {name: _ESCAPED.sub(_unescaped, value) for name, value in _LABEL.findall(text)}


_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def values_named(text: str, name: str) -> list[tuple[str, float]]:
    """(labels, value) of all lines ``name{labels} value [timestamp]`` with exactly this name; none that is NaN."""
    values = []
    start = f"\n{name}"
    at = text.find(start)
    while at >= 0:
        end = text.find("\n", at + 1)
        line = text[at + len(start) : end if end >= 0 else None]
        labels = ""
        if line[:1] == "{":
            # A label's value may hold any character but an unescaped quote, so the last "}" closes the labels.
            close = line.rfind("}") + 1
            labels, line = line[:close], line[close:]
        elif line[:1] not in {" ", "\t"}:
            line = ""  # a longer name
        with suppress(IndexError, ValueError):
            value = float(line.split()[0])
            if not math.isnan(value):
                values.append((labels, value))
        at = text.find(start, at + 1)
    return values


ENGINE, WORKER, API_SERVER, HELPER = "engine", "worker", "API server", "helper"
PROCESS_FIELDS = ("cpu_s", "main_thread_s")
MAX_LOOKS = 20


class ProcessProbe:
    """Reads the CPU time of one process of the server.

    The main thread is read separately, because it is the one that can be the limit: an engine schedules on one thread,
    and an API server answers on one, however many others the process has.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)
        self._stat = Path(f"/proc/{pid}/task/{pid}/stat")
        self._looks = 0
        self.role = role_of(self._process)

    def read(self) -> tuple[float, float]:
        """Values in the order of `PROCESS_FIELDS`, in seconds of CPU time since the process started.

        Raises:
            psutil.Error: if the process has ended.
        """
        if self.role == HELPER and self._looks < MAX_LOOKS:  # a process sets its title some time after its start
            self._looks += 1
            self.role = role_of(self._process)
        times = self._process.cpu_times()
        return times.user + times.system, self._main_thread_s()

    def _main_thread_s(self) -> float:
        if not sys.platform.startswith("linux"):
            return nan
        try:
            # The name in parentheses may hold anything; fields 14 and 15 are user and system time (proc(5)).
            fields = self._stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            return nan
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def role_of(process: psutil.Process) -> str:
    """The role of a process of a vLLM server, by the title that it sets or its command line."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return HELPER
    if "EngineCore" in title:
        return ENGINE
    if re.search(r"\bVLLM::Worker|\bWorker_", title):
        return WORKER
    if re.search(r"APIServer|api_server|\bvllm serve\b|/vllm_serve\.py\b", title):
        return API_SERVER
    return HELPER
