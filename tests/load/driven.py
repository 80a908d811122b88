"""A short load on a server, for tests that look at how its prompts were counted."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.load.prompts import PromptRecipe
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import Workload
from tests.waiting import FOREVER_S


@dataclass(frozen=True)
class Driven:
    """What came of a load.

    Attributes:
        recipe: how its prompts were made.
        journal: of its requests, all of them answered.
        grown: by how much each of the server's counters grew while it lasted.
    """

    recipe: PromptRecipe
    journal: Journal
    grown: tuple[float, ...]


def counted(server: HttpServer, name: str) -> float:
    """A counter of the server's page of metrics, of all its labels together."""
    return sum(sample.value for sample in server.metrics().find(name))


def drive(server: HttpServer, workload: Workload, rate_rps: float, length_s: float, *counters: str) -> Driven:
    """Send an open loop, whose requests must all be answered, and look at these counters before and after it."""
    key = None if server.api_key is None else f"{server.api_key}"
    with HttpLoadRunner(server.base_url, server.model, key, workload, 1, workers=1) as runner:
        recipe = runner.prepare()
        assert recipe is not None
        before = [counted(server, name) for name in counters]
        runner.run(open_loop(workload, rate_rps, length_s, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert journal.status.size
        assert (journal.status == Status.OK).all(), runner.error_texts()
        grown = tuple(counted(server, name) - seen for name, seen in zip(counters, before, strict=True))
    return Driven(recipe, journal, grown)
