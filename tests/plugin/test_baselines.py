"""Whole runs of pytest that save and compare, against simulated servers whose speed a profile sets."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.comparison import Comparison, RegressionDecision
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result

SUITE = """
    import pytest

    @pytest.mark.gpucap(name="chat", qps=16, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    def test_chat(gpucap):
        gpucap.check()
"""
SCHEMA = json.loads(Path(str(files("pytest_gpucap.results") / "result.schema.json")).read_text())
FAST = Path(str(files("pytest_gpucap.simulator") / "profiles" / "fast.toml")).read_text()
SIM = "--gpu-class=sim:mine.toml"


def engine(path: Path, slower: float = 1.0) -> None:
    """A profile of ours with every time of a step multiplied; to the plugin it is the same machine."""

    def scaled(match: re.Match[str]) -> str:
        return f"{match[1]} = {float(match[2]) * slower:.9f}"

    path.write_text(re.sub(r"(base_s|per_seq_s|per_prompt_token_s) = ([\d.]+)", scaled, FAST))


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    engine(pytester.path / "mine.toml")
    return pytester


@pytest.fixture(scope="module")
def kept() -> list[bytes]:
    """The baseline ``main`` of the suite, once a test has made it: the same seed gives the same."""
    return []


@pytest.fixture
def saved(suite: pytest.Pytester, kept: list[bytes]) -> pytest.Pytester:
    """The suite, with a baseline ``main``."""
    file = suite.path / "gpucap-baselines" / "main.json"
    if kept:
        file.parent.mkdir()
        file.write_bytes(kept[0])
        return suite
    result = suite.runpytest(SIM, "--gpucap-save=main")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["baseline main: * saved in gpucap-baselines/main.json"])
    kept.append(file.read_bytes())
    return suite


def results(pytester: pytest.Pytester) -> tuple[Result, ...]:
    return result_file.read(pytester.path / ".gpucap" / "result.json").results


def comparison(pytester: pytest.Pytester) -> Comparison:
    found = results(pytester)[0].comparison
    assert found is not None
    return found


def test_the_same_server_is_the_same(saved: pytest.Pytester) -> None:
    kept = json.loads((saved.path / "gpucap-baselines" / "main.json").read_text())
    jsonschema.validate(kept, SCHEMA)
    assert kept["simulated"] is True
    assert str(saved.path) not in json.dumps(kept)
    result = saved.runpytest(SIM, "--gpucap-compare=main", "--gpucap-seed=3")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["against baseline main: 1 *"])
    found = comparison(saved)
    assert found.decision in {RegressionDecision.SAME, RegressionDecision.INCONCLUSIVE}
    assert found.changed == ("seed: 0 -> 3",)
    jsonschema.validate(json.loads((saved.path / ".gpucap" / "result.json").read_text()), SCHEMA)


def test_a_slower_server_regresses_and_fails_when_a_fresh_start_says_so_too(saved: pytest.Pytester) -> None:
    engine(saved.path / "mine.toml", slower=1.15)
    result = saved.runpytest(SIM, "--gpucap-compare=gpucap-baselines/main.json", "--junit-xml=out.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "REGRESSED: chat sustains * req/s, baseline main * req/s: -*% (-*% to -*%), 5.0% allowed",
            "SIMULATED: no GPU and no server was measured",
            "more than 5.0% lost; a second measurement from a fresh start confirms it",
            "*= GPU capacity =*",
            "REGRESSED * chat *",
            "against baseline main: 1 REGRESSED",
        ]
    )
    found = comparison(saved)
    assert (found.decision, found.confirmed) == (RegressionDecision.REGRESSED, True)
    assert found.second_rate is not None
    first = results(saved)[0]
    assert first.outcome is Outcome.PASS  # the budget holds; what fails is the comparison
    assert first.spent_s["confirmation"] > 20
    # Allowing the loss passes the same server.
    allowed = saved.runpytest(SIM, "--gpucap-compare=main", "--gpucap-max-regression=40%")
    allowed.assert_outcomes(passed=1)
    assert comparison(saved).decision is RegressionDecision.SAME


@pytest.mark.usefixtures("few_cycles")
def test_a_check_far_above_its_requirement_is_measured_to_be_compared(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE.replace("qps=16", "qps=1"))
    engine(pytester.path / "mine.toml")
    result = pytester.runpytest(SIM, "--gpucap-save=main")
    result.stdout.fnmatch_lines(["baseline main: 2 results saved in gpucap-baselines/main.json"])
    check, measure = results(pytester)
    rates = [each.sustainable_rate for each in (check, measure)]
    widths = [rate.high / rate.low for rate in rates if rate is not None]
    assert widths[0] > 1.15
    assert widths[1] < 1.15
    engine(pytester.path / "mine.toml", slower=1.2)
    pytester.runpytest(SIM, "--gpucap-compare=main").assert_outcomes(failed=1)
    found = comparison(pytester)
    assert (found.decision, found.confirmed) == (RegressionDecision.REGRESSED, True)
    assert found.base_rate == measure.sustainable_rate
    # Nothing of the kind where nobody compares.
    pytester.runpytest(SIM)
    assert len(results(pytester)) == 1


def test_another_machine_cannot_be_compared_and_fails_nothing(saved: pytest.Pytester) -> None:
    engine(saved.path / "other.toml", slower=1.5)
    result = saved.runpytest("--gpu-class=sim:other.toml", "--gpucap-compare=main", "--target-qps=1")
    found = comparison(saved)
    assert found.decision is RegressionDecision.NOT_COMPARABLE
    assert found.differs == ("GPU class: sim:mine -> sim:other",)
    result.stdout.fnmatch_lines(
        [
            "NOT COMPARABLE: chat against main: no comparable baseline",
            "  GPU class: sim:mine -> sim:other",
            "against baseline main: 1 NOT COMPARABLE",
        ]
    )
    assert "REGRESSED" not in result.stdout.str()


@pytest.mark.parametrize(
    ("option", "arguments"),
    [("--gpucap-compare=main", ("-n1",)), ("--gpucap-save=main", ()), ("--gpucap-compare=latest", ())],
)
def test_a_corrupt_file_stops_the_session_before_anything_is_measured(
    suite: pytest.Pytester, option: str, arguments: tuple[str, ...]
) -> None:
    broken = suite.path / "gpucap-baselines" / "main.json"
    broken.parent.mkdir()
    broken.write_text('{"schema": "pytest-gpucap", "schema_ver')
    result = (suite.runpytest_subprocess if arguments else suite.runpytest)(SIM, option, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {option.partition('=')[0]}: *main.json: not JSON*"])
    assert broken.read_text() == '{"schema": "pytest-gpucap", "schema_ver'
    assert not (suite.path / ".gpucap").exists()


@pytest.mark.slow
def test_a_corrupt_file_named_in_ini_fails_every_test_of_an_xdist_worker(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    suite.makeini("[pytest]\ngpucap_compare = gpucap-baselines/main.json\n")
    (suite.path / "gpucap-baselines").mkdir()
    (suite.path / "gpucap-baselines" / "main.json").write_text("{")
    assert suite.runpytest(SIM).ret == pytest.ExitCode.USAGE_ERROR
    result = suite.runpytest_subprocess(SIM, "-n1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--gpucap-compare: *main.json: not JSON*"])
    assert not (suite.path / ".gpucap").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--gpucap-compare=mian",),
            "*no baseline 'mian' is saved in gpucap-baselines; save one with --gpucap-save mian",
        ),
        (("--gpucap-save=a/b",), "*--gpucap-save: must be a name of letters*"),
        (("--gpucap-save=latest",), "*--gpucap-save: 'latest' means the newest saved run*"),
        (("--gpucap-max-regression=0",), "*--gpucap-max-regression: *must lie above 0%*"),
        (("--gpucap-max-regression=5",), "*--gpucap-max-regression: *must lie between 0 and 1*"),
    ],
)
def test_options_that_cannot_be_meant(suite: pytest.Pytester, arguments: tuple[str, ...], message: str) -> None:
    result = suite.runpytest(SIM, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_simulated_session_never_replaces_a_measured_baseline(suite: pytest.Pytester) -> None:
    source = Path(__file__).parents[2] / "benchmarks" / "results" / "h200" / "suite.json"
    kept = suite.path / "gpucap-baselines" / "h200.json"
    kept.parent.mkdir()
    kept.write_bytes(source.read_bytes())
    result = suite.runpytest(SIM, "--gpucap-save=h200")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*h200.json: holds measured results and is not overwritten by simulated ones"])
    assert kept.read_bytes() == source.read_bytes()
    suite.runpytest(SIM, "--gpucap-compare=h200").assert_outcomes(passed=1)
    assert comparison(suite).decision is RegressionDecision.NOT_COMPARABLE


def test_the_first_session_of_all_may_compare_with_what_it_saves_and_ini_names_both(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\ngpucap_compare = main\ngpucap_baselines = kept\ngpucap_max_regression = 10%\n")
    first = suite.runpytest(SIM, "--gpucap-save=main")
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["NOT COMPARABLE: chat against main: no baseline 'main' is saved in kept"])
    assert (suite.path / "kept" / "main.json").exists()
    suite.runpytest(SIM).assert_outcomes(passed=1)
    assert comparison(suite).max_regression == 0.1
    (suite.path / "kept" / "main.json").unlink()
    missing = suite.runpytest(SIM)
    assert missing.ret == pytest.ExitCode.USAGE_ERROR
    missing.stderr.fnmatch_lines(["ERROR: --gpucap-compare: no baseline 'main' is saved in kept*"])


def test_a_baseline_in_ini_is_no_matter_of_tests_that_measure_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngpucap_compare = main\n")
    pytester.makepyfile("def test_it(): ...")
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.slow
def test_xdist_workers_compare_and_one_file_is_saved(saved: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    saved.makepyfile(test_more=SUITE.replace("test_chat", "test_more").replace('"chat"', '"more"'))
    result = saved.runpytest_subprocess(SIM, "-n2", "--gpucap-compare=main", "--gpucap-save=second")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["against baseline main: *", "baseline second: * saved in *second.json"])
    tests = [each.test for each in result_file.read(saved.path / "gpucap-baselines" / "second.json").results]
    assert tests == sorted(tests)
    assert len(set(tests)) == 2


def test_a_session_that_is_broken_off_saves_nothing(saved: pytest.Pytester) -> None:
    before = (saved.path / "gpucap-baselines" / "main.json").read_bytes()
    saved.makepyfile(
        test_zz="""
        import pytest

        def test_stop():
            pytest.exit("enough")
        """
    )
    result = saved.runpytest(SIM, "--gpucap-save=main")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert (saved.path / "gpucap-baselines" / "main.json").read_bytes() == before


@pytest.mark.usefixtures("few_cycles")
def test_measure_and_sweep_regress_as_well(pytester: pytest.Pytester) -> None:
    engine(pytester.path / "mine.toml")
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, e2e_p95="4s")

        def test_measure(gpucap):
            gpucap.measure()

        def test_sweep(gpucap):
            gpucap.sweep()
        """
    )
    pytester.runpytest(SIM, "--gpucap-save=main").assert_outcomes(passed=2)
    engine(pytester.path / "mine.toml", slower=1.2)
    result = pytester.runpytest(SIM, "--gpucap-compare=main")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["REGRESSED: test_measure sustains *", "REGRESSED: test_sweep sustains *"])


def unwrapped(result: pytest.RunResult) -> str:
    """What pytest said, in one line."""
    return " ".join(result.stdout.str().split())


@pytest.mark.usefixtures("few_cycles")
def test_a_failure_replaces_no_baseline_unless_it_is_forced_to(pytester: pytest.Pytester) -> None:
    """Two tests, and one comes to fail: its earlier result stays, beside the other's new one."""
    engine(pytester.path / "mine.toml")
    second_test = SUITE.replace("test_chat", "test_second").replace('"chat"', '"second"')
    pytester.makepyfile(test_suite=SUITE + second_test)
    held = pytester.path / "gpucap-baselines" / "main.json"
    pytester.runpytest(SIM, "--gpucap-save=main").assert_outcomes(passed=2)
    first = {result.test: result for result in result_file.read(held).results}
    engine(pytester.path / "mine.toml", slower=1.02)
    suite = pytester.path / "test_suite.py"
    suite.write_text(
        "".join(suite.read_text().rsplit("qps=16", 1)[:1]) + "qps=99" + suite.read_text().rsplit("qps=16", 1)[1]
    )
    result = pytester.runpytest(SIM, "--gpucap-save=main")
    result.assert_outcomes(passed=1, failed=1)
    # A check whose interval is wide is measured as well.
    said = r"baseline main: [12] results? saved in \S+, 1 left out \([^)]+\); "
    said += r"replaced \S+::test_chat \(\S+ -> \S+ req/s\); kept the earlier result of \S+::test_second"
    assert re.search(said, unwrapped(result))
    second = {result.test: result for result in result_file.read(held).results}
    assert second.keys() == first.keys()
    changed = [test for test in first if first[test].sustainable_rate != second[test].sustainable_rate]
    assert changed == ["test_suite.py::test_chat"]
    assert Outcome.FAIL not in {result.outcome for result in second.values()}
    forced = pytester.runpytest(SIM, "--gpucap-save=main", "--gpucap-force-save")
    forced.assert_outcomes(passed=1, failed=1)
    assert re.search("baseline main: [23] results saved in gpucap-baselines/main.json; replaced ", unwrapped(forced))
    outcomes = {result.outcome for result in result_file.read(held).results if result.outcome is not None}
    assert outcomes == {Outcome.PASS, Outcome.FAIL}


@pytest.mark.usefixtures("few_cycles")
def test_samples_and_tests_that_fail_by_themselves_are_not_saved(pytester: pytest.Pytester) -> None:
    engine(pytester.path / "mine.toml")
    others = """
    def test_window(gpucap):
        gpucap.sample(rate=5, duration="5s")

    def test_fails_by_itself(gpucap):
        assert gpucap.measure().sustainable_rate.low > 1e9
"""
    pytester.makepyfile(test_suite=SUITE + others)
    result = pytester.runpytest(SIM, "--target-qps=16", "--gpucap-save=main")
    result.assert_outcomes(passed=2, failed=1)
    # A check whose rate is not precise enough is followed by a measurement, which is saved as well.
    assert re.search(r"\d results? saved in gpucap-baselines/main.json, 2 left out ", unwrapped(result))
    saved = result_file.read(pytester.path / "gpucap-baselines" / "main.json").results
    assert {each.test for each in saved} == {"test_suite.py::test_chat"}


def test_a_baseline_of_failures_alone_is_not_begun(pytester: pytest.Pytester) -> None:
    engine(pytester.path / "mine.toml")
    pytester.makepyfile(test_suite=SUITE.replace("qps=16", "qps=99"))
    result = pytester.runpytest(SIM, "--gpucap-save=main")
    result.assert_outcomes(failed=1)
    assert re.search(r"baseline main was NOT saved: .*no PASS \(--gpucap-force-save saves", unwrapped(result))
    assert not (pytester.path / "gpucap-baselines").exists()
