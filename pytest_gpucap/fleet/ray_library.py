"""The one door to Ray, which is not installed with this package."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.installing import pip_install

_LONGEST = 300


class RayUnavailable(GpuCapError):  # noqa: N818 - reads as what is wrong
    """There is no Ray here, or no cluster that this process can be a driver of; one line."""

    needs_traceback = False


def ray_module() -> Any:
    """The module.

    Raises:
        RayUnavailable: if it is not installed.
    """
    if find_spec("ray") is None:
        raise RayUnavailable(f"Ray is not installed: {pip_install('ray')}")
    import ray
    import ray.exceptions

    return ray


def connected() -> Any:
    """The module, in a process that is a driver. Asked for anything in another process, Ray would start a cluster.

    Raises:
        ray.exceptions.RayError: if it is none any more.
    """
    ray = ray_module()
    if not ray.is_initialized():
        raise ray.exceptions.RayError("this process has left the Ray cluster")
    return ray


def reason(error: BaseException) -> str:
    """What an error of Ray says, in one short line."""
    told = on_one_line(str(error)) or type(error).__name__
    found = re.search(r"The actor (?:is dead|died) because (.+)", told)
    told = found[1] if found is not None else told
    told = told.partition(" Some common causes include")[0]
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
