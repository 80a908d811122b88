"""The RayJob of examples/kuberay: its form, and that its parts fit one another.

The schema of a RayJob is written by hand from KubeRay's Go types (rayjob.schema.json says so), since no package brings
KubeRay's own. What Kubernetes itself defines is checked against its OpenAPI schemas, if `kubernetes-validate` is
installed. It takes 100 MB, so the lock of the tools leaves it out.
"""

from __future__ import annotations

import ast
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

yaml: Any = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())
KUBERNETES = "1.33"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / "examples/kuberay/gpu-capacity.yaml").read_text()))


def one(kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents() if each["kind"] == kind)
    return found


def job() -> dict[str, Any]:
    spec: dict[str, Any] = one("RayJob")["spec"]
    return spec


def pods() -> dict[str, dict[str, Any]]:
    cluster = job()["rayClusterSpec"]
    return {
        "submitter": job()["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
    }


def capacity_marker() -> dict[str, Any]:
    """The keywords of `gpucap(...)` in the suite."""
    suite = ast.parse(one("ConfigMap")["data"]["test_capacity.py"])
    (call,) = (
        each
        for each in ast.walk(suite)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "gpucap"
    )
    return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


def test_the_job_has_the_form_that_kuberay_asks_for() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(one("RayJob"), SCHEMA)


@pytest.mark.parametrize("wrong", ["backOffLimit", "shutdownAfterJobFinish", "restartPolicy"])
def test_a_misspelt_field_is_seen(wrong: str) -> None:
    broken = one("RayJob")
    broken["spec"][wrong] = 0
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        jsonschema.validate(broken, SCHEMA)


@pytest.mark.skipif(not find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed")
def test_kubernetes_own_schemas_take_everything_else() -> None:
    validate = import_module("kubernetes_validate").validate
    for document in documents():
        if document["kind"] != "RayJob":
            validate(document, KUBERNETES, strict=True)
    for name, template in pods().items():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        validate(pod, KUBERNETES, strict=True)


def test_a_verdict_is_not_retried_and_the_gpus_are_given_back() -> None:
    spec = job()
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0


def test_the_exit_code_of_the_entrypoint_is_pytests() -> None:
    """One plain command: nothing behind a pipe or a semicolon can hide its exit code."""
    entrypoint = job()["entrypoint"]
    assert entrypoint.startswith("python -m pytest /home/ray/capacity ")
    assert not set(entrypoint) & set("|;&\n")
    for option in ("--gpucap-launcher ray", "--gpucap-ray-address auto", "--gpucap-json /results/result.json"):
        assert option in entrypoint


def test_head_workers_and_pip_have_one_version_of_ray() -> None:
    version = job()["rayClusterSpec"]["rayVersion"]
    images = {each["image"] for pod in pods().values() for each in pod["spec"]["containers"]}
    assert images == {f"rayproject/ray:{version}-py311-gpu"}
    assert f"ray=={version}" in yaml.safe_load(job()["runtimeEnvYAML"])["pip"]


def test_the_workers_have_the_gpus_of_the_budget() -> None:
    (group,) = job()["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    marker = capacity_marker()
    assert (marker["gpus"], marker["replicas"]) == (gpus, group["replicas"])
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    (head,) = pods()["head"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert job()["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_what_the_pods_mount_is_there() -> None:
    for pod in pods().values():
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert {each["name"] for each in container.get("volumeMounts", [])} == set(volumes)
    head = {each["name"]: each for each in pods()["head"]["spec"]["volumes"]}
    assert head["suite"]["configMap"]["name"] == one("ConfigMap")["metadata"]["name"]
    assert head["results"]["persistentVolumeClaim"]["claimName"] == one("PersistentVolumeClaim")["metadata"]["name"]


@pytest.mark.parametrize("name", ["submitter", "head", "worker"])
def test_every_pod_is_restricted_and_behind_the_network_policy(name: str) -> None:
    """Kubernetes' Pod Security Standard "restricted"."""
    pod = pods()[name]
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]) == {"requests", "limits"}
    selected = one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= pod["metadata"]["labels"].items()


def test_no_secret_stands_in_the_file() -> None:
    assert not [each for each in documents() if each["kind"] == "Secret"]
    (worker,) = pods()["worker"]["spec"]["containers"]
    assert worker["env"][0]["valueFrom"]["secretKeyRef"]["key"] == "token"
    assert job()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
