"""What the devices and the server showed during a measurement, and what held the server back."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from pytest_gpucap.results.problems import Problem


class DeviceSummary(msgspec.Struct, frozen=True):
    """One device over a window. None for what the device does not report.

    Attributes:
        readings: number of readings.
        gpu_use: share of the time in which a kernel ran, however much of the GPU it used.
        memory_use: share of the time in which device memory was read or written.
        memory_bytes: maximum in use.
        energy_j: from the board's counter; without a counter, from power over time. None for a MIG slice, whose
            share of the board's energy is unknown.
        slowdowns: share of the readings in which clocks were held back, by reason.
        pcie_sent_bytes_per_s, pcie_received_bytes_per_s: as the GPU sees it.
    """

    uuid: str
    name: str
    readings: int
    gpu_use: float | None = None
    memory_use: float | None = None
    memory_bytes: float | None = None
    power_w: float | None = None
    power_max_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: float | None = None
    sm_clock_min_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_max_c: float | None = None
    slowdowns: Mapping[str, float] = msgspec.field(default_factory=dict)
    pcie_sent_bytes_per_s: float | None = None
    pcie_received_bytes_per_s: float | None = None


class ServerSummary(msgspec.Struct, frozen=True):
    """The server's own figures over a window. None for what the server does not report.

    Attributes:
        running, waiting: requests, mean over the readings; `running_max` and `waiting_max` are the maxima.
        waiting_share: share of the readings with at least one request waiting.
        kv_use, kv_use_max: share of the KV cache.
        full_while_waiting: share of the readings in which requests waited while at least 95% of the KV cache was used.
        preemptions: how many in the window.
        prompt_tokens_per_s, output_tokens_per_s: rates.
        prefix_hit_rate: cached prompt tokens over all looked-up ones.
        prefix_queries, prefix_hits: those tokens.
        draft_tokens, accepted_tokens: of speculative decoding.
    """

    readings: int = 0
    running: float | None = None
    running_max: float | None = None
    waiting: float | None = None
    waiting_max: float | None = None
    waiting_share: float | None = None
    kv_use: float | None = None
    kv_use_max: float | None = None
    full_while_waiting: float | None = None
    preemptions: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    prefix_hit_rate: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    draft_tokens: float | None = None
    accepted_tokens: float | None = None


class ProcessSummary(msgspec.Struct, frozen=True):
    """One process of the server over a window: cores in use, of the whole process and of its main thread."""

    pid: int
    role: str
    cores: float
    main_thread: float | None


class OtherProcess(msgspec.Struct, frozen=True):
    """A process that is not part of the measurement, and the cores that it and its ended children used."""

    pid: int
    name: str
    cores: float

    def describe(self) -> str:
        """``pid 123 stress-ng 0.8``."""
        return f"pid {self.pid} {self.name} {cores_text(self.cores)}"


def cores_text(cores: float) -> str:
    """Cores in use with two significant figures, such as ``0.35``, ``1.1`` or ``112``."""
    return f"{cores:.2g}" if cores < 99.5 else f"{cores:.0f}"  # noqa: PLR2004 - three digits would need an exponent


class HostSummary(msgspec.Struct, frozen=True):
    """The host of the server and of the load generator over a window. None for what the kernel does not tell.

    Attributes:
        readings: number of readings.
        cores: that the measurement's processes may run on.
        busy_cores, idle_cores: of these, on average.
        own_cores: used by pytest, the load generator, the server and all that they started.
        other_cores: used by everything else; None if the server's processes cannot be told from others.
        unseen_cores: the part of `other_cores` by processes that cannot be seen, such as those outside a container.
        disturbing_cores: the part of `other_cores` that was used while no core was idle.
        others: the busiest other processes.
        stolen: share of the time in which this virtual machine wanted to run that the hypervisor gave to others.
        stolen_cores: the same in cores.
        quota_cores: the CPU quota of the measurement's control group.
        quota_other_cores: what others used of it.
        throttled: share of the quota's periods in which it was used up.
        throttled_cores: seconds of standing still, added up over cores, per second.
        waiting: share of the time in which at least one task waited for a core (PSI).
        memory_stalled: share of the time in which every task with work waited for memory (PSI).
        clock_mhz: of busy cores.
        base_clock_mhz: of the same cores, as they are sold.
        heated: share of the time in which heat held the processor back.
        disturbances: why the host was not itself while it was measured. They are among the problems of the result as
            well, unless they are to be remarks only.
    """

    readings: int
    cores: int
    busy_cores: float | None = None
    idle_cores: float | None = None
    own_cores: float | None = None
    other_cores: float | None = None
    unseen_cores: float | None = None
    disturbing_cores: float | None = None
    others: tuple[OtherProcess, ...] = ()
    stolen: float | None = None
    stolen_cores: float | None = None
    quota_cores: float | None = None
    quota_other_cores: float | None = None
    throttled: float | None = None
    throttled_cores: float | None = None
    waiting: float | None = None
    memory_stalled: float | None = None
    clock_mhz: float | None = None
    base_clock_mhz: float | None = None
    heated: float | None = None
    disturbances: tuple[Problem, ...] = ()


class TelemetrySummary(msgspec.Struct, frozen=True):
    """All telemetry of a window, in seconds of the machine's monotonic clock.

    Attributes:
        energy_j: of all devices; None if one of them does not report it.
        energy_per_1000_tokens_j: GPU energy for 1,000 output tokens, prompts included; None without both figures.
        slowdowns: the highest share of any device, by reason.
        host: None where it was not watched.
    """

    start_s: float
    end_s: float
    devices: tuple[DeviceSummary, ...] = ()
    server: ServerSummary = ServerSummary()
    processes: tuple[ProcessSummary, ...] = ()
    energy_j: float | None = None
    energy_per_1000_tokens_j: float | None = None
    slowdowns: Mapping[str, float] = msgspec.field(default_factory=dict)
    host: HostSummary | None = None


class TelemetryOverTime(msgspec.Struct, frozen=True):
    """Telemetry over a measurement in at most 300 bins of equal width.

    Attributes:
        t_s: middles of the bins, on the clock of the samples' `start_s`.
        columns: by name, each as long as `t_s`: means over each bin, None where nothing was read. Of several GPUs: mean
            utilisation, lowest SM clock, power and memory of all, highest temperature.
    """

    t_s: tuple[float, ...]
    columns: Mapping[str, tuple[float | None, ...]]


class BottleneckKind(StrEnum):
    """What can be the bottleneck."""

    CLIENT = "client"
    KV_CACHE = "KV cache"
    MAX_NUM_SEQS = "max_num_seqs"
    ENGINE_CPU = "engine CPU"
    API_SERVER_CPU = "API server CPU"
    GPU_BANDWIDTH = "GPU memory bandwidth"
    GPU_COMPUTE = "GPU compute"
    NETWORK = "network"
    ROUTER = "router"
    GATEWAY = "gateway"
    NONE = "none"
    """Nothing was at its limit."""
    UNKNOWN = "unknown"
    """There is too little telemetry."""


class Bottleneck(msgspec.Struct, frozen=True):
    """What held the server back.

    Attributes:
        kind: the main cause.
        evidence: the figures that show it, one clause each.
        advice: what to try, with the flag.
    """

    kind: BottleneckKind
    evidence: tuple[str, ...]
    advice: str

    def describe(self) -> str:
        """One line: the kind, the evidence, and what to try."""
        evidence = "; ".join(self.evidence)
        return f"{self.kind.value}: {evidence}" + (f"; try {self.advice}" if self.advice else "")
