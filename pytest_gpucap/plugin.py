"""The plugin's pytest hooks. They import nothing heavier than pytest until a test asks for a measurement."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_gpucap.errors import GpuCapError, PluginFault
from pytest_gpucap.fixtures import SESSION, gpu, gpucap, vllm_server
from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.masking import masked
from pytest_gpucap.options.reading import json_file, parse_options
from pytest_gpucap.options.root_folder import check_root
from pytest_gpucap.options.sources import add_options, join_words
from pytest_gpucap.options.table import Options
from pytest_gpucap.session.workers import is_one_of_many

__all__ = ["gpu", "gpucap", "vllm_server"]

OPTIONS = pytest.StashKey[Options]()
RECORDER = "gpucap-results"
"""Name under which `_Results` is registered; tests hand over what they measured to the plugin of that name."""

MARKERS = (
    "gpucap(qps, gpus, headroom, input_tokens, METRIC_pPERCENT, ...): the capacity that this test requires",
    "vllm(model, ...): the vLLM server this test runs against; every keyword becomes a flag of the server",
    'engine(name, model, ...): the engine whose server this test runs against; vllm(...) is engine("vllm", ...)',
    "gpu_class(name): the GPU class this test is about; it is skipped on any other --gpu-class",
)
FIXTURES = frozenset({"gpucap", "vllm_server", "gpu"})


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Hooks for other plugins."""
    from pytest_gpucap import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and ini keys."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Let the value of ``--gpucap-base-args`` begin with dashes. pytest parses `args` once more after this."""
    join_words(args)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int | pytest.ExitCode | None, Any]:
    """Record results from before anything can go wrong until the exit code is known."""
    if is_one_of_many(config):  # results are collected in the process that talks to the user
        return (yield)
    config.pluginmanager.register(recorder := _Results(config), RECORDER)
    try:
        status = yield
    except pytest.UsageError as error:
        error.args = tuple(harmless(masked(str(each))) for each in error.args)
        recorder.finished(pytest.ExitCode.USAGE_ERROR, str(error))
        raise
    if status is not None:
        status = recorder.finished(status)
    return status


def pytest_configure(config: pytest.Config) -> None:
    """Register markers; refuse invalid options."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if not is_one_of_many(config):
        check_root(config)
    config.stash[OPTIONS] = options = parse_options(config)
    if options.gpu_class is not None or options.gpu_file is not None:
        from pytest_gpucap.session.placement import check_names

        check_names(options)
    if not is_one_of_many(config) and (config.option.gpucap_compare or config.option.gpucap_save):
        from pytest_gpucap.session.baselines import check_files

        check_files(options, config)  # xdist's main process collects no tests, so it checks here
    if not is_one_of_many(config) and options.prices is not None:
        from pytest_gpucap.session.prices import session_prices

        session_prices(options)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the class, target rate, budget and URL that the session was given."""
    options = config.stash[OPTIONS]
    named = {"class": options.gpu_class, "target qps": options.target_qps, "budget": options.gpus, "url": options.url}
    given = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    return f"gpucap: {given}" if given else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Parse what our tests declare before any GPU time is spent. Group tests by the server that they need."""
    if _beside_benchmark(config) and (ours := _ours(items)):
        from pytest_gpucap.session.benchmark_bridge import ask_for_fixture

        ask_for_fixture(config, ours)  # before pytest-benchmark looks
    collected = list(items)
    yield
    misplaced = _marked_only(items, collected)
    if misplaced and not is_one_of_many(config):
        raise pytest.UsageError("\n".join(misplaced))
    ours = _ours(items)
    if not ours:
        return
    from pytest_gpucap.session.pytest_session import PytestSession

    config.stash[SESSION] = session = PytestSession(config, config.stash[OPTIONS])
    mistakes = session.declare(ours)
    if mistakes and not is_one_of_many(config):
        raise pytest.UsageError(mistakes)
    items[:] = session.grouped(items)


@pytest.hookimpl(tryfirst=True)  # before the terminal asks what to show
def pytest_collection_finish(session: pytest.Session) -> None:
    """Once it is known which tests run, check that this machine has the GPU class that was named."""
    measuring = session.config.stash.get(SESSION, None)
    if measuring is None or not _ours(session.items):
        return
    if not session.config.getoption("collectonly"):
        measuring.check_files()
        measuring.check_machine()
    measuring.will_run(session.items)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Show what a session will cost before it begins. One that only collects shows it below its tests."""
    return [] if config.getoption("collectonly") else _estimate(config)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what a session would cost that only collects."""
    if config.getoption("collectonly"):
        for line in _estimate(config):
            terminalreporter.write_line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before anything of a test starts, see whether a limited session has time for it. Marks that skip come first."""
    measuring = item.config.stash.get(SESSION, None)
    if measuring is not None:
        measuring.check_time(item)
        measuring.hear_unittest(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Let an active pytest-benchmark report what the test has measured, even if the test failed."""
    try:
        yield
    finally:
        measuring = item.config.stash.get(SESSION, None)
        if measuring is not None and _beside_benchmark(item.config):
            measuring.report_to_benchmark(item)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Name the GPU of the figures when pytest-benchmark saves or compares."""
    if config.stash[OPTIONS].gpu_class is not None:
        from pytest_gpucap.session.benchmark_bridge import add_machine_info

        add_machine_info(config.stash[OPTIONS], machine_info)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Refuse a comparison across GPU classes when pytest-benchmark compares with a saved run."""
    from pytest_gpucap.session.benchmark_bridge import check_comparable

    check_comparable(config.stash[OPTIONS], compared_benchmark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """End the server and free its GPU as soon as the next test does not need it."""
    try:
        yield
    finally:
        measuring = item.config.stash.get(SESSION, None)
        if measuring is not None:
            measuring.release_unless_needed(nextitem)


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """Explain a failed comparison of a figure that the test has measured."""
    measuring = config.stash.get(SESSION, None)
    return None if measuring is None else measuring.explain(op, left, right)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the test's results to its report. The attribute travels with the report, also through xdist."""
    measuring = item.config.stash.get(SESSION, None)
    results = measuring.take_results(item) if measuring is not None else []
    if results:
        from pytest_gpucap.report.junit import properties

        item.user_properties += properties(results)
    report = yield
    if call.when == "call" and report.passed:
        _note_unmeasured(item, report)
    elif report.skipped and "gpucap" in getattr(item, "fixturenames", ()):
        _judge_skip(item, call, report)
    _attach(item, call, report, results)
    if call.excinfo is not None and isinstance(call.excinfo.value, PluginFault):
        report.sections.append(("pytest-gpucap: where it failed", call.excinfo.value.trace))
    error = call.excinfo.value if call.excinfo is not None else None
    if call.excinfo is not None and isinstance(error, GpuCapError) and not error.needs_traceback:
        report.longrepr = call.excinfo.getrepr(style="value")
    if report.skipped and hasattr(report, "wasxfail") and (isinstance(error, GpuCapError) or _ours([item])):
        from pytest_gpucap.session.expected import EXPECTED, is_expected
        from pytest_gpucap.session.pytest_session import kept_results

        if not is_expected(item, call, kept_results(item)):
            del report.wasxfail
            report.outcome = "failed"
            report.sections.append(("xfail", EXPECTED))
    if measuring is not None:
        from pytest_gpucap.session.boundary import make_harmless

        make_harmless(report)
    return report


def _attach(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, results: Sequence[Any]) -> None:
    """What the process that talks to the user must know: it travels with the report, also through xdist."""
    if _ours([item]):
        report.gpucap_declared = True  # type: ignore[attr-defined]
    for reason in ("gpucap_absent", "gpucap_left_out"):  # why it was not measured
        if call.excinfo is not None and (why := getattr(call.excinfo.value, reason, None)) is not None:
            setattr(report, reason, why)
    if not results:
        return
    from pytest_gpucap.results.encoding import to_builtins

    report.gpucap = to_builtins(results)  # type: ignore[attr-defined]  # xdist carries builtins alone
    if call.excinfo is not None and call.excinfo.errisinstance(AssertionError):
        from pytest_gpucap.report.terminal import section
        from pytest_gpucap.session.screen import columns

        width = columns(item.config)
        report.sections += [("GPU capacity", section(result, width)) for result in results]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker what it cannot see."""
    from pytest_gpucap.session import screen, workers

    screen.tell_worker(node)
    workers.tell_worker(node)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing running."""
    measuring = config.stash.get(SESSION, None)
    if measuring is not None:
        try:
            measuring.close()
        except GpuCapError as error:
            print(f"pytest-gpucap: {error}", file=sys.stderr)  # noqa: T201 - pytest's own reporting is over


def _estimate(config: pytest.Config) -> list[str]:
    measuring = config.stash.get(SESSION, None)
    return [] if measuring is None else list(measuring.estimate)


def _beside_benchmark(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("pytest-benchmark")


def _ours(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))]


def _marked_only(items: Sequence[pytest.Item], collected: Sequence[pytest.Item]) -> list[str]:
    """The mistakes of tests that have the ``gpucap`` marker and not the fixture."""
    if not any(item.get_closest_marker("gpucap") for item in items):
        return []
    from pytest_gpucap.session.declared import check_declared

    return check_declared(items, collected)


def _note_unmeasured(item: pytest.Item, report: pytest.TestReport) -> None:
    """Say of a test that passed that it should have measured and did not; ``--gpucap-require`` fails it."""
    if "gpucap" not in getattr(item, "fixturenames", ()) and item.get_closest_marker("gpucap") is None:
        return
    from pytest_gpucap.session.declared import NEVER, never_measured, unheard
    from pytest_gpucap.session.pytest_session import asked_results

    kept = asked_results(item)
    if lost := unheard(kept):
        report.outcome, report.longrepr = "failed", lost
        return
    why = never_measured(item, kept)
    if why is None:
        return
    if item.config.stash[OPTIONS].require:
        report.outcome, report.longrepr = "failed", f"{NEVER}: {why}"
    else:
        report.gpucap_unmeasured = why  # type: ignore[attr-defined]  # travels with the report, as results do


def _judge_skip(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Fail a skipped test if a thread of it has failed, or if it has measured nothing where measuring is required.

    One that calls ``pytest.xfail`` ends as early.
    """
    expected: str | None = getattr(report, "wasxfail", None)
    if expected is not None and not (call.excinfo is not None and call.excinfo.errisinstance(pytest.xfail.Exception)):
        return
    from pytest_gpucap.session.declared import skipped_here, unheard
    from pytest_gpucap.session.pytest_session import asked_results, is_about_another_class

    kept = asked_results(item)
    if expected is None and (lost := unheard(kept)):
        report.outcome, report.longrepr = "failed", lost
        return
    if not item.config.stash[OPTIONS].require or (kept is not None and kept.measured):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    told = reason.removeprefix("Skipped: ") if expected is None else expected.removeprefix("reason: ")
    if (why := skipped_here(item, told, elsewhere=is_about_another_class(item))) is not None:
        report.outcome, report.longrepr = "failed", why
        if expected is not None:
            del report.wasxfail


class _Results:
    """The results of the session, in the order in which tests finished.

    The file of ``--gpucap-json`` is written from here on, so that it exists however the session ends.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session_report: Any = None
        self._unmeasured: list[tuple[str, str]] = []
        self._absent: dict[str, list[str]] = {}
        """Why there is no GPU -> the tests that were skipped for it."""
        self._declared = False
        """A test of ours has run, or was skipped."""
        # These run no session.
        only_lists = config.option.help or config.option.version or getattr(config.option, "markers", False)
        self._json = None if only_lists else json_file(config)
        if self._json is not None:
            self._report()

    def _report(self) -> Any:
        """The report, made when there is first something to write."""
        from pytest_gpucap.results.result_file import GrowingResultFile
        from pytest_gpucap.session.session_report import SessionReport

        if self._session_report is None:
            self._session_report = SessionReport(self._json, self._config)
        options = self._config.stash.get(OPTIONS, None)
        if options is not None and self._session_report.usual is None:
            self._session_report.usual = GrowingResultFile(options.dir / "result.json")
        return self._session_report

    def finished(self, status: int | pytest.ExitCode, problem: str = "") -> int | pytest.ExitCode:
        """The session ended so, for the result file if there is one; returns its exit code."""
        if self._session_report is not None:
            self._problem(problem)
            self._session_report.finish(int(status))
            if status == pytest.ExitCode.OK and (missing := self._session_report.missing):
                # Whoever reads that file next would take an older one for this session's.
                self._problem("\n".join(missing))
                self._session_report.finish(int(status := pytest.ExitCode.TESTS_FAILED))
            for line in self._session_report.untold:
                print(f"pytest-gpucap: {line}", file=sys.stderr)  # noqa: T201 - pytest's own reporting is over
        return status

    def _problem(self, text: str) -> None:
        if self._session_report is not None and text:
            self._session_report.problem(text)

    def measured(self, test: str, results: Sequence[Any]) -> None:
        """A running test has measured so much."""
        self._report().measured(test, results)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (why := getattr(report, "gpucap_unmeasured", None)) is not None:
            self._unmeasured.append((report.nodeid, why))
        if (why := getattr(report, "gpucap_absent", None)) is not None:
            self._absent.setdefault(why, []).append(report.nodeid)
        self._declared = self._declared or hasattr(report, "gpucap_declared")
        carried = getattr(report, "gpucap", None)
        left_out = getattr(report, "gpucap_left_out", None)
        if not carried and left_out is None and self._session_report is None:
            return
        from pytest_gpucap.results.encoding import from_builtins
        from pytest_gpucap.results.result import Result

        found = self._report()
        known = len(found.results)
        found.ended(report, from_builtins(carried or [], list[Result]))
        if left_out is not None:
            found.left_out(report, left_out)
        for result in found.results[known:]:
            self._tell("pytest_gpucap_result", result=result)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self._problem(f"{report.nodeid}: not collected: {lines[-1] if lines else ''}")

    def pytest_internalerror(self, excrepr: Any) -> None:
        crash = getattr(excrepr, "reprcrash", None)
        self._problem(f"INTERNALERROR: {crash.message if crash is not None else excrepr}")

    def _tell(self, hook: str, **what: Any) -> None:
        """Call a reporter's hook. A hook that fails must not lose the results that follow."""
        try:
            getattr(self._config.hook, hook)(config=self._config, **what)
        except Exception as error:  # noqa: BLE001 - whatever a reporter raises
            self._session_report.note(f"{hook} failed: {type(error).__name__}: {error}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        options = self._config.stash.get(OPTIONS, None)
        asks = options is not None and (options.save, options.markdown, options.html) != (None, None, None)
        if self._session_report is None and not (asks and self._declared):
            return
        found = self._report()
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):  # a second one comes before pytest has noted the first
            exitstatus = int(pytest.ExitCode.INTERRUPTED)
        if why := session.shouldfail or session.shouldstop:
            self._problem(f"the session stopped early: {why}")
        found.finish(exitstatus)
        if options is None or not (found.results or self._declared):
            return  # a session without a test of ours replaces no report
        # An interrupted session must not replace a whole baseline by a partial one.
        if options.save is not None and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            self._save(options)
        if found.results:
            self._tell("pytest_gpucap_results", results=found.content())
        self._publish(options)

    def _save(self, options: Options) -> None:
        from pytest_gpucap.session.baselines import save
        from pytest_gpucap.session.boundary import one_line

        found = self._session_report
        try:
            with one_line("the baseline was not saved"):
                found.note(save(options, found.content()))
        except GpuCapError as error:
            found.note(str(error), missing=True)

    def _publish(self, options: Options) -> None:
        from pytest_gpucap.session.boundary import one_line

        found = self._session_report
        try:
            with one_line("the reports could not be written"):
                found.publish(markdown=options.markdown, html=options.html)
        except GpuCapError as error:
            found.note(str(error), missing=options.markdown is not None or options.html is not None)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._session_report is not None:
            from pytest_gpucap.session.boundary import one_line

            try:
                with one_line("the summary could not be written"):
                    self._session_report.summarise(terminalreporter)
            except GpuCapError as error:
                terminalreporter.write_line(f"pytest-gpucap: {error}", red=True)
            if missing := self._session_report.missing:
                failed = "" if terminalreporter.stats.get("failed") else ", so the session has failed"
                lost = (
                    "a file that was asked for is"
                    if len(missing) == 1
                    else f"{len(missing)} files that were asked for are"
                )
                terminalreporter.write_line(f"{lost} missing{failed}", red=True)
        if self._unmeasured or self._absent:
            from pytest_gpucap.session.declared import lines, skipped_lines
            from pytest_gpucap.session.screen import columns

            if self._session_report is None:
                terminalreporter.section("GPU capacity")
            width = columns(self._config)
            for line in [*lines(self._unmeasured, width), *skipped_lines(self._absent, width)]:
                terminalreporter.write_line(line, yellow=True)
