"""Twenty kinds of secrets are planted wherever a user may put one. No output of a run shows any of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_gpucap.history import store
from tests.history.made import result, session
from tests.planted import PLANTED

SERVER = Path(__file__).with_name("fast_vllm.py")
CORES = {kind: planted.core for kind, planted in PLANTED.items()}


def shown(pytester: pytest.Pytester, result: pytest.RunResult, *more: str) -> list[str]:
    """Where one of the secrets stands: in what was printed, or in a file that the run left behind."""
    places = {"terminal": result.stdout.str() + result.stderr.str()}
    for path in _files(pytester.path):
        places[str(path.relative_to(pytester.path))] = path.read_bytes().decode("utf-8", "replace")
    secrets = {**CORES, **{each: each for each in more}}
    return [f"{place}: {kind}" for place, text in places.items() for kind, core in secrets.items() if core in text]


def _files(folder: Path) -> Iterator[Path]:
    """All but the suite itself, and what Python makes of it."""
    for path in folder.rglob("*"):
        own = path.name.startswith(("test_", "planted.")) or "__pycache__" in path.parts
        if path.is_file() and not own:
            yield path


def test_arguments_that_hold_a_secret_are_refused_before_anything_starts(pytester: pytest.Pytester) -> None:
    tests = [
        f"@pytest.mark.vllm(model='synthetic:tiny', hf_overrides={{'a': [{planted.argument!r}]}})\n"
        f"def test_{number}(gpucap): gpucap.check()\n"
        for number, planted in enumerate(PLANTED.values())
    ]
    named = {
        "hf_token": "plain-words-1",
        "model_loader_extra_config": '{"aws_secret_access_key": "plain-words-2"}',
        "speculative_config": {"model": "m", "api_key": "plain-words-3"},
        "ssl_keyfile_password": "plain-words-4",
    }
    tests += [
        f"@pytest.mark.vllm(model='m', {name}={value!r})\ndef test_{name}(gpucap): gpucap.check()\n"
        for name, value in named.items()
    ]
    tests.append("@pytest.mark.vllm(model='s3://a:plain-words-5@b/c')\ndef test_model(gpucap): gpucap.check()\n")
    pytester.makepyfile("import pytest\n" + "\n".join(tests))
    arguments = ("--gpu-class=cpu", "--target-qps=1", "--gpucap-json=r.json", "--junit-xml=j.xml", "-l", "-vv")
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.str().splitlines() if " holds " in line]
    assert len(lines) == len(tests)
    assert shown(pytester, result, *(f"plain-words-{number}" for number in range(1, 6))) == []
    assert not (pytester.path / ".gpucap" / "logs").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--gpucap-model=s3://a:plain-words@b/c", "--gpucap-model: the model holds a password in a URL"),
        ("--gpucap-base-args=--hf-token plain-words", "--gpucap-base-args: holds a secret"),
        ('--gpucap-base-args=--config \'{"api_key": "plain-words"}\'', "--gpucap-base-args: holds a secret"),
        ("--gpucap-url=http://user:plain-words@127.0.0.1:9/v1", "--gpucap-url: the URL carries a user or password"),
        ("--gpucap-url=http://127.0.0.1:9/v1?api_key=plain-words", "--gpucap-url: the URL has a query"),
        ("--gpucap-header=X-Key=plain-words", "--gpucap-header: "),
        ("--gpucap-header=X-Key: plain-words", "--gpucap-header: "),
    ],
)
def test_options_that_hold_a_secret_are_refused_in_one_line(pytester: pytest.Pytester, option: str, said: str) -> None:
    pytester.makepyfile("def test_it(gpucap): gpucap.check()")
    result = pytester.runpytest("--gpucap-url=http://127.0.0.1:9/v1", option, "--gpucap-json=r.json", "--target-qps=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (each for each in result.stderr.str().splitlines() if each.strip())
    assert line.startswith(f"ERROR: {said}")
    assert shown(pytester, result, "plain-words") == []


SUITE = """
    import contextlib
    import os
    from pathlib import Path

    import psutil
    import pytest

    pytestmark = [pytest.mark.vllm(model="/models/m"), pytest.mark.gpucap(input_tokens=16, output_tokens=16)]

    def test_sample(gpucap):
        gpucap.sample(rate=5, duration="2s")
        me, lines = psutil.Process(), []
        for each in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # one that ends meanwhile: earlier tests had processes here too
                lines.append(" ".join(each.cmdline()))
        Path("processes.txt").write_text("\\n".join(lines))
        assert len(lines) > 2

    def test_locals(vllm_server):
        headers = {"Authorization": f"Bearer {vllm_server.api_key}", "X": dict(os.environ)}
        client, key = vllm_server.client, vllm_server.api_key
        print("the log says", vllm_server.log.text())
        client.chat.completions.create(model="\\n::error::" + str(headers), messages=[{"role": "user", "content": "x"}])
        assert headers == 1, headers

    def test_refused(vllm_server):
        vllm_server.request("/no/such/path?" + str(vllm_server.api_key))
"""


def server(pytester: pytest.Pytester, then: str) -> str:
    """A "Python with vLLM" whose server writes all secrets and its whole environment to its log."""
    pytester.path.joinpath("planted.txt").write_text("\n".join(each.argument for each in PLANTED.values()))
    python = pytester.path / "planted.python"
    python.write_text(f"#!/bin/sh\ncat {pytester.path}/planted.txt\necho; env\n{then}\n")
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def planted_environment(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "caches"))
    monkeypatch.setenv("HF_TOKEN", "plain-words-of-the-environment")
    monkeypatch.setenv("SOME_DATABASE_PASSWORD", "other-words-of-the-environment")
    for number, planted in enumerate(PLANTED.values()):
        monkeypatch.setenv(f"PLANTED_{number}", planted.argument)


ENVIRONMENT = ("plain-words-of-the-environment", "other-words-of-the-environment")
REPORTS = (
    *("--gpucap-json=r.json", "--gpucap-html=r.html", "--gpucap-markdown=r.md", "--junit-xml=j.xml"),
    *("-l", "-rA", "-vv", "-o", "junit_logging=all"),
)


@pytest.mark.slow
@pytest.mark.usefixtures("planted_environment", "lateness_forgiven", "short_warm_up")
def test_no_output_shows_what_a_server_echoes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    python = server(pytester, f'exec {sys.executable} {SERVER} "$@"')
    monkeypatch.setenv("VLLM_API_KEY", "the-key-of-another-server")
    pytester.makepyfile(SUITE)
    for style, tests, passed in (("native", "not sample", 0), ("long", "", 1)):
        arguments = ("--gpu-class=cpu", f"--gpucap-vllm-python={python}", "--gpucap-host-check=off", f"--tb={style}")
        result = pytester.runpytest(*arguments, *REPORTS, "-k", tests)
        result.assert_outcomes(passed=passed, failed=2, deselected=1 - passed)
        logs = list((pytester.path / ".gpucap" / "logs").iterdir())
        assert logs
        for log in logs:
            assert log.stat().st_mode & 0o077 == 0
            text = log.read_text()
            assert "GPUCAP_KEY_SHA256=" in text
            assert "VLLM_API_KEY" not in text
            assert "HF_TOKEN=***" in text
        assert not [line for line in result.stdout.lines if line.lstrip().startswith("::error")]
        assert shown(pytester, result, *ENVIRONMENT) == []
    assert json.loads((pytester.path / "r.json").read_text())["results"]
    assert {"processes.txt", "r.html", "r.md", "j.xml"} <= {path.name for path in _files(pytester.path)}


def test_a_baseline_holds_none(tmp_path: Path) -> None:
    for kind, planted in PLANTED.items():
        found = result(25.0)
        environment = replace(
            found.environment, command=f"vllm serve m --x {planted.argument}", server_args={"x": [planted.argument]}
        )
        path = tmp_path / "b.json"
        store.save_run(path, session(replace(found, environment=environment)), simulated=False)
        assert planted.core not in path.read_text(), kind


@pytest.mark.usefixtures("planted_environment")
@pytest.mark.parametrize("style", ["long", "short", "line", "native"])
def test_no_output_shows_what_the_log_of_a_failed_start_holds(pytester: pytest.Pytester, style: str) -> None:
    python = server(pytester, "printf '\\n::add-mask::x\\n\\033]0;t\\007\\n##[error]y\\n'; exit 3")
    pytester.makepyfile("import pytest\n@pytest.mark.vllm(model='/models/m')\ndef test_it(vllm_server): ...")
    result = pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={python}", f"--tb={style}", *REPORTS)
    result.assert_outcomes(errors=1)
    printed = result.stdout.str() + result.stderr.str()
    assert "the vLLM server did not start" in printed
    assert not [line for line in printed.splitlines() if line.lstrip().startswith("::")]
    assert "##[" not in printed
    assert "\x1b]0" not in printed
    assert shown(pytester, result, *ENVIRONMENT) == []
