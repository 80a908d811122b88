"""Names and units of what DCGM's exporter shows of a GPU, in all its versions.

Up to exporter 4.8 a field had its unit in its help text: ``DCGM_FI_DEV_SM_CLOCK`` in MHz. Exporter 4.9 shows DCGM 4.7's
fields of other names in base units: ``DCGM_FI_DEV_SM_CLOCK_HERTZ``. A file of counters of one's own decides which are
on a page, so both are looked for, whatever the version. Sources: ``etc/default-counters.csv`` of
https://github.com/NVIDIA/dcgm-exporter, ``base_unit_fields_test.go`` of https://github.com/NVIDIA/go-dcgm, and
https://docs.nvidia.com/datacenter/dcgm/latest/reference/field-identifiers.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_MIB: Final = 2**20
_MOST_BYTES: Final = 1e15
_MHZ: Final = 1e-6
"""Of one hertz."""

GAUGES: Final[Mapping[str, tuple[tuple[str, float, float], ...]]] = {
    "gpu_use": (
        ("DCGM_FI_DEV_GPU_UTIL", 0.01, 100.0),
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", 1.0, 1.0),
        ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0, 1.0),
        ("DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", 1.0, 1.0),
    ),
    "memory_use": (
        ("DCGM_FI_DEV_MEM_COPY_UTIL", 0.01, 100.0),
        ("DCGM_FI_DEV_MEMORY_UTIL_RATIO", 1.0, 1.0),
        ("DCGM_FI_PROF_DRAM_ACTIVE", 1.0, 1.0),
        ("DCGM_FI_PROF_DRAM_UTIL_RATIO", 1.0, 1.0),
    ),
    "power_w": (("DCGM_FI_DEV_POWER_USAGE", 1.0, 1e5), ("DCGM_FI_DEV_BOARD_POWER_WATTS", 1.0, 1e5)),
    "sm_clock_mhz": (("DCGM_FI_DEV_SM_CLOCK", 1.0, 1e5), ("DCGM_FI_DEV_SM_CLOCK_HERTZ", _MHZ, 1e11)),
    "reasons": (
        ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", 1.0, 2.0**16),
        ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", 1.0, 2.0**16),
    ),
    "memory_bytes": (("DCGM_FI_DEV_FB_USED", _MIB, 1e9), ("DCGM_FI_DEV_FB_USED_BYTES", 1.0, _MOST_BYTES)),
    "memory_clock_mhz": (("DCGM_FI_DEV_MEM_CLOCK", 1.0, 1e5), ("DCGM_FI_DEV_MEMORY_CLOCK_HERTZ", _MHZ, 1e11)),
    "temperature_c": (("DCGM_FI_DEV_GPU_TEMP", 1.0, 1e3), ("DCGM_FI_DEV_GPU_TEMP_CELSIUS", 1.0, 1e3)),
    "energy_j": (
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3, 9e18),
        ("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", 1.0, 9e15),
    ),
    "pcie_sent_bytes_per_s": (("DCGM_FI_PROF_PCIE_TX_BYTES", 1.0, 1e13),),
    "pcie_received_bytes_per_s": (("DCGM_FI_PROF_PCIE_RX_BYTES", 1.0, 1e13),),
    "ecc_errors": (("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", 1.0, 1e9),),
    "memory_total_bytes": (("DCGM_FI_DEV_FB_TOTAL", _MIB, 1e9), ("DCGM_FI_DEV_FB_CAPACITY_BYTES", 1.0, _MOST_BYTES)),
    "memory_free_bytes": (("DCGM_FI_DEV_FB_FREE", _MIB, 1e9), ("DCGM_FI_DEV_FB_FREE_BYTES", 1.0, _MOST_BYTES)),
    "memory_reserved_bytes": (
        ("DCGM_FI_DEV_FB_RESERVED", _MIB, 1e9),
        ("DCGM_FI_DEV_FB_RESERVED_BYTES", 1.0, _MOST_BYTES),
    ),
    "max_sm_clock_mhz": (("DCGM_FI_DEV_MAX_SM_CLOCK", 1.0, 1e5), ("DCGM_FI_DEV_SM_MAX_CLOCK_HERTZ", _MHZ, 1e11)),
    "max_memory_clock_mhz": (
        ("DCGM_FI_DEV_MAX_MEM_CLOCK", 1.0, 1e5),
        ("DCGM_FI_DEV_MEMORY_MAX_CLOCK_HERTZ", _MHZ, 1e11),
    ),
    "power_limit_w": (
        ("DCGM_FI_DEV_POWER_MGMT_LIMIT", 1.0, 1e5),
        ("DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS", 1.0, 1e5),
    ),
    "default_power_limit_w": (
        ("DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF", 1.0, 1e5),
        ("DCGM_FI_DEV_BOARD_POWER_LIMIT_DEFAULT_WATTS", 1.0, 1e5),
    ),
}
"""Figure -> the fields that give it, best first, each with its factor to our unit and its highest value.

What DCGM does not know it gives as a number beyond all others: 2**31 - 16, 2**47 or 2**63 - 16, and up.
"""
UUID: Final = ("UUID", "uuid", "gpu_uuid")
MODEL: Final = ("modelName", "model_name")
HOST: Final = ("Hostname", "hostname")
"""Exporter 4.8.3 renamed it."""
DRIVER: Final = ("DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION")
"""Exporter 4.9 renamed it."""


def label(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The value of a label that has several spellings; empty where no line has it."""
    return next(filter(None, (labels.get(name) for name in names)), "")
