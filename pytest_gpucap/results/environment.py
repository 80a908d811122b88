"""The environment of a measurement: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class DeviceState(msgspec.Struct, frozen=True):
    """Settings and state of one GPU or MIG slice before a measurement. None for what NVML does not report.

    Attributes:
        compute_capability: such as ``9.0``.
        mig_mode: True if the GPU is split into slices; None if the GPU has no MIG.
        mig_profile: such as ``1g.5gb``, for a slice.
        sm_clock_mhz, memory_clock_mhz: at that time; an idle GPU clocks down.
        max_sm_clock_mhz, max_memory_clock_mhz: the highest that it can be set to.
        power_limit_w, default_power_limit_w: as set, and the board's default.
        ecc_errors: uncorrected memory errors since the driver was loaded.
        unreadable: field name -> reason.
    """

    index: int = 0
    uuid: str = ""
    name: str = ""
    mig_profile: str | None = None
    mig_mode: bool | None = None
    memory_bytes: int | None = None
    compute_capability: str | None = None
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    temperature_c: int | None = None
    ecc_mode: bool | None = None
    ecc_errors: int | None = None
    persistence: bool | None = None
    unreadable: Mapping[str, str] = msgspec.field(default_factory=dict)


class Environment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The environment of a measurement. Unknown fields are left out of the file.

    Attributes:
        gpu: in one line; ``SIMULATED (PROFILE)`` for a simulator.
        gpu_class: such as ``h200``, ``cpu`` or ``sim:PROFILE``.
        gpu_remarks: what is unusual about the devices, a line each.
        profile: where a simulated server's profile comes from.
        problems: what could not be read from the GPUs.
        clocks: in one line.
        server: name and version of the server, or its URL if it reports none.
        engine: that started the server, as markers name it; None in early files, of a simulation and behind a URL.
        not_told: evidence that the engine does not give, so that nothing in the result rests on it.
        server_args: the arguments that the test gave the server, by name with underscores.
        quantization, dtype: of the weights, as the server reports them; unset if it does not.
        command: the command line that started the server.
        log: path of the server's log.
        replicas: of a fleet, as started.
        router: what spread the requests over them, and its policy.
        nodes: of a cluster, on which the replicas stood.
        url: of a server that was running already.
        max_num_seqs: requests that the server runs at once, at most.
        kv_tokens: tokens that fit the server's KV cache.
        startup_s: seconds from the start of the server's process until its first whole answer, whichever test started
            it; of a fleet, those of its slowest replica. None where somebody else or an earlier run started it.
        start: ``cold`` where the server's start compiled anything, ``warm`` where it found all that earlier starts had
            compiled; None where its log tells of neither, and where this run saw no start.
        reused: an earlier run started the server and kept it for this one.
        front_ends: processes of the server that take requests, as seen.
        host: processor, cores and system.
        plugin: versions of this plugin and of Python.
        remarks: what is odd about the server, a sentence each, and leaves the measurement valid.
    """

    gpu: str | None = None
    gpu_class: str | None = None
    profile: str | None = None
    gpu_remarks: tuple[str, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    devices: tuple[DeviceState, ...] = ()
    problems: tuple[str, ...] = ()
    clocks: str | None = None
    server: str | None = None
    engine: str | None = None
    not_told: tuple[str, ...] = ()
    model: str | None = None
    server_args: Mapping[str, Any] | None = None
    quantization: str | msgspec.UnsetType | None = msgspec.UNSET
    dtype: str | msgspec.UnsetType | None = msgspec.UNSET
    command: str | None = None
    log: str | None = None
    replicas: int | None = None
    router: str | None = None
    nodes: str | None = None
    url: str | None = None
    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    startup_s: float | None = None
    start: Literal["cold", "warm"] | None = None
    reused: bool = False
    front_ends: int | None = None
    host: str | None = None
    plugin: str | None = None
    remarks: tuple[str, ...] = ()
