"""How long servers on a Ray cluster live on when what holds them ends. A Markdown table.

    PYTHONPATH=. python benchmarks/fleet/ray_endings.py              # a minute
    PYTHONPATH=. python benchmarks/fleet/ray_endings.py --partition  # four more: one node is cut off

A real cluster of three nodes on this machine (`tests/fleet/ray_cluster.py`). Each server is a tree of four processes,
two of which have left its session. In two rows all of them ignore SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_gpucap.fleet.ray_cluster import RayCluster
from pytest_gpucap.fleet.ray_server import RayServer
from tests.engines.server_family import Family
from tests.fleet.ray_cluster import TestCluster, all_free, new_cluster
from tests.fleet.test_ray_cluster import A10G, DRIVER, engine_of, worker_of
from tests.waiting import until

REPETITIONS = 5


def row(what: str, *seconds: float) -> None:
    """One line of the table: the range of what was measured."""
    print(f"| {what} | {min(seconds):.1f} to {max(seconds):.1f} s |", flush=True)


def timed(condition: Callable[[], object]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    until(condition)
    return time.monotonic() - began


@contextmanager
def driver(cluster: TestCluster, family: Family, folder: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another driver, with a server on each node."""
    told = {**family.env, "STAND_IN": mode, "STAND_IN_TOLD": str(folder / "told")}
    words = [f"{name}={value}" for name, value in told.items()]
    command = [sys.executable, "-c", DRIVER, cluster.address, str(folder), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def killed_drivers(cluster: TestCluster, here: RayCluster, folder: Path) -> None:
    """The driver ends by SIGKILL."""
    for mode, what in (("serve", ""), ("stubborn", ", servers ignore SIGTERM")):
        gone, free = [], []
        for _ in range(REPETITIONS):
            family = Family()
            with driver(cluster, family, folder, mode) as other:
                other.send_signal(signal.SIGKILL)
                began = time.monotonic()
                timed(lambda: all_free(here))
                free.append(time.monotonic() - began)
                family.wait_until_gone()
                gone.append(time.monotonic() - began)
        row(f"driver killed{what}: processes of three servers are gone", *gone)
        row(f"driver killed{what}: the cluster's CPUs and GPUs are free", *free)


def killed_workers(start: Callable[[Family, int], list[RayServer]]) -> None:
    """The worker process of one replica ends by SIGKILL."""
    gone, told = [], []
    for _ in range(REPETITIONS):
        family = Family()
        (server,) = start(family, 1)
        worker_of(server).kill()
        began = time.monotonic()
        until(server.ended)
        told.append(time.monotonic() - began)
        family.wait_until_gone()
        gone.append(time.monotonic() - began)
        server.close()
    row("Ray's worker process killed: its server is gone", *gone)
    row("Ray's worker process killed: `ended` says so", *told)


def lost_nodes(
    cluster: TestCluster, start: Callable[[Family, int], list[RayServer]], here: RayCluster, *, cut_off: bool
) -> None:
    """A node goes: its raylet ends by SIGKILL, or its network does."""
    family = Family()
    servers = start(family, 3)
    node = cluster.nodes.pop()
    (lost,) = [server for server in servers if node.address in server.node]
    living = len(family.alive())
    what = "node cut off" if cut_off else "raylet killed"
    if cut_off:
        subprocess.run(["ip", "link", "set", f"gcv{os.getpid()}-{node.address.rpartition('.')[2]}", "down"], check=True)
    else:
        node.raylet.kill()
    began = time.monotonic()
    if not cut_off:
        row(f"{what}: its server is gone", timed(lambda: len(family.alive()) <= living * 2 // 3))
    until(lambda: lost.ended(1.0))
    row(f"{what}: `ended` says so", time.monotonic() - began)
    until(lambda: all(node.address != each.address for each in here.nodes()))
    row(f"{what}: Ray counts the node as dead", time.monotonic() - began)
    if cut_off:
        until(lambda: len(family.alive()) <= living * 2 // 3)
        row(f"{what}: its server is gone", time.monotonic() - began)
    node.end()
    for server in servers:
        server.close()
    family.wait_until_gone()


def main() -> None:
    """Measure everything."""
    print("| what ends, and what follows | after |\n| --- | --- |")
    made = new_cluster()
    cluster = next(made)
    try:
        with tempfile.TemporaryDirectory() as place, RayCluster.connect(cluster.address) as here:
            folder = Path(place)

            def start(family: Family, count: int) -> list[RayServer]:
                engine = engine_of("engines/stand_in.py", folder)
                found = here.start(engine, count, gpu_class=A10G, on_wait=lambda _: None, env=family.env)
                return [each for each in found if isinstance(each, RayServer)]

            killed_drivers(cluster, here, folder)
            killed_workers(start)
            lost_nodes(cluster, start, here, cut_off=False)
            if "--partition" in sys.argv:
                cluster.add()
                until(lambda: len(here.nodes()) == len(cluster.nodes) and all_free(here))
                lost_nodes(cluster, start, here, cut_off=True)
    finally:
        next(made, None)


if __name__ == "__main__":
    main()
