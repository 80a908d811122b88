"""Tests that declare a capacity and measure none: refused where collection shows it, else named when they pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pytest

from pytest_gpucap.markers.declaration import place_of

if TYPE_CHECKING:  # every run with a declared test imports this file
    from pytest_gpucap.session.kept import KeptResults

MARKER: Final = "gpucap"
FIXTURE: Final = "gpucap"
NEVER: Final = "declared, never measured"
MOST_NAMED: Final = 10

_UNMEASURED: pytest.StashKey[str] = pytest.StashKey()
"""Why a test that does not use the fixture should have."""


def check_declared(items: Sequence[pytest.Item], collected: Sequence[pytest.Item]) -> list[str]:
    """Look at the tests that run and have a ``gpucap`` marker, but not the fixture.

    A marker on a class or module is the default of the tests in it that measure, so it needs one such test.

    Args:
        items: the tests that run.
        collected: all tests, with those that are deselected.

    Returns:
        A line for each marker on a test that can measure nothing.
    """
    mistakes: list[str] = []
    suspects = [item for item in items if FIXTURE not in _fixtures(item) and item.get_closest_marker(MARKER)]
    if not suspects:
        return mistakes
    holders = {
        id(node) for item in collected if FIXTURE in _fixtures(item) for node, _ in item.iter_markers_with_node(MARKER)
    }
    for item in suspects:
        nodes = [node for node, _ in item.iter_markers_with_node(MARKER)]
        if item in nodes:
            why = f"{MARKER}(...) declares a capacity, but the test does not use the {FIXTURE} fixture"
            if any(item.iter_markers("skip")) or any(item.iter_markers("skipif")):
                item.stash[_UNMEASURED] = why
            else:
                mistakes.append(f"{place_of(item)}: {why}: call {FIXTURE}.check(), or remove the marker")
        elif nodes and not any(id(node) in holders for node in nodes) and _whole(item.config):
            name = nodes[0].nodeid or nodes[0].name
            item.stash[_UNMEASURED] = f"{MARKER}(...) on {name} declares a capacity, but no test there uses the fixture"
    return mistakes


def unheard(kept: KeptResults | None) -> str | None:
    """Why a test that passed must not: what came of its measurement in another thread is not known to pytest.

    Args:
        kept: what it has measured; None if it has asked for nothing.
    """
    if kept is None:
        return None
    if kept.runs_on:
        return "a measurement still runs in another thread, and the test has ended: wait for it, or call it in the test"
    if kept.lost:
        return (
            "a measurement ended so in another thread than the test's, where pytest cannot tell whether the test has "
            f"seen it: call it in the test's own thread\n\n{kept.lost}"
        )
    return None


def never_measured(item: pytest.Item, kept: KeptResults | None) -> str | None:
    """Why a test that passed should have measured and did not; None if it did, or need not.

    Args:
        item: the test.
        kept: what it has measured; None if it has asked for nothing.
    """
    if kept is not None:
        return None if kept.measured else "nothing that the test asked for was measured, and it passed over the error"
    if FIXTURE in _fixtures(item):
        return f"the test asks the {FIXTURE} fixture for nothing: call check(), measure(), sweep() or sample()"
    return item.stash.get(_UNMEASURED, None)


def skipped_here(item: pytest.Item, why: str, *, elsewhere: bool) -> str | None:
    """Why a test must not be skipped where measuring is required; None if it may be.

    A condition (``skipif``, ``importorskip``, ``pytest.skip``) is about this machine, which may have lost its GPU. The
    marker ``skip`` is about the test, and so are ``xfail(run=False)`` and the class that a test names.

    Args:
        item: the test, which uses the fixture.
        why: what the skip says.
        elsewhere: the test names a class that the session is not about.
    """
    not_run = any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail"))
    if not_run or any(item.iter_markers("skip")) or elsewhere:
        return None
    return f"{NEVER}: skipped on this machine, and --gpucap-require is set: {why}"


def gpu_absent(why: str) -> BaseException:
    """Skips a test for which there is no GPU. The summary says why, since pytest shows reasons under ``-rs`` alone."""
    skipped = pytest.skip.Exception(why)
    skipped.gpucap_absent = why  # type: ignore[attr-defined] # see plugin.py
    return skipped


def skipped_lines(skipped: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """The lines of the summary, at most so wide, for the reasons of `gpu_absent` and the tests of each."""
    from pytest_gpucap.report.columns import wrapped

    found = [
        f"skipped, not measured: {tests[0] if len(tests) == 1 else f'{len(tests)} tests'}: {why}"
        for why, tests in skipped.items()
    ]
    return [line for each in found for line in wrapped(each, hang="  ", width=width)]


def lines(unmeasured: Sequence[tuple[str, str]], width: int) -> list[str]:
    """The lines of the summary, at most so wide, for tests and why they should have measured."""
    from pytest_gpucap.report.columns import wrapped

    found = [f"{NEVER}: {test}: {why}" for test, why in unmeasured[:MOST_NAMED]]
    more = len(unmeasured) - len(found)
    told = [*found, f"{NEVER}: {more} more"] if more else found
    return [line for each in told for line in wrapped(each, hang="  ", width=width)]


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def _whole(config: pytest.Config) -> bool:
    """Whether whole files were collected, so that a file's other tests were seen."""
    return not any("::" in argument for argument in config.args)
