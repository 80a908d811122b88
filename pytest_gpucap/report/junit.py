"""Results -> JUnit: pytest's ``user_properties`` while tests run, and a whole file from a result file afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from pytest_gpucap.report import rows, terminal
from pytest_gpucap.report.comparison import comparison_headline, regression_failure
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import gpus_needed, headline, known, reported_rate, reported_slack, shown_bound
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result, ResultFile


def properties(results: Iterable[Result]) -> list[tuple[str, str | float]]:
    """Pairs named ``gpucap_...``, only text and numbers. The verdict comes first, because viewers cut long lists."""
    pairs: list[tuple[str, str | float]] = []
    for result in map(cleaned, results):
        if result.outcome is not None:
            pairs += [("gpucap_verdict", result.outcome.value), ("gpucap_headline", headline(result))]
        if (found := result.comparison) is not None:
            told = [found.decision.value, *filter(None, [rows.change(found)])]
            pairs.append(("gpucap_baseline", ", ".join(told)))
        pairs += [(name, value) for name, value in _figures(result) if value is not None]
        if result.simulated:
            pairs.append(("gpucap_simulated", "SIMULATED"))
    return pairs


def _figures(result: Result) -> list[tuple[str, str | float | None]]:
    rate, accuracy = reported_rate(result), result.accuracy
    share = None if accuracy is None else accuracy.share
    needed = gpus_needed(result)
    return [
        ("gpucap_gpus_required", needed),
        ("gpucap_gpus", None if needed is None else result.requirement.gpus),
        ("gpucap_rate_rps", known(rate.value)),
        ("gpucap_rate_low_rps", known(rate.low)),
        ("gpucap_rate_high_rps", known(rate.high)),
        ("gpucap_design_rate_rps", result.design_rate_rps),
        ("gpucap_slack", reported_slack(result)),
        ("gpucap_binding", result.binding if result.trusted and shown_bound(result) is None else None),
        ("gpucap_accuracy", None if share is None else known(share.value)),
        ("gpucap_failed_requests", rows.told_failures(result) or None),
        ("gpucap_gpu", result.environment.gpu),
        ("gpucap_server", result.environment.server),
    ]


def junit(content: ResultFile) -> str:
    """A JUnit file with a suite for every result, because every schema has properties on suites.

    A FAIL or a regression is a failure. INCONCLUSIVE is a failure too, because the result file does not say how the
    session treated it. An INVALID measurement is an error. An expected failure is skipped. No verdict is a pass.
    """
    root = ET.Element("testsuites", name="pytest-gpucap")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    seen: Counter[tuple[str, str]] = Counter()
    for result in map(cleaned, content.results):
        # A test may measure several times under one name, but GitLab reads only the first case of a name.
        seen[result.test, result.name] += 1
        counts = _suite(root, result, content.started.isoformat(), seen[result.test, result.name])
        totals = {key: totals[key] + counts[key] for key in totals}
    for key, count in totals.items():
        root.set(key, str(count))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="utf-8"?>\n', "\n")
    )


def _suite(root: ET.Element, result: Result, started: str, turn: int) -> dict[str, int]:
    path, _, test = result.test.partition("::")
    inside, _, own = test.rpartition("::")
    classname = ".".join(
        part for part in (path.removesuffix(".py").replace("/", "."), inside.replace("::", ".")) if part
    )
    spent = f"{result.total_spent_s:.3f}"
    suite = ET.SubElement(root, "testsuite", name=f"gpucap: {result.name}", tests="1", time=spent, timestamp=started)
    holder = ET.SubElement(suite, "properties")
    for name, value in properties([result]):
        ET.SubElement(holder, "property", name=name, value=str(value))
    name = f"{own or test} [{result.name}]{f' #{turn}' if turn > 1 else ''}"
    case = ET.SubElement(suite, "testcase", classname=classname, name=name, time=spent)
    kind = _ending(result)
    if kind is not None:
        word, head, body = _told(result)
        ET.SubElement(case, kind, message=head, type=f"gpucap.{word}").text = body
    counts = {"tests": 1, "failures": int(kind == "failure"), "errors": int(kind == "error")}
    for key in ("failures", "errors"):
        suite.set(key, str(counts[key]))
    suite.set("skipped", str(int(kind == "skipped")))
    return counts


def _told(result: Result) -> tuple[str, str, str]:
    """The word for what happened, one line, and the whole text."""
    outcome = result.outcome
    if not rows.failed(result):
        return "REGRESSED", comparison_headline(result), regression_failure(result)
    return str(outcome), f"{outcome}: {headline(result)}", terminal.failure(result)


def _ending(result: Result) -> str | None:
    """The element for the ending; None if it passed."""
    if not (rows.failed(result) or rows.regressed(result)):
        return None
    if result.expected_failure:
        return "skipped"
    return "error" if result.outcome is Outcome.INVALID else "failure"
