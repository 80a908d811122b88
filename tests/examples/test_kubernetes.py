"""The Job of examples/kubernetes: that its parts fit one another, and that pytest takes its command line.

What Kubernetes itself defines is checked against its OpenAPI schemas, if `kubernetes-validate` is installed, as for
`examples/kuberay`.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

yaml: Any = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
KUBERNETES = "1.33"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "examples/kubernetes/gpu-capacity.yaml").read_text()))


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in documents() if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod() -> dict[str, Any]:
    template: dict[str, Any] = named("Job", "gpu-capacity")["spec"]["template"]
    return template


def load() -> dict[str, Any]:
    (container,) = pod()["spec"]["containers"]
    return dict(container)


@pytest.mark.skipif(not find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed")
def test_kubernetes_own_schemas_take_it() -> None:
    validate = import_module("kubernetes_validate").validate
    for document in documents():
        validate(document, KUBERNETES, strict=True)


def test_a_verdict_is_not_retried() -> None:
    spec = named("Job", "gpu-capacity")["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] > 0
    assert pod()["spec"]["restartPolicy"] == "Never"
    assert load()["command"] == ["python", "-m", "pytest"], "its exit code is the Job's"


def test_every_variable_has_its_value() -> None:
    told = {each["name"]: each for each in load()["env"]}
    used = {name for word in load()["args"] for name in re.findall(r"\$\((\w+)\)", word)}
    assert used == {name for name in told if name.startswith("TARGET_")}
    target = named("ConfigMap", "gpu-capacity-target")["data"]
    keys = {told[name]["valueFrom"]["configMapKeyRef"]["key"] for name in used}
    assert keys == set(target)
    assert {told[name]["valueFrom"]["configMapKeyRef"]["name"] for name in used} == {"gpu-capacity-target"}


def test_pytest_takes_its_command_line_and_its_suite(pytester: pytest.Pytester) -> None:
    told = {each["name"]: each for each in load()["env"]}
    target = named("ConfigMap", "gpu-capacity-target")["data"]
    words = []
    for word in load()["args"]:
        filled = re.sub(r"\$\((\w+)\)", lambda name: target[told[name[1]]["valueFrom"]["configMapKeyRef"]["key"]], word)
        words.append(filled.replace("/results", str(pytester.path)).replace("/capacity", str(pytester.path), 1))
    for name, text in named("ConfigMap", "gpu-capacity-suite")["data"].items():
        (pytester.path / name).write_text(text)
    result = pytester.runpytest("--collect-only", "-q", *words)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["test_capacity.py::test_chat_capacity"])


def test_what_the_pod_mounts_is_there() -> None:
    spec = pod()["spec"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    mounted = {each["name"] for part in (*spec["initContainers"], load()) for each in part["volumeMounts"]}
    assert mounted == set(volumes)
    assert volumes["suite"]["configMap"]["name"] == "gpu-capacity-suite"
    claim = volumes["results"]["persistentVolumeClaim"]["claimName"]
    assert named("PersistentVolumeClaim", claim)


def test_the_pod_is_restricted_and_without_a_gpu() -> None:
    """Kubernetes' Pod Security Standard "restricted"."""
    spec = pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], load()):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]) == {"requests", "limits"}
        assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_no_secret_stands_in_the_file() -> None:
    assert not [each for each in documents() if each["kind"] == "Secret"]
    told = {each["name"]: each for each in load()["env"]}
    assert told["OPENAI_API_KEY"]["valueFrom"]["secretKeyRef"]["optional"] is True
