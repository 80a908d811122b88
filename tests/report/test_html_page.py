"""The HTML page is whole, inert, small, and says what the result file says."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("jinja2")

import pytest_gpucap
from pytest_gpucap.installing import pip_install
from pytest_gpucap.report.headline import session_headlines, worst_first
from pytest_gpucap.report.html import render
from pytest_gpucap.report.html.page import LIBRARY, embedded
from pytest_gpucap.report.junit import properties
from pytest_gpucap.report.markdown import pull_request_page
from pytest_gpucap.report.terminal import summary
from pytest_gpucap.results import result_file
from pytest_gpucap.results.build import sample_result
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.encoding import encoded
from pytest_gpucap.results.ending import Ending
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.results.windows import Phase, WindowId
from tests.report import pages
from tests.results import made

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "h200" / "suite.json"
LIBRARY_SHA256 = "61f13280aba3161f77fc801bf5f9c786f55f10432153a0683fc5cc0700b013d5"
"""Of dist/echarts.common.min.js in the npm package echarts 6.1.0."""

MISSING = pip_install("html").replace("[html]", "?html?")
"""As `fnmatch_lines` takes it."""


class Page(HTMLParser):
    """Elements with their attributes, the text of scripts and styles, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.shown = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
        else:
            self.shown += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def policy(self) -> dict[str, list[str]]:
        (text,) = [a["content"] for a in self.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert text is not None
        return {part.split()[0]: part.split()[1:] for part in text.split(";")}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_says_what_was_decided_and_what_it_rests_on() -> None:
    content = pages.simulated()
    shown = Page(render(content)).shown
    assert "launch day needs" in shown.partition("Verdicts")[0]
    for result in content.results:
        assert result.name in shown
        assert result.test in shown
        for sample in result.samples:
            assert sample.window.text in shown
    assert "launch day needs" in shown
    assert "SIMULATED" in shown
    assert "vLLM" not in shown


def test_only_the_scripts_and_styles_that_the_policy_names_can_run() -> None:
    page = Page(render(pages.simulated()))
    data, *scripts = page.raw["script"]
    assert [digest(script) for script in scripts] == page.policy["script-src"]
    assert [digest(style) for style in page.raw["style"]] == page.policy["style-src"]
    assert page.policy["default-src"] == ["'none'"]
    assert not any("unsafe" in source for sources in page.policy.values() for source in sources)
    assert page.attributes("script")[0]["type"] == "application/json"
    assert json.loads(data)["results"]
    # Neither a handler nor a style in an attribute would pass the policy.
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "style"
    ]


def test_nothing_is_fetched_from_anywhere() -> None:
    page = Page(render(pages.watched(), [pages.trend(30)]))
    places = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    ]
    assert places
    assert all(place is not None and place.startswith("#") for place in places)
    assert "@import" not in page.raw["style"][0]
    assert "url(" not in page.raw["style"][0]


def test_hostile_strings_are_shown_and_do_nothing() -> None:
    text = render(pages.hostile(), [pages.trend(5, pages.HOSTILE, pages.HOSTILE)])
    page = Page(text)
    assert not page.attributes("img")
    assert not page.attributes("b") or all(not attributes for attributes in page.attributes("b"))
    assert len(page.raw["script"]) == 3
    assert [digest(script) for script in page.raw["script"][1:]] == page.policy["script-src"]
    assert '</script><img src=x onerror="window.pwned=1"><b>&lt;{{7*7}}${8*8}' in page.shown
    assert "49" not in page.attributes("article")[0].values()
    # Marks that turn the direction of reading are written out, not written.
    assert "\u202e" not in text
    assert "\\u202e" in page.shown


@pytest.mark.parametrize(
    "text", ["</script>", "<!--<script>", "]]>", "&amp;", "\u2028\u2029", "\x00\x1f", "\ud83d\ude00"]
)
def test_embedded_json_cannot_leave_its_script(text: str) -> None:
    shown = str(embedded({"a": text}))
    assert not set(shown) & set("<>&\u2028\u2029")
    assert json.loads(shown) == {"a": text}


def test_a_chart_without_figures_leaves_no_frame() -> None:
    page = Page(render(pages.changed(pages.simulated(), samples=(), points=(), sustainable_rate=None)))
    assert not page.attributes("figure")
    assert "Latency against rate" not in page.shown


def test_what_nobody_watched_has_no_strip() -> None:
    def titles(content: ResultFile) -> list[str]:
        data = json.loads(Page(render(content)).raw["script"][0])
        return [strip["title"] for strip in data["results"][0]["strips"]["strips"]]

    assert titles(pages.simulated()) == ["Latency", "Requests", "Output"]
    assert titles(pages.watched()) == [
        *("Latency", "Requests", "Output", "KV cache", "GPU use", "SM clock", "Power", "CPU"),
    ]


def test_every_table_has_a_caption_and_headers_with_a_scope() -> None:
    page = Page(render(pages.watched(), [pages.trend(30)]))
    assert len(page.attributes("table")) == len(page.attributes("caption")) == 1 + 3
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.attributes("th"))


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    page = Page(render(pages.watched()))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.attributes("a"):
        assert str(attributes["href"]).removeprefix("#") in ids


def test_the_physical_limit_is_shown_with_the_share_reached() -> None:
    shown = Page(render(pages.watched())).shown
    assert "57%" in shown
    assert "bandwidth: 900 req/s at 64 in flight" in shown
    assert "Of the physical limit" not in Page(render(pages.simulated())).shown
    unknown = pages.changed(result_file.read(MEASURED), no_limit="no bandwidth is known of class cpu")
    shown = Page(render(unknown)).shown
    assert "Of the physical limit" in shown
    assert "no bandwidth is known of class cpu" in shown


def test_an_expected_failure_is_no_failure_of_the_page() -> None:
    failed = msgspec.structs.replace(made.check(), expected_failure=True)
    shown = Page(render(made.session(made.check(Outcome.PASS), failed))).shown
    assert "1 of 2 GPU budgets hold" in shown
    assert "FAIL (expected)" in shown


def test_a_regression_is_said_beside_a_budget_that_holds() -> None:
    shown = Page(render(made.session(made.compared(made.check(Outcome.PASS))))).shown
    assert "REGRESSED: chat sustains 80 req/s, baseline main 59.9 req/s" in shown.partition("Verdicts")[0]
    assert "one replica sustains 13% less" in shown
    assert "-13.0% (-15.0% to -11.0%)" in shown


def test_a_comparison_shows_both_rates_and_the_latencies_at_an_equal_rate() -> None:
    page = Page(render(made.session(made.compared(made.check()))))
    cells = (
        "59.9 (58-62)",
        "52.1 (50.9-53.4)",
        "-13.0% (-15.0% to -11.0%)",
        "410 ms",
        "480 ms",
        "p95 TTFT at 50 req/s",
    )
    for shown in cells:
        assert shown in page.shown
    (table,) = (attributes for attributes in page.attributes("table") if attributes.get("class") == "compared")
    assert table
    nothing = Page(render(made.session(made.check(), made.compared(made.check(), RegressionDecision.NOT_COMPARABLE))))
    assert not [attributes for attributes in nothing.attributes("table") if attributes.get("class") == "compared"]


@pytest.mark.parametrize(
    "results",
    [
        [made.check()],
        [made.check(Outcome.PASS), made.check(Outcome.PASS)],
        [made.check(Outcome.INVALID), made.check()],
        [made.check(Outcome.INCONCLUSIVE)],
        [made.compared(made.check(Outcome.PASS))],
        [made.compared(made.check())],
        [msgspec.structs.replace(made.check(Outcome.PASS), ending=Ending.ERROR, ending_reason="fixture broke")],
        [msgspec.structs.replace(made.measured(), ending=Ending.FAILED, ending_reason="assert 1 > 2")],
        [msgspec.structs.replace(made.check(), expected_failure=True)],
        [made.measured(), made.swept()],
    ],
)
def test_the_headline_of_the_page_is_that_of_the_pull_request(results: list[Result]) -> None:
    content = made.session(*results)
    (first,) = re.findall(r'<h1 id="title">(.*)</h1>', render(content))
    line = html.unescape(pull_request_page(content).splitlines()[0]).replace("**", "").replace("\u200b", "")
    assert line.partition(" ")[2] == html.unescape(first)
    assert html.unescape(first) == session_headlines(worst_first(content.results))[0].text


def test_a_sample_shows_its_latencies() -> None:
    window = made.sample(WindowId(Phase.SAMPLE, rate_rps=5.0), 5.0, 4.0)
    content = made.session(sample_result(window, made.REQUIREMENT, made.CONTEXT, simulated=False, seed=0, spent_s=42.0))
    percentiles = "p50 150 ms, p90 400 ms, p95 480 ms, p99 600 ms"
    page = html.unescape(pull_request_page(content))
    for report in (Page(render(content)).shown, page, page.partition("<details>")[0], summary(content.results)):
        assert percentiles in report
    assert dict(properties(content.results))["gpucap_ttft_p99_s"] == 0.6


def test_figures_that_nobody_knows_have_no_place_on_the_page() -> None:
    result = made.check()
    first, *others = result.samples
    unknown = msgspec.structs.replace(first, completed_rps=math.nan, in_flight_mean=math.nan)
    opened = Interval(52.1, -math.inf, math.inf)
    content = made.session(msgspec.structs.replace(result, samples=(unknown, *others), sustainable_rate=opened))
    page = Page(render(content))
    assert not re.search(r"\b(nan|inf)\b", page.shown)
    assert json.loads(page.raw["script"][0])["results"][0]["curve"]["rate"] == {
        "value": 52.1,
        "low": None,
        "high": None,
    }


def test_a_session_without_results_has_a_page() -> None:
    assert "Nothing was measured." in Page(render(made.session())).shown


def test_results_of_early_builds_without_time_series_are_drawn_from_their_windows() -> None:
    page = Page(render(result_file.read(MEASURED)))
    data = json.loads(page.raw["script"][0])
    assert "1x NVIDIA H200" in page.shown
    assert all(result["curve"]["series"] for result in data["results"])
    assert all(result["spread"] is None for result in data["results"])
    latency = data["results"][0]["strips"]["strips"][0]
    assert latency["title"] == "Latency"
    assert any(value is not None for value in latency["series"][0]["data"])


def test_the_results_are_left_as_they_were() -> None:
    content = pages.hostile()
    before = encoded(content)
    render(content, [pages.trend(5)])
    assert encoded(content) == before


def test_fifty_tests_with_a_hundred_thousand_requests_stay_under_ten_megabytes() -> None:
    content = pages.watched()
    swept = next(result for result in content.results if result.kind is ResultKind.SWEEP)
    results = tuple(msgspec.structs.replace(swept, name=f"sweep {number}") for number in range(50))
    assert sum(sample.requests for result in results for sample in result.samples) > 100_000
    assert len(render(msgspec.structs.replace(content, results=results)).encode()) < 10_000_000


def test_the_plotting_library_is_the_published_one_with_its_licence() -> None:
    folder = Path(pytest_gpucap.__file__).parent / "report" / "html"
    assert hashlib.sha256((folder / LIBRARY).read_bytes()).hexdigest() == LIBRARY_SHA256
    assert "Apache License" in (folder / "vendor" / "LICENSE").read_text()
    assert "Apache ECharts" in (folder / "vendor" / "NOTICE").read_text()
    assert "Mike Bostock" in (folder / "vendor" / "LICENSE-d3").read_text()


def test_our_scripts_make_no_markup_from_strings_and_no_code_from_text() -> None:
    folder = Path(pytest_gpucap.__file__).parent / "report" / "html" / "assets"
    for script in folder.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function"
            r"|fetch\(|XMLHttp|https?:(?!//www\.w3\.org)",
            script.read_text(),
        ), script.name


def test_the_option_writes_the_page(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=2, gpus=1, input_tokens=64, output_tokens=16, e2e_p95="3s")
        def test_chat(gpucap):
            gpucap.check()
        """
    )
    outcome = pytester.runpytest("--gpu-class", "sim:fast", "--gpucap-html", "out/report.html")
    outcome.stdout.fnmatch_lines(["HTML report: out/report.html"])
    outcome.assert_outcomes(passed=1)
    assert "1 of 1 GPU budgets hold" in Page((pytester.path / "out" / "report.html").read_text()).shown


WITHOUT = "import sys; sys.modules['jinja2'] = None; "
"""How Python itself marks a module that cannot be imported."""


def test_the_option_without_the_extra_is_refused_before_anything_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(gpucap): pass")
    code = f"{WITHOUT}import pytest; sys.exit(pytest.main(['--gpucap-html', 'report.html']))"
    outcome = pytester.run(sys.executable, "-c", code)
    assert outcome.ret == pytest.ExitCode.USAGE_ERROR
    outcome.stderr.fnmatch_lines(["ERROR: --gpucap-html: needs Jinja2: " + MISSING])


def test_the_command_makes_the_page_anew_and_says_what_it_lacks(pytester: pytest.Pytester) -> None:
    command = (
        f"from pytest_gpucap.__main__ import main; sys.exit(main(['report', {str(MEASURED)!r}, '--html', 'r.html']))"
    )
    assert pytester.run(sys.executable, "-c", f"import sys; {command}").ret == 0
    assert "needs" in Page((pytester.path / "r.html").read_text()).shown.partition("Verdicts")[0]
    outcome = pytester.run(sys.executable, "-c", WITHOUT + command)
    assert outcome.ret == 2
    outcome.stderr.fnmatch_lines([f"*{MISSING}*"])


def test_the_command_draws_the_history_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pytest_gpucap.__main__ import main

    for night in range(1, 13):
        content = msgspec.structs.replace(pages.simulated(), started=datetime(2026, 11, night, 3, 17, tzinfo=UTC))
        result_file.write(tmp_path / "nights" / f"night-{night:02}.json", content)
    (tmp_path / "nights" / "torn.json").write_text("{")
    newest = str(tmp_path / "nights" / "night-12.json")
    page = tmp_path / "report.html"
    assert main(["report", newest, "--html", str(page), "--history", str(tmp_path / "nights")]) == 0
    assert "torn.json" in capsys.readouterr().err
    shown = Page(page.read_text())
    drawn = json.loads(shown.raw["script"][0])["trends"]
    assert {trend["name"] for trend in drawn} == {"chat", "launch day", "curve"}
    assert all(len(trend["t"]) == 12 for trend in drawn)
    assert "12 runs" in shown.shown
    assert main(["report", newest, "--html", str(page), "--history", str(tmp_path / "none")]) == 2
    assert main(["report", newest, "--history", str(tmp_path)]) == 2
    assert "--html" in capsys.readouterr().err
