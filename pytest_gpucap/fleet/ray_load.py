"""Load generators on the nodes of a Ray cluster: one schedule, sent from beside the replicas or from nodes of its own.

An actor on the node opens a door: it listens once, asks for a token, and hands the connection to a process of
`remote_host`. From then on the stream of bytes leads to that process, and Ray carries none of the load.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest_gpucap
from pytest_gpucap.engines.protocol import LoadRequest, access_of
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.fleet.ray_library import RayUnavailable, connected, ray_module, reason
from pytest_gpucap.fleet.remote_runner import MODULE, RemoteRunner
from pytest_gpucap.fleet.remote_stream import SocketStream
from pytest_gpucap.fleet.split_runner import Part, SplitRunner
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.routing import RouterKind

BESIDE_REPLICAS: Final = "replicas"
"""Where load comes from: every node that has a replica."""
_TOKEN_BYTES: Final = 32
_DOOR_S: Final = 60.0
"""An opened door closes after this time, whether somebody came or not."""


class LoadOnNode:
    """One load generator on this node."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, token: bytes) -> tuple[str, int]:
        """Listen for the one that has the token; returns the address."""
        listener = socket.create_server((ray_module().util.get_node_ip_address(), 0), backlog=1)
        listener.settimeout(_DOOR_S)
        threading.Thread(target=self._let_in, args=(listener, token), daemon=True).start()
        host, port = listener.getsockname()[:2]
        return str(host), int(port)

    def _let_in(self, listener: socket.socket, token: bytes) -> None:
        with listener:
            sock, _ = listener.accept()
        with sock:
            sock.settimeout(_DOOR_S)
            if not hmac.compare_digest(_received(sock, len(token)), token):
                return
            sock.settimeout(None)
            home = str(Path(pytest_gpucap.__file__).parents[1])
            path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
                stdin=sock.fileno(),
                stdout=sock.fileno(),
                env={**os.environ, "PYTHONPATH": path},
            )


class RayLoadRunner(SplitRunner):
    """One schedule that is sent from several nodes; `close` ends the generators.

    Args:
        parts: of the schedule.
        actors: that opened their doors.
        smallest_limit_s: see `SplitRunner`.
    """

    def __init__(self, parts: Sequence[Part], actors: Sequence[Any], *, smallest_limit_s: float | None) -> None:
        super().__init__(parts, smallest_limit_s=smallest_limit_s)
        self._actors = tuple(actors)

    def close(self) -> None:
        """See `LoadRunner.close`."""
        super().close()
        _give_up(self._actors)
        self._actors = ()


def load_from_nodes(server: FleetServer, load: LoadRequest, where: str, urls: Sequence[str]) -> RayLoadRunner:
    """A runner that sends the load to a fleet from nodes of its Ray cluster.

    Args:
        server: the fleet, whose start has connected this process to the cluster.
        load: all of it.
        where: `BESIDE_REPLICAS`, or a number of nodes that have no replica.
        urls: of the replicas that are to share it, or of their router.

    Raises:
        RayUnavailable: one line, if the cluster has too few such nodes, or one of them does not answer.
    """
    ray = connected()
    chosen = _nodes(ray, server, where)
    token, nonce = secrets.token_bytes(_TOKEN_BYTES), secrets.randbits(40)
    by_client = server.routing.kind is RouterKind.CLIENT
    first, *beside = urls
    actors: list[Any] = []
    parts: list[Part] = []
    try:
        for node_id, name in chosen:
            place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
            actor = ray.remote(LoadOnNode).options(num_cpus=0, max_restarts=0, scheduling_strategy=place).remote()
            actors.append(actor)
            sock = socket.create_connection(ray.get(actor.open.remote(token), timeout=_DOOR_S), timeout=_DOOR_S)
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(token)
            runner = RemoteRunner(
                SocketStream(sock),
                first,
                server.model,
                server.api_key,
                load.workload,
                load.seed,
                nonce=nonce,
                workers=load.workers,
                simulated=server.simulated,
                access=access_of(server),
                beside=beside,
                spread=Spread(server.routing.policy) if by_client else Spread.ROUND_ROBIN,
            )
            parts.append(Part(name, runner, runner.exchange))
        return RayLoadRunner(parts, actors, smallest_limit_s=load.smallest_limit_s)
    except (OSError, ray.exceptions.RayError) as error:
        raise RayUnavailable(f"a load generator on a node of the Ray cluster did not start: {reason(error)}") from None
    except BaseException:
        for part in parts:
            part.runner.close()
        raise
    finally:
        if len(parts) < len(chosen):
            _give_up(actors)


def _nodes(ray: Any, server: FleetServer, where: str) -> list[tuple[str, str]]:
    """Ray's ids and the names of the nodes that load is to come from.

    Raises:
        RayUnavailable: if there are too few.
    """
    alive = {
        each["NodeID"]: f"{each['NodeManagerHostname']} ({each['NodeManagerAddress']})"
        for each in ray.nodes()
        if each["Alive"]
    }
    taken = dict.fromkeys(str(getattr(each, "node_id", "")) for each in server.replicas)
    if where == BESIDE_REPLICAS:
        return [(node_id, alive[node_id]) for node_id in taken if node_id in alive]
    free = [(node_id, name) for node_id, name in alive.items() if node_id not in taken]
    count = int(where)
    if len(free) < count:
        raise RayUnavailable(
            f"--gpucap-load-from={count}: the Ray cluster has {len(free)} nodes without a replica; add some, or give "
            f"--gpucap-load-from={BESIDE_REPLICAS}"
        )
    return free[:count]


def _give_up(actors: Sequence[Any]) -> None:
    for actor in actors:
        connected().kill(actor)


def _received(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or what came until the end."""
    found = b""
    while len(found) < size and (more := sock.recv(size - len(found))):
        found += more
    return found
