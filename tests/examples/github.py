"""Runs the jobs of a GitHub workflow here: its `run:` steps in bash as GitHub does, its actions by stand-ins.

What GitHub documents and these workflows use is done as documented: contexts in ``${{ }}``, conditions, the environment
of a step, outputs, the shell. Anything else is an error, so that a workflow cannot use what nobody has looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_TOKEN: Final = re.compile(r"\s*('(?:[^']|'')*'|&&|\|\||==|!=|[!(),]|[\w][\w.*-]*)")
_NAMES: Final = {"&&": " and ", "||": " or ", "!": " not "}


def evaluate(expression: str, contexts: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> Any:
    """The value of an expression, as far as these workflows use the language."""
    python, place, text = "", 0, expression.strip()
    while place < len(text):
        token = _TOKEN.match(text, place)
        assert token is not None, f"{text[place:]!r} of {expression!r}"
        word, place = token[1], token.end()
        if word[0] == "'":
            python += repr(word[1:-1].replace("''", "'"))
        elif word[0].isalpha():
            python += f"_{word}" if text[place:].lstrip().startswith("(") else f"_get({word!r})"
        else:
            python += _NAMES.get(word, word)
    names = {f"_{name}": function for name, function in functions.items()}
    return eval(python, {"__builtins__": {}, "_get": lambda path: _get(contexts, path), **names})


def _get(contexts: Mapping[str, Any], path: str) -> Any:
    found: Any = contexts
    first, *rest = path.split(".")
    assert first in contexts, f"no context {first}"
    found = contexts[first]
    for place, name in enumerate(rest):
        if name == "*":
            return [_get({"it": each}, ".".join(["it", *rest[place + 1 :]])) for each in found]
        found = found.get(name, "") if isinstance(found, Mapping) else ""
    return found


@dataclass
class Job:
    """How a job ended: success, failure or skipped; its outputs, and what its steps said."""

    result: str
    outputs: dict[str, str] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    said: str = ""


@dataclass
class GitHub:
    """A repository, its runners and what they share.

    Attributes:
        folder: of the runners and their artifacts.
        repository: a bare git repository.
        bin: programs that stand before those of the machine.
        environment: of every step, beside what GitHub sets.
        contexts: ``github``, ``inputs``, ``secrets``.
        ref: the branch that the event is about.
    """

    folder: Path
    repository: Path
    bin: Path
    environment: dict[str, str]
    contexts: dict[str, Any]
    ref: str = "main"
    artifacts: dict[str, Path] = field(default_factory=dict)
    runs: int = 0

    def run(self, workflow: Mapping[str, Any]) -> dict[str, Job]:
        """Every job of a workflow, in the order in which they stand."""
        self.runs += 1
        jobs: dict[str, Job] = {}
        for name, job in workflow["jobs"].items():
            needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
            known = {each: {"result": jobs[each].result, "outputs": jobs[each].outputs} for each in needs}
            failed = any(jobs[each].result != "success" for each in needs)
            contexts = {**self.contexts, "needs": known, "steps": {}}
            if not self._if(job.get("if"), contexts, failed=failed):
                jobs[name] = Job("skipped")
                continue
            jobs[name] = self._job(name, job, workflow, contexts)
        return jobs

    def _if(self, condition: str | None, contexts: Mapping[str, Any], *, failed: bool) -> bool:
        if condition is None:
            return not failed
        text = condition.strip()
        text = text[3:-2] if text.startswith("${{") else text
        functions: dict[str, Callable[..., Any]] = {
            "always": lambda: True,
            "cancelled": lambda: False,
            "failure": lambda: failed,
            "success": lambda: not failed,
            "contains": lambda where, what: what in where,
        }
        asks = any(f"{name}()" in text for name in ("always", "cancelled", "failure", "success"))
        return bool(evaluate(text, contexts, functions)) and (asks or not failed)

    def _filled(self, value: Any, contexts: Mapping[str, Any]) -> str:
        def value_of(match: re.Match[str]) -> str:
            found = evaluate(match[1], contexts, {})
            return "" if found is None else str(found)

        return re.sub(r"\$\{\{(.*?)\}\}", value_of, str(value))

    def _job(self, name: str, job: Mapping[str, Any], workflow: Mapping[str, Any], contexts: dict[str, Any]) -> Job:
        assert workflow["permissions"] == {}, "a job has what it names alone"
        workspace = self.folder / f"run{self.runs}-{name}" / "work"
        workspace.mkdir(parents=True)
        github = contexts["github"]
        environment = {
            **self.environment,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(workspace.parent),
            "CI": "true",
            "GITHUB_REPOSITORY": github["repository"],
            "GITHUB_RUN_ID": str(self.runs),
            "GITHUB_WORKFLOW": workflow["name"],
            "GITHUB_WORKSPACE": str(workspace),
            "STAND_IN_PERMISSIONS": json.dumps(job["permissions"]),
            **{key: self._filled(value, contexts) for key, value in workflow.get("env", {}).items()},
            **self.environment,
        }
        ended = Job("success")
        for step in job["steps"]:
            if not self._if(step.get("if"), contexts, failed=ended.result == "failure"):
                ended.steps[step.get("name", step.get("uses"))] = "skipped"
                continue
            own = {**environment, **{key: self._filled(text, contexts) for key, text in step.get("env", {}).items()}}
            if "uses" in step:
                given = {key: self._filled(value, contexts) for key, value in step.get("with", {}).items()}
                action = step["uses"].partition("@")[0].rpartition("/")[2]
                outcome, said = getattr(self, "_" + action.replace("-", "_"))(workspace, given, job["permissions"])
            else:
                assert "${{" not in step["run"], "an expression in a script would be run as code"
                outcome, said, outputs = self._script(workspace, step, own, workflow)
                contexts["steps"][step.get("id", "")] = {"outputs": outputs}
            ended.said += said
            ended.steps[step.get("name", step.get("uses"))] = outcome
            if outcome == "failure":
                ended.result = "failure"
        ended.outputs = {key: self._filled(value, contexts) for key, value in job.get("outputs", {}).items()}
        return ended

    def _script(
        self, workspace: Path, step: Mapping[str, Any], environment: Mapping[str, str], workflow: Mapping[str, Any]
    ) -> tuple[str, str, dict[str, str]]:
        assert workflow["defaults"]["run"]["shell"] == "bash"
        script, output = workspace.parent / "script.sh", workspace.parent / "output"
        script.write_text(step["run"])
        output.write_text("")
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=workspace / step.get("working-directory", "."),
            env={**environment, "GITHUB_OUTPUT": str(output)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return "success" if ran.returncode == 0 else "failure", f"== {step['name']}\n{ran.stdout}", outputs

    # Actions

    def _checkout(self, workspace: Path, given: Mapping[str, str], permissions: Mapping[str, str]) -> tuple[str, str]:
        assert set(given) <= {"path", "fetch-depth", "persist-credentials"}, given
        assert permissions.get("contents") in {"read", "write"}
        target = workspace / given.get("path", ".")
        depth = given.get("fetch-depth", "1")
        git(
            workspace,
            "clone",
            "--quiet",
            f"--branch={self.ref}",
            f"--depth={depth}",
            f"file://{self.repository}",
            str(target),
        )
        if permissions["contents"] != "write":
            git(target, "remote", "set-url", "--push", "origin", "/no/right/to/push")
        return "success", ""

    def _upload_artifact(
        self, workspace: Path, given: Mapping[str, str], permissions: Mapping[str, str]
    ) -> tuple[str, str]:
        del permissions
        assert set(given) <= {"name", "path", "include-hidden-files"}, given
        found = [path for line in given["path"].split() if (path := workspace / line).exists()]
        kept = self.folder / f"artifact-{given['name']}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        # As the action says: the least common folder of all that is found becomes the root.
        files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
        root = Path(os.path.commonpath([workspace / line for line in given["path"].split()]))
        hidden = given.get("include-hidden-files") == "True"
        for file in files:
            if hidden or not any(part.startswith(".") for part in file.relative_to(root).parts):
                target = kept / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        self.artifacts[given["name"]] = kept
        return "success", ""

    def _download_artifact(
        self, workspace: Path, given: Mapping[str, str], permissions: Mapping[str, str]
    ) -> tuple[str, str]:
        del permissions
        assert set(given) == {"name", "path"}
        shutil.copytree(self.artifacts[given["name"]], workspace / given["path"])
        return "success", ""


def git(folder: Path, *words: str) -> str:
    """Run git; returns what it says."""
    ran = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()
