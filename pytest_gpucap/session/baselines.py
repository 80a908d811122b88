"""Baselines in a pytest session: what is compared with what, and what is saved at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_gpucap.history import store
from pytest_gpucap.history.baseline import Baseline, open_baseline
from pytest_gpucap.history.compare import compare, precise
from pytest_gpucap.options import Options
from pytest_gpucap.report.comparison import failure
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.comparison import Comparison
from pytest_gpucap.results.encoding import from_builtins
from pytest_gpucap.results.record import Record, as_document, as_record
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.session.kept import KeptResult
from pytest_gpucap.session.placement import SIMULATED

_BASELINE = pytest.StashKey[Baseline | None]()


def check_files(options: Options, config: pytest.Config) -> Baseline | None:
    """See that the baseline to save may be written, and read the one to compare with; None where there is none.

    Once a session, however often it is asked for: a folder of nightly runs is a thousand files.

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
                store.check_kind(path, simulated=options.gpu_class.startswith(SIMULATED))
        except ValueError as error:
            raise pytest.UsageError(f"--gpucap-save: {error}") from None
    if options.compare is None:
        return None
    # Who saves under the name that he compares with may be the first to do so.
    first = options.compare == options.save
    try:
        return open_baseline(options.compare, options.baselines, config.rootpath, required=not first)
    except ValueError as error:
        raise pytest.UsageError(f"--gpucap-compare: {error}") from None


def save(options: Options, session: ResultFile) -> str:
    """Save the session's results under the name of ``--gpucap-save``; one line that says what became of it.

    A session that measured servers keeps nothing of a simulator: what a baseline holds was measured, or none of it was.
    """
    assert options.save is not None  # noqa: S101 - the caller's condition
    path = store.path_of(options.baselines, options.save)
    document = as_document(session)
    simulated = all(result.simulated for result in session.results)
    try:
        before = {record["test"] for record in store.read_run(path).results} if path.exists() else set()
        saved = store.save(path, document, simulated=simulated)
    except (ResultFileError, OSError) as error:
        return f"baseline {options.save} was NOT saved: {error}"
    kept, measured = len(saved["results"]), len(session.results)
    left_out = (
        f", {measured - kept} left out (simulated, without a rate or not to be trusted)" if kept < measured else ""
    )
    gone = before - {record["test"] for record in saved["results"]}
    lost = f"; it no longer holds {', '.join(sorted(gone))}" if gone else ""
    return f"baseline {options.save}: {kept} result{'' if kept == 1 else 's'} saved in {shown(path)}{left_out}{lost}"


class Comparing:
    """Compares the results of one test with the session's baseline.

    Args:
        baseline: None: nothing is compared.
        options: of the session.
    """

    def __init__(self, baseline: Baseline | None, options: Options) -> None:
        self._baseline = baseline
        self._fresh = options.url is None
        self._max_regression = options.max_regression
        self._saves = options.save is not None

    def wants_more_than(self, result: Result) -> bool:
        """Whether a result is to be compared or saved, and its rate is not known well enough for that."""
        return (self._saves or self._baseline is not None) and not precise(as_record(result))

    def compare(
        self, kept: KeptResult, again: Callable[[str], Result] | None = None, sharper: Result | None = None
    ) -> None:
        """Add the comparison to a result.

        Args:
            kept: the result of the test.
            again: measures once more, from a fresh start, and is told why; None where there is no need.
            sharper: another result of the same test and server, whose rate is known better.
        """
        if self._baseline is None:
            return

        def confirm(why: str) -> Record:
            assert again is not None  # noqa: S101 - passed on only where there is one
            second = again(why)
            kept.spend("confirmation", second.total_spent_s)
            return as_record(second)

        confirming = None if again is None else confirm
        better = None if sharper is None else as_record(sharper)
        compared = compare(
            as_record(kept.result), self._baseline, self._max_regression, confirming, better, fresh=self._fresh
        )
        kept.compare(from_builtins(compared, Comparison))

    @staticmethod
    def refuse_regression(result: Result) -> None:
        """Fail the test for a confirmed regression.

        Raises:
            pytest.fail.Exception: its first line is the decision with its arithmetic.
        """
        if result.regressed and result.comparison is not None and result.comparison.confirmed:
            pytest.fail(failure(as_record(result)), pytrace=False)
