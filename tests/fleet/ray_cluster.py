"""A real Ray cluster of several nodes on this machine.

Each node is a `ray start` with a network namespace, an address and resources of its own. So a node can be killed, and
a server on it is reached over a network. Where no namespaces can be had, nodes have addresses of the loopback network.
GPUs are simulated: Ray takes any number on trust.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil

from pytest_gpucap.fleet.ray_cluster import RayCluster
from tests.engines.server_family import Family, new_family
from tests.waiting import until

OBJECT_STORE_BYTES: Final = 80_000_000
"""The least that Ray takes is 75 MB."""
RAY: Final = Path(sys.executable).with_name("ray")


class RayNode:
    """One node: a `ray start` and all that it starts."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address, self.process, self.log = address, process, log

    @property
    def raylet(self) -> psutil.Process:
        """The process that is the node to Ray."""
        (found,) = [each for each in psutil.Process(self.process.pid).children() if each.name() == "raylet"]
        return found

    def end(self) -> None:
        """End it as its administrator would; safe after it has ended."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class TestCluster:
    """A cluster with a head, which has the driver's address, and nodes that may come and go."""

    __test__ = False

    def __init__(self, folder: Path, family: Family) -> None:
        self._folder, self._family = folder, family
        self._closing = contextlib.ExitStack()
        self._named = 0
        self._id = os.getpid()
        self._net = f"10.231.{self._id % 250 + 1}"
        self.namespaces = self._bridge()
        if not self.namespaces:
            self._net = "127.0.0"
        with socket.socket() as probe:
            probe.bind(("", 0))  # the head listens on every address
            self._port = probe.getsockname()[1]
        self.address = f"{self._net}.1:{self._port}"
        self.env = {
            **os.environ,
            **family.env,
            "RAY_TMPDIR": str(folder),
            "TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Another Python path than the driver's: what a node runs must come from the driver.
            "PYTHONPATH": "",
        }
        self.nodes: list[RayNode] = []

    def start(self, nodes: int) -> None:
        """Start the head and the others."""
        self.nodes.append(self._node(1))
        for _ in range(nodes - 1):
            self.add()

    def add(self, gpus: int = 1, kind: str = "A10G", env: Mapping[str, str] | None = None) -> RayNode:
        """One more node. It has joined when this returns.

        Args:
            gpus: that Ray is told of.
            kind: the label that an administrator gives them; empty: what Ray finds.
            env: variables of the node.
        """
        node = self._node(self._named + 1, gpus, kind, env or {})
        self.nodes.append(node)
        return node

    def processes(self) -> list[psutil.Process]:
        """All that lives of the cluster."""
        return self._family.alive()

    def close(self) -> None:
        """End everything, and remove what was made."""
        for node in reversed(self.nodes):
            node.end()
        for process in self._family.alive():  # workers and agents end by themselves, a little later
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._family.wait_until_gone()
        self._closing.close()

    def _bridge(self) -> bool:
        """A network for the nodes; False where it is not allowed."""
        name = f"gcb{self._id}"
        if os.getuid() != 0 or shutil.which("ip") is None or not _ran("ip", "link", "add", name, "type", "bridge"):
            return False
        self._closing.callback(_ran, "ip", "link", "del", name)
        return _ran("ip", "addr", "add", f"{self._net}.1/24", "dev", name) and _ran("ip", "link", "set", name, "up")

    def _node(
        self, number: int, gpus: int = 1, kind: str = "A10G", env: Mapping[str, str] = MappingProxyType({})
    ) -> RayNode:
        self._named = number
        address = f"{self._net}.{number}"
        words = [str(RAY), "start", "--block", f"--node-ip-address={address}", "--num-cpus=2", f"--num-gpus={gpus}"]
        words += [f"--resources={json.dumps({f'accelerator_type:{kind}': 1})}"] if kind else []
        words += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        if number == 1:
            words += ["--head", f"--port={self._port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        else:
            words += [f"--address={self.address}"]
            words = [*self._namespace(number, address), *words]
        log = self._folder / f"node-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, env={**self.env, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        node = RayNode(address, process, log)
        until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return node

    def _namespace(self, number: int, address: str) -> list[str]:
        """A namespace with one address, and the words that run a command in it."""
        if not self.namespaces:
            return []
        name, ours = f"gcn{self._id}-{number}", f"gcv{self._id}-{number}"
        assert _ran("ip", "netns", "add", name)
        self._closing.callback(_ran, "ip", "netns", "del", name)
        assert _ran("ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
        assert _ran("ip", "link", "set", ours, "master", f"gcb{self._id}", "up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            assert _ran("ip", "-n", name, *command.split())
        assert _ran("ip", "-n", name, "route", "add", "default", "via", f"{self._net}.1")
        # Nodes share no files of Ray either. The command has a mount namespace of its own.
        own = self._folder / f"node-{number}"
        own.mkdir()
        return ["ip", "netns", "exec", name, "sh", "-c", f'mount --bind {own} {self._folder} && exec "$@"', "sh"]


def _ran(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def new_cluster(nodes: int = 3) -> Iterator[TestCluster]:
    """For a fixture: a cluster that is gone afterwards."""
    # Not pytest's folder: the path of a Unix socket in it may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gcr-"))
    families = new_family()
    made = TestCluster(folder, next(families))
    try:
        made.start(nodes)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
        with contextlib.suppress(StopIteration):
            next(families)


def all_free(cluster: RayCluster) -> bool:
    """Whether nobody has a CPU or a GPU of the cluster."""
    return all(node.free.get(kind, 0) == node.total.get(kind, 0) for node in cluster.nodes() for kind in ("CPU", "GPU"))
