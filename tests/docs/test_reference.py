"""The pages of the reference are what the code gives, and miss nothing that is public."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import pytest_gpucap
from docs import docstrings, make_api, make_fixtures, make_hook_reference, make_markers
from pytest_gpucap import hookspecs, plugin
from pytest_gpucap.cli import COMMANDS
from pytest_gpucap.markers.keywords import KEYWORDS, USUAL_DOCUMENTS
from pytest_gpucap.requirement import GOODPUT, Metric, RequirementError, declared_limits
from pytest_gpucap.results.measured import Latency, Measurement, Outcome, Verdict
from tests.docs.blocks import REPOSITORY

DOCS = REPOSITORY / "docs"
MAKERS = sorted(path.stem for path in DOCS.glob("make_*.py") if path.stem != "make_installing")
"""Scripts that write one page each, or a picture; how to install stands in many."""


def _page(maker: str) -> Path:
    name = maker.removeprefix("make_").replace("_", "-")
    return next(path for path in (DOCS / f"{name}.md", DOCS / f"{name}.svg") if path.exists())


def _drawn_by_another(page: Path) -> bool:
    """Whether it is a picture of a matplotlib that is not the one here: another draws other letters."""
    by = re.search(r"Matplotlib v([\d.]+\d)", page.read_text(encoding="utf-8")) if page.suffix == ".svg" else None
    return by is not None and (find_spec("matplotlib") is None or by[1] != version("matplotlib"))


@pytest.mark.parametrize("maker", MAKERS)
def test_the_page_is_current(maker: str) -> None:
    if _drawn_by_another(_page(maker)):
        pytest.skip("the picture is by the matplotlib of requirements/dev.txt")
    page: Callable[[], str] = import_module(f"docs.{maker}").page
    assert _page(maker).read_text(encoding="utf-8") == page(), (
        f"run: PYTHONPATH=. python docs/{maker}.py (or make pages)"
    )


def test_there_are_pages() -> None:
    pages = ("api", "commands", "fixtures", "hook_reference", "markers", "operating_characteristic", "options")
    assert {f"make_{page}" for page in pages} <= set(MAKERS)


def test_every_public_name_has_its_section() -> None:
    headings = re.findall(r"^### (\w+)$", _page("make_api").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(pytest_gpucap.__all__)


def _set_in(method: ast.AST) -> set[str]:
    """Public attributes of ``self`` that a method sets."""
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and not node.attr.startswith("_")
    }


@pytest.mark.parametrize("name", pytest_gpucap.__all__)
def test_every_attribute_of_a_public_class_says_what_it_is(name: str) -> None:
    found = getattr(pytest_gpucap, name)
    if not inspect.isclass(found) or issubclass(found, Enum):
        return
    shown = {each.name: each.about for each in docstrings.attributes(found)}
    assert [each for each, about in shown.items() if not about] == []
    constructor = vars(found).get("__init__")
    if inspect.isfunction(constructor) and constructor.__code__.co_filename == inspect.getsourcefile(found):
        assert _set_in(ast.parse(textwrap.dedent(inspect.getsource(constructor)))) <= shown.keys()


def test_a_public_name_without_a_part_of_the_page_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_api, "GROUPS", {"Some": ("requirement",)})
    with pytest.raises(LookupError, match=r"has no part for .*Verdict"):
        list(make_api.names())


def test_the_keywords_are_those_that_the_marker_takes() -> None:
    shown = {name for group in make_markers.GROUPS.values() for name in group}
    limits = {name for name in shown if re.fullmatch(rf"({'|'.join(Metric)})(_p\d+)?", name)}
    assert shown - limits - {GOODPUT} == set(KEYWORDS)
    assert {name.partition("_")[0] for name in limits} == set(Metric)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        (name, example)
        for group in make_markers.GROUPS.values()
        for name, argument in group.items()
        for example in argument.examples
    ],
)
def test_an_example_of_a_value_is_one(name: str, example: object) -> None:
    if name in KEYWORDS:
        KEYWORDS[name](example, name)
        with pytest.raises(RequirementError):  # so that the reader of this keyword does read
            KEYWORDS[name](object(), name)
    else:
        thresholds = {"goodput": "95%", "ttft": "1s"} if name in {GOODPUT, *Metric} else {}
        assert declared_limits({**thresholds, name: example})  # type: ignore[dict-item]  # whatever a marker may hold


def test_the_default_of_documents_is_the_documented_one() -> None:
    assert make_markers.REQUESTS["documents"].otherwise == str(USUAL_DOCUMENTS)


def test_every_fixture_command_marker_and_hook_is_there() -> None:
    assert set(make_fixtures.GIVES) == plugin.FIXTURES
    assert [f"## gpucap {name}" for name in COMMANDS] == re.findall(
        "^## .*", _page("make_commands").read_text(), re.MULTILINE
    )
    specified = {name for name in vars(hookspecs) if name.startswith("pytest_gpucap_")}
    assert specified == set(re.findall(r"^## (\w+)", make_hook_reference.page(), re.MULTILINE))
    kinds = {marker.partition("(")[0] for marker in plugin.MARKERS}
    assert kinds == set(re.findall(r"^## (\w+)", make_markers.page(), re.MULTILINE))


def test_every_exit_code_of_pytest_is_there() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    shown = {name: int(code) for code, name in re.findall(r"^\| (\d) \| `(\w+)`", page, re.MULTILINE)}
    assert shown.items() >= {code.name: int(code) for code in pytest.ExitCode}.items()  # older ones lack the last


def test_fields_have_their_types_units_and_texts() -> None:
    by_name = {each.name: each for each in docstrings.attributes(Measurement)}
    assert by_name["at_least_rps"].kind == "float | None"
    assert by_name["at_least_rps"].default == "None"
    assert by_name["spent_s"].default == "dict()"
    assert by_name["binding"].about.startswith("which limit binds")
    assert {each.name: docstrings.unit(each.name) for each in docstrings.attributes(Latency)}["p95_s"] == "s"
    assert docstrings.unit("output_tokens_per_s") == "tokens/s"
    assert {name: about for name, _, about in docstrings.members(Outcome)}["INVALID"].startswith("The measurement")
    assert "measurement" in {each.name for each in docstrings.attributes(Verdict)}


def test_code_stays_code_and_nothing_is_html() -> None:
    assert docstrings.markdown("``a < b`` and\n    c < d * 2") == "`a < b` and c &lt; d \\* 2"
