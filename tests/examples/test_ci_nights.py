"""The nightly jobs for GitLab and Buildkite, run here step by step: what they keep, tell and refuse.

GitLab is `gitlab.py`, the agent `stand_in_buildkite_agent.py`, and what pytest measures a result file from
`stand_in_night.py`. The scripts, git, jq, curl and `gpucap history` are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_gpucap
from pytest_gpucap.installing import source
from tests.examples import gitlab
from tests.examples.github import git
from tests.examples.nights import write_nights

yaml: Any = pytest.importorskip("yaml")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("jq", "curl", "git")), reason="needs jq, curl and git"
)

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples" / "ci"
NIGHT = HERE.parents[1] / "benchmarks" / "results" / "h200" / "measure.json"
GITLAB = yaml.safe_load((EXAMPLES / "gitlab" / "nightly.yml").read_text())
BUILDKITE = yaml.safe_load((EXAMPLES / "buildkite" / "nightly.yml").read_text())
BRANCH = "gpu-capacity-history"

PYTHON3 = """#!/bin/bash
mkdir -p .venv/bin
printf '#!/bin/bash\\nexec {python} {here}/stand_in_night.py "$@"\\n' >.venv/bin/pytest
printf '#!/bin/bash\\nexec {python} -m pytest_gpucap "$@"\\n' >.venv/bin/gpucap
printf '#!/bin/bash\\necho "$3" >>"$STAND_IN_PIP"\\n' >.venv/bin/pip
chmod +x .venv/bin/*
"""
AGENT = '#!/bin/bash\nexec {python} {here}/stand_in_buildkite_agent.py "$@"\n'


class Service:
    """A repository with a main branch, the programs of a job, and its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bare = folder / f"{gitlab.PROJECT}.git"
        self.bare.parent.mkdir()
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        git(self.bare, "config", "receive.advertisePushOptions", "true")
        self._commit("main", {"notes.md": "A service.\n"})
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("python3", PYTHON3), ("buildkite-agent", AGENT)):
            (programs / name).write_text(text.format(python=sys.executable, here=HERE))
            (programs / name).chmod(0o755)
        self.environment = {
            **{name: os.environ[name] for name in ("LANG", "TMPDIR", "NUMBA_CACHE_DIR") if name in os.environ},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(Path(pytest_gpucap.__file__).parents[1])]),
            "HOME": str(folder),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "STAND_IN_PIP": str(folder / "pip"),
            "STAND_IN_CALLS": str(folder / "calls"),
            "STAND_IN_NIGHT": str(NIGHT),
            "STAND_IN_VERDICT": "0",
        }

    def _commit(self, branch: str, files: dict[str, str]) -> None:
        work = self.folder / f"work-{branch}"
        git(self.folder, "init", "--quiet", f"--initial-branch={branch}", str(work))
        for name, text in files.items():
            (work / name).write_text(text)
        git(work, "add", ".")
        git(work, "-c", "user.name=ann", "-c", "user.email=ann@example.com", "commit", "--quiet", "-m", "begun")
        git(work, "push", "--quiet", "--force", str(self.bare), f"HEAD:refs/heads/{branch}")

    def remember(self, *, nights: int, factor: float) -> None:
        """A branch with earlier nights: the rate was higher by a factor until two nights before."""
        folder = self.folder / "earlier"
        folder.mkdir()
        write_nights(folder, NIGHT, nights=nights, factor=factor)
        self._commit(BRANCH, {path.name: path.read_text() for path in folder.iterdir()})

    def kept(self) -> list[str]:
        """The files of the history."""
        return git(self.bare, "ls-tree", "--name-only", BRANCH).split()

    def begun(self) -> str:
        """The commits of the history, the newest first."""
        return git(self.bare, "log", "--format=%s", BRANCH)

    def sessions(self) -> list[list[str]]:
        """The words of every call of pytest."""
        path = self.folder / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def shell(self, script: str, folder: Path, environment: dict[str, str], *, shell: str = "bash") -> tuple[int, str]:
        """Run a script as a job does; its exit code and what it said."""
        words = [shell, "-e", "-c", script] if shell == "sh" else [shell, "-eo", "pipefail", "-c", script]
        ran = subprocess.run(
            words,
            cwd=folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ran.returncode, ran.stdout


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.fixture
def server(service: Service) -> Iterator[gitlab.GitLab]:
    with gitlab.serving(service.folder) as running:
        yield running


def gitlab_night(service: Service, server: gitlab.GitLab, name: str, **secrets: str) -> list[tuple[int, str]]:
    """Both jobs of a scheduled pipeline: exit code and output of each. The second has a folder of its own."""
    measures, keeps = GITLAB["gpu-capacity-nightly"], GITLAB[BRANCH]
    first, second = service.folder / f"{name}-measures", service.folder / f"{name}-keeps"
    git(service.folder, "clone", "--quiet", "--depth=1", server.clone_url, str(first))
    lines = [*measures["before_script"], *measures["script"]]
    ended = [service.shell("\n".join(lines), first, {**server.variables(), **measures["variables"]})]
    second.mkdir()
    for artifact in measures["artifacts"]["paths"]:
        if (first / artifact).is_dir():
            shutil.copytree(first / artifact, second / artifact)
        elif (first / artifact).exists():
            shutil.copy(first / artifact, second / artifact)
    assert keeps["needs"] == ["gpu-capacity-nightly"]
    return [*ended, gitlab_keep(service, server, second, **secrets)]


def gitlab_keep(service: Service, server: gitlab.GitLab, folder: Path, **secrets: str) -> tuple[int, str]:
    """The job that writes. Its image has a small shell, so it must do with one."""
    keeps = GITLAB[BRANCH]
    environment = {**server.variables(), **keeps["variables"], **secrets}
    return service.shell("\n".join([*keeps["before_script"], *keeps["script"]]), folder, environment, shell="sh")


def test_gitlab_keeps_its_nights_and_opens_one_issue_on_a_drop(service: Service, server: gitlab.GitLab) -> None:
    token = {"GPU_CAPACITY_TOKEN": gitlab.ACCESS_TOKEN, "GPU_CAPACITY_WEBHOOK": f"{server.url}/hook"}

    # The first night makes the branch. It is kept although its verdict is a FAIL.
    service.environment["STAND_IN_VERDICT"] = "1"
    (measured, said), (kept, told) = gitlab_night(service, server, "first", **token)
    assert (measured, kept) == (1, 0), said + told
    assert len(service.kept()) == 1
    assert service.begun().startswith("Night of ")
    assert (service.folder / "pip").read_text().split() == [f"{source()}[vllm,history]"]
    assert (server.issues, server.posted) == ([], [])

    # A quarter more until two nights before: tonight is a suspicion, and its second run confirms it.
    service.remember(nights=24, factor=1.25)
    service.environment["STAND_IN_VERDICT"] = "0"
    (measured, said), (kept, told) = gitlab_night(service, server, "drop", **token)
    assert (measured, kept) == (0, 0), said + told
    assert "Measuring once more" in said
    assert len(service.sessions()) == 3
    assert len(service.kept()) == 26
    assert [line.partition(" ")[0] for line in service.begun().splitlines()] == ["Night", "begun"]
    [issue] = server.issues
    assert (issue["title"], issue["labels"]) == ("GPU capacity has dropped", ["gpu-capacity"])
    assert "/-/pipelines/7" in issue["description"]
    assert "\n    DROP of " in issue["description"]
    assert issue["web_url"] in told
    [message] = server.posted
    assert message["text"].splitlines()[-1].startswith("DROP of ")

    # The job that writes is run again: nothing is new, and the open issue is brought up to date.
    before = service.begun()
    (service.folder / "drop-keeps" / "trend.txt").write_text("DROP that has changed\n")
    kept, told = gitlab_keep(service, server, service.folder / "drop-keeps", GPU_CAPACITY_TOKEN=gitlab.ACCESS_TOKEN)
    assert (kept, service.begun(), len(server.posted)) == (0, before, 1), told
    [issue] = server.issues
    assert "DROP that has changed" in issue["description"]

    # It was closed: the next night with a drop opens another one.
    issue["state"] = "closed"
    kept, told = gitlab_keep(service, server, service.folder / "drop-keeps", GPU_CAPACITY_TOKEN=gitlab.ACCESS_TOKEN)
    assert (kept, len(server.issues)) == (0, 2), told


def test_gitlab_says_what_is_missing_and_keeps_nothing(service: Service, server: gitlab.GitLab) -> None:
    # Nothing was measured.
    service.environment["STAND_IN_NIGHT"] = ""
    (measured, said), (kept, told) = gitlab_night(service, server, "nothing")
    assert (measured, kept) == (4, 0), said + told
    assert "ERROR: the model is still" in said
    assert told == "There is no night to keep: gpu-capacity-nightly says why\n"

    # A night, and no token, or one that may not push; or the API refuses.
    night = service.folder / "nothing-keeps"
    (night / "night").mkdir()
    shutil.copy(NIGHT, night / "night")
    (night / "trend.status").write_text("1\n")
    (night / "trend.txt").write_text("DROP\n")
    kept, told = gitlab_keep(service, server, night)
    assert kept != 0
    assert "GPU_CAPACITY_TOKEN: is not set: make it as the head of this file says" in told
    kept, told = gitlab_keep(service, server, night, GPU_CAPACITY_TOKEN=gitlab.JOB_TOKEN)
    assert kept != 0
    assert "403" in told
    assert git(service.bare, "branch", "--list", BRANCH) == ""
    assert server.issues == []


def test_only_the_job_that_writes_has_the_token() -> None:
    measures, keeps = GITLAB["gpu-capacity-nightly"], GITLAB[BRANCH]
    assert "environment" not in measures
    assert keeps["environment"] == {"name": "gpu-capacity-history", "action": "access"}
    assert "tags" not in keeps
    assert "GIT_STRATEGY" not in keeps["variables"]  # a runner that does not check out leaves earlier artifacts lying
    assert "GPU_CAPACITY_" not in json.dumps(measures)


class Build:
    """A build of Buildkite: its steps have folders of their own, and share meta-data and artifacts."""

    def __init__(self, service: Service, name: str) -> None:
        self.service, self.folder = service, service.folder / name
        (self.folder / "artifacts").mkdir(parents=True)

    def step(self, number: int, **environment: str) -> tuple[int, str]:
        """Run a step; its exit code and what it said."""
        step = BUILDKITE["steps"][number]
        checkout = self.folder / step["key"]
        if not checkout.exists():  # an agent keeps its folders
            git(self.folder, "clone", "--quiet", str(self.service.bare), str(checkout))
        if number == 0:
            git(checkout, "remote", "set-url", "--push", "origin", "/no/right/to/push")
        # The agent fills in single dollars when it uploads a pipeline, and leaves one of two.
        assert not re.search(r"(?<!\$)\$(?!\$)", step["command"].replace("$$", ""))
        own = {"BUILDKITE_BUILD_NUMBER": "7", "STAND_IN_BUILD": str(self.folder), **BUILDKITE["env"], **environment}
        ended = self.service.shell(step["command"].replace("$$", "$"), checkout, own)
        for pattern in step.get("artifact_paths", []):
            for path in checkout.glob(pattern):
                target = self.folder / "artifacts" / path.relative_to(checkout)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return ended


def test_buildkite_keeps_its_nights_and_fails_the_build_on_a_drop(service: Service, server: gitlab.GitLab) -> None:
    # Nothing was measured: the step that writes has nothing to do.
    nothing = Build(service, "nothing")
    service.environment["STAND_IN_NIGHT"] = ""
    code, said = nothing.step(0)
    assert (code, "ERROR: the model is still" in said) == (4, True), said
    assert nothing.step(1) == (0, "There is no night to keep: the step that measures says why\n")

    # The first night makes the branch. It is kept although its verdict is a FAIL.
    service.environment.update(STAND_IN_NIGHT=str(NIGHT), STAND_IN_VERDICT="1")
    first = Build(service, "first")
    code, said = first.step(0)
    assert code == 1, said
    code, said = first.step(1)
    assert code == 0, said
    assert len(service.kept()) == 1
    assert service.begun().startswith("Night of ")

    # A quarter more until two nights before: tonight is a suspicion, and its second run confirms it.
    service.remember(nights=24, factor=1.25)
    service.environment["STAND_IN_VERDICT"] = "0"
    drop = Build(service, "drop")
    code, said = drop.step(0)
    assert (code, "Measuring once more" in said) == (0, True), said
    # The build fails, which is what `notify` waits for; run again, the step adds nothing.
    for _ in range(2):
        code, said = drop.step(1, GPU_CAPACITY_WEBHOOK=f"{server.url}/hook")
        assert code == 1, said
        assert len(service.kept()) == 26
        assert service.begun().count("Night of ") == 1
    assert BUILDKITE["notify"][0]["if"] == 'build.state == "failed"'
    style, _, annotation = (drop.folder / "annotation-gpu-capacity-drop").read_text().partition("\n")
    assert style == "error"
    assert "\n    DROP of " in annotation
    assert server.posted[0]["text"].splitlines()[-1].startswith("DROP of ")
    assert [path.name for path in (drop.folder / "artifacts").iterdir()].count("trend.txt") == 1


def test_every_system_measures_a_night_in_the_same_way() -> None:
    """The real sessions of `test_ci.py` are those of GitHub's workflow: the other two have its options."""
    found = []
    for path in (EXAMPLES / "gpu-nightly.yml", *(EXAMPLES / name / "nightly.yml" for name in ("gitlab", "buildkite"))):
        text = path.read_text().replace("$$", "$").replace("\\\n", " ")
        found.append({*re.findall(r"--(?:gpu|target|junit)[\w-]+", text)} | {*re.findall(r"history history .*", text)})
    github, *others = found
    assert {"--gpucap-save", "--gpucap-json", "--gpucap-require"} <= github
    assert others == [github, github]
