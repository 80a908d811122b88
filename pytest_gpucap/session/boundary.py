"""The boundary between the plugin and pytest: whatever goes wrong inside leaves it as one line, never as a traceback.

What a server, a file or the machine does is `MeasurementInvalid` or an error of its own. Anything else is a fault of
the program, and is named as one, with its place.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_gpucap.errors import GpuCapError, MeasurementInvalid, PluginFault
from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.masking import masked
from pytest_gpucap.requirement import RequirementError

_PACKAGE: Final = Path(__file__).parents[1]
_LIBRARIES: Final = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Let only errors leave whose message is complete.

    Args:
        what: that was not done, for the message: ``chat was not measured``.

    Raises:
        MeasurementInvalid: in place of any error that the load, a file or the machine caused.
        PluginFault: in place of any other.
    """
    try:
        yield
    except GpuCapError as error:
        # A mistake in the test's own call is shown where the test makes it.
        if isinstance(error, RequirementError) or not error.needs_traceback:
            raise
        raise MeasurementInvalid(f"{what}: {first_line(error)}") from error
    except (OSError, MemoryError, ImportError) as error:
        raise MeasurementInvalid(f"{what}: {described(error)}") from error
    except Exception as error:
        if _is_of_processes(error):
            raise MeasurementInvalid(f"{what}: {described(error)}") from error
        raise PluginFault(f"{what}: {fault(error)}", "".join(traceback.format_exception(error))) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def described(error: BaseException) -> str:
    """Type and message in one line: ``PermissionError: [Errno 13] ...``."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def fault(error: BaseException) -> str:
    """What went wrong in a program and where, in one line."""
    path, line = _place(error)
    if path is None or path.is_relative_to(_PACKAGE):
        where = "?" if path is None else f"{path.relative_to(_PACKAGE.parent)}:{line}"
        return f"a bug in pytest-gpucap at {where}, please report it: {described(error)}"
    return f"a bug in {path}:{line}: {described(error)}"


def _place(error: BaseException) -> tuple[Path | None, int]:
    """The innermost place that is no library's."""
    place: tuple[Path | None, int] = None, 0
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE) or not any(path.is_relative_to(library) for library in _LIBRARIES):
            place = path, frame.lineno or 0
    return place


def make_harmless(report: pytest.TestReport) -> None:
    """Take secrets and control sequences out of a report: tracebacks show arguments, locals and words of servers."""
    report.longrepr = _harmless(report.longrepr)
    report.sections = [(name, masked(content)) for name, content in report.sections]


def _harmless(value: Any) -> Any:
    """The same with every text in it changed. pytest's parts of a traceback are changed in place."""
    if isinstance(value, str):
        return harmless(masked(value))
    if isinstance(value, list | tuple):
        return type(value)([_harmless(each) for each in value])
    if type(value).__module__.startswith("_pytest."):
        for name, each in vars(value).items():
            setattr(value, name, _harmless(each))
    return value


def _is_of_processes(error: Exception) -> bool:
    """Whether a process or the hardware could not be read. psutil is heavy, so it is not imported for this."""
    return any(kind.__module__.partition(".")[0] in {"psutil", "pynvml"} for kind in type(error).__mro__)
