"""A release: what stops it, how it is built, and how documents say that the package is installed."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("hatchling")  # hatch_build.py is a part of it

REPOSITORY = Path(__file__).parents[2]
release = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "requirements" / "release.py"), run_name="release"))
installing = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "docs" / "make_installing.py"), run_name="installing"))
hatch_build = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "hatch_build.py"), run_name="hatch_build"))

CHANGELOG = """\
# Changelog

## [Unreleased]

## [1.2.3] - 2026-01-31

### Added

- A thing.

## [1.2.2] - 2026-01-01

- Old.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that is ready for the release of 1.2.3."""
    package = tmp_path / "pytest_gpucap"
    package.mkdir()
    (package / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (package / "installing.py").write_text("PUBLISHED: Final = True\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_the_notes_of_a_release_are_its_section(project: Path) -> None:
    assert release.check_version(project, "v1.2.3") == "1.2.3"
    assert release.changelog_of(project, "1.2.3") == "### Added\n\n- A thing.\n"


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("CHANGELOG.md", "[1.2.3] - 20", "[1.2.4] - 20", "there is no section [1.2.3]: rename [Unreleased]"),
        ("CHANGELOG.md", "[1.2.3] - 2026-01-31", "[1.2.3]", "write the date behind [1.2.3]"),
        ("CHANGELOG.md", "### Added\n\n- A thing.\n", "", "the section [1.2.3] is empty"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- Later.\n", "[Unreleased] is not empty: move it into"),
        ("CITATION.cff", "1.2.3", "1.2.2", "CITATION.cff: version must be 1.2.3"),
        ("pytest_gpucap/__init__.py", "1.2.3", "1.3.0", "the tag is v1.2.3, and pytest_gpucap/__init__.py has 1.3.0"),
        ("pytest_gpucap/__init__.py", "__version__", "version", "there is no __version__"),
        ("pytest_gpucap/installing.py", "True", "False", "set PUBLISHED = True"),
    ],
)
def test_what_stops_a_release_is_said_in_one_line(project: Path, name: str, before: str, after: str, said: str) -> None:
    text = (project / name).read_text()
    assert before in text
    (project / name).write_text(text.replace(before, after))
    with pytest.raises(release.ReleaseError) as caught:
        release.check("v1.2.3", "https://example.org/x", project / "out", project)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("url", "tag", "said"),
    [
        (
            release.NOWHERE,
            "v1.2.3",
            "PROJECT_URL is not set, and the links of the package would lead to the placeholder",
        ),
        ("github.com/team/it", "v1.2.3", "PROJECT_URL: 'github.com/team/it' is no address of a project"),
        ("https://", None, "PROJECT_URL: 'https://' is no address of a project"),
        ("https://example.org/a b", None, "is no address of a project: write it as https://github.com/OWNER/"),
    ],
)
def test_a_release_whose_links_lead_nowhere_is_refused(project: Path, url: str, tag: str | None, said: str) -> None:
    with pytest.raises(release.ReleaseError, match=re.escape(said)) as caught:
        release.check(tag, url, project / "out", project)
    assert "\n" not in str(caught.value)
    assert not (project / "out").exists()


def test_the_command_takes_no_placeholder_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PROJECT_URL", raising=False)
    version = release.version_of(REPOSITORY)
    assert release.main(["check", "--tag", f"v{version}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("release: PROJECT_URL is not set")
    assert f"make release-check TAG=v{version}" in said
    assert said.count("\n") == 1
    # A dry run goes on, and says it.
    release.check_url(release.NOWHERE, None)
    assert capsys.readouterr().out.startswith("dry run: PROJECT_URL is not set")


def test_links_of_the_readme_are_whole_in_a_wheel() -> None:
    text = (
        "See [options](docs/options.md#a), [![badge](docs/images/a.png)](docs/b.md), [there](https://example.com/x),\n"
        "[here](#below) and `a[0](b)`:\n```console\n$ echo [no](link)\n```\n![picture](./docs/images/c.png)\n"
    )
    url = "https://example.org/team/it"
    expected = (
        f"See [options]({url}/blob/v1.2.3/docs/options.md#a), "
        f"[![badge]({url}/raw/v1.2.3/docs/images/a.png)]({url}/blob/v1.2.3/docs/b.md), [there](https://example.com/x),\n"
        "[here](#below) and `a[0](b)`:\n```console\n$ echo [no](link)\n```\n"
        f"![picture]({url}/raw/v1.2.3/docs/images/c.png)\n"
    )
    assert hatch_build.whole_links(text, f"{url}/", "1.2.3") == expected


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("build", "twine", "check_wheel_contents", "validate_pyproject")),
    reason="needs the tools of requirements/dev.txt",
)
def test_the_dry_run_builds_the_same_files_twice(tmp_path: Path) -> None:
    out = tmp_path / "release"
    words = ["check", "--out", str(out), "--url", "https://example.org/team/it"]
    command = [sys.executable, str(REPOSITORY / "requirements" / "release.py"), *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ", the same in two builds" in ran.stdout
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        said = archive.read(name).decode()
    assert "](https://example.org/team/it/blob/v" in said
    assert "](docs/" not in said
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {name for name in names if not name.startswith("pytest_gpucap/")} == {
        *("CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "SECURITY.md"),
        *("hatch_build.py", "pyproject.toml", ".gitignore"),
    }
    beside = tmp_path / "release-beside"
    lines = (beside / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    assert set(sums) == {wheel.name, sdist.name}
    (bill,) = beside.glob("*.cdx.json")
    content: dict[str, Any] = json.loads(bill.read_text())
    assert content["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": sums[wheel.name]}]
    found = {each["name"]: each for each in content["components"]}
    assert found["echarts"]["version"]
    assert found["numpy"]["scope"] == "required"
    assert found["jinja2"]["scope"] == "optional"
    refs = [each["bom-ref"] for each in content["components"]]
    assert len(refs) == len(set(refs))
    assert content["dependencies"][0]["dependsOn"] == refs


def test_documents_say_how_the_package_is_installed_as_one_setting_says() -> None:
    wrong = [
        page.relative_to(REPOSITORY)
        for page in installing.pages()
        if installing.written(page.read_text()) != page.read_text()
    ]
    assert wrong == [], "run: python docs/make_installing.py"


def test_the_setting_switches_every_command_and_back() -> None:
    """Whichever it is now: the tests hold for the commit of the first release too."""
    pages = [page.read_text() for page in installing.pages()]
    unpublished = [installing.written(text, published=False) for text in pages]
    published = [installing.written(text, published=True) for text in unpublished]
    assert not [text for text in published if re.search(r"(?<!\.)\./pytest-gpucap", text)]
    assert sum('pip install "pytest-gpucap[' in text for text in published) >= 5
    assert [installing.written(text, published=False) for text in published] == unpublished
    assert pages == (published if installing.PUBLISHED else unpublished)


def test_the_setting_is_that_of_the_checkout_not_of_what_is_installed(tmp_path: Path) -> None:
    for name in ("docs/make_installing.py", "docs/installing.md", "docs/tutorial.md", "pytest_gpucap/installing.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    setting = tmp_path / "pytest_gpucap" / "installing.py"
    now, other = ("True", "False") if installing.PUBLISHED else ("False", "True")
    setting.write_text(setting.read_text().replace(f"PUBLISHED: Final = {now}", f"PUBLISHED: Final = {other}"))
    subprocess.run([sys.executable, str(tmp_path / "docs" / "make_installing.py")], cwd=tmp_path, check=True)
    for page in ("installing.md", "tutorial.md"):
        text = (REPOSITORY / "docs" / page).read_text()
        assert (tmp_path / "docs" / page).read_text() == installing.written(text, published=other == "True") != text


def test_every_extra_is_explained_where_it_is_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    table = (REPOSITORY / "docs" / "installing.md").read_text().partition("| extra |")[2]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(project["optional-dependencies"])


def test_nothing_names_the_index_where_the_package_is_not_on_it() -> None:
    """In the package itself: its messages take the command from one place."""
    own = REPOSITORY / "pytest_gpucap"
    found = [
        path.name for path in own.rglob("*.py") if "pip install pytest-gpucap" in path.read_text().replace('"', "")
    ]
    assert found == []
