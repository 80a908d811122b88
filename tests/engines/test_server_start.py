"""From a spec to a server that answers, and every way in which that fails, with a light stand-in for vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.engines.errors import MetricsUnavailable, ServerStartError
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm
from tests.engines.server_family import TREE, Family
from tests.load.proxy import Proxy
from tests.namespaces import unshared
from tests.waiting import FOREVER_S, until

StandIn = Callable[..., ServerSpec]


@pytest.fixture
def memory_group(family: Family) -> Iterator[Path]:
    """A control group of 64 MiB, under version 1 or 2 of control groups; only root can make one."""
    root = Path("/sys/fs/cgroup")
    parent, limit = (root / "memory", "memory.limit_in_bytes") if (root / "memory").is_dir() else (root, "memory.max")
    group = parent / f"gpucap-test-{family.mark}"
    try:
        group.mkdir()
        (group / limit).write_text(str(64 * 2**20))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_server_is_all_that_was_promised(stand_in: StandIn, family: Family) -> None:
    told: list[str] = []
    with start_vllm(stand_in(max_num_seqs=8), on_wait=told.append) as server:
        assert server.running
        assert len(server.pids()) == TREE
        assert server.base_url.startswith("http://127.0.0.1:")
        assert server.base_url.endswith("/v1")
        assert server.model.startswith("gpucap-stand-in-")
        assert server.version == "0.0.stand-in"
        assert server.max_num_seqs == 8
        assert server.kv_tokens == 1600
        assert server.metrics().value("vllm:generation_tokens_total") == 7
        assert server.reset_caches() is False  # it has no such endpoint
        assert server.log.path.is_absolute()
        assert "serving" in server.log.text()
        assert server.log.tail(1) == "serving"
        assert told
        assert "asking it for a first answer" in told[-1]
        reply = server.client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": "Hi"}])
        assert reply.choices[0].message.content == "x"

        async def ask() -> str | None:
            async with server.async_client as client:
                answer = await client.chat.completions.create(
                    model=server.model, messages=[{"role": "user", "content": "Hi"}]
                )
            return answer.choices[0].message.content

        assert asyncio.run(ask()) == "x"
    assert not server.running
    assert family.alive() == []
    assert server.pids() == set()
    server.close()


def test_the_key_stands_nowhere_but_in_this_process(stand_in: StandIn, family: Family, tmp_path: Path) -> None:
    with start_vllm(stand_in()) as server:
        key = "".join(server.api_key)
        assert len(key) >= 32
        assert f"Bearer {server.api_key}" == f"Bearer {key}"
        assert json.dumps(server.api_key) == json.dumps(key)
        for shown in (
            repr(server),
            repr(server.api_key),
            repr(server.__dict__),
            repr(server.spec),
            str(server.command),
        ):
            assert key not in shown
        for process in family.alive():
            assert key not in " ".join(process.cmdline())
            assert key not in process.environ().values()
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_text()]


def test_a_server_that_answers_without_the_key_is_ended(stand_in: StandIn, family: Family) -> None:
    with pytest.raises(ServerStartError, match="its front end does not ask for the key on every path, so other users"):
        start_vllm(stand_in("open"))
    assert family.alive() == []


def test_two_servers_share_neither_key_nor_name_nor_port(stand_in: StandIn) -> None:
    with start_vllm(stand_in()) as one, start_vllm(stand_in()) as two:
        assert one.model != two.model
        assert one.api_key != two.api_key
        assert one.base_url != two.base_url


def test_a_proxy_in_the_environment_is_not_for_loopback(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Proxy(1) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with start_vllm(stand_in()) as server:
            assert server.client.models.list().data[0].id == server.model
            assert server.metrics().value("vllm:generation_tokens_total") == 7
        assert proxy.connections == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_front_ends_are_counted_before_the_server_counts_as_started(
    stand_in: StandIn, family: Family, tmp_path: Path, count: int
) -> None:
    late, told = tmp_path / "late", []

    def hear(line: str) -> None:
        told.append(line)
        if line.endswith("front ends"):
            late.touch()  # the others come up only after somebody has waited for them

    with start_vllm(stand_in(asc=count, env={"STAND_IN_LATE": str(late)}), on_wait=hear) as server:
        takers = server.front_ends()
        assert len(takers) == count
        assert takers < server.pids()
        assert server.facts()["front_ends"] == count
        assert (told[-1] == f"vLLM has 1 of {count} front ends") is (count > 1)
        assert server.client.models.list().data[0].id == server.model
    assert family.alive() == []


@pytest.mark.parametrize(
    ("mode", "args", "log", "cause"),
    [
        ("alone", {"api_server_count": 2}, "", r"api_server_count=2 has no effect .*taken by 1 of its processes"),
        (
            "useless",
            {"disable_cascade_attn": True},
            "WARNING: --disable-cascade-attn is deprecated and has no effect since cascade attention has been removed.",
            "--disable-cascade-attn has no effect",
        ),
        (
            "useless",
            {"api-server-count": 1},
            "WARNING Ignoring --api-server-count=7 when using rust front-end process",
            "--api-server-count has no effect",
        ),
    ],
)
def test_an_argument_without_effect_is_refused(
    stand_in: StandIn, family: Family, mode: str, args: dict[str, object], log: str, cause: str
) -> None:
    with pytest.raises(ServerStartError, match=cause):
        start_vllm(stand_in(mode, env={"STAND_IN_LOG": log}, **args))
    assert family.alive() == []


def test_what_a_log_says_of_other_arguments_is_no_reason(stand_in: StandIn) -> None:
    log = "--device-ids has no effect when using the Ray executor.\n--seed 1 set. The cache is ignored."
    with start_vllm(stand_in("useless", env={"STAND_IN_LOG": log}, seed=1)) as server:
        assert server.running


def test_a_server_tells_what_its_start_spent_its_time_on(stand_in: StandIn) -> None:
    log = "Model loading took 0.10 GiB memory and 0.030000 seconds\ntorch.compile took 0.02 s in total"
    with start_vllm(stand_in("useless", env={"STAND_IN_LOG": log})) as server:
        assert server.start_phases_s == {"weights": 0.03, "compile": 0.02}
    with start_vllm(stand_in()) as server:
        assert server.start_phases_s == {}


def test_a_model_without_a_chat_template_is_asked_for_completions(stand_in: StandIn) -> None:
    with start_vllm(stand_in("completions")) as server:
        assert server.running


def test_an_early_death_names_cause_tail_and_log(stand_in: StandIn, family: Family, tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(100)]
    log = "\n".join([*lines, "api_server.py: error: unrecognized arguments: --no-such-flag"])
    with pytest.raises(ServerStartError) as caught:
        start_vllm(stand_in("die", env={"STAND_IN_LOG": log}))
    error = caught.value
    assert error.cause.startswith("this vLLM does not know --no-such-flag; ")
    first, *_ = str(error).splitlines()
    assert first == f"the vLLM server did not start: {error.cause}"
    assert error.log_tail.splitlines() == [*lines[-29:], log.splitlines()[-1]]
    assert error.log_path is not None
    assert error.log_path.parent == tmp_path / "logs"
    *_, log_line, explained = str(error).splitlines()
    assert log_line == f"whole log: {error.log_path}"
    assert explained == "explained: docs/when-it-fails.md#start-unknown-flag"
    assert "line 0" in error.log_path.read_text()
    assert family.alive() == []


FULL_DISK = """
import json, subprocess, sys
from pathlib import Path

from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm

folder, python = Path(sys.argv[1]), sys.argv[2]
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "gpucap", folder]).returncode:
    sys.exit(77)
try:
    with (folder / "all").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass

def spec(mode):
    return ServerSpec("/models/stand-in", python=python, env={"STAND_IN": mode}, log_dir=folder / "logs")

(folder / "all").rename(folder / "full")
with start_vllm(spec("serve")) as server:
    told = {"answers": server.models() == [server.model], "log": server.log.text()}
try:
    start_vllm(spec("die"))
except ServerStartError as error:
    told["cause"] = error.cause
print(json.dumps(told))
"""


def test_a_log_on_a_full_disk_costs_the_log_alone(tmp_path: Path, stand_in_python: str) -> None:
    """In a mount namespace of its own, so that the disk is a real one and gone afterwards."""
    ran = unshared("-Urm", sys.executable, "-c", FULL_DISK, str(tmp_path), stand_in_python)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["answers"], told["log"]) == (True, "")
    assert told["cause"].startswith("it ended with exit code 1, and the log names no cause; the disk of its log, ")
    assert told["cause"].endswith("logs, is full")


def test_a_killed_server_is_told_as_such(stand_in: StandIn, family: Family) -> None:
    with pytest.raises(ServerStartError, match="killed with SIGKILL, which is what the kernel does"):
        start_vllm(stand_in("killed"))
    assert family.alive() == []


def test_a_start_that_takes_too_long(stand_in: StandIn, family: Family) -> None:
    with pytest.raises(
        ServerStartError, match=r"not ready after \d+ s \(starting\).*--gpucap-startup-timeout"
    ) as caught:
        start_vllm(stand_in("hang", startup_timeout_s=1.0))
    assert caught.value.log_path is not None
    assert family.alive() == []


def test_a_server_that_lists_its_model_but_answers_nothing(stand_in: StandIn, family: Family) -> None:
    with pytest.raises(ServerStartError, match="RuntimeError: the engine fell over"):
        start_vllm(stand_in("mute"))
    assert family.alive() == []


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ServerStartError, match=r"there is no interpreter /no/such/python.*--gpucap-vllm-python"
    ) as caught:
        start_vllm(ServerSpec("m", python="/no/such/python", log_dir=tmp_path))
    assert caught.value.log_path is None


def test_an_interpreter_without_vllm(tmp_path: Path) -> None:
    """The interpreter of these tests has none."""
    with pytest.raises(ServerStartError, match="the interpreter has no vLLM; install vLLM there or choose another"):
        start_vllm(ServerSpec("m", log_dir=tmp_path))


def test_an_error_while_waiting_ends_the_server(stand_in: StandIn, family: Family) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_vllm(stand_in("hang"), on_wait=interrupt)
    assert family.alive() == []


def test_somebody_elses_server_is_never_met(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign server runs throughout: ours is found by its own sockets, and the foreign one takes not our key."""
    with start_vllm(stand_in()) as foreign:
        port = int(foreign.base_url.removesuffix("/v1").rpartition(":")[2])
        with start_vllm(stand_in()) as ours:
            ours_port = int(ours.base_url.removesuffix("/v1").rpartition(":")[2])
            listening = {
                connection.laddr.port
                for pid in ours.pids()
                for connection in psutil.Process(pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
            assert listening == {ours_port}
            assert port not in listening
            assert ours.client.models.list().data[0].id == ours.model


def test_the_kernels_out_of_memory_killer_is_named(
    stand_in: StandIn, family: Family, memory_group: Path, tmp_path: Path
) -> None:
    """A real one: the server runs in a control group that grants less memory than it takes."""
    spec = stand_in("eat")
    confined = tmp_path / "confined"
    confined.write_text(f'#!/bin/sh -e\necho $$ > {memory_group}/cgroup.procs\nexec {spec.python} "$@"\n')
    confined.chmod(0o755)
    with pytest.raises(ServerStartError, match="the kernel's out-of-memory killer ended a process while it started"):
        start_vllm(replace(spec, python=str(confined)))
    assert family.alive() == []


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")]
)
def test_a_signal_that_ends_a_server_is_named_even_if_it_has_no_name(stand_in: StandIn, number: int, name: str) -> None:
    with start_vllm(stand_in()) as server:
        main = min(server.pids(), key=lambda pid: psutil.Process(pid).create_time())
        os.kill(main, number)
        assert f"ended by {name} in the middle of the measurement" in server.ended(FOREVER_S)


def test_metrics_of_a_dead_server(stand_in: StandIn) -> None:
    with start_vllm(stand_in()) as server:
        pass
    with pytest.raises(MetricsUnavailable, match=r"/metrics gives no Prometheus metrics: GET .* failed"):
        server.metrics()


def test_logs_go_where_the_spec_says_even_if_the_folder_is_new(stand_in: StandIn, tmp_path: Path) -> None:
    assert not (tmp_path / "logs").exists()
    with start_vllm(stand_in()) as server:
        assert server.log.path.parent == tmp_path / "logs"
    assert os.listdir(tmp_path / "logs") == [server.log.path.name]  # noqa: PTH208
