"""The pictures of the docs, made anew from measured results; `make images` keeps what comes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("playwright")

from pytest_gpucap.report.html import render
from pytest_gpucap.results import result_file
from tests.report import pages
from tests.report.conftest import Open

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
MOST_BYTES = 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the pictures go: into the docs when asked for, elsewhere they are only made."""
    wanted = os.environ.get("GPUCAP_TEST_IMAGES")
    return REPOSITORY / wanted if wanted else tmp_path


def keep(page: Page, path: Path, box: dict[str, float] | None = None) -> None:
    """One picture; small enough for a repository."""
    page.screenshot(path=path, clip=box, full_page=True)  # type: ignore[arg-type]
    assert 10_000 < path.stat().st_size < MOST_BYTES


def draw_all(page: Page) -> None:
    page.evaluate("hosts.forEach((host) => mount(host))")
    page.wait_for_function("() => hosts.every((host) => host.querySelector('.plot svg path'))")


def test_a_failed_budget_on_a_gpu(open_page: Open, folder: Path) -> None:
    content = result_file.read(RESULTS / "h200-x2" / "budgets.json")
    page = open_page(render(content), width=1160, height=900, device_scale_factor=1.25)
    draw_all(page)
    end = page.locator('figure[data-chart="curve"]').first.evaluate(
        "(host) => host.getBoundingClientRect().bottom + scrollY"
    )
    keep(page, folder / "report.png", {"x": 0, "y": 0, "width": 1160, "height": end + 16})


def test_a_measurement_over_time_in_the_dark(open_page: Open, folder: Path) -> None:
    content = result_file.read(RESULTS / "h200-x2" / "budgets.json")
    page = open_page(render(content), width=1160, height=900, color_scheme="dark", device_scale_factor=1.25)
    draw_all(page)
    top, bottom = page.locator("#result-3").evaluate(
        """(card) => {
            const heading = card.querySelector('figure[data-chart="strips"]').previousElementSibling;
            const last = card.querySelector('figure[data-chart="spread"]');
            return [heading.getBoundingClientRect().top + scrollY, last.getBoundingClientRect().bottom + scrollY];
        }"""
    )
    keep(page, folder / "report-dark.png", {"x": 0, "y": top - 10, "width": 1160, "height": bottom - top + 20})


def test_a_thousand_nights(open_page: Open, folder: Path) -> None:
    page = open_page(render(pages.simulated(), [pages.trend(1000)]), width=1160, height=900, device_scale_factor=1.25)
    draw_all(page)
    box = page.locator("article.card").first.bounding_box()
    assert box is not None
    keep(page, folder / "report-history.png", {**box})  # type: ignore[dict-item]


def test_a_phone(open_page: Open, folder: Path) -> None:
    content = result_file.read(RESULTS / "h200-x2" / "budgets.json")
    page = open_page(render(content), width=390, height=844, device_scale_factor=1.5)
    draw_all(page)
    keep(page, folder / "report-phone.png", {"x": 0, "y": 0, "width": 390, "height": 1240})
