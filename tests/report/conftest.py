"""A real headless Chromium, cut off from any network, for the tests of the HTML report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # a development tool that the oldest pytest here is tested without
    from playwright.sync_api import Browser, Dialog, Page

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium(own: str) -> str | None:
    """The one that is named, one on PATH, or the one that Playwright installed for itself."""
    named = os.environ.get("GPUCAP_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None) or (own if Path(own).exists() else None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Started once a module: while it is open, Playwright's event loop runs, and nobody else's can."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright drives the browser: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        path = find_chromium(driver.chromium.executable_path)
        if path is None:
            pytest.skip("no Chromium: `make browser` installs one, GPUCAP_TEST_CHROMIUM names another")
        # Its own sandbox needs rights that containers do not give; the page is ours.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=0)
        yield browser
        browser.close()


def dismissed(dialog: Dialog, heard: list[str]) -> None:
    """No dialog of ours exists: one that opens was somebody else's script."""
    heard.append(f"dialog: {dialog.message}")
    dialog.dismiss()


Open = Callable[..., "Page"]


@pytest.fixture
def open_page(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a page's text from a file; at the end it must have fetched nothing and complained of nothing."""
    heard: list[str] = []
    contexts = []

    def opened(text: str, *, width: int = 1200, height: int = 900, **settings: Any) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        context.set_offline(True)
        context.set_default_timeout(600_000)  # ms: a busy machine takes long, and what never comes is named here
        page = context.new_page()
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(text, encoding="utf-8")
        page.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: dismissed(dialog, heard))
        page.on(
            "request", lambda request: heard.append(f"request: {request.url}") if request.url != file.as_uri() else None
        )
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not heard
