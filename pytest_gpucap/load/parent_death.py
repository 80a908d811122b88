"""A helper process ends with the process that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def can_be_followed() -> bool:
    """Whether a child that is started now may call `end_with_parent`.

    The signal comes when the *thread* that started the child ends. Only the main thread lives long enough.
    """
    return threading.current_thread() is threading.main_thread()


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: the process id of the one that started it, if it is known: it may have ended before this call.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
