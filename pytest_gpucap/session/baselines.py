"""Baselines in a pytest session: what is compared with what, and what is saved at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.history import store
from pytest_gpucap.history.compare import compare_result, is_precise
from pytest_gpucap.history.store import Baseline, open_baseline
from pytest_gpucap.options.table import Options
from pytest_gpucap.report.comparison import regression_failure
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.session.expected import verdict_failure
from pytest_gpucap.session.kept import KeptResult
from pytest_gpucap.simulated import is_simulated
from pytest_gpucap.user_files import exists

_BASELINE = pytest.StashKey[Baseline | None]()


class NotSaved(GpuCapError):  # noqa: N818 - the name states the fault
    """The session's results were not saved as a baseline."""

    needs_traceback = False


def check_files(options: Options, config: pytest.Config) -> Baseline | None:
    """Check that the baseline to save can be written, and read the one to compare with; None if there is none.

    Done once per session, since a folder of nightly runs may hold a thousand files.

    Raises:
        pytest.UsageError: one line that names the file and what is wrong with it.
    """
    if _BASELINE not in config.stash:
        config.stash[_BASELINE] = _checked(options, config)
    return config.stash[_BASELINE]


def _checked(options: Options, config: pytest.Config) -> Baseline | None:
    if options.save is not None:
        try:
            path = store.path_of(options.baselines, store.check_name(options.save))
            store.check_writable(path)
            if options.gpu_class is not None:
                store.check_kind(path, simulated=is_simulated(options.gpu_class))
        except ValueError as error:
            raise pytest.UsageError(f"--gpucap-save: {error}") from None
    if options.compare is None:
        return None
    # A session may compare with the name that it saves under. Then the first session finds no baseline.
    first = options.compare == options.save
    try:
        return open_baseline(options.compare, options.baselines, config.rootpath, required=not first)
    except ValueError as error:
        raise pytest.UsageError(f"--gpucap-compare: {error}") from None


def save(options: Options, session: ResultFile) -> str:
    """Save the session's results under the name of ``--gpucap-save``; returns one line on what was saved and replaced.

    A baseline holds either measured or simulated results. If any result was measured, simulated ones are left out. So
    are results that are no PASS, without ``--gpucap-force-save``.

    Raises:
        NotSaved: one line, why nothing was saved.
    """
    assert options.save is not None  # noqa: S101 - the caller's condition
    if not session.results:
        raise NotSaved(f"baseline {options.save} was NOT saved: nothing was measured")
    path = store.path_of(options.baselines, options.save)
    simulated = all(result.simulated for result in session.results)
    forced = options.force_save
    try:
        before = store.read_run(path).results if exists(path) else ()
        saved = store.save_run(path, session, simulated=simulated, forced=forced)
    except (ResultFileError, OSError) as error:
        raise NotSaved(f"baseline {options.save} was NOT saved: {error}") from None
    new = store.saved_form(session, simulated=simulated, forced=forced).results
    count, measured = len(new), len(session.results)
    said = [f"baseline {options.save}: {count} result{'' if count == 1 else 's'} saved in {shown(path)}"]
    if count < measured:
        why = (
            "simulated, without a rate, or invalid"
            if forced
            else "simulated, without a rate, no PASS, or of a failed test"
        )
        said[0] += f", {measured - count} left out ({why})"
    renewed = {result.test for result in new}
    replaced = {result.test for result in before} & renewed
    kept = {result.test for result in saved.results} - renewed
    gone = {result.test for result in before} - replaced - kept
    if replaced:
        said.append("replaced " + ", ".join(_change(test, before, new) for test in sorted(replaced)))
    if kept:
        said.append(f"kept the earlier result of {', '.join(sorted(kept))}")
    lost = f"; it no longer holds {', '.join(sorted(gone))}" if gone else ""
    return "; ".join(said) + lost


def _change(test: str, before: Sequence[Result], after: Sequence[Result]) -> str:
    """``test (4.2 -> 4.5 req/s)``; the rates only where both have one."""
    rates = [
        next((each.sustainable_rate for each in results if each.test == test and each.sustainable_rate), None)
        for results in (before, after)
    ]
    old, new = rates
    return test if old is None or new is None else f"{test} ({old.value:.3g} -> {new.value:.3g} req/s)"


class Comparing:
    """Compares the results of one test with the session's baseline.

    Args:
        baseline: the session's baseline; None: nothing is compared.
        options: the session's options.
    """

    def __init__(self, baseline: Baseline | None, options: Options) -> None:
        self._baseline = baseline
        self._fresh = options.url is None
        self._max_regression, self._any_hits = options.max_regression, options.any_prefix_hits
        self._saves = options.save is not None

    def wants_more_than(self, result: Result) -> bool:
        """Whether a result will be compared or saved but its rate is not precise enough for that."""
        return (self._saves or self._baseline is not None) and not is_precise(result)

    def compare(
        self, kept: KeptResult, again: Callable[[str], Result] | None = None, sharper: Result | None = None
    ) -> None:
        """Add the comparison to a result.

        Args:
            kept: the result of the test.
            again: measures once more on a fresh server; its argument is the reason. None: nothing is confirmed.
            sharper: another result of the same test and server, with a more precise rate.
        """
        if self._baseline is None:
            return

        def confirm(why: str) -> Result:
            assert again is not None  # noqa: S101 - passed on only where there is one
            second = again(why)
            kept.spend("confirmation", second.total_spent_s)
            return second

        confirming = None if again is None else confirm
        comparison = compare_result(
            kept.result,
            self._baseline,
            self._max_regression,
            confirming,
            sharper,
            fresh=self._fresh,
            any_hits=self._any_hits,
        )
        kept.compare(comparison)

    @staticmethod
    def refuse_regression(result: Result, columns: int) -> None:
        """Fail the test for a confirmed regression; its text fits `columns`.

        Raises:
            pytest.fail.Exception: the first line gives the decision with its arithmetic.
        """
        comparison = result.comparison
        if comparison is not None and comparison.decision is RegressionDecision.REGRESSED and comparison.confirmed:
            raise verdict_failure(regression_failure(result, columns))
