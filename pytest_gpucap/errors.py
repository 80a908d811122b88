"""The errors of pytest-gpucap: every one that can reach a user derives from `GpuCapError`.

The errors of one subject stand with that subject: `pytest_gpucap.engines.errors` has those of a server, for instance.
The package exports those that a test can meet, so ``pytest_gpucap.LeaseError`` is how a test names one.
"""

from __future__ import annotations

from typing import ClassVar, Final

from pytest_gpucap.foreign_text import harmless, on_one_line
from pytest_gpucap.masking import masked


class GpuCapError(Exception):
    """Base of every error that pytest-gpucap raises.

    A mistake in an option, a marker or a file that is found at collection ends the session as `pytest.UsageError`.
    A verdict that fails its test is `pytest.fail.Exception`. Neither is an error of this family.
    """

    needs_traceback: ClassVar[bool] = True
    """Whether a report shows where the error was raised; False if the message is complete."""

    def __init__(self, *args: object) -> None:
        # Messages quote servers, logs and files. A terminal and a CI system obey what they print.
        super().__init__(*(harmless(masked(each)) if isinstance(each, str) else each for each in args))


class MeasurementInvalid(GpuCapError):  # noqa: N818 - named after the verdict
    """The measurement cannot be trusted. The message names the failed check and says nothing about capacity."""

    needs_traceback = False


class NotMeasured(MeasurementInvalid):
    """The session's limit (``--gpucap-max-total``) leaves no time for this test. Nothing is known of its capacity.

    Attributes:
        needs_s: seconds of server time that it needs, starts included, as far as known.
    """

    def __init__(self, message: str, needs_s: float | None = None) -> None:
        super().__init__(message)
        self.needs_s = needs_s


class PairInvalid(GpuCapError):  # noqa: N818 - named like MeasurementInvalid
    """Base and head were not compared; the message says why, and says nothing about the capacity of either."""

    needs_traceback = False


class NoSustainableRate(GpuCapError, ValueError):  # noqa: N818 - the name states the fault
    """The measurement found no sustainable rate, so no figure can be computed from one; the message says why."""

    needs_traceback = False


class TooLate(GpuCapError):  # noqa: N818 - the name states the fault
    """A test asked for a fixture of ours while it ran: markers are read, and servers placed, at collection."""

    needs_traceback = False


class PluginFault(GpuCapError):  # noqa: N818 - the name states whose fault it is
    """A bug in pytest-gpucap, or in a plugin that it called. The message names its place.

    Attributes:
        trace: the traceback, as text.
    """

    needs_traceback = False

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = harmless(masked(trace))


def told(value: object) -> str:
    """A user's value for a message: on one line, and shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - any class may be given; an int of thousands of digits has no text either
        return f"<{type(value).__name__}>"
    return shortened(text)


def shortened(text: str) -> str:
    """The text on one line, and shortened if it is long."""
    line = on_one_line(text)
    return line if len(line) <= _LONGEST_TOLD else f"{line[: _LONGEST_TOLD - 3]}..."


_LONGEST_TOLD: Final = 80
