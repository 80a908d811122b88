"""Builds the site from the Markdown of the repository: ``python docs/build_site.py [FOLDER]``.

The pages are written for a repository host, and link to whatever is in the repository. So every file that a page links
to is gathered, with the pages that it links to in turn. Source files and folders become pages of their own. The links
of the pages are then the same as on the host, and Zensical's strict build checks each of them. The site asks no other
host for anything, and works when it is opened from a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = Path(__file__).with_name("zensical.toml")
_SHIM: Final = REPOSITORY / "docs" / "vendor" / "iframe-worker" / "shim.js"
"""Lets the search run in a page that was opened from a folder, where browsers start no worker (version 1.0.4, MIT)."""
_SHIM_ELSEWHERE: Final = "https://unpkg.com/iframe-worker/shim"
"""Where Zensical's pages would fetch it."""
_LINK: Final = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_IMAGE: Final = re.compile(r'(?<=src=")(?!\w+:)([^"]+)')
_FENCED: Final = re.compile(r"^( *)(```+)(\w*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_SHOWN_AS: Final[Mapping[str, str]] = {
    ".cfg": "ini",
    ".py": "python",
    ".sbatch": "bash",
    ".sh": "bash",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}
"""Suffix of a source file that becomes a page -> its language."""
_LONGEST_SHOWN: Final = 200_000
"""Bytes of a file that becomes a page; a longer one is copied as it is."""


def nav_pages(entry: Any) -> Iterator[str]:
    """The files that a navigation names, in its order."""
    if isinstance(entry, str):
        yield entry
    else:
        for each in entry.values() if isinstance(entry, Mapping) else entry:
            yield from nav_pages(each)


def navigation() -> list[str]:
    """The files of the site's navigation, relative to the repository."""
    return list(nav_pages(tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]["nav"]))


def gather(folder: Path) -> None:
    """Write the pages of the navigation into a folder, and whatever they link to.

    Raises:
        FileNotFoundError: if a page links to what is not there.
    """
    left, seen = [REPOSITORY / name for name in navigation()], set[Path]()
    while left:
        source = left.pop()
        if source in seen:
            continue
        seen.add(source)
        text, linked = _content(source)
        left += linked
        target = folder / _page_of(source).relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            shutil.copyfile(source, target)
        else:
            target.write_text(text, encoding="utf-8")


def _content(source: Path) -> tuple[str | None, list[Path]]:
    """The page of a file or folder, and what it links to; None for a file that is copied as it is."""
    if source.is_dir():
        return _listing(source)
    if source.suffix == ".md":
        return _with_links(source)
    if _is_shown(source):
        code = source.read_text(encoding="utf-8").rstrip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
        name = source.relative_to(REPOSITORY)
        return f"# {name}\n\n{fence}{_SHOWN_AS[source.suffix]}\n{code}\n{fence}\n", []
    return None, []


def _is_shown(source: Path) -> bool:
    return source.suffix in _SHOWN_AS and source.stat().st_size <= _LONGEST_SHOWN


def _page_of(source: Path) -> Path:
    """Where the page of a file or folder stands."""
    if source.is_dir():
        return source / "README.md"
    return source.with_name(f"{source.name}.md") if source.suffix != ".md" and _is_shown(source) else source


def _listing(source: Path) -> tuple[str, list[Path]]:
    """The page of a folder: its own README, or the names of what is in it."""
    if (readme := source / "README.md").is_file():
        return _with_links(readme)
    inside = [each for each in sorted(source.iterdir()) if not each.name.startswith((".", "__"))]
    rows = "".join(f"- [{each.name}]({_page_of(each).relative_to(source)})\n" for each in inside)
    return f"# {source.relative_to(REPOSITORY)}\n\n{rows}", inside


def _with_links(source: Path) -> tuple[str, list[Path]]:
    """A page whose links to source files and folders lead to their pages, and what it links to."""
    linked: list[Path] = []

    def page_link(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[1]))
        if not target.exists():
            raise FileNotFoundError(f"{source.relative_to(REPOSITORY)} links to {match[1]}, which is not there")
        linked.append(target)
        return os.path.relpath(_page_of(target), source.parent)

    parts, end = [], 0
    text = source.read_text(encoding="utf-8")
    for fenced in [*_FENCED.finditer(text), None]:
        prose = text[end : fenced.start() if fenced else None]
        parts.append(_IMAGE.sub(page_link, _LINK.sub(page_link, prose)))
        if fenced:
            parts.append(_diagram(fenced[4]) if fenced[3] == "mermaid" else fenced[0])
            end = fenced.end()
    return "".join(parts), linked


def _diagram(mermaid: str) -> str:
    """A flowchart as a table. Mermaid itself would be a script of several megabytes from another host."""
    titles = dict(re.findall(r'^ *(\w+)\["(.*)"\]$', mermaid, re.MULTILINE))
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", mermaid, re.MULTILINE)
    if len(titles) + len(arrows) + 1 != len(mermaid.strip().splitlines()):
        raise ValueError(
            'a diagram has lines that docs/build_site.py does not read: nodes are ID["..."], arrows A --> B'
        )
    rows = []
    for name, title in titles.items():
        shown, _, about = title.partition("<br/>")
        into = ", ".join(titles[end].partition("<br/>")[0] for start, end in arrows if start == name)
        rows.append(f"| **{shown}** | {about} | {into} |\n")
    return f"| | | arrows to |\n| --- | --- | --- |\n{''.join(rows)}"


def build(folder: Path) -> Path:
    """Build the site into a folder, which is emptied first.

    Returns:
        The folder of the site itself.

    Raises:
        subprocess.CalledProcessError: if Zensical warns of anything, such as a link that leads nowhere.
    """
    for made in ("pages", "html", ".cache"):
        shutil.rmtree(folder / made, ignore_errors=True)
    gather(folder / "pages")
    shutil.copyfile(CONFIG, folder / CONFIG.name)
    zensical = Path(sys.executable).with_name("zensical")
    subprocess.run([zensical, "build", "--strict", "--config-file", CONFIG.name], cwd=folder, check=True)
    site = folder / "html"
    shim = site / "assets" / "javascripts" / "iframe-worker.js"
    shutil.copyfile(_SHIM, shim)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(_SHIM_ELSEWHERE, os.path.relpath(shim, page.parent)), encoding="utf-8")
    return site


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "build" / "site"
    print(f"the site is in {build(given) / 'index.html'}")  # noqa: T201 - a command
