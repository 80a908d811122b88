"""NVML through nvidia-ml-py, asked one field at a time.

A field may be missing: the driver is too old for it, a virtual machine hides it, or the user has no permission. The
other fields are read all the same. Only getters are called; nothing here can change a GPU's settings.

nvidia-ml-py's module is ``pynvml``, and other packages bring a module of that name: old, incomplete, or with bytes for
text. Such a module is named together with the package that brings it (see `binding`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu import binding

REQUIRED: Final = (
    *("NVMLError", "nvmlInit", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion"),
    *("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetName"),
    *("nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMemoryInfo"),
    *("nvmlMemory_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetAttributes"),
    *("nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetClockInfo"),
    *("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementDefaultLimit"),
    *("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature"),
    *("nvmlDeviceGetEccMode", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetPersistenceMode"),
    *("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPcieThroughput", "nvmlDeviceGetCurrentClocksEventReasons"),
    *("nvmlDeviceGetCurrentClocksThrottleReasons", "NVML_CLOCK_SM", "NVML_CLOCK_MEM", "NVML_TEMPERATURE_GPU"),
    *("NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC", "NVML_PCIE_UTIL_TX_BYTES", "NVML_PCIE_UTIL_RX_BYTES"),
    *("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_FUNCTION_NOT_FOUND"),
    *("NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_TIMEOUT", "nvmlEventTypeXidCriticalError"),
    *("nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree"),
    "nvmlDeviceGetGpuInstanceId",
)
"""All that this package asks of the module; a test compares it with the sources."""


class NvmlUnavailable(GpuCapError):  # noqa: N818 - reads as what is wrong
    """NVML cannot be used: no library, no driver, a driver of another version, no permission, or a broken binding."""


@contextmanager
def nvml_session() -> Iterator[Any]:
    """The ``pynvml`` module, initialised. Sessions may nest and may be open in several threads.

    Raises:
        NvmlUnavailable: with NVML's own reason, or with what is wrong with the module and how to mend it.
    """
    pynvml = _module()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from None
    except Exception as error:  # noqa: BLE001 - a broken binding may raise anything
        raise NvmlUnavailable(binding.complaint(pynvml, f"fails in nvmlInit ({described(error)})")) from None
    try:
        yield pynvml
    finally:
        # The driver may have gone away meanwhile; the next question to it reports that.
        with suppress(Exception):
            pynvml.nvmlShutdown()


def _module() -> Any:
    try:
        pynvml = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        if error.name == "pynvml":
            raise NvmlUnavailable(f"nvidia-ml-py cannot be imported: {error}; pip install nvidia-ml-py") from None
        raise NvmlUnavailable(binding.complaint(None, f"cannot be imported ({described(error)})")) from None
    except Exception as error:  # noqa: BLE001 - a module may raise anything when it is imported
        raise NvmlUnavailable(binding.complaint(None, f"cannot be imported ({described(error)})")) from None
    lacking = [name for name in REQUIRED if not hasattr(pynvml, name)]
    if lacking:
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise NvmlUnavailable(binding.complaint(pynvml, f"lacks {lacking[0]}{others}"))
    error_type = pynvml.NVMLError
    if not (isinstance(error_type, type) and issubclass(error_type, Exception)):
        raise NvmlUnavailable(binding.complaint(pynvml, "has an NVMLError that is no exception"))
    return pynvml


def described(error: Exception) -> str:
    """An unexpected exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class FieldReader:
    """Asks for single fields. A field that cannot be read is None; `unreadable` keeps the reason under its name."""

    def __init__(self, pynvml: Any) -> None:
        self._error: type[Exception] = pynvml.NVMLError
        self.unreadable: dict[str, str] = {}

    def ask(
        self, field: str, question: Callable[..., Any], *args: Any, read: Callable[[Any], Any] | None = None
    ) -> Any:
        """The answer, as `read` reads it, or None; the reason is kept under `field`."""
        try:
            answer = question(*args)
            return answer if read is None else read(answer)
        except self._error as error:
            self.unreadable[field] = str(error)
        except Exception as error:  # noqa: BLE001 - an answer of a wrong type costs its own field
            self.unreadable[field] = described(error)
        return None


def text(answer: Any) -> str:
    """An answer that must be text.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(answer, str):
        raise TypeError(f"{answer!r} is no text")
    return answer


def process_list(pynvml: Any, handle: Any) -> list[tuple[int, int | None]]:
    """(pid, bytes of GPU memory or None) of every compute process on a device.

    Pids are those of the driver's PID namespace, which inside a container may not be ours.

    Raises:
        pynvml.NVMLError: if the driver does not tell.
    """
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return [(int(process.pid), process.usedGpuMemory) for process in processes]


def memory_used(pynvml: Any, handle: Any) -> tuple[int, int]:
    """(bytes used, bytes in total) of a device, without the driver's own memory where NVML reports it separately.

    Raises:
        pynvml.NVMLError: if the driver does not tell.
    """
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.used), int(memory.total)


def handle_of(pynvml: Any, uuid: str) -> Any:
    """The handle of a GPU or MIG slice.

    Raises:
        pynvml.NVMLError: if it is gone.
    """
    return pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
