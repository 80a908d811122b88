"""NVML through nvidia-ml-py, asked one field at a time.

A driver too old for a field, a virtual machine that hides it, a user without permission: each costs that field and no
other. Only getters are ever called; nothing here can change a GPU's settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pytest_gpucap.errors import GpuCapError


class NvmlUnavailable(GpuCapError):  # noqa: N818 - reads as what is wrong
    """NVML cannot be used at all: no library, no driver, a driver of another version, no permission."""


@contextmanager
def session() -> Iterator[Any]:
    """The ``pynvml`` module, initialised. Sessions may nest and may be open in several threads.

    Raises:
        NvmlUnavailable: with NVML's own reason.
    """
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py cannot be imported: {error}") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from None
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):  # the driver went away meanwhile: whoever asked it next has said so
            pynvml.nvmlShutdown()


class Reader:
    """Asks for single fields; one that cannot be read gives None, and the reason is kept under its name."""

    def __init__(self, pynvml: Any) -> None:
        self._error: type[Exception] = pynvml.NVMLError
        self.unreadable: dict[str, str] = {}

    def ask(self, field: str, question: Callable[..., Any], *args: Any) -> Any:
        """The answer, or None; `field` is the name that the reason is kept under."""
        try:
            return question(*args)
        except (self._error, UnicodeDecodeError) as error:
            self.unreadable[field] = str(error)
            return None


def process_list(pynvml: Any, handle: Any) -> list[tuple[int, int | None]]:
    """(pid, bytes of GPU memory or None) of every compute process on a device.

    Pids are those of the namespace that the driver answers for, which inside a container need not be ours.

    Raises:
        pynvml.NVMLError: if the driver does not tell.
    """
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return [(int(process.pid), process.usedGpuMemory) for process in processes]


def memory_used(pynvml: Any, handle: Any) -> tuple[int, int]:
    """(bytes used, bytes in total) of a device, without what the driver keeps for itself where it can tell them apart.

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
