"""Records -> JUnit: pytest's ``user_properties`` while tests run, and a whole file from a document afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from pytest_gpucap.report import comparison, rows, terminal
from pytest_gpucap.report.clean import cleaned, visible
from pytest_gpucap.report.formatting import headline


def properties(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | float]]:
    """Pairs named ``gpucap_...``, plain text and numbers only; the verdict first, because viewers cut long lists."""
    pairs: list[tuple[str, str | float]] = []
    for record in map(cleaned, records):
        if record["outcome"] is not None:
            pairs += [("gpucap_verdict", record["outcome"]), ("gpucap_headline", headline(record))]
        if compared := record.get("comparison"):
            pairs.append(("gpucap_baseline", f"{compared['decision']}{rows.change(compared)}"))
        pairs += [(name, value) for name, value in _figures(record) if value is not None]
        if record["simulated"]:
            pairs.append(("gpucap_simulated", "SIMULATED"))
    return pairs


def _figures(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = record["sustainable_rate"] or {}
    slack = record.get("slack") or {}
    accuracy = record.get("accuracy") or {}
    needed = record.get("gpus_required")
    return [
        ("gpucap_gpus_required", needed),
        ("gpucap_gpus", None if needed is None else record["requirement"]["gpus"]),
        ("gpucap_rate_rps", found.get("value")),
        ("gpucap_rate_low_rps", found.get("low")),
        ("gpucap_rate_high_rps", found.get("high")),
        ("gpucap_design_rate_rps", record.get("design_rate_rps")),
        ("gpucap_slack", slack.get("value")),
        ("gpucap_binding", record["binding"] if found else None),
        ("gpucap_accuracy", accuracy.get("value")),
        ("gpucap_gpu", record["environment"].get("gpu")),
        ("gpucap_server", record["environment"].get("server")),
    ]


def render(document: Mapping[str, Any]) -> str:
    """A JUnit file: a suite for every result, so that its properties stand where every schema has them.

    A FAIL or a regression is a failure, an INVALID measurement an error, INCONCLUSIVE a failure as well (the file does
    not know what the session made of it), a failure that was expected is skipped, and what has no verdict passes.
    """
    root = ET.Element("testsuites", name="pytest-gpucap")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    seen: Counter[tuple[str, str]] = Counter()
    for record in map(cleaned, document["results"]):
        # A test may measure several times under one name, and of cases with one name GitLab reads the first alone.
        seen[record["test"], record["name"]] += 1
        counts = _suite(root, record, visible(str(document["started"])), seen[record["test"], record["name"]])
        totals = {key: totals[key] + counts[key] for key in totals}
    for key, count in totals.items():
        root.set(key, str(count))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="utf-8"?>\n', "\n")
    )


def _suite(root: ET.Element, record: Mapping[str, Any], started: str, turn: int) -> dict[str, int]:
    path, _, test = record["test"].partition("::")
    inside, _, own = test.rpartition("::")
    classname = ".".join(
        part for part in (path.removesuffix(".py").replace("/", "."), inside.replace("::", ".")) if part
    )
    spent = f"{sum(filter(None, record['spent_s'].values())):.3f}"
    suite = ET.SubElement(root, "testsuite", name=f"gpucap: {record['name']}", tests="1", time=spent, timestamp=started)
    holder = ET.SubElement(suite, "properties")
    for name, value in properties([record]):
        ET.SubElement(holder, "property", name=name, value=str(value))
    name = f"{own or test} [{record['name']}]{f' #{turn}' if turn > 1 else ''}"
    case = ET.SubElement(suite, "testcase", classname=classname, name=name, time=spent)
    kind = _ending(record)
    if kind is not None:
        word, head, body = _told(record)
        ET.SubElement(case, kind, message=head, type=f"gpucap.{word}").text = body
    counts = {"tests": 1, "failures": int(kind == "failure"), "errors": int(kind == "error")}
    for key in ("failures", "errors"):
        suite.set(key, str(counts[key]))
    suite.set("skipped", str(int(kind == "skipped")))
    return counts


def _told(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """The word for what happened, one line, and the whole text."""
    outcome = record["outcome"]
    if outcome in {"PASS", None}:
        return "REGRESSED", comparison.headline(record), comparison.failure(record)
    return outcome, f"{outcome}: {headline(record)}", terminal.failure(record)


def _ending(record: Mapping[str, Any]) -> str | None:
    """The element that says how it ended; None for what passed."""
    if record["outcome"] in {"PASS", None} and not rows.regressed(record):
        return None
    if rows.expected(record):
        return "skipped"
    return "error" if record["outcome"] == "INVALID" else "failure"
