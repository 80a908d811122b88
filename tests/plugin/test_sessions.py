"""Whole runs with multi-turn sessions, against simulated servers."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest

from pytest_gpucap.history.comparable import HIT_RATES_APART
from pytest_gpucap.options.reading import parse_options
from pytest_gpucap.report import rows
from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import Comparison, RegressionDecision
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import FORGETS, Result
from pytest_gpucap.session.baselines import Comparing

SUITE = """
    import pytest

    @pytest.mark.gpucap(
        name="chat", qps=1, gpus=1, headroom=1, input_tokens=200, output_tokens=100, e2e_p95="4s",
        sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=3s,cv=1",
    )
    def test_chat(gpucap):
        gpucap.check()
"""
SIM = "--gpu-class=sim:few"


def results(pytester: pytest.Pytester) -> tuple[Result, ...]:
    return result_file.read(pytester.path / ".gpucap" / "result.json").results


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def compared(suite: pytest.Pytester, *arguments: str) -> Comparison:
    """The one comparison of ``gpucap compare``."""
    found = suite.run(sys.executable, "-m", "pytest_gpucap", "compare", "a.json", "b.json", "--format=json", *arguments)
    (result,) = json.loads(found.stdout.str())["results"]
    return msgspec.convert(result["comparison"], Comparison)


def test_sessions_are_checked_and_told_and_other_hit_rates_are_not_compared(suite: pytest.Pytester) -> None:
    reports = ("--gpucap-json=a.json", "--gpucap-markdown=r.md", "--gpucap-html=r.html", "--junit-xml=j.xml")
    suite.runpytest(SIM, *reports).assert_outcomes(passed=1)
    (found,) = results(suite)
    assert found.outcome is Outcome.PASS
    assert found.workload.sessions == "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=3s,cv=1 new=200"
    # Whole prompts: from a first turn to the longest history.
    assert str(found.workload.input_tokens).endswith(f"low=200,high={12 * 200 + 11 * 100}")
    rate = found.prefix_hit_rate
    assert rate is not None
    assert 0.3 < rate < 0.8
    assert f"{rate:.1%} of the prompt tokens were in the prefix cache" in suite.path.joinpath("r.md").read_text()
    assert "turns=lognormal" in suite.path.joinpath("r.html").read_text()
    assert "gpucap_prefix_hits" in suite.path.joinpath("j.xml").read_text()
    # The same run, as a server with another cache would have it: other work for the same prompts.
    document = json.loads(suite.path.joinpath("a.json").read_text())
    for less, decision in ((HIT_RATES_APART / 2, None), (2 * HIT_RATES_APART, RegressionDecision.NOT_COMPARABLE)):
        document["results"][0]["prefix_hit_rate"] = rate - less
        suite.path.joinpath("b.json").write_text(json.dumps(document))
        told = compared(suite)
        assert (told.decision is RegressionDecision.NOT_COMPARABLE) == (decision is not None)
    (differs,) = told.differs
    assert differs == f"prefix hit rate: {rate:.0%} -> {rate - 2 * HIT_RATES_APART:.0%}"
    allowed = compared(suite, "--any-prefix-hits")
    assert allowed.decision is not RegressionDecision.NOT_COMPARABLE
    assert differs in allowed.changed


def test_a_session_compares_any_hit_rates_if_asked_to(pytester: pytest.Pytester) -> None:
    for arguments, asked in (([], False), (["--gpucap-any-prefix-hits"], True)):
        options = parse_options(pytester.parseconfigure(*arguments))
        assert Comparing(None, options)._any_hits is asked


def test_a_window_and_a_longest_prompt_of_sessions(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(
            input_tokens=200, output_tokens=100, shared_prefix_tokens=50,
            sessions="turns=uniform:2-6 think=1s context=1000",
        )

        def test_closed(gpucap):
            gpucap.sample(concurrency=8, duration="20s")

        def test_open(gpucap):
            gpucap.sample(rate=5, duration="30s")
        """
    )
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=2)
    for found in results(pytester):
        assert str(found.workload.input_tokens).endswith("low=250,high=850")
        assert found.prefix_hit_rate is not None
        assert found.prefix_hit_rate > 0.3


def test_a_server_that_forgets_is_told_with_what_it_means(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=200, output_tokens=100, sessions="turns=5 think=2s context=1500")

        def test_keeps(gpucap):
            gpucap.sample(rate=5, duration="60s")

        @pytest.mark.vllm(num_gpu_blocks_override=150)
        def test_forgets(gpucap):
            gpucap.sample(rate=5, duration="60s")
        """
    )
    run = pytester.runpytest("--gpu-class=sim:fast", "--gpucap-markdown=r.md", "--gpucap-html=r.html")
    run.assert_outcomes(passed=2)
    keeps, forgets = results(pytester)
    for found in (keeps, forgets):
        assert found.prefix_hit_rate is not None
        assert found.prefix_sent_rate is not None
        assert 0.4 < found.prefix_sent_rate < 0.8
    assert keeps.prefix_hit_rate == pytest.approx(keeps.prefix_sent_rate, abs=FORGETS / 2)
    assert not keeps.forgets
    assert forgets.forgets
    assert forgets.prefix_hit_rate < forgets.prefix_sent_rate - 0.1  # type: ignore[operator]
    (said,) = rows.forgetting(forgets)
    assert said.startswith(
        f"the server found {forgets.prefix_hit_rate:.1%} of the prompt tokens in its prefix cache, and "
    )
    assert said.endswith("so in the long run it may sustain less")
    assert rows.forgetting(keeps) == []
    # An estimate knows what it costs, and what it will cost where nothing was forgotten yet.
    (costs,) = rows.forgetting(msgspec.structs.replace(forgets, forgetting_cost=0.153))
    assert costs.endswith("in the long run that costs it 15.3% of its rate, which the rate allows for")
    (later,) = rows.forgetting(msgspec.structs.replace(keeps, forgetting_cost=0.02))
    assert later.startswith("the KV cache does not hold what sessions said for good")
    assert rows.forgetting(msgspec.structs.replace(keeps, forgetting_cost=0.0)) == []
    assert f"test_forgets: {said}" in " ".join(run.stdout.str().split())
    for report in ("r.md", "r.html"):
        assert said in pytester.path.joinpath(report).read_text()


@pytest.mark.parametrize(
    ("marker", "arguments", "message"),
    [
        ("sessions='turns=4'", [SIM], "sessions lacks think"),
        ("sessions='turns=4 think=1s', prompts='own.jsonl'", [SIM], "prompts and sessions exclude each other"),
        ("sessions='turns=4 think=1s', replicas=2", [SIM], "simulates a fleet without sessions"),
        (
            "sessions='turns=9 think=1s', input_tokens=500, output_tokens=500",
            ["--gpu-class=cpu"],
            "or let sessions end sooner, with context= in sessions",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    suite: pytest.Pytester, marker: str, arguments: list[str], message: str
) -> None:
    suite.makepyfile(
        test_suite=f"""
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", max_model_len=4096)
        @pytest.mark.gpucap(qps=1, {marker})
        def test_chat(gpucap):
            gpucap.check()
        """
    )
    (suite.path / "own.jsonl").write_text('{"prompt": "a", "max_tokens": 3}\n')
    result = suite.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR:")]
    assert "test_suite.py:" in line
    assert message in line
