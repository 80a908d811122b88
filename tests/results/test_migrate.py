"""Documents of earlier versions and builds, step by step to today's form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pytest_gpucap.results.migrate import STEPS, current, window_of
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.vllm_arguments import recorded_command


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
        current(document(0), 2, STEPS)


def environment(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = current(document(1, **given), 2, STEPS)["results"][0]["environment"]
    return found


def test_what_early_builds_said_otherwise() -> None:
    assert environment(driver="580.1 (CUDA 13.0)", gpu="SIMULATED (fast)") == {
        "driver": "580.1", "cuda": "13.0", "gpu": "SIMULATED (fast)", "gpu_class": "sim:fast",
    }  # fmt: skip
    assert environment(power_limit="700 W", gpu_state="36 C", gpu_uuids=["GPU-a"]) == {
        "gpu_remarks": ["power limit 700 W", "36 C"], "devices": [{"index": 0, "uuid": "GPU-a"}],
    }  # fmt: skip
    kept = {"driver": "580.1", "cuda": "13.0", "gpu_class": "h200", "server_args": {"a": 1}, "quantization": None}
    assert environment(**kept) == kept


@pytest.mark.parametrize(
    ("label", "window"),
    [
        ("warm-up and low hold (1/3)", WindowId(Phase.WARM_UP, slice=1, slices=3)),
        ("hold at 64", WindowId(Phase.RAMP, concurrency=64)),
        ("hold at 64, again (2/3)", WindowId(Phase.RAMP_AGAIN, concurrency=64, slice=2, slices=3)),
        ("hold below the fall", WindowId(Phase.BELOW_PEAK)),
        ("hold, extended (3/3)", WindowId(Phase.EXTENDED, slice=3, slices=3)),
        ("hold 2", WindowId(Phase.HOLD, cycle=2)),
        ("design rate 1 (1/12)", WindowId(Phase.DESIGN_RATE, cycle=1, slice=1, slices=12)),
        ("open loop 3", WindowId(Phase.OPEN_LOOP, cycle=3)),
        ("direct run", WindowId(Phase.DIRECT)),
        ("search 4", WindowId(Phase.SEARCH, cycle=4)),
        ("one at a time", WindowId(Phase.ALONE)),
        ("to 1.5e+03 req/s", WindowId(Phase.APPROACH, rate_rps=1500.0)),
        ("25.6 req/s", WindowId(Phase.POINT, rate_rps=25.6)),
        ("saturation", WindowId(Phase.SATURATION)),
        ("base 3", WindowId(Phase.ALTERNATION, cycle=3, server="base")),
        ("head: warm-up and low hold", WindowId(Phase.WARM_UP, server="head")),
        ("equal rate 2 (1/3)", WindowId(Phase.EQUAL_RATE, cycle=2, slice=1, slices=3)),
        ("16 in flight", WindowId(Phase.SAMPLE, concurrency=16)),
        ("of my own", WindowId(Phase.OPEN_LOOP, rate_rps=3.5)),
    ],
)
def test_the_window_that_a_label_names(label: str, window: WindowId) -> None:
    assert msgspec.convert(window_of(label, {"kind": "open", "offered_rps": 3.5}), WindowId) == window


def test_a_window_at_a_rate_of_a_sample_is_no_point_of_a_sweep() -> None:
    content = {"schema_version": 1, "results": [{"kind": "sample", "samples": [{"label": "3 req/s"}]}]}
    (result,) = current(content, 2, STEPS)["results"]
    assert result["samples"][0]["window"]["phase"] == Phase.SAMPLE


@pytest.mark.parametrize(
    ("text", "source", "kind"),
    [
        ("the load generator, not the GPU, was the bottleneck: send lateness p99 3 ms", "LOAD_GENERATOR", "LATE"),
        ("the load generator, not the GPU, was the bottleneck: a worker used 95%", "LOAD_GENERATOR", "CPU"),
        ("the load generator could not send 3 requests that were due", "LOAD_GENERATOR", "DROPPED"),
        ("the load generator, ...: 3 of 9 due requests were sent", "LOAD_GENERATOR", "BEHIND"),
        ("the system clock was set during the phase", "HOST", "CLOCK_SET"),
        ("the server counted other prompt tokens than", "SERVER", "PROMPT_TOKENS"),
        ("GPU 0 (X) had power brake in 9% of the readings", "GPU", "SLOWED_DOWN"),
        ("GPU 0 (X) ran at an SM clock of 9 MHz", "GPU", "SLOWED_DOWN"),
        ("GPU 0 (X) was held by a power limit of 9 W", "GPU", "POWER_LIMIT"),
        ("GPU 0 (X) had 3 uncorrected memory errors", "GPU", "MEMORY_ERRORS"),
        ("a neighbour was on GPU 0 (X): pid 42", "HOST", "SHARED"),
        ("GPU 0 (X) was lost: gone", "GPU", "LOST"),
        (
            "3 tokens/s with 2 in flight is above the limit of 2 tokens/s on 1x H200",
            "MEASUREMENT",
            "IMPOSSIBLE",
        ),
        ("a median E2E of 1 ms is below the least possible of 2 ms for", "MEASUREMENT", "IMPOSSIBLE"),
        ("the queue model does not describe this server: ...", "MEASUREMENT", "UNEXPLAINED"),
        ("the answers could not be judged: none came", "ANSWERS", "NO_ANSWERS"),
        ("something else", "MEASUREMENT", "OTHER"),
    ],
)
def test_what_a_sentence_tells(text: str, source: str, kind: str) -> None:
    (result,) = current({"schema_version": 1, "results": [{"problems": [text]}]}, 2, STEPS)["results"]
    (found,) = msgspec.convert(result["problems"], list[Problem])
    assert found == Problem(ProblemSource[source], ProblemKind[kind], text)


def test_the_interval_of_an_accuracy_becomes_its_share() -> None:
    flat = {"value": 0.9, "low": 0.8, "high": 0.95, "confidence": 0.95, "right": 9}
    none = dict.fromkeys(("value", "low", "high", "confidence")) | {"right": 0}
    content = {"schema_version": 1, "results": [{"accuracy": flat}, {"accuracy": none}]}
    asked, unanswered = (result["accuracy"] for result in current(content, 2, STEPS)["results"])
    assert asked == {"share": {"value": 0.9, "low": 0.8, "high": 0.95, "confidence": 0.95}, "right": 9}
    assert unanswered == {"share": None, "right": 0}


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
    assert recorded_command(command) == expected
