"""Results -> JUnit: pytest's ``user_properties`` while tests run, and a whole file from a result file afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from pytest_gpucap.report import capacity_rows, changes, rows, server_time, terminal
from pytest_gpucap.report.comparison import regression_failure
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import gpus_needed, headline, known, reported_rate, reported_slack, shown_bound
from pytest_gpucap.report.goodput import goodput_share
from pytest_gpucap.report.headline import standing, stated, verdict_word
from pytest_gpucap.report.reasoning import reasoning_text
from pytest_gpucap.results.measured import KEPT_PERCENTILES
from pytest_gpucap.results.points import WHAT_IT_IS, point_rate
from pytest_gpucap.results.result import Result, ResultFile, ResultKind


def properties(results: Iterable[Result]) -> list[tuple[str, str | float]]:
    """Pairs named ``gpucap_...``, only text and numbers. The verdict comes first, because viewers cut long lists."""
    pairs: list[tuple[str, str | float]] = []
    for result in map(cleaned, results):
        if result.outcome is not None or result.left_unmeasured:
            pairs += [("gpucap_verdict", verdict_word(result)), ("gpucap_headline", headline(result))]
        if result.left_unmeasured and result.more_time is not None and result.more_time.seconds is not None:
            pairs.append(("gpucap_needs_s", result.more_time.seconds))
        if (found := result.comparison) is not None:
            told = [found.decision.value, *filter(None, [changes.change(found)])]
            pairs.append(("gpucap_baseline", ", ".join(told)))
        pairs += [(name, value) for name, value in _figures(result) if value is not None]
        pairs += _beside(result)
        pairs += _sampled(result)
        pairs += _compared(result)
        if result.imported is not None:
            pairs.append(("gpucap_imported", f"{result.imported.described}: {WHAT_IT_IS}"))
        if result.simulated:
            pairs.append(("gpucap_simulated", "SIMULATED"))
    return pairs


def _beside(result: Result) -> list[tuple[str, str | float]]:
    """The limits beside the rate: ``gpucap_startup`` and ``gpucap_startup_limit``, in the limit's unit."""
    pairs: list[tuple[str, str | float]] = []
    for each in result.secondary:
        value = None if each.measured is None else known(each.measured.value)
        pairs += [] if value is None else [(f"gpucap_{each.name}", value)]
        pairs.append((f"gpucap_{each.name}_limit", each.limit))
    return pairs


def _sampled(result: Result) -> list[tuple[str, str | float]]:
    """Latencies of a window that `sample` measured, in seconds: ``gpucap_ttft_p95_s``."""
    if result.kind not in {ResultKind.SAMPLE, ResultKind.IMPORTED}:
        return []
    return [
        (f"gpucap_{metric}_p{percent}_s", value)
        for sample in result.samples
        for metric, latency in sample.latencies.items()
        for percent in KEPT_PERCENTILES
        if (value := known(latency.percentile(percent))) is not None
    ]


def _compared(result: Result) -> list[tuple[str, str | float]]:
    """What was compared beside the rate, or why not: ``gpucap_latencies`` and ``gpucap_base_and_head``."""
    found = result.comparison
    if found is None:
        return []
    latencies = "; ".join(changes.latency_lines(found.latencies)) or (
        found.no_latencies and f"none: {found.no_latencies}"
    )
    told = {"gpucap_latencies": latencies, "gpucap_base_and_head": "; ".join(changes.figure_lines(found.figures))}
    return [(name, value) for name, value in told.items() if value]


def _figures(result: Result) -> list[tuple[str, str | float | None]]:
    rate, accuracy = reported_rate(result), result.accuracy
    share = None if accuracy is None else accuracy.share
    needed = gpus_needed(result)
    return [
        ("gpucap_gpus_required", needed),
        ("gpucap_gpus", None if needed is None else result.requirement.gpus),
        ("gpucap_rate_rps", known(rate.value)),
        ("gpucap_point_rps", point_rate(result)),
        ("gpucap_rate_low_rps", known(rate.low)),
        ("gpucap_rate_high_rps", known(rate.high)),
        ("gpucap_start_phases", server_time.start_phases(result) or None),
        ("gpucap_starts", ", ".join(map(capacity_rows.start_told, result.starts)) or None),
        ("gpucap_start_spread", known(result.start_spread)),
        ("gpucap_design_rate_rps", result.design_rate_rps),
        ("gpucap_slack", reported_slack(result)),
        ("gpucap_binding", result.binding if result.trusted and shown_bound(result) is None else None),
        ("gpucap_goodput", goodput_share(result)),
        ("gpucap_reasoning", reasoning_text(result) or None),
        ("gpucap_prefix_hits", result.prefix_hit_rate),
        ("gpucap_accuracy", None if share is None else known(share.value)),
        ("gpucap_failed_requests", rows.told_failures(result) or None),
        ("gpucap_adapters", "; ".join(value for _, value in rows.adapters(result)) or None),
        ("gpucap_requests", ", ".join(each.file for each in result.requests if each.file) or None),
        ("gpucap_gpu", result.environment.gpu),
        ("gpucap_engine", result.environment.engine),
        ("gpucap_server", result.environment.server),
    ]


def junit(content: ResultFile) -> str:
    """A JUnit file with a suite for every result, because every schema has properties on suites.

    A suite ends as pytest ended its test. A FAIL, a regression or a failure of the test's own is a failure. An INVALID
    measurement, a crash or a failed teardown is an error. An expected failure is skipped. INCONCLUSIVE is a failure
    unless the session let its test pass or skip.
    """
    root = ET.Element("testsuites", name="pytest-gpucap")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
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
    found = standing(result)
    if found.ending is not None:
        told = ET.SubElement(case, found.ending, message=stated(result), type=f"gpucap.{found.word.replace(' ', '_')}")
        told.text = _body(result)
    counts = {
        "tests": 1,
        "failures": int(found.ending == "failure"),
        "errors": int(found.ending == "error"),
        "skipped": int(found.ending == "skipped"),
    }
    for key in ("failures", "errors", "skipped"):
        suite.set(key, str(counts[key]))
    return counts


def _body(result: Result) -> str:
    """The whole text."""
    if result.failed:
        return terminal.failure(result)
    return regression_failure(result) if result.regressed else terminal.section(result)
