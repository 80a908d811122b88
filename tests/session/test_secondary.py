"""Limits beside the rate in a session: what is refused before anything starts, and what a server's page tells."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_gpucap.engines.kv_cache import told_block_tokens, told_kv_tokens
from pytest_gpucap.markers.declaration import Declaration, Place
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import Slo, Workload
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.telemetry import ServerSummary, TelemetrySummary
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.secondary import SecondaryLimit, SecondaryName
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.session.prices import session_prices
from pytest_gpucap.session.secondary import SecondaryWatch, blocks
from pytest_gpucap.session.secondary_checks import price_per_hour
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.simulator.serve import SimulatedServer, start_simulator

MARKED = """
    import pytest

    @pytest.mark.vllm(model={model!r}, **{arguments})
    @pytest.mark.gpucap(qps=1, gpus=1, {limit})
    def test_it(gpucap):
        gpucap.check()
"""


def refused(pytester: pytest.Pytester, limit: str, *options: str, model: str = "org/model", **arguments: object) -> str:
    """The line that ends the session before anything starts."""
    pytester.makepyfile(MARKED.format(model=model, arguments=arguments, limit=limit))
    result = pytester.runpytest(*options, "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in [*result.outlines, *result.errlines] if "ERROR" in line]
    assert lines
    assert not list(pytester.path.glob(".gpucap/logs/*"))
    return lines[0]


CPU, SIM = "--gpu-class=cpu", "--gpu-class=sim:fast"
URL = "--gpucap-url=http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("limit", "option", "arguments", "why"),
    [
        ('startup="90s"', URL, {}, "startup: the server behind --gpucap-url was started by somebody else"),
        ('startup="90s"', SIM, {}, "startup: the profile of sim:fast does not say startup_s"),
        ("joules_per_1k_tokens=9", URL, {}, "joules_per_1k_tokens: the devices behind --gpucap-url are not watched"),
        ("joules_per_1k_tokens=9", CPU, {}, "joules_per_1k_tokens: the energy of the class cpu is not measured"),
        ("joules_per_1k_tokens=9", SIM, {}, "joules_per_1k_tokens: the profile of sim:fast says neither idle_w nor"),
        ("usd_per_1m_tokens=1", SIM, {}, "usd_per_1m_tokens: it needs the price of a GPU: --gpucap-prices=FILE"),
        ("acceptance=0.6", SIM, {}, "acceptance: the profile of sim:fast does not speculate (spec_tokens)"),
        ("acceptance=0.6", CPU, {}, "acceptance: the server does not speculate: give vllm(speculative_config=...)"),
        (
            "acceptance=0.6",
            CPU,
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "load_format": "dummy"},
            "acceptance: the weights are random",
        ),
        (
            "acceptance=0.6",
            CPU,
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "model": "synthetic:tiny"},
            "acceptance: the weights are random",
        ),
        (
            "prefix_hit_rate=0.5",
            CPU,
            {"enable_prefix_caching": False},
            "prefix_hit_rate: vllm(enable_prefix_caching=Fa",
        ),
        (
            "preemptions=0",
            CPU,
            {"disable_log_stats": True},
            "preemptions: vllm(disable_log_stats=True) leaves the server",
        ),
        ("startup=0", SIM, {}, "startup must be above 0, not 0"),
        ("startup=90", SIM, {}, "startup=90 needs a unit, since it is above a minute"),
        ("kv_tokens=1.5", SIM, {}, "kv_tokens must be a whole number of at least 1, not 1.5"),
        ("joules_per_1k_tokens=0", SIM, {}, "joules_per_1k_tokens must be above 0, not 0"),
        ("acceptance=1.2", SIM, {}, "acceptance must lie between 0 and 1"),
        ("prefix_hit_rate=0", SIM, {}, "prefix_hit_rate must be above 0, not 0"),
        ("preemptions=-1", SIM, {}, "preemptions must lie between 0 and 1"),
        ("preemption=0", SIM, {}, "gpucap has no keyword 'preemption'; did you mean preemptions"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_starts(
    pytester: pytest.Pytester, limit: str, option: str, arguments: dict[str, object], why: str
) -> None:
    line = refused(pytester, limit, option, **arguments)  # type: ignore[arg-type]  # the model is a text
    assert why in line
    assert ".py:" in line


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('currency = "EUR"\n[per_hour]\n"sim:fast" = 2\n', "has 'EUR', and the limit is in USD"),
        ('[per_hour]\n"sim:fast" = 2\n', 'names no currency, and the limit is in USD: write currency = "USD"'),
        ('currency = "USD"\n[per_hour]\na10g = 2\n', "has no price of sim:fast"),
        ('currency = "USD"\n[per_hour]\n"sim:fast" = -2\n', "the price of sim:fast must be above 0, not -2"),
    ],
)
def test_a_price_that_cannot_be_used_is_refused_with_its_file(
    pytester: pytest.Pytester, content: str, why: str
) -> None:
    (pytester.path / "prices.toml").write_text(content)
    line = refused(pytester, "usd_per_1m_tokens=1", SIM, "--gpucap-prices=prices.toml")
    assert "--gpucap-prices" in line
    assert "prices.toml" in line
    assert why in line


@pytest.fixture(scope="module")
def behind_url() -> Iterator[SimulatedServer]:
    """A server with vLLM's page of metrics that does not speculate."""
    with start_simulator("fast") as server:
        yield server


def test_a_server_that_lacks_the_metric_is_refused_before_any_load(
    pytester: pytest.Pytester, behind_url: SimulatedServer
) -> None:
    before = behind_url.metrics().value("vllm:prompt_tokens_total")
    pytester.makepyfile(MARKED.format(model="m", arguments={}, limit="acceptance=0.5, preemptions=0"))
    result = pytester.runpytest(f"--gpucap-url={behind_url.base_url}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*was not measured: acceptance: the server has no metric vllm:spec_decode_num_accepted_tokens_total*"]
    )
    # The first question of the plugin, and no load.
    assert behind_url.metrics().value("vllm:prompt_tokens_total") - before < 100


def test_the_kv_cache_of_a_server_is_read_from_its_page(behind_url: SimulatedServer) -> None:
    assert told_kv_tokens(behind_url) == behind_url.profile.engine.kv_tokens // 16 * 16
    assert told_block_tokens(behind_url) == 16


def window(phase: Phase, start_s: float, end_s: float) -> Sample:
    return Sample(
        kind="open", window=WindowId(phase, 1), start_s=start_s, end_s=end_s, offered_rps=2.0, concurrency=0,
        requests=20, completed_rps=2.0, output_tokens_per_s=60.0, in_flight_mean=1.0, in_flight_end=1,
    )  # fmt: skip


def test_the_steady_window_is_cut_into_blocks_and_stands_before_all_others() -> None:
    hold, judged, steady = window(Phase.HOLD, 0, 7), window(Phase.DESIGN_RATE, 7, 11), window(Phase.STEADY, 20, 36)
    found = blocks([hold, judged, steady])
    assert [(block.start_s, block.end_s) for block in found] == [(20, 24), (24, 28), (28, 32), (32, 36)]
    assert sum(block.requests for block in found) == 20
    assert [(block.start_s, block.end_s) for block in blocks([hold, judged])] == [(7, 11)]
    assert len(blocks([hold])) == 2
    assert blocks([]) == []


def test_all_of_a_session_goes_by_the_prices_that_it_began_with(tmp_path: Path) -> None:
    options, file = Options(prices=tmp_path / "prices.toml"), tmp_path / "prices.toml"
    file.write_text('currency = "USD"\n[per_hour]\nh200 = 4\n')
    assert session_prices(options).per_hour == {"h200": 4}
    file.write_text('currency = "USD"\n[per_hour]\nh200 = 5\n')
    assert price_per_hour("h200", options) == (Fraction(4), "")
    assert price_per_hour("h200", Options(prices=file)) == (Fraction(5), "")
    assert price_per_hour("a10g", options)[1] == f"--gpucap-prices: {file} has no price of a10g"


def test_prices_of_a_bad_file_end_the_session_even_if_nobody_needs_them(pytester: pytest.Pytester) -> None:
    Path(pytester.path / "prices.toml").write_text("currency = 3")
    pytester.makepyfile("def test_it(): ...")
    result = pytester.runpytest("--gpucap-prices=prices.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gpucap-prices*prices.toml: write currency = *"])


def watch(*limits: SecondaryLimit, energy_j: float | None, hits: float | None) -> SecondaryWatch:
    """A watch of a server that tells the same in every window."""
    declared = Declaration(
        place=Place("test_it.py", 1), name="it", requirement=None, workload=Workload(), slo=Slo(), gpus_per_replica=1,
        model=None, secondary=limits,
    )  # fmt: skip
    server = ServerSummary(output_tokens=1000.0, prefix_queries=500.0, prefix_hits=hits, preemptions=1.0)
    return SecondaryWatch(
        declared,
        SystemUnderTest(Placement()),
        lambda start_s, end_s: TelemetrySummary(start_s, end_s, server=server, energy_j=energy_j),
        Options(),
    )


LIMITS = (
    SecondaryLimit(SecondaryName.JOULES_PER_1K_TOKENS, 100),
    SecondaryLimit(SecondaryName.PREFIX_HIT_RATE, 0.5),
    SecondaryLimit(SecondaryName.PREEMPTIONS, 0.1),
)


def test_what_devices_and_server_tell_becomes_a_quotient_of_every_block() -> None:
    energy, hits, preemptions = (
        watch(*LIMITS, energy_j=80.0, hits=200.0).figures([window(Phase.STEADY, 20, 28)]).values()
    )
    assert energy.parts == ((80.0, 1000.0),) * 2
    assert hits.parts == ((200.0, 500.0),) * 2
    assert preemptions.parts == ((1.0, 10.0),) * 2


def test_what_nobody_tells_is_not_measured_and_says_why() -> None:
    energy, hits, _ = watch(*LIMITS, energy_j=None, hits=None).figures([window(Phase.STEADY, 20, 28)]).values()
    assert energy.why == "no device told its energy in any measuring window"
    assert hits.why == "the server's counter of prefix_hits was not read in any measuring window"
