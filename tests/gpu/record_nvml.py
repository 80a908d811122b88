"""Record this machine's NVML answers in the form that the fake library takes: ``python record_nvml.py > machine.json``.

Only getters are called. Process ids and UUIDs are kept: they say nothing outside the machine.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

pynvml: Any = importlib.import_module("pynvml")  # has no type hints


def ask(question: Callable[..., Any], *args: Any) -> Any:
    """The answer, or the error in the form of the recordings."""
    try:
        return question(*args)
    except pynvml.NVMLError as error:
        return {"error": error.value}


def memory(handle: Any) -> Any:
    answer = ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
    if isinstance(answer, dict):
        return answer
    return {"total": answer.total, "used": answer.used, "reserved": answer.reserved}


def processes(handle: Any) -> Any:
    answer = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    if isinstance(answer, dict):
        return answer
    return [{"pid": p.pid} | ({} if p.usedGpuMemory is None else {"memory": p.usedGpuMemory}) for p in answer]


def attributes(handle: Any) -> Any:
    answer = ask(pynvml.nvmlDeviceGetAttributes, handle)
    if isinstance(answer, dict):
        return answer
    names = ("multiprocessorCount", "gpuInstanceSliceCount", "computeInstanceSliceCount", "memorySizeMB")
    return {name: getattr(answer, name) for name in names}


def first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, list) else answer


def device(handle: Any) -> dict[str, Any]:
    utilization = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    pci = ask(pynvml.nvmlDeviceGetPciInfo, handle)
    bus_id = pci if isinstance(pci, dict) else pci.busId
    answer: dict[str, Any] = {
        "name": ask(pynvml.nvmlDeviceGetName, handle),
        "uuid": ask(pynvml.nvmlDeviceGetUUID, handle),
        "pci": bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        "memory": memory(handle),
        "compute_capability": list(ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)),
        "mig": first(ask(pynvml.nvmlDeviceGetMigMode, handle)),
        "clocks": {
            "sm": ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "memory": ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        },
        "max_clocks": {
            "sm": ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "memory": ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        },
        "power": ask(pynvml.nvmlDeviceGetPowerUsage, handle),
        "power_limit": ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
        "default_power_limit": ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle),
        "energy": ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle),
        "temperature": ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "ecc": {
            "mode": first(ask(pynvml.nvmlDeviceGetEccMode, handle)),
            "uncorrected": ask(
                pynvml.nvmlDeviceGetTotalEccErrors,
                handle,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
        },
        "persistence": ask(pynvml.nvmlDeviceGetPersistenceMode, handle),
        "utilization": utilization
        if isinstance(utilization, dict)
        else {"gpu": utilization.gpu, "memory": utilization.memory},
        "clock_reasons": ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
        "event_types": ask(pynvml.nvmlDeviceGetSupportedEventTypes, handle),
        "pcie": {
            "tx": ask(pynvml.nvmlDeviceGetPcieThroughput, handle, pynvml.NVML_PCIE_UTIL_TX_BYTES),
            "rx": ask(pynvml.nvmlDeviceGetPcieThroughput, handle, pynvml.NVML_PCIE_UTIL_RX_BYTES),
        },
        "processes": processes(handle),
    }
    if answer["mig"] == 1:
        answer["slices"] = []
        for position in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            piece = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, position)
            if not isinstance(piece, dict):
                answer["slices"].append(
                    {
                        "name": ask(pynvml.nvmlDeviceGetName, piece),
                        "uuid": ask(pynvml.nvmlDeviceGetUUID, piece),
                        "memory": memory(piece),
                        "attributes": attributes(piece),
                        "gpu_instance": ask(pynvml.nvmlDeviceGetGpuInstanceId, piece),
                        "processes": processes(piece),
                    }
                )
    return answer


def main() -> None:
    pynvml.nvmlInit()
    content = {
        "about": f"recorded with {platform.python_implementation()} {platform.python_version()}, nvidia-ml-py",
        "system": {
            "driver": ask(pynvml.nvmlSystemGetDriverVersion),
            "cuda": ask(pynvml.nvmlSystemGetCudaDriverVersion),
        },
        "devices": [device(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())],
    }
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
