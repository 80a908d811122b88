"""Documents of earlier versions and builds, step by step to today's form."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpucap.results.migrate import arguments_of, current


def document(version: int, **environment: Any) -> dict[str, Any]:
    return {"schema": "pytest-gpucap", "schema_version": version, "results": [{"environment": environment}]}


def test_every_step_is_taken_once_and_in_order_and_the_document_given_stays_as_it_was() -> None:
    taken: list[int] = []

    def step(version: int) -> Any:
        def upgrade(content: dict[str, Any]) -> dict[str, Any]:
            taken.append(content["schema_version"])
            return {**content, f"from_{version}": True}

        return upgrade

    given = document(1)
    found = current(given, 4, {version: step(version) for version in (1, 2, 3)})
    assert taken == [1, 2, 3]
    assert found["schema_version"] == 4
    assert found["from_3"] is True
    assert given == document(1)


def test_a_version_that_was_never_written_is_no_start() -> None:
    with pytest.raises(ValueError, match="schema version 0 was never written"):
        current(document(0), 1)


def test_what_early_builds_left_out_or_said_otherwise() -> None:
    found = current(document(1, driver="580.1 (CUDA 13.0)", gpu="SIMULATED (fast)"), 1)["results"][0]
    assert found["environment"] == {
        "driver": "580.1", "cuda": "13.0", "gpu": "SIMULATED (fast)", "gpu_class": "sim:fast",
    }  # fmt: skip
    assert found["limit"] is found["comparison"] is found["series"] is found["accuracy"] is None
    kept = {"driver": "580.1", "cuda": "13.0", "gpu_class": "h200", "server_args": {"a": 1}}
    assert current(document(1, **kept), 1)["results"][0]["environment"] == kept


VLLM = "python3 -m vllm.entrypoints.openai.api_server"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{VLLM} --model m --host 127.0.0.1 --port 0 --served-model-name n", {}),
        (f"{VLLM} --max-model-len 4096 --rope=-1", {"max_model_len": "4096", "rope": "-1"}),
        (f"{VLLM} --enforce-eager --no-enable-chunking", {"enforce_eager": True, "enable_chunking": False}),
        (f"{VLLM} --lora-modules a b c --seed 1", {"lora_modules": ["a", "b", "c"], "seed": "1"}),
        (VLLM, {}),
        ("python3 -m http.server 8000", None),
    ],
)
def test_arguments_from_a_command_line(command: str, expected: dict[str, Any] | None) -> None:
    assert arguments_of(command) == expected
