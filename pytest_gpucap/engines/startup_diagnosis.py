"""Why a vLLM server did not start: its log and its end, read against the known causes."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from pytest_gpucap.engines.startup_errors import MORE_SHM, NOTHING, PATTERNS, Given, Pattern, more_memory, plain_dtype

_EXCEPTION = re.compile(
    r"(?:^|\s)(?P<kind>(?:[\w.]+\.)?(?:[A-Z]\w*(?:Error|Interrupt|Exception|OutOfResources)|Exception)): (?P<text>.+)$",
    re.MULTILINE,
)
_ROOT_ELSEWHERE = re.compile(
    r"root cause|Engine core initialization failed|EngineDeadError|RuntimeError: cancelled|See stack trace"
    r"|failed to be inspected|Error in inspecting model|Error raised in subprocess|CalledProcessError"
    r"|WorkerProc initialization failed|EngineCore failed to start|Engine process failed|Executor failed"
    r"|EngineCore encountered an issue|Executor worker returned error"
    r"|[Cc]heck the logs|remote process exited|recvValue failed|Broken ?[Pp]ipe"
)
"""In the words of an exception: it only reports that another one, above it, ended something."""
_INSPECTED = re.compile(r"Model architectures \[[^\]\n]{0,500}\] failed to be inspected")
_INVALID = re.compile(r"\d validation errors? for")
_CAUSED = "The above exception was the direct cause of the following exception"
_NO_CAUSE = re.compile(r"^(?:(?:DEBUG|INFO|WARNING) .*|[ \t]+raise \w.*)\n?", re.MULTILINE)
"""Lines that only inform or warn, and lines of source code in a traceback whose words may be another error's."""
_PREFIX = re.compile(r"^(?:\([\w ]*pid=\d[^()\n]*\) ?)+", re.MULTILINE)
_LEVEL = re.compile(r"^(?:ERROR|CRITICAL) (?:\d\d-\d\d )?(?:\d\d:\d\d:\d\d )?\[?[\w.]+\.py:\d+\] ?", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
_KILLED_ITSELF = "Received sigquit from a child process"
"""What SGLang logs before it ends its own processes with SIGKILL, because one of them failed."""
_ENGINE_FAILED = "Engine core initialization failed"


def _signal_cause(exit_code: int | None, given: Given) -> str | None:
    if exit_code == -signal.SIGKILL:
        return (
            f"it was killed with SIGKILL, which is what the kernel does when host memory runs out; {more_memory(given)}"
        )
    if exit_code == -signal.SIGILL:
        return f"it used an instruction that this CPU does not grant (SIGILL); {plain_dtype(given)}"
    if exit_code == -signal.SIGBUS:
        return f"it was ended by SIGBUS, which is what the kernel does when /dev/shm is full; {MORE_SHM}"
    return None


def plain(log: str) -> str:
    """A log without colours and without what vLLM writes before each line: its process, level, time and file."""
    return _LEVEL.sub("", _PREFIX.sub("", _COLOUR.sub("", log)))


def find(log: str) -> tuple[Pattern, re.Match[str]] | None:
    """The first known cause that the log shows, and its match; None if it shows none.

    What the server only informs or warns of is no cause. A match that merely points to another exception ("failed to
    be inspected. Please check the logs") is none either.
    """
    text = _NO_CAUSE.sub("", plain(log))
    for pattern in PATTERNS:
        for match in pattern.log.finditer(text):
            if not _ROOT_ELSEWHERE.search(match[0]):
                return pattern, match
    return None


def known_cause(log: str) -> str:
    """The name of the first known cause that the log shows; empty if it shows none."""
    found = find(log)
    return "" if found is None else found[0].name


def diagnose(log: str, exit_code: int | None = None, oom_kills: int = 0, given: Given = NOTHING) -> str:
    """The cause in one line, with the fix where one is known.

    Args:
        log: the whole log.
        exit_code: of the main process, negative for a signal; None while it runs.
        oom_kills: processes that the kernel's out-of-memory killer ended during the start (see `oom_kills`).
        given: what is known of the command.
    """
    if found := find(log):
        pattern, match = found
        return pattern.describe(match, given)
    if oom_kills:
        return f"the kernel's out-of-memory killer ended a process while it started; {more_memory(given)}"
    root = _root(_NO_CAUSE.sub("", plain(log)))
    signalled = None if root and _KILLED_ITSELF in log else _signal_cause(exit_code, given)
    if told := signalled or root:
        return told
    if _ENGINE_FAILED in log:
        return "its engine process ended without a message, so it was probably killed; look for the reason in dmesg"
    return ended(exit_code)


def _root(text: str) -> str:
    """The last exception that is no mere summary, and what caused it where that is said; empty if there is none."""
    raised = list(_EXCEPTION.finditer(text))
    roots = [n for n, m in enumerate(raised) if not _ROOT_ELSEWHERE.search(m[0]) and not _INVALID.search(m[0])]
    if not roots:
        summary = _INSPECTED.search(text)
        return summary[0] if summary else ""
    first = last = roots[-1]
    while first - 1 in roots and _CAUSED in text[raised[first - 1].end() : raised[first].start()]:
        first -= 1
    led = "" if first == last else f" (it led to {_named(raised[last])})"
    return _named(raised[first]) + led


def _named(exception: re.Match[str]) -> str:
    text = exception["text"].strip()
    return f"{exception['kind']}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"


def oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer has ended since boot; 0 if the kernel does not report it."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(match[1]) if match else 0


def signal_name(number: int) -> str:
    """The name of a signal, such as ``SIGKILL``."""
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def ended(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "the log names no cause"
    if exit_code < 0:
        return f"it was ended by {signal_name(-exit_code)}, and the log names no cause"
    return f"it ended with exit code {exit_code}, and the log names no cause"
