"""What was measured on: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class DeviceState(msgspec.Struct, frozen=True):
    """One GPU or MIG slice before a measurement: its settings and state. None for what NVML does not tell.

    Attributes:
        compute_capability: such as ``9.0``.
        mig_mode: True if the GPU is split into slices; None where the GPU knows no MIG.
        mig_profile: such as ``1g.5gb``, for a slice.
        sm_clock_mhz, memory_clock_mhz: then; an idle GPU clocks down.
        max_sm_clock_mhz, max_memory_clock_mhz: the highest that it can be set to.
        power_limit_w, default_power_limit_w: as set, and as the board ships.
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
    """What a measurement was made on. What is not known is left out of the file.

    Attributes:
        gpu: in one line; ``SIMULATED (PROFILE)`` for a simulator.
        gpu_class: such as ``h200``, ``cpu`` or ``sim:PROFILE``.
        gpu_remarks: what is out of the ordinary about the devices, a line each.
        profile: where a simulated server's profile comes from.
        problems: what could not be learned of the GPUs.
        clocks: in one line.
        server: name and version of the server, or the URL of one that does not tell.
        server_args: the arguments that the test gave the server, by name with underscores.
        quantization, dtype: how the server says that it holds the weights; unset where it does not say.
        command: that started the server.
        log: path of the server's log.
        url: of a server that was running already.
        max_num_seqs: requests that the server runs at once, at most.
        kv_tokens: tokens that fit the server's KV cache.
        host: processor, cores and system.
        plugin: versions of this plugin and of Python.
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
    model: str | None = None
    server_args: Mapping[str, Any] | None = None
    quantization: str | msgspec.UnsetType | None = msgspec.UNSET
    dtype: str | msgspec.UnsetType | None = msgspec.UNSET
    command: str | None = None
    log: str | None = None
    url: str | None = None
    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    host: str | None = None
    plugin: str | None = None
