"""The workflows of examples/ci, run here step by step on simulated servers: what they measure, keep, tell and refuse.

GitHub is `tests/examples/github.py`, with a git repository of its own, and gh is `stand_in_gh.py`. The scripts, git,
jq, curl, pytest and the gpucap command are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pytest_gpucap
from pytest_gpucap.installing import source
from pytest_gpucap.results import result_file
from tests.examples.github import GitHub, Job, evaluate, git

yaml: Any = pytest.importorskip("yaml")

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
WORKFLOWS = sorted(EXAMPLES.glob("gpu-*.yml"))
PACKAGE = Path(pytest_gpucap.__file__).parents[1]
REPOSITORY = "team/service"

VENV = """#!/bin/bash
if [ "$*" != "-m venv .venv" ]; then exec {python} "$@"; fi
mkdir -p .venv/bin
printf '#!/bin/bash\\nexec {python} -m pytest -p no:cacheprovider "$@"\\n' >.venv/bin/pytest
printf '#!/bin/bash\\nexec {python} -m pytest_gpucap "$@"\\n' >.venv/bin/gpucap
printf '#!/bin/bash\\n[ "$1 $2" = "install --quiet" ] && echo "$3" >>"$STAND_IN_PIP"\\n' >.venv/bin/pip
chmod +x .venv/bin/*
"""
GH = '#!/bin/bash\nexec {python} {here}/stand_in_gh.py "$@"\n'

needs_jq = pytest.mark.skipif(shutil.which("jq") is None or shutil.which("curl") is None, reason="needs jq and curl")


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return found


def snippet() -> str:
    """The lines for pyproject.toml that the page tells to copy."""
    (found,) = re.findall(r"```toml\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    return str(found)


class Service:
    """A repository that has copied the suite, and the GitHub that it lies on."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.work = folder, folder / "service"
        bare, programs = folder / "service.git", folder / "bin"
        programs.mkdir()
        for name, text in (("python3", VENV), ("gh", GH)):
            (programs / name).write_text(text.format(python=sys.executable, here=Path(__file__).parent))
            (programs / name).chmod(0o755)
        own = {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "STAND_IN_STATE": str(folder / "state.json"),
            "STAND_IN_PIP": str(folder / "pip"),
            "GPU_CLASS": "sim:fast",
            "TARGET_QPS": "80",  # near what it carries, so that a check has to look closely
            "PYTHONPATH": str(PACKAGE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        contexts = {
            "github": {
                "repository": REPOSITORY,
                "token": "a token",
                "server_url": "https://github.example",
                "run_id": 7,
                "event": {},
            },
            "inputs": {},
            "secrets": {},
        }
        self.github = GitHub(folder / "github", bare, programs, {**environment, **own}, contexts)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        git(folder, "clone", "--quiet", str(bare), str(self.work))
        git(self.work, "checkout", "--quiet", "-b", "main")
        shutil.copytree(EXAMPLES / "capacity", self.work / "capacity", ignore=shutil.ignore_patterns("__pycache__"))
        (self.work / "pyproject.toml").write_text(snippet())
        self.commit("the suite as it is copied")

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    def commit(self, message: str, branch: str = "main") -> None:
        git(self.work, "add", ".")
        git(self.work, "-c", "user.name=ann", "-c", "user.email=ann@example.com", "commit", "--quiet", "-m", message)
        git(self.work, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")

    def declare(self, seqs: int) -> None:
        """Fill in a model, and say how many sequences the server runs at once."""
        path = self.work / "capacity" / "test_capacity.py"
        text = path.read_text().replace('"ORG/MODEL"', '"synthetic:tiny"')
        path.write_text(re.sub(r"max_num_seqs=\d+", f"max_num_seqs={seqs}", text))

    def clone(self, name: str, branch: str) -> Path:
        """A checkout beside the others, as CI makes it."""
        git(self.folder, "clone", "--quiet", f"--branch={branch}", f"file://{self.github.repository}", name)
        return self.folder / name

    def shell(self) -> dict[str, str]:
        """The environment of a job whose system is no GitHub: the stand-ins are on its PATH."""
        path = f"{self.github.bin}{os.pathsep}{os.environ['PATH']}"
        return {**self.github.environment, "PATH": path, "HOME": str(self.folder)}

    def run(self, name: str) -> dict[str, Job]:
        return self.github.run(workflow(name))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    quiet = {"PYTEST_ADDOPTS": os.environ.get("PYTEST_ADDOPTS", "")}
    for name in ("VIRTUAL_ENV", "LANG", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        if name in os.environ:
            quiet[name] = os.environ[name]
    return Service(tmp_path, quiet)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A server that takes messages, its URL, and what it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@needs_jq
def test_the_nightly_workflow_keeps_its_history_and_tells_of_a_drop(
    service: Service, webhook: tuple[str, list[Any]]
) -> None:
    url, posted = webhook
    service.github.contexts["secrets"] = {"GPU_CAPACITY_WEBHOOK": url}

    # As it is copied, the suite stops in one line.
    jobs = service.run("gpu-nightly.yml")
    assert (jobs["capacity"].result, jobs["keep"].result) == ("failure", "skipped")
    said = [line for line in jobs["capacity"].said.splitlines() if line.startswith("ERROR:")]
    expected = (
        "ERROR: capacity/test_capacity.py::test_chat: the model is still 'ORG/MODEL': write the name of yours into "
        "test_capacity.py"
    )
    assert said == [expected]

    # Few sequences and a rate near what they carry: three sessions on them take as long as one on many.
    service.github.environment["TARGET_QPS"] = "24"
    service.declare(seqs=20)
    service.commit("filled in")
    jobs = service.run("gpu-nightly.yml")
    assert {name: job.result for name, job in jobs.items()} == {"capacity": "success", "keep": "success"}, jobs
    assert set((service.folder / "pip").read_text().split()) == {f"{source()}[vllm,history]"}
    bare = service.github.repository
    [first] = git(bare, "ls-tree", "--name-only", "gpu-capacity-history").split()
    assert git(bare, "rev-list", "--count", "gpu-capacity-history") == "1"
    night = git(bare, "show", f"gpu-capacity-history:{first}")
    assert not (service.folder / "state.json").exists()

    # It carried a quarter more until two nights before: tonight is still a suspicion, and its second run confirms it.
    _make_history(service, night, nights=24, factor=1.25)
    jobs = service.run("gpu-nightly.yml")
    assert jobs["capacity"].outputs == {"told": "true", "drop": "true"}, jobs["capacity"].said
    assert "Measuring once more" in jobs["capacity"].said
    assert jobs["keep"].result == "success", jobs["keep"].said
    assert len(git(bare, "ls-tree", "--name-only", "gpu-capacity-history").split()) == 26
    [issue] = service.state["issues"]
    assert (issue["title"], issue["labels"]) == ("GPU capacity has dropped", ["gpu-capacity"])
    assert "    DROP of " in issue["body"]
    [message] = posted
    assert message["text"].splitlines()[-1].startswith("DROP of ")

    # The job that writes is run again: nothing is new, and the open issue is brought up to date.
    service.github.artifacts["gpu-capacity"].joinpath("trend.txt").write_text("DROP that has changed\n")
    keep = workflow("gpu-nightly.yml")
    contexts = {**service.github.contexts, "needs": {"capacity": {"outputs": jobs["capacity"].outputs}}, "steps": {}}
    again = service.github._job("keep-again", keep["jobs"]["keep"], keep, contexts)
    assert again.result == "success", again.said
    [issue] = service.state["issues"]
    assert "DROP that has changed" in issue["body"]


def _make_history(service: Service, night: str, *, nights: int, factor: float) -> None:
    """A branch with earlier nights, made of one: its rate times a factor."""
    folder = service.folder / "earlier"
    git(service.folder, "clone", "--quiet", str(service.github.repository), str(folder))
    git(folder, "checkout", "--quiet", "gpu-capacity-history")
    git(folder, "rm", "--quiet", "*.json")
    (folder / "night.json").write_text(night)
    content = result_file.read(folder / "night.json")
    (folder / "night.json").unlink()
    for number in range(nights):
        # A little scatter, as nights have. The drop is there on the last two of them.
        times = factor * (1 + 0.01 * (number % 3 - 1)) if number < nights - 2 else 1.0
        results = []
        for result in content.results:
            rate = result.sustainable_rate
            assert rate is not None
            scaled = type(rate)(rate.value * times, rate.low * times, rate.high * times)
            results.append(msgspec.structs.replace(result, sustainable_rate=scaled))
        before = content.started - timedelta(days=nights - number)
        changed = msgspec.structs.replace(content, started=before, results=tuple(results))
        result_file.write(folder / f"earlier-{number:02}.json", changed)
    git(folder, "add", ".")
    git(folder, "-c", "user.name=ann", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "earlier nights")
    git(folder, "push", "--quiet", "origin", "HEAD:gpu-capacity-history")


@pytest.fixture
def pull_request(service: Service) -> Service:
    """A pull request that raises the number of sequences, merged as GitHub merges it to try it."""
    service.declare(seqs=20)
    service.commit("filled in")
    git(service.work, "checkout", "--quiet", "-b", "more")
    service.declare(seqs=128)
    service.commit("more sequences", "more")
    git(service.work, "checkout", "--quiet", "main")
    merge = (
        "-c",
        "user.name=ann",
        "-c",
        "user.email=a@example.com",
        "merge",
        "--quiet",
        "--no-ff",
        "--no-edit",
        "more",
    )
    git(service.work, *merge)
    git(service.work, "push", "--quiet", "origin", "HEAD:refs/heads/merge")
    service.github.ref = "merge"
    service.github.contexts["github"]["event"] = {
        "pull_request": {
            "number": 12,
            "head": {"repo": {"full_name": REPOSITORY}},
            "labels": [{"name": "bug"}, {"name": "gpu-capacity"}],
        }
    }
    return service


@pytest.mark.slow
@needs_jq
def test_a_pull_request_is_measured_beside_its_base_and_has_one_comment(pull_request: Service) -> None:
    marker = "<!-- comment of GPU capacity of a pull request -->"
    others = [
        {"id": 1, "issue": 12, "user": {"login": "ann"}, "body": f"{marker} quoted"},
        {"id": 2, "issue": 12, "user": {"login": "github-actions[bot]"}, "body": "of another job"},
    ]
    state = pull_request.folder / "state.json"
    state.write_text(json.dumps({"comments": others, "issues": [], "labels": [], "calls": []}))
    jobs = pull_request.run("gpu-pull-request.yml")
    assert {name: job.result for name, job in jobs.items()} == {"capacity": "success", "comment": "success"}, jobs
    artifact = pull_request.github.artifacts["gpu-capacity-pull-request"]
    [result] = result_file.read(artifact / ".gpucap" / "result.json").results
    assert result.comparison is not None
    assert result.comparison.decision == "IMPROVED"
    assert result.comparison.baseline.name == "base"
    *kept, own = pull_request.state["comments"]
    assert kept == others
    assert own["body"] == f"{marker}\n{(artifact / 'capacity.md').read_text()}"

    # A later push: the same comment has the new report.
    (artifact / "capacity.md").write_text("later\n")
    flow = workflow("gpu-pull-request.yml")
    contexts = {**pull_request.github.contexts, "steps": {}}
    again = pull_request.github._job("comment-again", flow["jobs"]["comment"], flow, contexts)
    assert again.result == "success", again.said
    *kept, own = pull_request.state["comments"]
    assert kept == others
    assert own["body"] == f"{marker}\nlater\n"


def test_forks_and_pull_requests_without_the_label_are_not_measured(pull_request: Service) -> None:
    event = pull_request.github.contexts["github"]["event"]["pull_request"]
    event["labels"] = [{"name": "gpu-capacity-later"}]
    assert {job.result for job in pull_request.run("gpu-pull-request.yml").values()} == {"skipped"}
    event["labels"] = [{"name": "gpu-capacity"}]
    event["head"]["repo"] = {"full_name": "stranger/service"}
    assert {job.result for job in pull_request.run("gpu-pull-request.yml").values()} == {"skipped"}


@pytest.mark.slow
def test_gitlab_measures_a_merge_request_beside_its_base(pull_request: Service) -> None:
    job = yaml.safe_load((EXAMPLES / "gitlab" / "gitlab-ci.yml").read_text())["gpu-capacity"]
    checkout = pull_request.clone("gitlab", "merge")
    environment = {
        **job["variables"],
        **pull_request.shell(),
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": git(checkout, "rev-parse", "HEAD^1"),
    }
    # One shell runs before_script and script, another one after_script.
    for lines in ([*job["before_script"], *job["script"]], job["after_script"]):
        _bash("\n".join(lines), checkout, environment)
    assert _compared_with_its_base(checkout) == "IMPROVED"
    artifacts = job["artifacts"]
    for name in (*artifacts["paths"], *artifacts["reports"].values()):
        assert (checkout / name).exists(), name


@pytest.mark.slow
def test_buildkite_measures_a_pull_request_beside_its_base_and_annotates_the_build(pull_request: Service) -> None:
    pipeline = yaml.safe_load((EXAMPLES / "buildkite" / "pipeline.yml").read_text())
    [step] = pipeline["steps"]
    # The agent fills in single dollars when it uploads a pipeline, and leaves one of two.
    assert not re.search(r"(?<!\$)\$(?!\$)", step["command"].replace("$$", ""))
    agent = pull_request.github.bin / "buildkite-agent"
    agent.write_text('#!/bin/bash\nprintf "%s\\n" "$*" >../agent\ncat >../annotation\n')
    agent.chmod(0o755)
    # Buildkite builds the pull request's own branch, not its merge. It left main before main got another server, and
    # changes none: what it is measured beside is the main of then, which leaves nothing to measure.
    work = pull_request.work
    left = git(work, "rev-parse", "main^1")
    git(work, "push", "--quiet", "origin", "more:main")
    git(work, "checkout", "--quiet", "-b", "words", left)
    (work / "notes.md").write_text("Nothing that costs capacity.\n")
    pull_request.commit("words", "words")
    build = pull_request.clone("build", "words")
    environment = {
        **pipeline["env"],
        **pull_request.shell(),
        "BUILDKITE": "true",
        "BUILDKITE_STEP_ID": "a-step",
        "BUILDKITE_PULL_REQUEST_BASE_BRANCH": "main",
        "TARGET_QPS": "100000",
    }
    # The exit code is pytest's, and all of the report is there although the budget does not hold.
    _bash(step["command"].replace("$$", "$"), build, environment, code=1)
    assert git(build / "base", "rev-parse", "HEAD") == left
    assert _compared_with_its_base(build) == "NOT COMPARABLE"
    for pattern in step["artifact_paths"]:
        assert list(build.glob(pattern)), pattern
    assert (build.parent / "agent").read_text() == "annotate --style error --context gpucap-a-step\n"
    assert "needs" in (build.parent / "annotation").read_text()

    # A build of a branch has no base; one that stops in its first line has no report.
    shutil.rmtree(build / ".gpucap")
    (build / "capacity.html").unlink()
    del environment["BUILDKITE_PULL_REQUEST_BASE_BRANCH"]
    _bash(step["command"].replace("$$", "$"), build, {**environment, "GPU_CLASS": "no-class"}, code=4)
    assert not (build / "capacity.html").exists()


def _compared_with_its_base(folder: Path) -> str:
    """What the one result of a run says of head and base."""
    [result] = result_file.read(folder / ".gpucap" / "result.json").results
    assert result.comparison is not None
    assert result.comparison.baseline.name == "base"
    return str(result.comparison.decision)


def _bash(script: str, folder: Path, environment: dict[str, str], code: int = 0) -> None:
    ran = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr


# What holds for every workflow, those of this project as well


PROJECT = sorted((EXAMPLES.parents[1] / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", [*WORKFLOWS, *PROJECT], ids=lambda path: path.name)
def test_workflows_are_safe(path: Path) -> None:
    text, flow = path.read_text(), yaml.safe_load(path.read_text())
    assert "pull_request_target" not in text
    assert flow["permissions"] == {}
    for uses, note in re.findall(r"uses: (\S+)(.*)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", uses), uses
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", note), f"{uses}: say which version it is"
    for name, job in flow["jobs"].items():
        assert job["permissions"] is not None, name
        assert job["timeout-minutes"] <= 360
        if "self-hosted" in job["runs-on"]:
            assert "write" not in job["permissions"].values(), "the machine that runs the suite only reads"
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "an expression in a script would be run as code"


def test_the_lines_to_copy_are_options_that_there_are() -> None:
    from pytest_gpucap.options.table import all_options

    given = tomllib.loads(snippet())["tool"]["pytest"]["ini_options"]
    assert set(given) <= {row.ini for row in all_options()}


# The stand-ins


def test_expressions_are_those_of_github() -> None:
    contexts = {"a": {"b": "x", "list": [{"name": "n"}, {"name": "m"}], "none": ""}}
    functions: dict[str, Callable[..., Any]] = {"contains": lambda where, what: what in where, "failed": lambda: True}
    for expression, value in {
        "a.b == 'x' && contains(a.list.*.name, 'm')": True,
        "contains(a.list.*.name, 'o') || a.b": "x",
        "a.none || '10'": "10",
        "!failed() && a.b != 'y'": False,
        "a.missing.deeper": "",
    }.items():
        assert evaluate(expression, contexts, functions) == value, expression
    with pytest.raises(AssertionError, match="no context"):
        evaluate("unknown.name", contexts, functions)
    with pytest.raises(AssertionError):
        evaluate("a.b > 'x'", contexts, functions)


ISSUE = ["issue", "create", "--title", "t", "--label", "l", "--body-file", "body"]
COMMENTS = f"repos/{REPOSITORY}/issues/1/comments"


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (["pr", "merge"], {}, "invalid choice: 'pr'"),
        ([*ISSUE, "--labels", "x"], {}, "unrecognized arguments: --labels x"),
        (["issue", "list", "--lab", "x", "--json", "number"], {}, "unrecognized arguments: --lab x"),
        (ISSUE, {"GH_TOKEN": ""}, "set the GH_TOKEN environment variable"),
        (ISSUE, {"STAND_IN_PERMISSIONS": '{"issues": "read"}'}, "Resource not accessible by integration (HTTP 403)"),
        (ISSUE, {}, "could not add label: 'l' not found"),
        (["issue", "edit", "7", "--body-file", "body"], {}, "Could not resolve to an issue"),
        (["api", "--method", "PATCH", f"repos/{REPOSITORY}/issues/comments/7", "-F", "body=x"], {}, "HTTP 404"),
        (["api", f"repos/other/{COMMENTS}"], {}, "HTTP 404"),
        (["api", COMMENTS, "--jq", ".["], {}, "jq: "),
    ],
)
def test_the_stand_in_for_gh_refuses_what_gh_refuses(
    tmp_path: Path, words: list[str], changes: dict[str, str], said: str
) -> None:
    if "--jq" in words and shutil.which("jq") is None:
        pytest.skip("needs jq")
    (tmp_path / "body").write_text("text")
    environment = {
        **os.environ,
        "STAND_IN_STATE": str(tmp_path / "state"),
        "STAND_IN_PERMISSIONS": '{"issues": "write"}',
        "GH_TOKEN": "a token",
        "GITHUB_REPOSITORY": REPOSITORY,
        **changes,
    }
    command = [sys.executable, str(Path(__file__).with_name("stand_in_gh.py")), *words]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert said in ran.stderr
