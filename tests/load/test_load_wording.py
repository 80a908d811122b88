"""What stands around prompts, and prompts that a trace recorded: sent, and counted, as asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import calibrate
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import OpenLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, Wording, Workload
from tests.load.test_load_prompts import TEMPLATES, bpe, counter
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

WORDING = Wording("You are terse.", fold_system=True, opening="\n", instruction="Put the answer within \\boxed{}.")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenize", [True, False])
def test_prompts_have_the_tokens_asked_for_with_everything_around_them(template: str, tokenize: bool) -> None:
    workload = Workload(Length.fixed(120), Length.fixed(2), wording=WORDING)
    with TokenServer(counter(bpe()), template=TEMPLATES[template], tokenize=tokenize) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            prompts = np.full(20, 120, np.int32)
            runner.run(OpenLoop(0.5, np.linspace(0, 0.4, 20), prompts, np.full(20, 2, np.int32)))
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        np.testing.assert_array_equal(journal.status, Status.OK)
        np.testing.assert_array_equal(journal.counted_prompt_tokens, prompts)
        for body in server.seen.bodies:
            (message,) = body["messages"]
            assert message["role"] == "user"
            assert message["content"].startswith("\nYou are terse.\n\n")
            assert message["content"].endswith("\nPut the answer within \\boxed{}.")


def test_the_wording_travels_with_the_recipe() -> None:
    recipe = PromptRecipe.of(Workload(wording=WORDING), "m", ("a", "b"))
    again = PromptRecipe.from_json(recipe.to_json())
    assert again == recipe
    assert RequestComposer(again).body(5, 40, 1) == RequestComposer(recipe).body(5, 40, 1)


def test_recorded_prompts_shorter_than_the_template_are_sent_as_short_as_can_be(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,3,2\n2023-11-16 18:00:01,90,2\n")
    workload = Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path))
    with TokenServer(counter(bpe()), template=TEMPLATES["with a system prompt"]) as server:
        least = calibrate(ServerAddress.parse(server.url, None), "m", workload, 0, 0).least_tokens
        assert least > 3
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            rows = np.array([3, 90], np.int32)
            runner.run(OpenLoop(0.3, np.array([0.0, 0.1]), rows, np.full(2, 2, np.int32)))
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
    np.testing.assert_array_equal(journal.prompt_tokens, [least, 90])
    np.testing.assert_array_equal(journal.counted_prompt_tokens, [least, 90])
