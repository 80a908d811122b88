"""Which LoRA adapter each request names: drawn by the mix, the same wherever it is drawn, and in the journal."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from pytest_gpucap.estimate.adapters import latencies_by_adapter
from pytest_gpucap.load.adapters import AdapterDraw, draw_of
from pytest_gpucap.load.hashing import hash64, hash64_all
from pytest_gpucap.load.own_bodies import OwnBodies, shared_bodies
from pytest_gpucap.load.prompt_lengths import with_estimates
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.measure.procedure import sample
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Length, OwnPrompts, Requirement, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.workloads.prompt_file import read_prompts
from tests.load.tokenserver import TokenServer

MIX = {"a": 0.6, "b": 0.3, "base": 0.1}


def test_many_hashes_at_once_are_those_of_one_after_the_other() -> None:
    values = [0, 1, 2**40, 2**63, 2**64 - 1]
    assert hash64_all(np.array(values, np.uint64)).tolist() == [hash64(value) for value in values]


def test_shares_are_those_of_the_mix_and_every_way_to_draw_agrees() -> None:
    draw = AdapterDraw(MIX, 7)
    drawn = draw.of_all(1000, 20_000)
    assert drawn.tolist()[:500] == [draw.of(number) for number in range(1000, 1500)]
    # Four standard errors.
    for place, share in enumerate(MIX.values()):
        assert abs(float((drawn == place).mean()) - share) < 4 * (share * (1 - share) / drawn.size) ** 0.5
    assert AdapterDraw(MIX, 8).of_all(1000, 500).tolist() != drawn.tolist()[:500]
    assert draw.models("m") == ("a", "b", "m")
    assert set(AdapterDraw({"only": 1.0}, 7).of_all(0, 50).tolist()) == {0}
    assert draw_of({}, 7) is None


def test_each_body_names_the_adapter_that_was_drawn() -> None:
    recipe = PromptRecipe.of(Workload(adapters=MIX), "m", ("a", "b"), seed=3)
    assert PromptRecipe.from_json(recipe.to_json()) == recipe
    composer, draw = RequestComposer(recipe), AdapterDraw(MIX, 3)
    named = [json.loads(composer.body(number, 40, 5))["model"] for number in range(200)]
    assert named == [draw.models("m")[draw.of(number)] for number in range(200)]
    assert set(named) == {"a", "b", "m"}
    assert json.loads(composer.probe(3, 40))["model"] == "m"
    without = RequestComposer(PromptRecipe.of(Workload(), "m", ("a", "b"), seed=3))
    bodies = [json.loads(each.body(5, 40, 5)) for each in (composer, without)]
    assert bodies[0] | {"model": "m"} == bodies[1]  # the mix changes nothing else


def test_so_does_each_body_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {number}", "output_tokens": 5}) + "\n" for number in range(7)))
    file = read_prompts(path)
    workload = Workload(prompts=OwnPrompts(path, file.sha256, len(file.prompts)), adapters=MIX)
    fd, told = shared_bodies(with_estimates(workload, file), "m", 3)
    bodies, draw = OwnBodies.attach(fd, json.loads(json.dumps(told))), AdapterDraw(MIX, 3)
    sent = [json.loads(bodies.body(number, 3, 5)) for number in range(100)]
    assert [each["model"] for each in sent] == [draw.models("m")[draw.of(number)] for number in range(100)]
    assert all(each["max_tokens"] == 5 and each["stream"] for each in sent)


def test_the_journal_has_what_the_server_was_asked_for() -> None:
    workload = Workload(Length.fixed(32), Length.fixed(2), adapters=MIX)
    with TokenServer(gap_s=0.01) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 5, workers=2) as runner:
            runner.run(closed_loop(workload, 4, 0.3, 9000.0, 5, 0, hot=False))
            span = runner.run(open_loop(workload, 100.0, 0.5, 5, 1, first_prompt=10_000))
            assert runner.settle(60.0)
            journal = runner.journal()
        sent = Counter(body["model"] for body in server.seen.bodies if body.get("stream"))
    assert journal.adapter is not None
    assert journal.adapter.size == journal.status.size
    drawn = Counter(("a", "b", "m")[place] for place in journal.adapter.tolist())
    assert drawn == sent
    rows = slice(span.first_row, span.end_row)
    assert journal.adapter[rows].tolist() == AdapterDraw(MIX, 5).of_all(10_000, span.end_row - span.first_row).tolist()


def test_latencies_are_those_of_each_adapters_own_requests() -> None:
    profile = profiles.load("fast")
    workload = Workload(Length.fixed(64), Length.fixed(16), adapters=MIX)
    requirement = Requirement("x", qps=1, gpus=1, workload=workload, slo=profile.slo)  # type: ignore[arg-type]
    found = sample(SimRunner(profile.engine, 1, adapters=AdapterDraw(MIX, 0)), requirement, Settings(), rate_rps=20.0)
    assert [each.name for each in found.adapters] == list(MIX)
    assert [each.share for each in found.adapters] == list(MIX.values())
    requests = sum(each.requests for each in found.adapters)
    assert requests == found.latencies["e2e"].count
    for each in found.adapters:
        assert each.drawn == each.requests / requests
        assert each.latencies["e2e"].count == each.latencies["tpot"].count == each.requests
    mean = sum(each.latencies["e2e"].mean_s * each.requests for each in found.adapters) / requests
    assert abs(mean / found.latencies["e2e"].mean_s - 1) < 1e-6


def test_a_simulated_fleet_draws_alike_and_without_a_mix_nothing_is_said() -> None:
    profile = profiles.load("fast")
    workload = Workload(Length.fixed(64), Length.fixed(16))
    draw = AdapterDraw(MIX, 4)
    runners = SimRunner(profile.engine, adapters=draw), FleetSimRunner([profile.engine] * 2, adapters=draw)
    journals = []
    for runner in runners:
        runner.run(open_loop(workload, 10.0, 5.0, 4, 0, first_prompt=7))
        runner.run(open_loop(workload, 10.0, 5.0, 4, 1, first_prompt=900))
        journals.append(runner.journal())
    first, second = (journal.adapter for journal in journals)
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist()
    assert first.size == journals[0].status.size
    plain = SimRunner(profile.engine)
    plain.run(open_loop(workload, 10.0, 1.0, 4, 0))
    assert plain.journal().adapter is None
    assert latencies_by_adapter(plain.journal(), replace(workload, adapters=MIX), []) == ()
    assert latencies_by_adapter(journals[0], workload, []) == ()
