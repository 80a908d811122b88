"""However a test, a session or a process ends: every report tells the test's outcome, and the result file is there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pytest_gpucap.report.html import render
from pytest_gpucap.report.junit import junit
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.results import result_file
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.result import ResultFile
from tests.plugin.measured_once import ONCE

ENDINGS = """
    import pytest

    pytestmark = pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s")
    too_much = pytest.mark.gpucap(qps=300, gpus=1)

    def test_passes(gpucap):
        gpucap.check()

    def test_own_assertion(gpucap):
        gpucap.check()
        assert 1 > 2

    def test_own_error(gpucap):
        gpucap.check()
        raise OSError("disk gone")

    @pytest.fixture
    def fragile():
        yield
        raise RuntimeError("teardown broke")

    def test_teardown(fragile, gpucap):
        gpucap.check()

    def test_skips_late(gpucap):
        gpucap.check()
        pytest.skip("not today")

    @pytest.mark.xfail(strict=True, reason="too small")
    def test_strict(gpucap):
        gpucap.check()

    @pytest.mark.xfail
    def test_lenient(gpucap):
        gpucap.check()

    @pytest.mark.xfail
    def test_expected_assertion(gpucap):
        gpucap.check()
        assert 1 > 2

    @pytest.mark.xfail
    @too_much
    def test_expected(gpucap):
        gpucap.check()

    @pytest.mark.xfail
    @too_much
    def test_expected_and_broken(fragile, gpucap):
        gpucap.check()

    @too_much
    def test_fails(gpucap):
        gpucap.check()

    @too_much
    def test_taken(gpucap):
        with pytest.raises(pytest.fail.Exception):
            gpucap.check()

    @pytest.fixture
    def checked(gpucap):
        gpucap.check()

    def test_in_a_fixture(checked):
        pass

    @too_much
    def test_fails_in_a_fixture(checked):
        pass

    def test_figures(gpucap):
        gpucap.sample(rate=5, duration="5s")
        assert 1 > 2

    def test_again(gpucap):
        gpucap.check()
        assert test_again.__dict__.setdefault("runs", []) or test_again.runs.append(1)
"""

RERUNS = f"""
    from _pytest.runner import runtestprotocol
{ONCE}
    def pytest_runtest_protocol(item, nextitem):
        '''As plugins do that run failed tests again: the attempt is logged with a word of their own.'''
        if item.name != "test_again":
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        setup, call, _ = runtestprotocol(item, nextitem=nextitem, log=False)
        call.outcome = "rerun"
        for report in (setup, call):
            item.ihook.pytest_runtest_logreport(report=report)
        item._initrequest()
        runtestprotocol(item, nextitem=nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True
"""

WORDS = {
    # test: the word, in the text's table; the remark; JUnit's element
    "test_passes": ("PASS", "", None),
    "test_own_assertion": ("FAILED", "", "failure"),
    "test_own_error": ("FAILED", "", "failure"),
    "test_teardown": ("ERROR", "", "error"),
    "test_skips_late": ("SKIPPED", "", "skipped"),
    "test_strict": ("FAILED", "", "failure"),
    "test_lenient": ("XPASSED", "", None),
    "test_expected_assertion": ("XFAILED", "", "skipped"),
    "test_expected": ("FAIL", "expected", "skipped"),
    # xfail does not cover the teardown.
    "test_expected_and_broken": ("ERROR", "", "error"),
    "test_fails": ("FAIL", "", "failure"),
    "test_taken": ("FAIL", "test passed", "skipped"),
    "test_in_a_fixture": ("PASS", "", None),
    "test_fails_in_a_fixture": ("FAIL", "", "failure"),
    "test_figures": ("FAILED", "", "failure"),
    "test_again": ("RERUN", "", "skipped"),
}
"""The first row of every test. The second attempt of `test_again` passes."""


def test_every_report_tells_the_outcome_of_the_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    pytester.makeconftest(RERUNS)
    pytester.makepyfile(test_them=ENDINGS)
    result = pytester.runpytest(
        "--gpu-class=sim:fast", "--gpucap-markdown=p.md", "--gpucap-html=p.html", "--color=no", "-pno:benchmark"
    )
    content = result_file.read(pytester.path / ".gpucap" / "result.json")
    assert content.exit_status == pytest.ExitCode.TESTS_FAILED

    said = {name: (word, remark) for name, (word, remark, _) in WORDS.items()}
    texts = {name: f"{word} ({remark})" if remark else word for name, (word, remark) in said.items()}
    table = result.outlines[
        result.outlines.index(next(each for each in result.outlines if each.startswith("verdict"))) :
    ]
    rows = {line.split()[1]: line.split()[0] for line in reversed(table[2 : table.index("")])}
    again = rows.pop("test_again")
    assert rows == {name: word for name, (word, _) in said.items() if name != "test_again"}
    assert again in {"RERUN", "PASS"}

    page = (pytester.path / "p.md").read_text()
    lines = [plain(line) for line in page.splitlines()]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines if "| test_" in line]
    shown = {name: verdict.partition(" ")[2] for verdict, name in cells}
    assert {name: shown[name] for name in texts if name != "test_again"} == {
        name: text for name, text in texts.items() if name != "test_again"
    }
    assert sorted(verdict.partition(" ")[2] for verdict, name in cells if "again" in name) == ["PASS", "RERUN"]

    html = (pytester.path / "p.html").read_text()
    badges = re.findall(r'<td><span class="badge tone-\w+"><span aria-hidden="true">.</span> ([^<]*)</span></td>', html)
    assert sorted(badges) == sorted([*texts.values(), "PASS"])
    # The headline is the same, word for word.
    (headline,) = re.findall(r'<h1 id="title">([^<]*)</h1>', html)
    assert plain(page.splitlines()[0]).partition(" ")[2] == plain(headline)

    suites = ET.fromstring(junit(content)).findall("testsuite")
    elements = {suite.get("name", "").removeprefix("gpucap: "): suite[1] for suite in reversed(suites)}
    assert {name: next((each.tag for each in case), None) for name, case in elements.items()} == {
        name: element for name, (_, _, element) in WORDS.items()
    }
    reasons = {each.name: each.ending_reason for each in content.results}
    assert "disk gone" in reasons["test_own_error"]
    assert "teardown broke" in reasons["test_teardown"]
    assert "XPASS(strict)" in reasons["test_strict"]


def plain(text: str) -> str:
    """The text without marks and references."""
    import html as escapes

    return escapes.unescape(text).replace("**", "").replace("\u200b", "")


def test_pass_is_never_said_of_a_test_that_failed(pytester: pytest.Pytester) -> None:
    """Whatever its verdict: in the table, on the pages, and when the reports are made again from the file."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s", name="mine")
        def test_it(gpucap):
            gpucap.check()
            assert False, "no"
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", "--color=no")
    content = result_file.read(pytester.path / ".gpucap" / "result.json")
    (line,) = (each for each in result.outlines if re.search(r"^[A-Z]+ +mine ", each))
    assert line.startswith("FAILED")
    for page in (pull_request_page(content), render(content)):
        head = page.partition("<details")[0]
        assert not re.search(r"\bPASS\b|budgets hold", plain(head))
        assert "mine: its test failed" in plain(head)


MEASURES = """
    import os, signal
    import pytest

    @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s", name="before")
    def test_before(gpucap):
        gpucap.sample(rate=5, duration="5s")

    @pytest.mark.gpucap(qps=10, gpus=1, input_tokens=256, output_tokens=512, e2e_p95="4s", name="during")
    def test_during(gpucap):
        gpucap.sample(rate=5, duration="5s")
        {ending}
"""


def ended(folder: Path, *arguments: str, **files: str) -> tuple[int, ResultFile]:
    """pytest's exit code and its result file, of a process of its own."""
    for name, content in files.items():
        (folder / f"{name}.py").write_text(re.sub(r"^    ", "", content, flags=re.MULTILINE))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--gpucap-json=out/r.json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, env={**os.environ, "COLUMNS": "80"})
    return done.returncode, result_file.read(folder / "out" / "r.json")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_what_was_measured_before_a_crash_is_in_the_file(tmp_path: Path, ending: str, code: int) -> None:
    exit_code, content = ended(tmp_path, "--gpu-class=sim:fast", test_it=MEASURES.format(ending=ending))
    assert exit_code == code
    assert content.exit_status is None
    assert [(each.name, each.ending) for each in content.results] == [
        ("before", Ending.PASSED),
        ("during", Ending.UNFINISHED),
    ]


def test_ctrl_c_leaves_what_was_measured(tmp_path: Path) -> None:
    code, content = ended(tmp_path, "--gpu-class=sim:fast", test_it=MEASURES.format(ending="raise KeyboardInterrupt"))
    assert code == content.exit_status == pytest.ExitCode.INTERRUPTED
    assert [each.name for each in content.results] == ["before", "during"]
    assert content.results[1].ending is not Ending.PASSED


def test_a_crashed_worker_is_told_with_its_test(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    suite = MEASURES.format(ending="os._exit(3)")
    code, content = ended(tmp_path, "--gpu-class=sim:fast", "-n1", "--max-worker-restart=0", test_it=suite)
    assert code != 0
    assert content.results[0].name == "before"
    assert any("test_during" in line and "crashed" in line for line in content.problems)


NOTHING = "    def test_nothing(): pass\n"
REFUSES = "    import pytest\n    def pytest_configure(config): raise pytest.UsageError('not here')\n"
BREAKS = "    def pytest_runtest_protocol(item): raise OSError('x')\n"


@pytest.mark.parametrize(
    ("files", "arguments", "code", "problem"),
    [
        ({"test_it": NOTHING}, [], pytest.ExitCode.OK, None),
        ({"other": NOTHING}, [], pytest.ExitCode.NO_TESTS_COLLECTED, None),
        ({"test_it": "    import not_there\n"}, [], pytest.ExitCode.INTERRUPTED, "test_it.py: not collected"),
        ({"test_it": NOTHING}, ["nowhere.py"], pytest.ExitCode.USAGE_ERROR, None),
        ({"test_it": NOTHING}, ["--gpus=none"], pytest.ExitCode.USAGE_ERROR, "--gpus: "),
        ({"test_it": NOTHING}, ["--gpucap-compare=nobody"], pytest.ExitCode.USAGE_ERROR, "--gpucap-compare: "),
        (
            {"test_it": "    import pytest\n    @pytest.mark.gpucap(qps=-1)\n    def test_it(gpucap): pass\n"},
            ["--gpu-class=sim:fast"],
            pytest.ExitCode.USAGE_ERROR,
            "test_it.py:",
        ),
        (
            {"test_it": NOTHING, "conftest": REFUSES},
            [],
            pytest.ExitCode.USAGE_ERROR,
            "not here",
        ),
        (
            {"test_it": NOTHING, "conftest": BREAKS},
            [],
            pytest.ExitCode.INTERNAL_ERROR,
            "INTERNALERROR: OSError: x",
        ),
        (
            {"test_it": "    import os\n    def test_it(): os._exit(7)\n"},
            [],
            7,
            None,
        ),
    ],
    ids=[
        "nothing-of-ours", "no-tests", "collection-error", "no-such-file", "wrong-option", "no-such-baseline",
        "wrong-marker", "usage-error-of-others", "internal-error", "killed-in-a-test",
    ],
)  # fmt: skip
def test_the_result_file_exists_however_the_session_ends(
    tmp_path: Path, files: dict[str, str], arguments: list[str], code: int, problem: str | None
) -> None:
    exit_code, content = ended(tmp_path, *arguments, **files)
    assert exit_code == code
    assert content.results == ()
    assert content.exit_status == (None if code == 7 else code)
    assert problem is None or any(problem in line for line in content.problems)
    # A page made of such a file says so, and does not say that budgets hold.
    page = plain(pull_request_page(content))
    assert "hold" not in page
    assert problem is None or problem in page.splitlines()[0]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["r.json"]
