"""``--gpucap-reuse``: runs of pytest with a real server process between them; the command that lists and ends it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.gpu import kept, lease
from pytest_gpucap.results import result_file
from tests.engines.server_family import Family
from tests.waiting import until

SERVER = Path(__file__).with_name("fast_vllm.py")
SUITE = """
    import pytest

    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
    def test_server(vllm_server):
        assert vllm_server.models() == [vllm_server.model]
"""
OTHER = SUITE.replace("512", "256")


@pytest.fixture
def desk(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: Family
) -> Iterator[pytest.Pytester]:
    """A machine with a suite, an interpreter that has a fast server, and nothing kept."""
    for name, value in family.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "locks").mkdir()
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    pytester.makepyfile(test_suite=SUITE)
    yield pytester
    for each in servers():
        kept.end(each)


def run(desk: pytest.Pytester, *arguments: str, reuse: str = "1h") -> pytest.RunResult:
    python = f"--gpucap-vllm-python={desk.path / 'python'}"
    asked = [f"--gpucap-reuse={reuse}"] if reuse else []
    return desk.runpytest("--gpu-class=cpu", python, *asked, *arguments)


def servers() -> list[kept.KeptServer]:
    return kept.kept_servers(lease.MACHINE_DIRECTORY)


def only() -> kept.KeptServer:
    (found,) = servers()
    return found


def test_the_next_run_reuses_the_server(desk: pytest.Pytester, family: Family) -> None:
    first = run(desk)
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["*: vLLM * is kept for 60 min (pid *): gpucap servers --end * ends it now"])
    pid = only().pid
    second = run(desk)
    second.assert_outcomes(passed=1)
    second.stdout.fnmatch_lines(["*: vLLM * is reused: an earlier run has left it", "*is kept for*"])
    second.stdout.no_fnmatch_line("*starting vLLM*")
    assert only().pid == pid
    # A run that does not ask for it needs the machine's CPU, and gets it.
    third = run(desk, reuse="")
    third.assert_outcomes(passed=1)
    third.stdout.fnmatch_lines(["*ending the kept server * since the CPU is needed", "*starting vLLM*"])
    assert servers() == []
    family.wait_until_gone()


@pytest.mark.slow
def test_results_say_that_it_was_reused(desk: pytest.Pytester, lateness_forgiven: None) -> None:
    run(desk).assert_outcomes(passed=1)
    desk.makepyfile(
        test_suite="""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
        @pytest.mark.gpucap(input_tokens=32, output_tokens=8, e2e_p95="5s", endpoint="completions")
        def test_server(gpucap):
            gpucap.sample(concurrency=1, duration="1s")
        """
    )
    run(desk).assert_outcomes(passed=1)
    (reused,) = result_file.read(desk.path / ".gpucap" / "result.json").results
    assert reused.environment.reused is True
    assert reused.environment.startup_s is None
    assert reused.spent_s["start-up"] == 0
    (remark,) = reused.environment.remarks
    assert remark.startswith("the server was reused (--gpucap-reuse): an earlier run started it at ")
    assert remark.endswith("; start-up was not measured")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda desk, patch: patch.setenv("VLLM_SOMETHING", "1"), "the environment differs in VLLM_SOMETHING"),
        (lambda desk, patch: os.utime(desk.path / "python", (1, 1)), "packages of its interpreter have changed"),
        (lambda desk, patch: patch.setattr("pytest_gpucap.session.reuse.__version__", "0"), "pytest-gpucap * has kept"),
    ],
    ids=["environment", "interpreter", "plugin"],
)
def test_another_server_is_started_where_something_differs(
    desk: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, change: object, why: str
) -> None:
    assert callable(change)
    run(desk).assert_outcomes(passed=1)
    before = only().pid
    change(desk, monkeypatch)
    second = run(desk)
    second.assert_outcomes(passed=1)
    second.stdout.fnmatch_lines(
        [f"*kept server * is not reused, and another one is started: {why}*", "*starting vLLM*"]
    )
    assert only().pid != before


def test_other_arguments_are_another_server(desk: pytest.Pytester) -> None:
    run(desk).assert_outcomes(passed=1)
    before = only().pid
    desk.makepyfile(test_suite=OTHER)
    second = run(desk)
    second.assert_outcomes(passed=1)
    second.stdout.fnmatch_lines(["*ending the kept server * since the CPU is needed", "*starting vLLM*"])
    assert only().pid != before


def test_a_limit_on_the_start_up_starts_one(desk: pytest.Pytester) -> None:
    run(desk).assert_outcomes(passed=1)
    before = only().pid
    desk.makepyfile(
        test_suite=SUITE
        + """
    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
    @pytest.mark.gpucap(qps=1, input_tokens=32, output_tokens=8, e2e_p95="5s", startup="1h")
    def test_start(gpucap, vllm_server):
        assert vllm_server.startup_s < 3600
    """
    )
    second = run(desk)
    second.assert_outcomes(passed=2)
    second.stdout.fnmatch_lines(["*is not reused, and another one is started: a test limits the start-up*"])
    assert only().pid != before


def test_a_server_that_ended_in_between_is_not_missed(desk: pytest.Pytester, family: Family) -> None:
    run(desk).assert_outcomes(passed=1)
    os.kill(only().pid, 9)
    until(lambda: not servers())
    family.wait_until_gone()
    second = run(desk)
    second.assert_outcomes(passed=1)
    second.stdout.fnmatch_lines(["*starting vLLM*"])


def test_the_last_of_several_servers_is_kept(desk: pytest.Pytester) -> None:
    desk.makepyfile(test_suite=SUITE + OTHER.replace("import pytest", "").replace("test_server", "test_other"))
    run(desk).assert_outcomes(passed=2)
    assert len(servers()) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "--gpucap-reuse is ignored in CI (CI=true): --gpucap-reuse-in-ci asks for it there too"),
        (["--gpucap-repeat=2", "--gpucap-reuse-in-ci"], "--gpucap-reuse is ignored with --gpucap-repeat*"),
        (["--gpucap-base-args=--seed=1", "--gpucap-reuse-in-ci"], "--gpucap-reuse is ignored with a base*"),
    ],
)
def test_where_it_is_ignored(
    desk: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, family: Family, arguments: list[str], why: str
) -> None:
    monkeypatch.setenv("CI", "true")
    done = run(desk, *arguments)
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines([f"*: {why}"])
    assert servers() == []
    family.wait_until_gone()


def test_in_ci_for_those_who_ask(desk: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    run(desk, "--gpucap-reuse-in-ci").assert_outcomes(passed=1)
    assert len(servers()) == 1


@pytest.mark.parametrize(("given", "why"), [("25h", "*--gpucap-reuse: * must be at most 24h*"), ("soon", "*duration*")])
def test_a_wrong_time_is_one_line(desk: pytest.Pytester, given: str, why: str) -> None:
    done = run(desk, reuse=given)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([why])


def test_the_command(desk: pytest.Pytester, capsys: pytest.CaptureFixture[str], family: Family) -> None:
    assert main(["servers"]) == 0
    assert capsys.readouterr().out == "no server is kept\n"
    run(desk)
    server = only()
    capsys.readouterr()
    assert main(["servers"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["id", "model", "class", "device"]
    assert line.split()[:5] == [server.id, "synthetic:tiny", "cpu", "the", "CPU"]
    assert main(["servers", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["id"], told["pid"], told["port"]) == (server.id, server.pid, server.port)
    assert 0 < told["left_s"] <= 3600
    assert told["age_s"] >= 0
    assert main(["servers", "--end", "nothing"]) == 2
    assert "no kept server has this ID" in capsys.readouterr().err
    assert main(["servers", "--end", server.id[:4]]) == 0
    assert capsys.readouterr().out == f"ended {server.id}: synthetic:tiny on the CPU\n"
    assert servers() == []
    family.wait_until_gone()
    assert main(["servers", "--end"]) == 0
    assert capsys.readouterr().out == "none is kept\n"
