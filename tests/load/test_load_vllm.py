"""Against the real vLLM: its own counters and our records must be the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.shared_memory import HistogramKind
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.results.problems import ProblemSource
from pytest_gpucap.workloads.sessions import file_of_sessions, with_sessions, with_sessions_of_file
from tests.waiting import FOREVER_S
from tests.whole_characters import WHOLE_CHARACTERS

COUNTERS = ("vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]


def counters(server: VllmServer) -> list[int]:
    """Requests, prompt tokens and generated tokens so far, by the server's own account."""
    metrics = server.metrics()
    return [int(sum(sample.value for sample in metrics.find(name))) for name in COUNTERS]


def looked_up(server: VllmServer) -> list[float]:
    """Prompt tokens that the server looked for in its prefix cache, and those that it found there, so far."""
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    if not server.metrics().find(names[0]):
        pytest.skip(f"this vLLM has no {names[0]}")
    return [sum(sample.value for sample in server.metrics().find(name)) for name in names]


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_the_servers_counters_agree_exactly(vllm_cpu_server: VllmServer, endpoint: ApiKind) -> None:
    workload = Workload(
        Length.parse("uniform:40-200", "input_tokens"),
        Length.parse("uniform:1-40", "output_tokens"),
        endpoint=endpoint,
        sampling={"temperature": 0.6},
        extra_body=WHOLE_CHARACTERS,
    )
    server = vllm_cpu_server
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, 11, workers=1) as runner:
        recipe = runner.prepare()
        assert recipe is not None
        assert recipe.as_ids == (endpoint is ApiKind.COMPLETIONS)
        before = counters(server)
        first = open_loop(workload, 4.0, 5.0, 11, 0)
        spans = [runner.run(first)]
        # A phase whose requests have ended lets go of its table when the next one begins.
        tables = [runner._finished[0].table]
        spans.append(runner.run(closed_loop(workload, 6, 4.0, 1000.0, 11, 1, first_prompt=first.due_s.size)))
        tables.append(runner._finished[1].table)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        all_gaps = [table.histogram(HistogramKind.GAPS).total for table in tables if table is not None]
        done, prompt_tokens, output_tokens = (
            after - earlier for after, earlier in zip(counters(server), before, strict=True)
        )
    assert (journal.status == Status.OK).all(), runner.error_texts()
    assert journal.status.size == done
    assert journal.counted_prompt_tokens.sum() == journal.prompt_tokens.sum() == prompt_tokens
    assert journal.counted_output_tokens.sum() == journal.output_tokens.sum() == output_tokens
    assert journal.tokens.sum() == output_tokens
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
    np.testing.assert_array_equal(journal.counted_output_tokens, journal.output_tokens)
    for span in spans:
        assert span.check.timestamps == "kernel"
        # Server and generator share the cores here, so the generator may be late.
        assert not [problem for problem in span.check.problems if problem.source is not ProblemSource.LOAD_GENERATOR]
    assert (journal.ttft_s > 0).all()
    # A gap for every token but the first, those included that came after the end of a phase.
    assert sum(all_gaps) == output_tokens - done
    assert all(0 < span.gaps.total <= gaps for span, gaps in zip(spans, all_gaps, strict=True))


def test_no_prompt_hits_the_prefix_cache_unless_asked_to(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    name = "vllm:prefix_cache_hits_total"
    if not server.metrics().find(name):
        pytest.skip(f"this vLLM has no {name}")

    def hits() -> float:
        return sum(sample.value for sample in server.metrics().find(name))

    def run(shared: int) -> float:
        workload = Workload(
            Length.fixed(200),
            Length.fixed(2),
            endpoint=ApiKind.COMPLETIONS,
            shared_prefix_tokens=shared,
            extra_body=WHOLE_CHARACTERS,
        )
        with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, 3, workers=1) as runner:
            runner.prepare()
            before = hits()
            runner.run(open_loop(workload, 8.0, 2.0, 3, 0))
            assert runner.settle(FOREVER_S)
            assert (runner.journal().status == Status.OK).all(), runner.error_texts()
            return hits() - before

    assert run(0) == 0
    assert run(0) == 0  # the same seed again
    assert run(160) >= 160 // 16 * 16  # a second prompt found the first one's blocks


def test_turns_of_a_session_find_what_was_said_before(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    made = Workload(Length.fixed(160), Length.fixed(4), endpoint=ApiKind.COMPLETIONS, extra_body=WHOLE_CHARACTERS)
    workload = with_sessions(made, "turns=3 think=100ms")
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, 4, workers=1) as runner:
        runner.prepare()
        before = looked_up(server)
        # Until it is stopped: of nine turns in two places, three follow another at least.
        phase = closed_loop(workload, 2, 600.0, 20.0, 4, 0, hot=False)
        span = runner.run(phase, lambda progress: progress.completed > 8)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        queries, hits = (after - earlier for after, earlier in zip(looked_up(server), before, strict=True))
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
    assert journal.sessions is not None
    follows = journal.cached_tokens > 0
    assert span.end_row == journal.status.size
    assert follows.sum() > 2
    # With what was sent while the phase was being stopped.
    assert queries == journal.prompt_tokens.sum()
    # Whole blocks of what was sent before; the size of one is 16 or 128.
    assert (journal.cached_tokens[follows] // 128 * 128).sum() <= hits <= journal.cached_tokens.sum()


def test_a_trace_finds_the_blocks_in_the_cache_that_it_implies(vllm_cpu_server: VllmServer, tmp_path: Path) -> None:
    server = vllm_cpu_server
    # All begin with block 0; those of one family have two more in common; a part of a block is shared as well.
    rows = [
        {"timestamp": 100 * at, "output_length": 2, "hash_ids": ids, "input_length": 128 * len(ids) - 28}
        for at, ids in enumerate(
            [0, 10 + family, 20 + family, 100 + number] for number in range(5) for family in (0, 1)
        )
    ]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Workload(endpoint=ApiKind.COMPLETIONS, extra_body=WHOLE_CHARACTERS)
    workload = with_sessions_of_file(made, file_of_sessions("trace.jsonl block=128", tmp_path), None)
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, 4, workers=1) as runner:
        recipe = runner.prepare()
        assert recipe is not None
        before = looked_up(server)
        # One at a time: a session found under way, which shares nothing, and then the trace from its beginning.
        phase = closed_loop(workload, 1, 600.0, 0.02, 4, 0, hot=False)
        runner.run(phase, lambda progress: progress.completed > 8)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        queries, hits = (after - earlier for after, earlier in zip(looked_up(server), before, strict=True))
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)
    # With what was sent while the phase was being stopped.
    assert queries == journal.prompt_tokens.sum()
    implied = [0, 0, 128, *[384] * 6]
    assert journal.cached_tokens[:9].tolist() == implied
    # The server's template stands before the first block, and the size of its blocks is 16 or 128.
    most = (journal.cached_tokens + recipe.overhead * (journal.cached_tokens > 0)).sum()
    assert journal.cached_tokens.sum() <= hits <= most
