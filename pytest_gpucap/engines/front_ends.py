"""Which processes of a server take requests, from what the system says of them.

vLLM calls them API servers. Several of them share one listening socket. The process that made the socket holds it too,
and so may an engine process that was forked. So holding the socket is not enough: a front end waits for connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def front_ends(pids: Iterable[int], port: int) -> set[int]:
    """The processes among `pids` that wait for connections on a TCP port.

    Linux tells which sockets a process waits for, if it waits as servers with an event loop do (epoll). If none does,
    all those that hold the socket count, except a parent that has passed it on.
    """
    holders = {pid: sockets for pid in pids if (sockets := _listening(pid, port))}
    waiting = {pid for pid, sockets in holders.items() if not sockets.isdisjoint(_waited_for(pid))}
    return waiting or holders.keys() - {_parent(pid) for pid in holders}


def _listening(pid: int, port: int) -> set[str]:
    """The sockets of a process that listen on a port, each by what its descriptor links to."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    mine = [each for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
    return {_link(pid, str(each.fd)) or f"descriptor {each.fd}" for each in mine}


def _waited_for(pid: int) -> set[str]:
    """What a process waits for by epoll, each by what its descriptor links to; empty where the kernel does not tell."""
    found = set()
    try:
        descriptors = [path.name for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    for descriptor in descriptors:
        if _link(pid, descriptor) != "anon_inode:[eventpoll]":
            continue
        try:
            lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        # tfd:        3 events:       19 data: ...
        found |= {_link(pid, line.split()[1]) for line in lines if line.startswith("tfd:")}
    return found - {""}


def _link(pid: int, descriptor: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None
