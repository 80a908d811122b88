"""Whole runs of pytest whose replicas stand on a real Ray cluster of three nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.fleet.ray_cluster import RayCluster
from pytest_gpucap.report.rows import result_rows
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result
from tests.engines.server_family import Family, new_family
from tests.fleet.ray_cluster import TestCluster, all_free, new_cluster
from tests.plugin.test_fleets import QUICK, SLOW
from tests.waiting import until

pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.one_process]

ray_cluster = pytest.fixture(new_cluster, name="ray_cluster", scope="module")
family = pytest.fixture(new_family, name="family")
SERVER = Path(__file__).parents[1] / "plugin" / "fast_vllm.py"
SUITE = """
import pytest

@pytest.mark.vllm("/models/stand-in")
@pytest.mark.gpucap(qps={qps}, gpus=3, headroom=1, replicas=3, input_tokens=64, output_tokens=32, e2e_p95="4s",
                    max_time="1000s"{more})
def test_fleet(gpucap):
    gpucap.check()
"""


class Suite:
    """A suite in a folder, and one session of it."""

    def __init__(self, folder: Path, cluster: TestCluster, family: Family) -> None:
        self.folder, self.cluster, self.family = folder, cluster, family
        (folder / "slow.toml").write_text('source = "made for a test"\n' + SLOW.lstrip())
        (folder / "conftest.py").write_text(QUICK)
        # The node's environment is not ours, so the program itself says what it is to be.
        words = " ".join(f"{name}={value}" for name, value in family.env.items())
        python = folder / "python"
        python.write_text(
            f"#!/bin/sh\nexport FAST_VLLM_PROFILE={folder}/slow.toml PYTHONPATH={Path(__file__).parents[2]} {words}\n"
            f'exec {sys.executable} {SERVER} "$@"\n'
        )
        python.chmod(0o755)

    def begin(self, *options: str, qps: float = 4, more: str = "") -> subprocess.Popen[str]:
        """Start a session."""
        (self.folder / "test_it.py").write_text(SUITE.format(qps=qps, more=more))
        words = [
            *("-m", "pytest", "-pno:cacheprovider", "-pno:benchmark", "-ogpucap_host_check=off"),
            *("--gpucap-launcher=ray", f"--gpucap-ray-address={self.cluster.address}", "--gpucap-efficiency=skip"),
            *(f"--gpucap-vllm-python={self.folder}/python", *options),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def result(self) -> Result:
        (found,) = result_file.read(self.folder / ".gpucap" / "result.json").results
        return found

    def servers(self) -> list[psutil.Process]:
        """The living servers on all nodes."""
        return [
            each
            for each in self.family.alive()
            if any(word.endswith("fast_vllm.py") for word in each.cmdline())
            and not any("watchdog" in word for word in each.cmdline())
        ]


@pytest.fixture
def suite(ray_cluster: TestCluster, tmp_path: Path, family: Family) -> Suite:
    return Suite(tmp_path, ray_cluster, family)


def until_said(session: subprocess.Popen[str], words: str) -> str:
    assert session.stdout is not None
    said = []
    for line in session.stdout:
        said.append(line)
        if words in line:
            return "".join(said)
    raise AssertionError("".join(said))


def free(cluster: TestCluster) -> None:
    """Wait until nobody has anything of the cluster."""
    with RayCluster.connect(cluster.address) as driver:
        until(lambda: all_free(driver))


@pytest.mark.parametrize("where", ["replicas", "1"])
def test_a_fleet_on_three_nodes_is_measured_and_given_back(suite: Suite, where: str) -> None:
    """Load comes from each of three nodes that have a replica, or from one that has none."""
    node = suite.cluster.add(gpus=0, kind="") if where == "1" else None
    try:
        session = suite.begin("--gpu-class=a10g", f"--gpucap-load-from={where}")
        said = until_said(session, "warm-up")
        every = suite.cluster.processes()
        loads = [each for each in every if any(word.endswith(".remote_host") for word in each.cmdline())]
        assert len(loads) == (3 if where == "replicas" else 1), [each.cmdline() for each in every]
        said += session.communicate()[0]
    finally:
        if node is not None:
            node.end()
            suite.cluster.nodes.remove(node)
    assert session.returncode == 0, said
    found = suite.result()
    assert found.outcome == "PASS"
    assert found.fleet is not None
    places = [share.place for share in found.fleet.shares]
    assert len(set(places)) == 3, places
    assert all(suite.cluster.nodes[0].address.rsplit(".", 1)[0] in place for place in places), places
    assert all(share.output_tokens_per_s for share in found.fleet.shares)
    counts = [share.requests or 0 for share in found.fleet.shares]
    assert min(counts) > 0.7 * max(counts), counts
    assert found.telemetry is not None
    assert found.telemetry.server.output_tokens
    assert {process.role for process in found.telemetry.processes}
    assert dict(result_rows(found))["fleet"].startswith("3 replicas")
    until(lambda: not any(psutil.pid_exists(each.pid) for each in loads))
    assert not suite.family.alive()
    free(suite.cluster)


def test_a_replica_that_is_killed_on_its_node(suite: Suite) -> None:
    session = suite.begin("--gpu-class=a10g", qps=3, more=', on_replica_loss="count"')
    said = until_said(session, "warm-up")
    servers = suite.servers()
    assert len(servers) == 3
    servers[1].send_signal(signal.SIGKILL)
    said += session.communicate()[0]
    found = suite.result()
    assert found.outcome == "PASS", said
    assert found.fleet is not None
    (lost,) = found.fleet.lost
    assert "the replica on " in lost, said
    assert "SIGKILL" in lost
    assert not suite.family.alive()
    free(suite.cluster)


def test_a_session_that_is_killed_leaves_nothing_on_any_node(suite: Suite) -> None:
    session = suite.begin("--gpu-class=a10g")
    until_said(session, "warm-up")
    assert len(suite.servers()) == 3
    session.kill()
    session.communicate()
    suite.family.wait_until_gone()
    free(suite.cluster)


def test_fewer_nodes_than_load_is_to_come_from_is_one_line(suite: Suite) -> None:
    session = suite.begin("--gpu-class=a10g", "--gpucap-load-from=9")
    said = session.communicate()[0]
    assert session.returncode != 0
    assert "nodes without a replica" in said, said
    assert "Traceback" not in said
    free(suite.cluster)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpucap-url=http://127.0.0.1:1"], "exclude each other"),
        (["--gpucap-load-from=far"], "must be here, replicas or a number of nodes"),
        (["--gpucap-load-from=1", "--gpucap-router=nginx"], "listens on this machine alone"),
    ],
)
def test_what_cannot_be_is_one_line(pytester: pytest.Pytester, options: list[str], words: str) -> None:
    """Before anybody looks for a cluster."""
    pytester.makepyfile(test_it=SUITE.format(qps=4, more=""))
    result = pytester.runpytest("--gpu-class=a10g", "--gpucap-launcher=ray", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (each for each in result.errlines if each.strip())
    assert words in line
