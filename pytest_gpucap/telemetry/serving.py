"""Which processes of this machine serve a port: the server's own, if they can be told from others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import psutil

from pytest_gpucap.engines.answering import listeners
from pytest_gpucap.telemetry.host_files import Process

_LAUNCHERS = frozenset(
    {
        *("bash", "dash", "fish", "ksh", "sh", "zsh", "login", "make", "screen", "su", "sudo", "tmux", "tmux: server"),
        *(
            "sshd",
            "cron",
            "crond",
            "init",
            "systemd",
            "supervisord",
            "tini",
            "dumb-init",
            "docker-init",
            "containerd-shim",
        ),
    }
)
"""A parent of this name started the server among other things. It is no part of the server."""


class OwnServer:
    """The processes behind a port.

    They are not known if another user's process listens there, or if the listener passes requests on, as gateways and
    the proxies of container engines do: then the server's work is done by processes that look like strangers.

    Args:
        port: on this machine; None: whatever serves is among the processes that are known otherwise.
    """

    def __init__(self, port: int | None) -> None:
        self._port = port
        self.pids: frozenset[int] = frozenset()
        self.known = True
        self._gateway = False

    def look(self, processes: Mapping[int, Process], own: Collection[int]) -> None:
        """Find the listener unless it is known, and whether it passes requests on.

        Args:
            processes: all that can be seen.
            own: the measurement's processes as far as they are known.
        """
        if self._port is None:
            return
        if not self.pids & processes.keys():
            if self._listens(own):
                self._port = None  # started by the measurement
                return
            self.pids = frozenset(_launcher(pid, processes, own) for pid in listeners(self._port))
        self._gateway = self._gateway or self._passes_on(with_descendants(self.pids, processes))
        self.known = bool(self.pids) and not self._gateway

    def _listens(self, own: Collection[int]) -> bool:
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == self._port for each in _connections(own))

    def _passes_on(self, server: Collection[int]) -> bool:
        """Whether the server is a client of something that is no part of it."""
        found = _connections(server)
        here = {each.laddr for each in found}
        listening = {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}
        return any(
            each.status == psutil.CONN_ESTABLISHED and each.laddr.port not in listening and each.raddr not in here
            for each in found
        )


def with_descendants(roots: Collection[int], processes: Mapping[int, Process]) -> set[int]:
    """The processes of these ids that live, and all that descend from them."""
    children = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
    found = {pid for pid in roots if pid in processes}
    waiting = list(found)
    while waiting:
        for child in children[waiting.pop()]:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def _launcher(pid: int, processes: Mapping[int, Process], own: Collection[int]) -> int:
    """The process that started the server: the topmost ancestor that is no shell, no service manager and not ours."""
    ancestors = set()
    for each in own:
        at = each
        while at in processes and at not in ancestors:
            ancestors.add(at)
            at = processes[at].parent
    while (parent := processes[pid].parent if pid in processes else 0) in processes:
        if parent <= 1 or parent in ancestors or processes[parent].name in _LAUNCHERS:
            break
        pid = parent
    return pid


def _connections(pids: Collection[int]) -> list[Any]:
    found: list[Any] = []
    for pid in pids:
        try:
            found += psutil.Process(pid).net_connections("tcp")
        except (psutil.Error, OSError):
            continue
    return found
