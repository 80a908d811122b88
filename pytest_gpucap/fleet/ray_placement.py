"""What a replica needs of a Ray cluster, what the cluster has, and whether the two can meet. Ray is not asked here.

Ray describes a node by named amounts: ``CPU``, ``GPU``, and ``accelerator_type:A10G`` with the amount 1 on every node
that has such GPUs. A bundle asks for a thousandth of the latter, which chooses the node and uses nothing up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytest_gpucap.engines.protocol import Engine
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import GpuClass

Bundle = dict[str, float]
"""Amounts by resource, which one node must have."""

TYPE: Final = "accelerator_type:"
SLIVER: Final = 0.001
"""Of a node's ``accelerator_type``: many replicas on one node may ask for it."""
_MODEL: Final = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")
"""How Ray takes an accelerator's type from the product name that NVML reports: ``Tesla T4`` is ``T4``."""
_SIZED: Final[Mapping[str, str]] = {
    "a100-40gb": "A100-40G",
    "a100-80gb": "A100-80G",
    "a100-80gb-pcie": "A100-80G",
}
"""Types of `ray.util.accelerators` that Ray never sets itself. An administrator may."""


class RayPlacementError(GpuCapError):
    """The cluster cannot take the replicas; one line says what was asked and what it has."""

    needs_traceback = False


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the cluster.

    Attributes:
        id: Ray's id of it.
        name: its host name.
        address: its IP address in the cluster.
        total, free: amounts by resource; `free` is empty where Ray does not tell.
    """

    id: str
    name: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The types of its GPUs, such as ``("A10G",)``."""
        return tuple(sorted(name.removeprefix(TYPE) for name in self.total if name.startswith(TYPE)))

    def describe(self) -> str:
        """``name (10.0.0.2): 4x A10G, 2 free; 48 CPUs, 46 free``."""
        parts = []
        if gpus := self.total.get("GPU", 0.0):
            kind = "/".join(self.accelerators) or "GPU"
            parts.append(f"{gpus:g}x {kind}, {self.free.get('GPU', 0.0):g} free")
        cpus = self.total.get("CPU", 0.0)
        parts.append(f"{cpus:g} CPUs, {self.free.get('CPU', 0.0):g} free")
        return f"{self.name} ({self.address}): {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica needs.

    Attributes:
        gpus: that its server occupies.
        gpu_class: their class; None: any.
        cpus: that Ray sets aside for it.
        spans_nodes: vLLM's own Ray executor places its workers, on one node or several.
    """

    gpus: int
    gpu_class: GpuClass | None = None
    cpus: float = 1.0
    spans_nodes: bool = False

    @classmethod
    def of(cls, engine: Engine, gpu_class: GpuClass | None) -> Need:
        """What the servers of an engine need. On class ``cpu``, and elsewhere than on leased devices, no GPU."""
        if not engine.leases_devices or (gpu_class is not None and gpu_class.is_cpu):
            return cls(0)
        spans = engine.request.arguments.get("distributed_executor_backend") == "ray"
        return cls(engine.gpus, gpu_class, spans_nodes=spans)

    def bundle(self, nodes: Sequence[Node]) -> Bundle:
        """What Ray is to reserve for it on one node.

        vLLM's Ray executor reserves its GPUs by itself, and wants the server on a node that has one. So the bundle of
        such a replica names the type alone.
        """
        wanted: Bundle = {"CPU": self.cpus}
        if self.gpus and not self.spans_nodes:
            wanted["GPU"] = float(self.gpus)
        if self.gpus and (label := self.label(nodes)):
            wanted[f"{TYPE}{label}"] = SLIVER
        return wanted

    def label(self, nodes: Sequence[Node]) -> str | None:
        """The type of `gpu_class` by which the cluster knows it; None if any GPU will do."""
        if self.gpu_class is None:
            return None
        there = {kind for node in nodes for kind in node.accelerators}
        known = accelerator_types(self.gpu_class)
        return next((label for label in known if label in there), known[-1])

    def describe(self, count: int) -> str:
        """``3 replicas of 1 GPU of class a10g each``."""
        replicas = f"{count} replica{'s' if count != 1 else ''}"
        each = " each" if count != 1 else ""
        if not self.gpus:
            return f"{replicas} of {self.cpus:g} CPU{'s' if self.cpus != 1 else ''} and no GPU{each}"
        of_class = "" if self.gpu_class is None else f" of class {self.gpu_class.name}"
        return f"{replicas} of {self.gpus} GPU{'s' if self.gpus != 1 else ''}{of_class}{each}"


def accelerator_types(gpu_class: GpuClass) -> tuple[str, ...]:
    """What Ray may call the GPUs of a class, the most certain last and the most exact first.

    Ray's own types are coarse: ``A100`` is a card of 40 or of 80 GB. Which one it is, the node finds out by NVML.
    """
    by_name = dict.fromkeys(map(_accelerator_type, gpu_class.nvml_names))
    sized = _SIZED.get(gpu_class.parent or gpu_class.name)
    return (*([sized] if sized else []), *(by_name or {gpu_class.name.upper(): None}))


def _accelerator_type(product: str) -> str:
    found = _MODEL.match(product)
    if found is not None and len(found[1]) > 1:
        return found[1].replace(" ", "-")
    return re.sub(r"^NVIDIA\s+", "", product).strip().replace(" ", "-")


def check_size(need: Need, count: int, nodes: Sequence[Node]) -> None:
    """Check that a replica fits on one node, if it is to stand on one.

    Raises:
        RayPlacementError: if it is bigger than every node of its class, or than the whole cluster.
    """
    if not need.gpus:
        return
    label = need.label(nodes)
    fitting = [node for node in nodes if label is None or label in node.accelerators]
    sizes = [int(node.total.get("GPU", 0)) for node in fitting]
    asked, there = need.describe(count), cluster_line(nodes)
    if need.spans_nodes:
        others = sorted({kind for node in nodes for kind in node.accelerators} - {label}) if label else []
        if others:
            raise RayPlacementError(
                f'{asked} with distributed_executor_backend="ray": vLLM\'s own Ray executor takes any GPU of the '
                f"cluster, and there are others ({', '.join(others)}): use a cluster of one class ({there})"
            )
        if sum(sizes) < need.gpus * count:
            raise RayPlacementError(f"{asked}: the cluster is too small ({there})")
    elif 0 < max(sizes, default=0) < need.gpus:
        raise RayPlacementError(
            f"{asked}: no node has that many ({there}); a replica over several nodes is made by vLLM's own executor: "
            'vllm(distributed_executor_backend="ray")'
        )


def cluster_line(nodes: Sequence[Node]) -> str:
    """One line on what there is: ``3 nodes; GPUs: 3x A10G, 2 free; CPUs: 6, 5 free``."""
    total: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for node in nodes:
        kind = "/".join(node.accelerators) or "of no known type"
        total[kind] += int(node.total.get("GPU", 0))
        free[kind] += int(node.free.get("GPU", 0))
    gpus = ", ".join(f"{total[kind]}x {kind}, {free[kind]} free" for kind in sorted(total) if total[kind])
    cpus, free_cpus = (
        sum(side) for side in ([n.total.get("CPU", 0) for n in nodes], [n.free.get("CPU", 0) for n in nodes])
    )
    count = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    return f"{count}; GPUs: {gpus or 'none'}; CPUs: {cpus:g}, {free_cpus:g} free"
