"""Whether the host was itself while it was measured: whether the server had its cores and their usual speed.

Others on the machine are no fault. They are one while no core is idle, because then what they take is missing to the
server. A machine with 96 cores on which others use one measures a GPU as well as an empty one.
"""

from __future__ import annotations

from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.telemetry import HostSummary, cores_text

IDLE_CORES = 0.25
"""With less than this much of a core idle, whatever others use is missing to the measurement."""
IDLE_SHARE = 0.01
"""The same limit for large machines, as a share of the cores: a machine of 96 cores never uses the last one fully."""
SPARE_CORES = 1.0
"""With less than this much of a core idle, others are in the way only while a task waits for a core. The kernel's
pressure figure tells that share of the time."""
MOST_TAKEN = 0.05
"""Share of the cores that others may take while no core is idle. As much as that moves the rate of a server that the
CPU limits by as much as the smallest regression that is judged by default."""
LEAST_TAKEN_S = 0.5
"""Seconds of CPU that must be missing. A process that starts during a short window disturbs it and moves no figure."""
UNSEEN_CORES = 0.1
"""Processes that cannot be seen count from here on. The kernel counts the time of a core by sampling and that of a
process exactly, and the two differ by up to half of this."""
MOST_STOLEN = 0.05
"""Share of the time in which this virtual machine wanted to run that the hypervisor may give to others. It slows the
server by as much; see `MOST_TAKEN`."""
MOST_THROTTLED = 0.05
"""Share of the periods of a CPU quota that may end with the quota used up. Everything then stands still for up to 0.1
s. Once in twenty periods, a p95 does not show that."""
MOST_HEATED = 0.05
"""Share of the time in which heat may hold the processor back; see `MOST_TAKEN`."""
LOW_CLOCK = 0.5
"""Share of the processor's base clock that busy cores must reach. Wide vector instructions alone may lower it by a
third, a power limit or a power-saving governor by much more."""
MOST_STALLED = 0.05
"""Share of the time in which every task with work may wait for memory. Then the machine is short of it: it swaps, or
reads the same pages again and again."""

_ADVICE = "end them, or measure on a machine that does nothing else"
_ANYWAY = "--gpucap-host-check=warn measures all the same"


def host_problems(host: HostSummary, seconds: float) -> list[Problem]:
    """Why a measurement on this host cannot be trusted; none if it can.

    Args:
        host: what the host showed in a window.
        seconds: the length of the window.
    """
    found = []
    taken, stolen = host.disturbing_cores or 0.0, host.stolen_cores or 0.0
    if taken > MOST_TAKEN * host.cores and taken * seconds >= LEAST_TAKEN_S:
        text = f"{others_text(host)}, and no core was left idle; {_ADVICE} ({_ANYWAY})"
        found.append(Problem(ProblemSource.HOST, ProblemKind.OTHERS, text))
    if (host.stolen or 0.0) > MOST_STOLEN and stolen * seconds >= LEAST_TAKEN_S:
        text = (
            f"the hypervisor gave {host.stolen:.0%} of the time that this virtual machine wanted to run to others "
            f"(steal); take a machine with cores of its own ({_ANYWAY})"
        )
        found.append(Problem(ProblemSource.HOST, ProblemKind.STEAL, text))
    if host.throttled is not None and host.throttled > MOST_THROTTLED:
        found.append(Problem(ProblemSource.HOST, ProblemKind.QUOTA, _quota_text(host, seconds)))
    if host.heated is not None and host.heated > MOST_HEATED:
        text = f"heat held the processor back in {host.heated:.0%} of the time{_clock_text(host)} ({_ANYWAY})"
        found.append(Problem(ProblemSource.HOST, ProblemKind.SLOWED_DOWN, text))
    elif host.clock_mhz and host.base_clock_mhz and host.clock_mhz < LOW_CLOCK * host.base_clock_mhz:
        text = f"busy cores were held back{_clock_text(host)}: look at the governor and the power limit ({_ANYWAY})"
        found.append(Problem(ProblemSource.HOST, ProblemKind.SLOWED_DOWN, text))
    if host.memory_stalled is not None and host.memory_stalled > MOST_STALLED:
        text = (
            f"the machine was short of memory: all tasks waited for it in {host.memory_stalled:.0%} of the time; "
            f"{_ADVICE.replace('them', 'what uses it')} ({_ANYWAY})"
        )
        found.append(Problem(ProblemSource.HOST, ProblemKind.MEMORY, text))
    return found


def others_text(host: HostSummary) -> str:
    """``other processes used 1.1 of 2 cores: pid 123 stress-ng 0.8, pid 124 python 0.3``."""
    named = [each.describe() for each in host.others]
    if host.unseen_cores:
        unseen = cores_text(host.unseen_cores)
        named.append(f"{unseen} by processes that cannot be seen from here, as outside a container")
    used = f"other processes used {cores_text(host.other_cores or 0.0)} of {host.cores} cores"
    return f"{used}: {', '.join(named)}" if named else used


def _quota_text(host: HostSummary, seconds: float) -> str:
    quota = host.quota_cores or 0.0
    text = f"the CPU quota of {cores_text(quota)} cores was used up in {host.throttled:.0%} of its periods"
    if host.throttled_cores:
        text += f", for {host.throttled_cores * seconds:.2g} s in all"
    beside = host.quota_other_cores or 0.0
    if beside > MOST_TAKEN * quota:
        text += f"; other processes used {cores_text(beside)} cores of it"
    return f"{text}; raise it (docker --cpus, Kubernetes limits.cpu, systemd CPUQuota=; {_ANYWAY})"


def _clock_text(host: HostSummary) -> str:
    if not host.clock_mhz:
        return ""
    base = f", base clock {host.base_clock_mhz:.0f} MHz" if host.base_clock_mhz else ""
    return f", at {host.clock_mhz:.0f} MHz{base}"
