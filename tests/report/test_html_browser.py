"""The HTML report in a real Chromium, offline: every test also fails on any request, console line or script error."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("playwright")

from pytest_gpucap.report.html import render
from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import ResultKind
from tests.report import pages
from tests.report.conftest import Open

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "h200" / "suite.json"


@cache
def watched_page() -> str:
    return render(pages.watched(), [pages.trend(40)])


def chart(page: Page, kind: str, at: int = 0) -> Locator:
    """A chart on screen, drawn."""
    host = page.locator(f'figure[data-chart="{kind}"]').nth(at)
    host.scroll_into_view_if_needed()
    host.locator(".plot svg path").nth(5).wait_for(state="attached")
    return host


def hover(page: Page, host: Locator, series: str, at: int) -> None:
    """Put the mouse on a point of a series, where the chart itself says that it is."""
    x, y = host.evaluate(
        """(host, [name, at]) => {
            const { chart, plot } = MOUNTED.get(host);
            const option = chart.getOption();
            const index = option.series.findIndex((each) => each.name === name && each.type === "line");
            const pixel = chart.convertToPixel({ seriesIndex: index }, option.series[index].data[at].slice(0, 2));
            scrollBy({ top: plot.getBoundingClientRect().y + pixel[1] - innerHeight / 2, behavior: "instant" });
            const box = plot.getBoundingClientRect();
            return [box.x + pixel[0], box.y + pixel[1]];
        }""",
        [series, at],
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)


def shapes(host: Locator) -> int:
    """How many shapes are drawn."""
    return int(host.evaluate("(host) => host.querySelectorAll('.plot svg path').length"))


def data(page: Page) -> Any:
    return page.evaluate("DATA")


@pytest.mark.parametrize("made", ["watched", "simulated", "hostile", "measured"])
def test_every_chart_is_drawn_without_network_or_complaint(open_page: Open, made: str) -> None:
    content = result_file.read(MEASURED) if made == "measured" else getattr(pages, made)()
    page = open_page(render(content, [pages.trend(20)]))
    hosts = page.locator("figure[data-chart]")
    assert hosts.count() >= 5
    page.get_by_role("button", name="Open all").click() if page.get_by_role("button", name="Open all").count() else None
    for at in range(hosts.count()):
        hosts.nth(at).scroll_into_view_if_needed()
        hosts.nth(at).locator(".plot svg path").first.wait_for(state="attached")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0


def test_charts_far_away_wait_until_they_come_near(open_page: Open) -> None:
    page = open_page(watched_page(), height=500)
    hosts = page.locator("figure[data-chart]").count()
    assert page.evaluate("MOUNTED.size") < hosts
    page.locator("footer").scroll_into_view_if_needed()
    page.wait_for_function("() => MOUNTED.has(hosts[hosts.length - 1])")


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_moves_when_a_chart_is_drawn(open_page: Open, width: int) -> None:
    """A chart that grew when it came near moved the page between the press and the release of a click."""
    page = open_page(watched_page(), width=width, height=500)
    tops = """() => [...document.querySelectorAll("figure[data-chart], details.numbers, footer")].map(
        (each) => Math.round(each.getBoundingClientRect().top + scrollY))"""
    page.evaluate("document.querySelectorAll('details.result').forEach((each) => { each.open = true; })")
    before = page.evaluate(tops)
    assert page.evaluate("MOUNTED.size < hosts.length")
    page.evaluate("hosts.forEach((host) => mount(host))")
    assert page.evaluate(tops) == before


def test_hovering_the_curve_names_the_phase_and_its_latency(open_page: Open) -> None:
    page = open_page(watched_page())
    host = chart(page, "curve")
    drawn = data(page)["results"][0]["curve"]
    series = drawn["series"][0]
    rate, _, phase = series["points"][1]
    hover(page, host, series["name"], 1)
    tip = host.locator(".tip")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    assert drawn["line"][phase][0] in text
    assert series["name"] in text
    assert f"{round(rate)} req/s" in text


def test_the_curve_names_its_limits(open_page: Open) -> None:
    page = open_page(watched_page())
    letters = chart(page, "curve").locator(".plot svg").text_content() or ""
    for words in ("p95 E2E limit 3 s", "p95 TTFT limit 500 ms", "design 1300", "sustains"):
        assert words in letters


def test_hovering_the_strips_shows_everything_at_one_time(open_page: Open) -> None:
    page = open_page(watched_page())
    host = chart(page, "strips")
    hover(page, host, "power", 3)
    tip = host.locator(".tip")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    for name in (
        "p95 E2E",
        "p95 TTFT",
        "in flight",
        "running",
        "KV cache used",
        "GPU utilisation",
        "SM clock",
        "power",
    ):
        assert name in text
    strips = {each["name"]: each for strip in data(page)["results"][0]["strips"]["strips"] for each in strip["series"]}
    assert f"{round(strips['power']['data'][3])} W" in text
    assert "1980 MHz" in text
    # Whatever the legend took away is not named.
    host.get_by_role("button", name="SM clock").click()
    hover(page, host, "power", 2)
    page.wait_for_function(
        "(host) => /MHz/.test(host.querySelector('.tip')?.innerText) === false", arg=host.element_handle()
    )


def test_the_legend_takes_a_series_away_and_brings_it_back(open_page: Open) -> None:
    page = open_page(watched_page())
    host = chart(page, "curve")
    button = host.get_by_role("button", name="p95 TTFT")
    before = shapes(host)
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert shapes(host) < before
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert shapes(host) == before


def test_distributions_change_with_the_metric_and_hide_most_phases_at_first(open_page: Open) -> None:
    page = open_page(watched_page())
    host = chart(page, "spread", 2)
    names = [each["name"] for each in data(page)["results"][2]["spread"]["ttft"]["series"]]
    pressed = host.locator(".legend button[aria-pressed=true]:not(.tab)")
    assert 0 < pressed.count() <= 4 < len(names)
    host.get_by_role("button", name=re.compile(r"\d+ more")).click()
    assert host.locator(".legend button:not(.tab)").count() == len(names)
    before = host.locator(".plot svg").inner_html()
    tab = host.get_by_role("button", name="TPOT", exact=True)
    tab.click()
    assert tab.get_attribute("aria-pressed") == "true"
    assert "TPOT, share" in host.locator(".plot svg").inner_html() != before


def luminance(page: Page, selector: str, what: str = "backgroundColor") -> float:
    """From 0, black, to 1, white."""
    red, green, blue = page.locator(selector).first.evaluate(
        """(element, what) => {
            const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            context.fillStyle = getComputedStyle(element)[what];
            context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        what,
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(open_page: Open, system: str) -> None:
    page = open_page(watched_page(), color_scheme=system)
    chart(page, "curve")
    text = 'figure[data-chart="curve"] .plot svg text'

    def dark() -> bool:
        ground, letters = luminance(page, "body"), luminance(page, text, "fill")
        assert abs(ground - letters) > 0.25  # a chart's letters are redrawn with the page
        return ground < 0.2

    button = page.get_by_role("button", name="Theme")
    assert dark() is (system == "dark")
    for theme in ("light", "dark"):
        button.click()
        assert button.inner_text() == f"Theme: {theme}"
        assert dark() is (theme == "dark")
    page.reload()
    assert dark()
    page.get_by_role("button", name="Theme").click()
    assert dark() is (system == "dark")


def test_the_keyboard_reaches_everything_and_reads_the_points(open_page: Open) -> None:
    page = open_page(watched_page())
    chart(page, "curve")
    reached = set()
    page.evaluate("scrollTo(0, 0)")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const at = document.activeElement;"
                " return at.id || at.getAttribute('aria-roledescription') || at.tagName; })()"
            )
        )
    assert {"print", "theme", "A", "SUMMARY", "BUTTON", "chart"} <= reached

    host = chart(page, "curve")
    plot = host.locator(".plot")
    plot.focus()
    said = page.locator("#said")
    page.keyboard.press("ArrowRight")
    first = said.inner_text()
    assert "p95 E2E" in first
    assert host.locator(".tip").is_visible()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() != first
    page.keyboard.press("Home")
    assert said.inner_text() == first
    # What the legend took away is not read.
    host.get_by_role("button", name="p95 E2E").click()
    plot.focus()
    page.keyboard.press("End")
    assert "p95 TTFT" in said.inner_text()
    page.keyboard.press("Escape")
    host.locator(".tip").wait_for(state="hidden")


def test_the_keyboard_reads_strips_and_distributions(open_page: Open) -> None:
    page = open_page(watched_page())
    for kind, word in (("strips", "KV cache used"), ("spread", "values"), ("trend", "req/s")):
        chart(page, kind).locator(".plot").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("PageDown")
        assert word in page.locator("#said").inner_text()


def test_a_link_unfolds_the_result_that_it_leads_to(open_page: Open) -> None:
    page = open_page(watched_page())
    folded = page.locator("details.result").nth(1)
    folded.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is None
    identity = folded.get_attribute("id")
    page.locator(f'a[href="#{identity}"]').click()
    page.wait_for_selector(f'details[id="{identity}"][open]')


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_scrolls_only_downwards(open_page: Open, width: int) -> None:
    page = open_page(render(pages.hostile(), [pages.trend(20)]), width=width, height=800, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.evaluate("hosts.forEach((host) => mount(host))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.plot svg')].map((each) => each.getBoundingClientRect().right)"
    assert max(page.evaluate(wide)) <= width
    # Large enough for a finger (WCAG 2.2, 2.5.8: 24 by 24).
    for box in page.evaluate("[...document.querySelectorAll('button')].map((b) => b.getBoundingClientRect().height)"):
        assert box >= 24 or box == 0


def test_turning_the_phone_redraws_the_charts(open_page: Open) -> None:
    page = open_page(watched_page(), width=400, height=800)
    host = chart(page, "strips")
    page.set_viewport_size({"width": 800, "height": 400})
    page.wait_for_function("(host) => MOUNTED.get(host).width > 600", arg=host.element_handle())
    page.wait_for_function(
        "(host) => host.querySelector('.plot svg').getBoundingClientRect().width > 600", arg=host.element_handle()
    )


def test_paper_has_everything_unfolded_drawn_and_light(open_page: Open) -> None:
    page = open_page(render(pages.watched(), [pages.trend(100)]), color_scheme="dark", height=500)
    page.locator("details.result > summary").nth(2).click()
    hosts = page.locator("figure[data-chart]").count()
    assert page.evaluate("MOUNTED.size") < hosts
    page.evaluate(
        """() => {
            window.printed = [];
            addEventListener("beforeprint", () => printed.push(
                document.querySelectorAll("details.result:not([open])").length,
                MOUNTED.size,
                Math.max(...[...MOUNTED.values()].map((frame) => frame.width)),
            ));
        }"""
    )
    paper = page.pdf()
    assert paper.startswith(b"%PDF-")
    # Vectors and letters, not pictures of them.
    assert b"/Subtype /Image" not in paper
    folded, mounted, width = page.evaluate("printed")
    assert (folded, mounted, width) == (0, hosts, 650)
    assert page.locator("details.result").nth(2).get_attribute("open") is None
    page.emulate_media(media="print")
    assert luminance(page, "body") > 0.95
    assert luminance(page, 'figure[data-chart="trend"] .plot svg text', "fill") < 0.5
    assert not page.locator("#theme").is_visible()
    # A sheet of A4 between its margins, in CSS pixels: nothing hangs over the edge.
    page.set_viewport_size({"width": 688, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    edges = (
        "[...document.querySelectorAll('.verdicts, .plot svg, dl, pre')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(page.evaluate(edges)) <= 688
    # Nor is a chart higher than the sheet, which would cut it.
    heights = "[...document.querySelectorAll('figure[data-chart]')].map((e) => e.getBoundingClientRect().height)"
    assert max(page.evaluate(heights)) <= 1016
    # Every result says where it was measured, and what a finger would move is gone.
    assert page.locator("details.asked:not([open])").count() == 0
    assert page.evaluate("[...MOUNTED.values()].every((frame) => !frame.chart.getOption().dataZoom?.length)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.asked[open]").count() == 0
    assert page.evaluate("[...MOUNTED.values()].some((frame) => frame.chart.getOption().dataZoom?.length)")


def test_a_thousand_runs_can_be_read_and_zoomed(open_page: Open) -> None:
    page = open_page(render(pages.watched(), [pages.trend(1000)]))
    host = chart(page, "trend")
    drawn = data(page)["trends"][0]
    plot = host.locator(".plot")
    plot.focus()
    page.keyboard.press("End")
    assert f"{round(drawn['value'][-1])} req/s" in page.locator("#said").inner_text()
    assert "vLLM 0.27.0" in page.locator("#said").inner_text()
    hover(page, host, "sustainable rate", 500)
    host.locator(".tip").wait_for(state="visible")
    # The whole span, then half of it by dragging the slider's handle.
    box = plot.bounding_box()
    assert box is not None
    span = "(host) => MOUNTED.get(host).chart.getOption().dataZoom[1].end"
    assert host.evaluate(span) == 100
    right, level = box["x"] + box["width"] - 18, box["y"] + box["height"] - 19
    page.mouse.move(right, level)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, level, steps=5)
    page.mouse.up()
    assert 40 < host.evaluate(span) < 60
    before = shapes(host)
    host.get_by_role("button", name="interval").click()
    assert shapes(host) < before


def test_numbers_of_a_chart_become_a_table_when_asked_for(open_page: Open) -> None:
    page = open_page(watched_page())
    assert page.locator("figure ~ details.numbers table").count() == 3  # measuring windows are there from the start
    for kind, at in (("strips", 0), ("spread", 0), ("trend", 0)):
        details = page.locator(f'details[data-table="{kind}"]').nth(at)
        details.locator("summary").click()
        tables = details.locator("table")
        tables.first.wait_for()
        for number in range(tables.count()):
            table = tables.nth(number)
            assert table.locator("caption").inner_text()
            columns = table.locator("thead th[scope=col]").count()
            assert columns > 2
            assert table.locator("tbody tr").first.locator("th[scope=row], td").count() == columns
    strips = data(page)["results"][0]["strips"]
    telemetry = page.locator('details[data-table="strips"]').first.locator("table").nth(1)
    assert telemetry.locator("tbody tr").count() == len(strips["t"])


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_accessibility_checker_finds_nothing(open_page: Open, system: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    content = pages.watched()
    checks = tuple(result for result in content.results if result.kind is ResultKind.CHECK)
    shown = msgspec.structs.replace(content, results=checks)
    page = open_page(render(shown, [pages.trend(8)]), color_scheme=system)
    page.evaluate(
        "document.querySelectorAll('details:not([data-table=spread])').forEach((each) => { each.open = true; })"
    )
    page.evaluate("hosts.forEach((host) => mount(host))")
    page.locator('details[data-table="strips"] table').first.wait_for()
    found = axe.Axe().run(
        page, options={"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "wcag22aa", "best-practice"]}
    )
    told = [
        (each["id"], each["help"], [node["html"][:200] for node in each["nodes"][:3]])
        for each in found.response["violations"]
    ]
    assert told == []
