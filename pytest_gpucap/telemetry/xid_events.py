"""XID errors of the leased GPUs, as NVML's events tell them.

NVML queues an event for everybody who registered for it before it happened. So a look takes what has come since the
last one, and waits for nothing. Some systems deliver no events: virtual GPUs, old boards, containers without the
permission. Then the errors go unseen, which `XidEvents.unseen` says.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, Final

from pytest_gpucap.gpu.device import Device
from pytest_gpucap.telemetry.xid import Reported

MOST_AT_ONCE: Final = 64
"""Events that one look takes at most. A driver that reports faster is heard again at the next look."""
_NO_INSTANCE: Final = 0xFFFFFFFF
"""The instance of an event that is of the whole GPU (nvml.h)."""


class XidEvents:
    """Hears of one device's XID errors from now until `close`.

    Those of a MIG slice are its own and those of its whole GPU. Any thread may call any method.

    Args:
        pynvml: the module, in a session that outlives this.
        device: the device.
        board: the handle of the GPU that is or has the device.
        handle: of the device.
        now_s: on the measurement's clock.

    Attributes:
        reports: what was heard.
        unseen: why nothing more can be heard; empty while it can.
    """

    def __init__(self, pynvml: Any, device: Device, board: Any, handle: Any, now_s: float) -> None:
        self.device = device
        self.reports: list[Reported] = []
        self.unseen = ""
        self._pynvml, self._looked_s = pynvml, now_s
        self._lock = threading.Lock()
        self._queue: Any = None
        self._instance: int | None = None
        try:
            self._queue = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(board, pynvml.nvmlEventTypeXidCriticalError, self._queue)
        except Exception as error:  # noqa: BLE001 - not supported, not allowed, or a broken binding
            self.unseen = str(error) or type(error).__name__
            self.close()
            return
        if device.parent_uuid is not None:
            # Where it is not told, the errors of other slices count as well.
            with suppress(Exception):
                self._instance = int(pynvml.nvmlDeviceGetGpuInstanceId(handle))

    def look(self, now_s: float) -> None:
        """Take the events that have come since the last look."""
        numbers: list[int] = []
        with self._lock:
            for _ in range(MOST_AT_ONCE if self._queue is not None else 0):
                try:
                    event = self._pynvml.nvmlEventSetWait_v2(self._queue, 0)
                    number, instance = int(event.eventData), int(event.gpuInstanceId)
                except self._pynvml.NVMLError as error:
                    code = getattr(error, "value", None)
                    # A GPU that is lost sends no more; why it is lost may be in the queue of the next look.
                    if code not in {self._pynvml.NVML_ERROR_TIMEOUT, self._pynvml.NVML_ERROR_GPU_IS_LOST}:
                        self.unseen = str(error)
                    break
                except Exception as error:  # noqa: BLE001 - a broken binding
                    self.unseen = f"{type(error).__name__}: {error}"
                    break
                if self._instance is None or instance in {self._instance, _NO_INSTANCE}:
                    numbers.append(number)
            # Of a number that came several times between two looks, one report says as much.
            self.reports += [Reported(number, self._looked_s, now_s) for number in dict.fromkeys(numbers)]
            self._looked_s = now_s

    def close(self) -> None:
        """Hear no more; what was heard stays. Safe to call twice."""
        with self._lock:
            queue, self._queue = self._queue, None
            if queue is not None:
                with suppress(Exception):  # the driver may be gone
                    self._pynvml.nvmlEventSetFree(queue)
