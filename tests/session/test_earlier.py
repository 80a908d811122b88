"""Which result of an earlier session tells how long a test takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.history.store import Run
from pytest_gpucap.markers.declaration import Declaration, Place
from pytest_gpucap.requirement import ApiKind, Length, OwnPrompts, Workload
from pytest_gpucap.results.build import declared_workload
from pytest_gpucap.session.earlier import earlier_of
from tests.results import made

WORKLOAD = Workload(Length.fixed(256), Length.fixed(64))
PROMPTS = OwnPrompts(Path("chats.jsonl"), "a" * 64, 2, input_tokens=(10, 20), output_tokens=(5, 6))


def known(declared: Workload, measured: Workload) -> bool:
    """Whether the time of a test is known from a result with another workload."""
    result = msgspec.structs.replace(made.check(), workload=declared_workload(measured))
    content = msgspec.structs.replace(made.session(result), started=datetime(2026, 11, 22, tzinfo=UTC))
    requirement = replace(made.REQUIREMENT, workload=declared)
    test = Declaration(
        Place("test_chat.py", 12), "chat", requirement, declared, requirement.slo, gpus_per_replica=1, model="org/model"
    )
    earlier = earlier_of([Run(Path("result.json"), content)])
    return earlier.spent(result.test, test, "h200", simulated=False) is not None


def with_prompts(**changes: Any) -> Workload:
    return replace(WORKLOAD, prompts=replace(PROMPTS, **changes))


@pytest.mark.parametrize(
    "changed",
    [
        replace(WORKLOAD, input_tokens=Length.fixed(255)),
        replace(WORKLOAD, endpoint=ApiKind.COMPLETIONS),
        replace(WORKLOAD, adapters={"a": 0.5, "b": 0.5}),
        replace(WORKLOAD, extra_body={"top_k": 5}),
        with_prompts(),
    ],
    ids=["lengths", "endpoint", "adapters", "further fields", "prompts"],
)
def test_other_requests_tell_nothing(changed: Workload) -> None:
    assert known(changed, changed)
    assert not known(changed, WORKLOAD)
    assert not known(WORKLOAD, changed)


def test_a_file_of_prompts_is_known_by_what_it_holds() -> None:
    moved = with_prompts(path=Path("elsewhere/renamed.jsonl"))
    assert known(with_prompts(), moved)
    assert not known(with_prompts(), with_prompts(sha256="b" * 64))
    # Recorded answers are counted by the server alone, declared ones are as long as declared.
    longer = replace(moved, output_tokens=Length.fixed(70))
    assert known(with_prompts(), longer)
    assert not known(with_prompts(declared=Length.fixed(64)), longer)


def test_answers_that_the_engine_cannot_make_exact_are_the_same_requests() -> None:
    assert known(WORKLOAD, replace(WORKLOAD, ignore_eos=False))
