"""Records -> the top of the page: the verdict on all of them, where and when they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pytest_gpucap.report import rows
from pytest_gpucap.report.formatting import seconds
from pytest_gpucap.report.html.view import Badge, Record, badge


def title(records: Sequence[Record]) -> tuple[str, str]:
    """The page's first line, and its tone: ``fail``, ``pass``, ``inconclusive``, ``invalid`` or ``none``."""
    counted = [record for record in records if record["outcome"] and not rows.expected(record)]
    outcomes = [record["outcome"] for record in counted]
    lost = sum(rows.regressed(record) for record in records)
    if not outcomes:
        tone = "fail" if lost else "none"
        return (f"{lost} of {len(records)} regressed" if lost else _counted(len(records), "measurement"), tone)
    worst = min(outcomes, key=rows.WORST_FIRST.index)
    count, total = outcomes.count(worst), len(outcomes)
    if worst == "PASS":
        held = f"All {total} budgets hold" if total > 1 else "The budget holds"
        return (f"{held}, {lost} regressed", "fail") if lost else (held, "pass")
    of_all = f"{count} of {total} budgets" if total > 1 else "The budget"
    said = {
        "INVALID": "could not be measured",
        "FAIL": "does not hold" if count == 1 else "do not hold",
        "INCONCLUSIVE": "is undecided" if count == 1 else "are undecided",
    }[worst]
    return f"{of_all} {said}", worst.lower()


def counts(records: Sequence[Record]) -> list[tuple[Badge, int]]:
    """How many of each badge, in the order of the records."""
    badges = [badge(record) for record in records]
    return [(each, badges.count(each)) for each in dict.fromkeys(badges)]


def places(records: Sequence[Record]) -> list[str]:
    """What was measured on what; one line each, usually one."""
    return [place for place in dict.fromkeys(map(rows.place, records)) if place]


def moment(text: str) -> str:
    """An ISO time for people: ``22 Nov 2026, 21:24 UTC``."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when.day} {when:%b %Y, %H:%M}{zone}"


def server_time(records: Sequence[Record]) -> str:
    """Over all records."""
    return seconds(sum(sum(filter(None, record["spent_s"].values())) for record in records))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
