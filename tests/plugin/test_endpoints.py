"""Whole runs of pytest against endpoints whose answers have no tokens, or come as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result
from tests.plugin.real_session import RealSession

REPORTS = ("--gpucap-html=r.html", "--gpucap-markdown=r.md")


def results(folder: Path) -> tuple[Result, ...]:
    return result_file.read(folder / ".gpucap" / "result.json").results


def test_requests_that_are_only_prefilled_are_judged_by_what_was_seen(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=20, gpus=1, e2e_p95="2s", input_tokens=256, endpoint="rerank", documents=4)
        def test_check(gpucap):
            verdict = gpucap.check()
            assert verdict.measurement.at_least_rps == 26.0

        @pytest.mark.gpucap(qps=20, gpus=1, e2e_p95="1ms", workload="chat", endpoint="embeddings")
        def test_too_slow(gpucap):
            gpucap.check()

        @pytest.mark.gpucap(endpoint="classify")
        @pytest.mark.parametrize("method", ["measure", "sweep"])
        def test_rate(gpucap, method):
            getattr(gpucap, method)()

        @pytest.mark.gpucap(output_tokens=32, stream=False)
        def test_whole_chat(gpucap):
            found = gpucap.sample(rate=10, duration="20s")
            assert set(found.latencies) == {"e2e"} and found.output_tokens_per_s > 100
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", *REPORTS)
    result.assert_outcomes(passed=2, failed=3)
    checked, slow, *rates, sampled = results(pytester.path)
    assert (checked.workload.output_tokens, checked.workload.documents, checked.workload.stream) == (0, 4, False)
    assert "kept every limit; no model was fitted: answers without tokens have no pace" in checked.reason
    assert {metric for each in checked.samples for metric in each.latencies} == {"e2e"}
    assert {each.output_tokens_per_s for each in checked.samples} == {0.0}
    assert (slow.outcome, slow.workload.output_tokens) == ("FAIL", 0)
    assert "broke e2e_p95 in 100.0% of the requests" in slow.reason
    why = (
        "no rate can be estimated: answers without tokens have no pace; check() judges a declared rate by what it sees"
    )
    assert [each.reason for each in rates] == [why, why]
    assert (sampled.workload.output_tokens, sampled.workload.stream) == (32, False)
    text = (pytester.path / "r.md").read_text()
    assert "256 tokens in, none out, poisson arrivals, rerank of 4 documents" in text
    assert "256 tokens in, 32 out, poisson arrivals, chat (not streamed)" in text
    assert "without tokens" in (pytester.path / "r.html").read_text()


def test_base_and_head_are_compared_by_the_answers_that_they_give(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=20, gpus=1, e2e_p95="2s", endpoint="embeddings", max_time="100s")
        def test_check(gpucap):
            gpucap.check()
        """
    )
    pytester.runpytest("--gpu-class=sim:fast", "--gpucap-base-args=--time-scale 1").assert_outcomes(passed=1)
    (found,) = results(pytester.path)
    assert found.comparison is not None
    assert found.comparison.ratio is not None
    assert found.comparison.ratio.low < 1 < found.comparison.ratio.high


MISTAKES = {
    'endpoint="embeddings", output_tokens=5': 'output_tokens does not go with endpoint="embeddings", whose answers',
    'endpoint="pooling", temperature=1': 'temperature does not go with endpoint="pooling"',
    'endpoint="classify", stream=False': 'stream does not go with endpoint="classify"',
    'endpoint="rerank", questions="arithmetic"': 'questions does not go with endpoint="rerank"',
    'endpoint="embeddings", ttft_p95="1s"': "ttft_p95 needs answers that come token by token, and with endpoint=",
    'endpoint="embeddings", goodput="95%", tpot="1s"': "tpot needs answers that come token by token",
    'stream=False, itl_p99="1s"': "itl_p99 needs answers that come token by token, and with stream=False",
    'endpoint="responses", stream=False': 'stream=False does not go with endpoint="responses"',
    'endpoint="responses", prompts="own.jsonl"': "prompts of a file are sent to chat or completions",
    'endpoint="embeddings", trace="trace.csv"': 'trace does not go with endpoint="embeddings"',
    'endpoint="embeddings", system="Be brief."': 'system needs endpoint="chat"',
    'endpoint="embeddings", acceptance=0.5': 'acceptance does not go with endpoint="embeddings"',
    'endpoint="embeddings", extra_body={"input": "x"}': 'extra_body: input is not for it with endpoint="embeddings"',
    'endpoint="rerank", extra_body={"documents": []}': 'extra_body: documents is not for it with endpoint="rerank"',
    "documents=3": 'documents are those of one request of endpoint="rerank"',
    'endpoint="rerank", documents=0': "documents must be a whole number of at least 1",
    'endpoint="rerank", documents=10**6': "documents must be at most 4096 in one request",
    'endpoint="rerank", input_tokens=5': "documents=10 leave no token for some of them",
    'endpoint="rerank", shared_prefix_tokens=5': "shared_prefix_tokens does not go with",
    'endpoint="embed"': "endpoint must be one of chat, completions, responses, embeddings, pooling, classify, rerank",
    'endpoint=["chat"], workload="chat"': "endpoint must be one of",
    'stream="no"': "stream must be True or False",
}


def test_every_mistake_is_one_line_before_anything_starts(pytester: pytest.Pytester) -> None:
    for name in ("own.jsonl", "trace.csv"):
        (pytester.path / name).write_text('{"prompt": "x"}\n')
    pytester.makepyfile(
        "import pytest\n"
        + "\n".join(
            f"@pytest.mark.gpucap(qps=1, gpus=1, {given})\ndef test_{number}(gpucap): gpucap.check()\n"
            for number, given in enumerate(MISTAKES)
        )
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    assert [message for message in MISTAKES.values() if message not in text] == []


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_vllm_embeds(real_session: RealSession) -> None:
    tests = "test_embeddings", "test_rerank"
    real_session.passed(*tests)
    found = [each for test in tests for each in real_session.results[test]]
    assert [each.no_limit for each in found] == ["it is known of answers with tokens only"] * 2
