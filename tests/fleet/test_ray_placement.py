"""What a replica needs, what a cluster has, and how the two are told of."""

from __future__ import annotations

import importlib.util

import pytest

from pytest_gpucap.engines.protocol import ServerRequest
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.fleet import ray_library
from pytest_gpucap.fleet.ray_cluster import RayCluster
from pytest_gpucap.fleet.ray_library import RayUnavailable
from pytest_gpucap.fleet.ray_placement import Need, Node, RayPlacementError, accelerator_types, check_size, cluster_line
from pytest_gpucap.gpu.classes import find_class, known_classes
from pytest_gpucap.installing import pip_install
from pytest_gpucap.simulator.profile import load
from pytest_gpucap.simulator.simulator_engine import SimulatorEngine


def node(number: int, gpus: int = 0, kind: str = "", free: int | None = None) -> Node:
    total = {
        "CPU": 8.0,
        **({"GPU": float(gpus)} if gpus else {}),
        **({f"accelerator_type:{kind}": 1.0} if kind else {}),
    }
    left = total | ({} if free is None else {"GPU": float(free)})
    return Node(f"id{number}", f"host{number}", f"10.0.0.{number}", total, left)


def engine(**arguments: object) -> VllmEngine:
    return VllmEngine(ServerRequest(model="m", arguments=arguments, python="sh"))


def test_every_class_is_known_to_ray_by_the_type_that_ray_gives_it() -> None:
    manager = pytest.importorskip("ray._private.accelerators.nvidia_gpu").NvidiaGPUAcceleratorManager
    for gpu_class in known_classes():
        if gpu_class.is_cpu:
            continue
        by_ray = {manager._gpu_name_to_accelerator_type(name) for name in gpu_class.nvml_names}
        assert by_ray <= set(accelerator_types(gpu_class))


def test_types_of_classes_are_rays_constants() -> None:
    accelerators = pytest.importorskip("ray.util.accelerators.accelerators")
    for name, known in {
        "t4": accelerators.NVIDIA_TESLA_T4,
        "a10g": accelerators.NVIDIA_TESLA_A10G,
        "l40s": accelerators.NVIDIA_L40S,
        "h200": accelerators.NVIDIA_H200,
        "rtx-pro-6000": accelerators.NVIDIA_RTX_PRO_6000,
        "gb200": accelerators.NVIDIA_GB200,
    }.items():
        assert accelerator_types(find_class(name)) == (known,)
    assert accelerator_types(find_class("a100-80gb")) == (accelerators.NVIDIA_A100_80G, accelerators.NVIDIA_A100)
    assert accelerator_types(find_class("a100-40gb-1g.5gb"))[-1] == accelerators.NVIDIA_A100


def test_a_bundle_has_what_one_replica_needs() -> None:
    nodes = [node(1, 4, "A10G"), node(2, 4, "A100")]
    a10g, a100 = find_class("a10g"), find_class("a100-80gb")
    two = engine(tensor_parallel_size=2)
    assert Need.of(two, a10g).bundle(nodes) == {"CPU": 1, "GPU": 2, "accelerator_type:A10G": 0.001}
    assert Need.of(two, a100).bundle(nodes) == {"CPU": 1, "GPU": 2, "accelerator_type:A100": 0.001}
    sized = [*nodes, node(3, 4, "A100-80G")]
    assert Need.of(two, a100).bundle(sized) == {"CPU": 1, "GPU": 2, "accelerator_type:A100-80G": 0.001}
    assert Need.of(two, None).bundle(nodes) == {"CPU": 1, "GPU": 2}
    assert Need.of(two, find_class("cpu")).bundle(nodes) == {"CPU": 1}
    over = engine(tensor_parallel_size=8, distributed_executor_backend="ray")
    assert Need.of(over, a10g).bundle(nodes) == {"CPU": 1, "accelerator_type:A10G": 0.001}
    simulated = SimulatorEngine(ServerRequest(), load("fast"))
    assert Need.of(simulated, a10g).bundle(nodes) == {"CPU": 1}


def test_a_cluster_in_one_line() -> None:
    assert cluster_line([]) == "0 nodes; GPUs: none; CPUs: 0, 0 free"
    assert cluster_line([node(1)]) == "1 node; GPUs: none; CPUs: 8, 8 free"
    mixed = [node(1, 4, "A10G", 1), node(2, 4, "A10G"), node(3, 8, "H100", 0), node(4, 1)]
    assert cluster_line(mixed) == (
        "4 nodes; GPUs: 8x A10G, 5 free, 8x H100, 0 free, 1x of no known type, 1 free; CPUs: 32, 32 free"
    )


def test_a_replica_must_fit_on_a_node() -> None:
    nodes = [node(1, 4, "A10G"), node(2, 8, "H100")]
    check_size(Need.of(engine(tensor_parallel_size=4), find_class("a10g")), 9, nodes)
    check_size(Need.of(engine(tensor_parallel_size=8), None), 1, nodes)
    with pytest.raises(RayPlacementError) as caught:
        check_size(Need.of(engine(tensor_parallel_size=8), find_class("a10g")), 2, nodes)
    assert str(caught.value) == (
        "2 replicas of 8 GPUs of class a10g each: no node has that many (2 nodes; GPUs: 4x A10G, 4 free, 8x H100, "
        "8 free; CPUs: 16, 16 free); a replica over several nodes is made by vLLM's own executor: "
        'vllm(distributed_executor_backend="ray")'
    )
    over = engine(tensor_parallel_size=8, distributed_executor_backend="ray")
    with pytest.raises(RayPlacementError, match=r"takes any GPU of the cluster, and there are others \(H100\)"):
        check_size(Need.of(over, find_class("a10g")), 1, nodes)
    check_size(Need.of(over, find_class("a10g")), 1, [node(1, 4, "A10G"), node(2, 4, "A10G")])
    with pytest.raises(RayPlacementError, match="the cluster is too small"):
        check_size(Need.of(over, find_class("a10g")), 2, [node(1, 4, "A10G"), node(2, 4, "A10G")])


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(ray_library, "find_spec", lambda name: None if name == "ray" else there(name))
    with pytest.raises(RayUnavailable) as caught:
        RayCluster.connect("auto")
    assert str(caught.value) == f"Ray is not installed: {pip_install('ray')}"
