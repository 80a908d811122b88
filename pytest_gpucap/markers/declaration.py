"""What one test declares, once its markers are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.requirement import Requirement, Slo, Workload
from pytest_gpucap.secondary import SecondaryLimit
from pytest_gpucap.vllm_arguments import VllmArguments

VLLM: Final = VllmEngine.name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test stands; its text is ``file:line``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Declaration:
    """All that one test declares.

    Attributes:
        place: of the test, for messages.
        requirement: None if no rate was declared; then `check` fails with a message.
        workload, slo: declared even without a rate, so that `measure` and `sweep` work without one.
        gpus_per_replica: GPUs that one server occupies.
        fleet: replicas that are measured together.
        secondary: what is required beside the rate.
        counts_loss: a replica that is lost is counted, and the measurement goes on with the others; otherwise it ends.
        model: model of the server; None when no marker and no option names one.
        engine: the name of the engine that starts the server.
        arguments: of the server: every other keyword of the ``vllm`` or ``engine`` markers.
        vllm_args: the same, parsed as vLLM's arguments; empty for another engine.
        gpu_class: the class this test is about, from its marker; None when it names none.
        max_time_s: server time that one verdict may take.
        seed: of arrivals, lengths and prompts.
        named: whether a marker gives `name`; otherwise it is the name of the test function.
        priority: tests with a higher one come first; 0 unless declared.
    """

    place: Place
    name: str
    requirement: Requirement | None
    workload: Workload
    slo: Slo
    gpus_per_replica: int
    model: str | None
    engine: str = VLLM
    arguments: Mapping[str, Any] = field(default_factory=dict)
    vllm_args: VllmArguments = field(default_factory=VllmArguments)
    gpu_class: str | None = None
    max_time_s: float = 600.0
    seed: int = 0
    named: bool = False
    fleet: int = 1
    counts_loss: bool = False
    secondary: tuple[SecondaryLimit, ...] = ()
    priority: int = 0

    def with_workload(self, workload: Workload) -> Declaration:
        """The declaration with another workload, which its requirement has as well."""
        requirement = self.requirement and replace(self.requirement, workload=workload)
        return replace(self, workload=workload, requirement=requirement)

    def of(self, item: pytest.Item) -> Declaration:
        """The declaration of a test with equal markers: only its place differs, and its name unless `named`."""
        name = self.name if self.named else own_name(item)
        requirement = self.requirement and replace(self.requirement, name=name)
        return replace(self, place=place_of(item), name=name, requirement=requirement)


def place_of(item: pytest.Item) -> Place:
    """File and line of a test."""
    path, line, _ = item.location
    return Place(path, (line or 0) + 1)


def own_name(item: pytest.Item) -> str:
    """The name of a test's function, without its parameters."""
    return str(getattr(item, "originalname", None) or item.name)
