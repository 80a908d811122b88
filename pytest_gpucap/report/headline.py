"""The one place that decides what a result, and a whole session, came to: the word, its tone, and the headline.

A verdict judges capacity, and a test judges its verdict: it may fail although its budget holds (a regression, an
assertion of its own, an error in its teardown), or succeed although its budget does not (`xfail`). Every report shows
the words of this file, so that none says PASS of a test that failed, and no two disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_gpucap.report import changes
from pytest_gpucap.report.formatting import arithmetic, headline_parts, percent, rate
from pytest_gpucap.results.comparison import Comparison
from pytest_gpucap.results.ending import BROKEN, Ending
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result

LEADING: Final = 3
"""Headlines of a session: so many bad results are named before its table."""
_WORST_FIRST: Final = (Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS, None)


class Tone(StrEnum):
    """How a report colours a word. The word says the same."""

    PASS = "pass"  # noqa: S105 - a tone, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    EXPECTED = "expected"
    """Bad, but nothing fails for it: an expected failure, or an attempt that was run again."""
    NONE = "none"
    """Nothing was judged."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a result came to.

    Attributes:
        word: the verdict, or what the test came to where that is worse: ``PASS``, ``FAIL``, ``REGRESSED``,
            ``FAILED``, ``ERROR``, ``XFAILED`` ...; the kind of measurement where nothing was judged.
        remark: why a bad word is not bad here: ``expected``, ``rerun`` or ``test passed``; else empty.
        tone: its colour.
        ending: the element of JUnit: ``failure``, ``error``, ``skipped``; None if it passed.
    """

    word: str
    tone: Tone
    ending: str | None = None
    remark: str = ""

    @property
    def bad(self) -> bool:
        """Whether it is something that somebody must look at."""
        return self.tone in {Tone.FAIL, Tone.INCONCLUSIVE, Tone.INVALID} and self.ending != "skipped"

    @property
    def text(self) -> str:
        """Word and remark: ``FAIL (expected)``."""
        return f"{self.word} ({self.remark})" if self.remark else self.word


_VERDICTS: Final = {
    Outcome.PASS: Standing("PASS", Tone.PASS),
    Outcome.FAIL: Standing("FAIL", Tone.FAIL, "failure"),
    Outcome.INCONCLUSIVE: Standing("INCONCLUSIVE", Tone.INCONCLUSIVE, "failure"),
    Outcome.INVALID: Standing("INVALID", Tone.INVALID, "error"),
}
_BROKEN: Final = {
    Ending.FAILED: Standing("FAILED", Tone.FAIL, "failure"),
    Ending.ERROR: Standing("ERROR", Tone.FAIL, "error"),
    Ending.CRASHED: Standing("CRASHED", Tone.FAIL, "error"),
    Ending.UNFINISHED: Standing("UNFINISHED", Tone.FAIL, "error"),
}
_HARMLESS: Final = {
    Ending.SKIPPED: Standing("SKIPPED", Tone.NONE, "skipped"),
    Ending.XFAILED: Standing("XFAILED", Tone.EXPECTED, "skipped"),
    Ending.XPASSED: Standing("XPASSED", Tone.PASS),
    Ending.RERUN: Standing("RERUN", Tone.NONE, "skipped"),
}
_UNMEASURED: Final = Standing("NOT MEASURED", Tone.INCONCLUSIVE, "error")
"""The session's limit left it no time. Like an INCONCLUSIVE verdict, it is no fault, and no PASS."""
_EARLY: Final = Standing("ERROR", Tone.INVALID, "error")
_REGRESSED: Final = Standing("REGRESSED", Tone.FAIL, "failure")
_ENDED: Final = {
    Ending.FAILED: "failed",
    Ending.ERROR: "ended with an error",
    Ending.CRASHED: "crashed",
    Ending.UNFINISHED: "did not end",
}


def standing(result: Result) -> Standing:
    """What a result came to: its verdict and the ending of its test."""
    ending = result.ending
    if result.failed or result.regressed or result.left_unmeasured:
        found = _VERDICTS[result.outcome] if result.outcome and result.failed else _REGRESSED
        found = _UNMEASURED if result.left_unmeasured else found
        if result.expected_failure or ending is Ending.XFAILED:
            # Its failure was expected. A crash or an error of its teardown was not.
            late = ending is not None and ending is not Ending.FAILED and ending in BROKEN
            return _BROKEN[ending] if late and ending is not None else _excused(found, "expected")
        if ending is Ending.RERUN:
            return _excused(found, "rerun")
        if ending in {Ending.PASSED, Ending.XPASSED, Ending.SKIPPED}:
            return _allowed(found, ending)
        return found
    if ending is not None and ending is not Ending.PASSED:
        return (_BROKEN | _HARMLESS)[ending]
    return Standing(result.kind, Tone.NONE) if result.outcome is None else _VERDICTS[result.outcome]


def verdict_word(result: Result) -> str:
    """The verdict, whatever became of the test; the kind of measurement where nothing was judged."""
    return _UNMEASURED.word if result.left_unmeasured else (result.outcome or result.kind).value


def _excused(found: Standing, remark: str) -> Standing:
    return Standing(found.word, Tone.EXPECTED, "skipped", remark)


def _allowed(found: Standing, ending: Ending | None) -> Standing:
    """A bad word of a test that did not fail for it: the session allows it, or the test took it."""
    if found.tone is Tone.INCONCLUSIVE:
        return Standing(found.word, found.tone, "skipped" if ending is Ending.SKIPPED else None)
    return Standing(found.word, Tone.EXPECTED, "skipped", "skipped" if ending is Ending.SKIPPED else "test passed")


def worst_first(results: Iterable[Result]) -> list[Result]:
    """The results, the worst first. What was expected comes after other failures."""

    def order(result: Result) -> tuple[bool, bool, bool, int]:
        found = standing(result)
        return (
            not (found.bad and result.failed),
            not found.bad,
            found.tone is not Tone.EXPECTED,
            _WORST_FIRST.index(result.outcome),
        )

    return sorted(results, key=order)


@dataclass(frozen=True, slots=True)
class Headline:
    """One line on a result or a session.

    Attributes:
        claim: what is so.
        why: the arithmetic or the reason; may be empty.
        standing: of the result; of the session: of its worst result.
        regression: it is about the comparison with a baseline.
    """

    claim: str
    why: str
    standing: Standing
    regression: bool = False

    @property
    def text(self) -> str:
        """Both parts in one line."""
        return ": ".join(filter(None, [self.claim, self.why]))


def result_headlines(result: Result) -> list[Headline]:
    """What a result came to, in a line or two: the verdict, the regression, the test's own failure."""
    found = standing(result)
    lines = []
    if result.failed or result.left_unmeasured:
        claim, why = headline_parts(result)
        lines.append(Headline(claim, "; ".join(filter(None, [why, _more_time(result)])), found))
    if result.regressed:
        lines.append(Headline(*comparison_headline_parts(result), found, regression=True))
    if not lines and result.ending is not None and result.ending in BROKEN:
        lines.append(Headline(f"{result.name}: its test {_ENDED[result.ending]}", _own_failure(result), found))
    return lines or [Headline(*headline_parts(result), found)]


def result_headline(result: Result) -> Headline:
    """The first line on a result."""
    return result_headlines(result)[0]


def stated(result: Result) -> str:
    """The word and the headline: ``FAIL: chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50``."""
    first = result_headline(result)
    if first.regression:  # it begins with its word
        return first.text
    return f"{first.standing.text}: {first.text}"


def _more_time(result: Result) -> str:
    return "" if result.more_time is None else result.more_time.text


def _own_failure(result: Result) -> str:
    """Why the test did not succeed, and what it had measured by then."""
    claim, why = headline_parts(result)
    budget = result.requirement.gpus
    if result.outcome is Outcome.PASS and result.sustainable_rate is not None:
        claim, why = f"the budget of {budget} GPU{'' if budget == 1 else 's'} holds", arithmetic(result)
    elif result.outcome is None:
        claim, why = why, ""
    return "; ".join(filter(None, [result.ending_reason, ": ".join(filter(None, [claim, why]))]))


def session_headlines(results: Sequence[Result], problems: Sequence[str] = ()) -> list[Headline]:
    """What a session came to: its worst results, what ended it early, or that its budgets hold; at least one line.

    Args:
        results: worst first.
        problems: of the result file. Budgets that were never measured do not hold.
    """
    bad = [result for result in results if standing(result).bad]
    lines = [line for result in bad[:LEADING] for line in result_headlines(result)]
    lines += [Headline("Not all was measured", problem, _EARLY) for problem in problems[:LEADING]]
    if bad:
        return lines
    if not results:
        return lines or [Headline("Nothing was measured", "", Standing("measured", Tone.NONE))]
    return [*lines, _held(results)]


def _held(results: Sequence[Result]) -> Headline:
    """That budgets hold, or that none was declared."""
    judged = [result for result in results if result.outcome is not None]
    if results and all(result.imported is not None for result in results):
        counted = f"{len(results)} imported point{'' if len(results) == 1 else 's'}"
        return Headline(counted, "seen by another tool, and no measured capacity", Standing("imported", Tone.NONE))
    if not judged:
        counted = f"{len(results)} result{'' if len(results) == 1 else 's'}, no budget declared"
        return Headline("GPU capacity measured", counted, Standing("measured", Tone.NONE))
    held = sum(result.outcome is Outcome.PASS for result in judged)
    found = _VERDICTS[Outcome.PASS] if held else standing(judged[0])
    return Headline(f"{held} of {len(judged)} GPU budgets hold", "", found)


_SAID: Final = {
    "PASS": "holds",
    "FAIL": "fails",
    "REGRESSED": "regressed",
    "INCONCLUSIVE": "is undecided",
    "INVALID": "was not measured",
    "NOT MEASURED": "did not fit the time",
}
_WORDS: Final = (*_SAID, *(each.word for each in (*_BROKEN.values(), *_HARMLESS.values())))


def session_counts(results: Iterable[Result]) -> str:
    """How many results came to what: ``2 holds, 1 fails, 1 as expected``; measurements are not counted."""
    found = [standing(result) for result in results]
    counts = Counter(each.word for each in found)
    said = [f"{counts[word]} {_SAID.get(word, word.lower())}" for word in _WORDS if counts[word]]
    for remark, words in (("expected", "as expected"), ("rerun", "run again"), ("test passed", "accepted by the test")):
        if count := sum(each.remark == remark for each in found):
            said.append(f"{count} {words}")
    return ", ".join(said)


# The comparison with a baseline


def comparison_headline(result: Result) -> str:
    """The decision with its arithmetic, in one line. The result must have a comparison.

    ``REGRESSED: chat sustains 22.6 req/s, baseline main 25.1 req/s: -10.0% (-14.2% to -5.5%), 5.0% allowed``
    """
    return ": ".join(comparison_headline_parts(result))


def comparison_headline_parts(result: Result) -> tuple[str, str]:
    """The decision, and its arithmetic or reason."""
    found = compared(result)
    name, decision, baseline = result.name, found.decision.value, found.baseline.name
    if found.ratio is None or found.head_rate is None or found.base_rate is None:
        return decision, f"{name} against {baseline}: {found.reason}"
    rates = f"{rate(found.head_rate.value)}, baseline {baseline} {rate(found.base_rate.value)}"
    return decision, f"{name} sustains {rates}: {changes.change(found)}, {percent(found.max_regression)} allowed"


def compared(result: Result) -> Comparison:
    """The comparison of a result that has one."""
    assert result.comparison is not None  # noqa: S101 - what the callers ask for
    return result.comparison
