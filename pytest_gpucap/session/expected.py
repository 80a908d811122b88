"""What a test that is marked ``xfail`` may expect: that the verdict is FAIL, or that its own judgement fails.

pytest takes any exception for the failure that was expected. A server that died, a measurement that cannot be trusted
or a fixture that broke would then keep a run green. So nothing is expected here unless it is named below.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_gpucap.errors import GpuCapError, NotMeasured

if TYPE_CHECKING:  # every collection of our tests imports this file
    from pytest_gpucap.options.table import Options
    from pytest_gpucap.session.kept import KeptResults

_LIBRARIES: Final = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
_PYTEST: Final = Path(pytest.__file__).parents[1] / "_pytest"
EXPECTED: Final = "xfail expects the verdict FAIL, or an assertion of the test on what was measured; this is neither"
_DECIDED: Final = "gpucap_decided"
"""Attribute of the exception that a verdict raises."""
_LEFT_OUT: Final = "gpucap_left_out"
"""Attribute of the exception that ends a test without time, and of its report: why."""
_ANYTHING: Final = (BaseException, Exception, GpuCapError)
"""Classes that name nothing in ``xfail(raises=...)``."""


_UNDER_UNITTEST: Final[pytest.StashKey[BaseException]] = pytest.StashKey()
"""What a test with ``unittest.expectedFailure`` raised."""


def hear_unittest(item: pytest.Item) -> None:
    """Keep what a test of ours raises under ``unittest.expectedFailure``: pytest tells an ``xfail`` instead."""
    tells: Any = getattr(item, "addExpectedFailure", None)  # of pytest's item for a `unittest.TestCase`
    if tells is None:
        return
    if _UNDER_UNITTEST in item.stash:  # of an earlier attempt
        del item.stash[_UNDER_UNITTEST]

    def heard(testcase: Any, raised: Any, *more: Any) -> None:
        item.stash[_UNDER_UNITTEST] = raised[1]
        tells(testcase, raised, *more)

    setattr(item, "addExpectedFailure", heard)  # noqa: B010 - as unittest asks for it


def verdict_failure(report: str, *, decided: bool = True) -> BaseException:
    """What fails a test for its verdict. Only a verdict that is `decided` (FAIL, a regression) can be expected."""
    failure: BaseException = pytest.fail.Exception(report, pytrace=False)
    setattr(failure, _DECIDED, decided)
    return failure


def not_measured(error: NotMeasured, options: Options) -> BaseException:
    """What ends a test that the session's limit leaves no time for: the error, or a skip where the session allows that.

    It is never passed: ``--gpucap-inconclusive=pass`` skips it as well. With ``--gpucap-require`` it is an error.
    """
    fails = options.require or options.inconclusive == "fail"
    end: BaseException = error if fails else pytest.skip.Exception(str(error))
    setattr(end, _LEFT_OUT, str(error))
    return end


def is_expected(item: pytest.Item, call: pytest.CallInfo[Any], kept: KeptResults) -> bool:
    """Whether ``xfail`` may call what ended a phase of a test of ours an expected failure.

    Args:
        item: the test.
        call: the phase, and what ended it.
        kept: what the test has measured.
    """
    measured = kept.count > 0 or "gpucap" not in getattr(item, "fixturenames", ())
    error = call.excinfo.value if call.excinfo is not None else None
    if call.when == "call":
        error = item.stash.get(_UNDER_UNITTEST, error)
    decided: bool | None = getattr(error, _DECIDED, None)
    if error is None or decided is not None:
        return decided is not False
    if isinstance(error, pytest.xfail.Exception):
        return not kept.untrusted  # called in the test, or run=False
    if any(_names(mark.kwargs.get("raises"), error) for mark in item.iter_markers("xfail")):
        return True
    judges = isinstance(error, AssertionError) or (type(error) is pytest.fail.Exception and _of_the_test(error))
    return call.when == "call" and judges and measured and not kept.untrusted


def _names(raises: Any, error: BaseException) -> bool:
    """Whether ``raises=`` names the error, and not just any."""
    kinds = getattr(raises, "expected_exceptions", raises)
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return any(isinstance(kind, type) and kind not in _ANYTHING and isinstance(error, kind) for kind in kinds)


def _of_the_test(error: BaseException) -> bool:
    """Whether ``pytest.fail`` was called by the test's own code, and not by a plugin such as a timeout's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_relative_to(_PYTEST):
            return not any(path.is_relative_to(library) for library in _LIBRARIES)
    return False
