"""Which processes serve a port, told from the kernel's tables of real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pytest_gpucap.telemetry.host_files import HostFiles
from pytest_gpucap.telemetry.serving import OwnServer, with_descendants

LISTENER = """
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    upstream = [socket.create_connection(("127.0.0.1", int(port))) for port in sys.argv[1:]]
    # The listener may be a child of the program that was started.
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[server.fileno()], stdout=subprocess.PIPE)
    child.stdout.readline()
    print(server.getsockname()[1], child.pid, flush=True)
    sys.stdin.read()
    child.wait()
"""


@contextmanager
def listening(*upstream: int) -> Iterator[tuple[int, int, int]]:
    """A server of two processes, connected to these ports; its port and their ids."""
    command = [sys.executable, "-c", LISTENER, *map(str, upstream)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port, child = map(int, process.stdout.readline().split())
        yield port, process.pid, child
        process.stdin.close()


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that measures, as a child of this one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


def test_a_server_that_somebody_else_started_is_found_by_its_port(stranger: int) -> None:
    with listening() as (port, parent, child):
        server, processes = OwnServer(port), HostFiles().processes()
        server.look(processes, {stranger})
    assert server.known
    assert with_descendants(server.pids, processes) == {parent, child}


def test_a_server_that_the_measurement_started_is_its_own_already() -> None:
    with listening() as (port, _, _):
        processes = HostFiles().processes()
        server = OwnServer(port)
        server.look(processes, with_descendants({os.getpid()}, processes))
    assert (server.known, server.pids) == (True, frozenset())


def test_behind_a_gateway_nobody_knows_who_serves(stranger: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream, listening(upstream.getsockname()[1]) as (port, _, _):
        server = OwnServer(port)
        server.look(HostFiles().processes(), {stranger})
    assert not server.known


@pytest.mark.parametrize("refusal", [None, psutil.AccessDenied()])
def test_a_listener_that_cannot_be_seen_is_not_known(
    stranger: int, monkeypatch: pytest.MonkeyPatch, refusal: Exception | None
) -> None:
    def no_pids(_: str) -> list[object]:
        if refusal is not None:
            raise refusal
        return []

    monkeypatch.setattr(psutil, "net_connections", no_pids)
    with socket.create_server(("127.0.0.1", 0)) as held:
        server = OwnServer(held.getsockname()[1])
        server.look(HostFiles().processes(), {stranger})
    assert (server.known, server.pids) == (False, frozenset())
