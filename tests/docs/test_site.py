"""The site: its build is strict, its links hold, it needs no other host, and it shows what the Markdown says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from docs import build_site
from tests.docs.blocks import REPOSITORY
from tests.report import gfm

if TYPE_CHECKING:  # a development tool that the oldest pytest here is tested without
    from playwright.sync_api import Browser

pytest.importorskip("zensical")

PARTS = ["Start", "Tutorial", "How-to", "Reference", "Explanation"]
COUNTED = frozenset(
    {"blockquote", "code", "em", "h1", "h2", "h3", "h4", "li", "ol", "pre", "strong", "table", "tr", "ul"}
)
FETCHED = {
    "audio": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
    "video": "src",
}


@dataclass
class Page(HTMLParser):
    """What a page of the site holds.

    Attributes:
        links: of anchors.
        fetched: what a browser asks for to show it.
        ids: of elements.
        elements: of its article, by tag.
        mermaid: it has a diagram, for which the theme would load a script from elsewhere.
    """

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    elements: Counter[str] = field(default_factory=Counter)
    mermaid: bool = False
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given:
            self.fetched.append(given[FETCHED[tag]])
        self.mermaid |= "mermaid" in given.get("class", "").split()
        self.inside |= tag == "article"
        if self.inside and tag in COUNTED:
            self.elements[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "article"


def _read(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: _read(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def _place(name: str) -> Path:
    """Where a Markdown file of the repository stands in the site."""
    path = Path(name)
    return path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")


def test_every_page_is_in_one_of_the_four_parts() -> None:
    nav = tomllib.loads(build_site.CONFIG.read_text())["project"]["nav"]
    assert [next(iter(entry)) for entry in nav] == PARTS
    named = build_site.navigation()
    assert [name for name, count in Counter(named).items() if count > 1] == []
    assert {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")} - set(named) == set()


def test_the_site_has_every_page_of_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    missing = [name for name in build_site.navigation() if site / _place(name) not in pages]
    assert missing == []
    start = {link.removeprefix("./") for link in pages[site / "index.html"].links}
    assert {_place(name).as_posix() for name in build_site.navigation()} <= start


def test_every_link_leads_to_a_page_and_an_anchor(site: Path, pages: dict[Path, Page]) -> None:
    broken, checked = [], 0
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = target in pages and unquote(parts.fragment) in {"", "__tabbed_1", *pages[target].ids}
            checked += 1
            if not target.is_file() or (target in pages and not known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert checked > 5000


def test_no_page_asks_another_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert [each for each in page.fetched if urlsplit(each).netloc] == [], path
        assert not page.mermaid, path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"""(?:@import\s*|url\(\s*)["']?(?:https?:)?//[^"')]*""", text) == [], path


def test_the_search_knows_every_page_without_a_server(site: Path) -> None:
    """The index is a script too, since a browser lets no page that it opened from a folder read other files."""
    found: dict[str, Any] = json.loads((site / "search.json").read_text(encoding="utf-8"))
    indexed = {item["location"].partition("#")[0] for item in found["items"]}
    assert {_place(name).as_posix() for name in build_site.navigation()} <= indexed
    assert (site / "search.js").stat().st_size > 10_000


@pytest.mark.parametrize("name", sorted({*build_site.navigation()} - {"docs/architecture.md"}))
def test_a_page_has_the_same_elements_as_on_a_repository_host(site: Path, pages: dict[Path, Page], name: str) -> None:
    """Python-Markdown wants four spaces where GitHub takes two, and blank lines where it takes none."""
    host = _read(f"<article>{gfm.rendered((REPOSITORY / name).read_text())}</article>")
    assert pages[site / _place(name)].elements == host.elements


def test_the_diagram_is_a_table(site: Path) -> None:
    text = (site / "docs" / "architecture.html").read_text(encoding="utf-8")
    assert "flowchart" not in text
    assert re.search(
        r"<td><strong>measure</strong></td>\s*<td>the procedure</td>\s*<td>session, plugin, fixtures</td>", text
    )
    with pytest.raises(ValueError, match="has lines that"):
        build_site._diagram('flowchart BT\n  a["A<br/>first"]\n  a ==> b\n')


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one page, and its folder for the site."""
    (tmp_path / "docs").mkdir()
    config = tmp_path / "docs" / "zensical.toml"
    shown = build_site.CONFIG.read_text(encoding="utf-8")
    config.write_text(re.sub(r"^nav = \[.*?^\]$", 'nav = ["README.md"]', shown, flags=re.MULTILINE | re.DOTALL))
    monkeypatch.setattr(build_site, "REPOSITORY", tmp_path)
    monkeypatch.setattr(build_site, "CONFIG", config)
    return tmp_path


def test_links_to_files_and_folders_lead_to_their_pages(small: Path) -> None:
    (small / "code").mkdir()
    (small / "code" / "job.sh").write_text("echo '```'\n")
    (small / "README.md").write_text(
        "# Start\n\n[folder](code), [script](code/job.sh)\n\n```text\n[not](a/link)\n```\n"
    )
    build_site.gather(small / "site")
    assert "[folder](code/README.md), [script](code/job.sh.md)" in (small / "site" / "README.md").read_text()
    assert (small / "site" / "code" / "README.md").read_text() == "# code\n\n- [job.sh](job.sh.md)\n"
    assert (small / "site" / "code" / "job.sh.md").read_text() == "# code/job.sh\n\n````bash\necho '```'\n````\n"


@pytest.mark.parametrize(("link", "error"), [("no.md", FileNotFoundError), ("#no", subprocess.CalledProcessError)])
def test_a_broken_link_ends_the_build(small: Path, link: str, error: type[Exception]) -> None:
    (small / "README.md").write_text(f"# Start\n\n[there]({link})\n")
    with pytest.raises(error):
        build_site.build(small / "site")
    shutil.rmtree(small / "site", ignore_errors=True)


@pytest.mark.browser
def test_a_page_opened_from_a_folder_searches_and_has_dark_colours(site: Path, chromium: Browser) -> None:
    context = chromium.new_context(color_scheme="light")
    context.set_default_timeout(600_000)  # ms: a busy machine takes long
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "docs" / "markers.html").as_uri())
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("light => getComputedStyle(document.body).backgroundColor !== light", arg=light)
    page.get_by_role("button", name="Search").first.click()
    page.keyboard.type("goodput")
    page.locator("a[href*='statistics.html']:visible", has_text="Goodput").first.wait_for()
    assert [url for url in asked if urlsplit(url).scheme not in {"file", "blob", "data", "about"}] == []
    context.close()
