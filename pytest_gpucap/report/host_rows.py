"""Who used the host's cores, what held them back, and why the host was not itself."""

from __future__ import annotations

from pytest_gpucap.report.formatting import Row, percent
from pytest_gpucap.results.problems import ProblemSource
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import HostSummary, cores_text


def host(result: Result) -> list[Row]:
    """Who used the host's cores, what held them back, and why the host was not itself if that is only a remark."""
    found = None if result.telemetry is None else result.telemetry.host
    if found is None or found.busy_cores is None:
        return []
    used = [
        f"{cores_text(found.busy_cores)} of {found.cores} cores busy",
        "" if found.own_cores is None else f"{cores_text(found.own_cores)} by server and load generator",
        _others(found),
    ]
    lines = [("host", ", ".join(filter(None, used)))]
    if held := _held_back(found):
        lines.append(("", ", ".join(held)))
    return [*lines, *(("disturbed", text) for text in remarks(result))]


def remarks(result: Result) -> list[str]:
    """Why the host was not itself, where that is only a remark and not among the problems."""
    found = None if result.telemetry is None else result.telemetry.host
    judged = {problem.kind for problem in result.problems if problem.source is ProblemSource.HOST}
    return [] if found is None else [each.text for each in found.disturbances if each.kind not in judged]


def _others(found: HostSummary) -> str:
    if found.other_cores is None:
        return "the server's processes cannot be told from others"
    named = [each.describe() for each in found.others]
    return f"{cores_text(found.other_cores)} by others" + (f" ({', '.join(named)})" if named else "")


def _held_back(found: HostSummary) -> list[str]:
    """Figures that say how much the processes had to wait; those that are not known are left out."""
    base = f" of {found.base_clock_mhz:.0f}" if found.base_clock_mhz else ""
    shares = [
        (found.waiting, "{} of the time a task waited for a core"),
        (found.stolen, "{} steal"),
        (found.throttled, f"CPU quota of {cores_text(found.quota_cores or 0.0)} cores used up in {{}} of its periods"),
        (found.memory_stalled or None, "{} of the time all waited for memory"),
        (found.heated or None, "{} of the time held back by heat"),
    ]
    told = [text.format(percent(share)) for share, text in shares if share is not None]
    return [*told, *([f"{found.clock_mhz:.0f}{base} MHz"] if found.clock_mhz else [])]
