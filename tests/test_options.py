"""Options are stated once: parser, ini keys, attributes and documentation follow from the rows."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_gpucap.gpu.occupancy import IdleMemory
from pytest_gpucap.options import Option, Options, all_options

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("row", list(all_options()), ids=lambda row: row.flag)
def test_an_ini_key_and_an_attribute_are_named_as_the_option(row: Option[Any]) -> None:
    assert row.flag.startswith("--gpu") or row.flag == "--target-qps"
    assert row.ini == f"gpucap_{row.name.removesuffix('_s')}"
    assert row.ini.removeprefix("gpucap_").replace("_", "-") in row.flag


@pytest.mark.parametrize("row", [row for row in all_options() if row.default], ids=lambda row: row.flag)
def test_the_default_is_the_one_that_is_documented(row: Option[Any]) -> None:
    root = cast("pytest.Config", SimpleNamespace(rootpath=Path()))
    assert row.parse(row.otherwise, row.name, root) == row.default


def test_settings_are_frozen_and_known() -> None:
    options = Options(gpus=2)
    assert (options.gpus, options.seed) == (2, 0)
    with pytest.raises(AttributeError, match="do not change: gpus"):
        options.gpus = 3
    with pytest.raises(TypeError, match="no such setting: gpu"):
        Options(gpu=1)


def test_the_documented_table_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_options.py"))["page"]()
    assert (DOCS / "options.md").read_text() == page, "run: python docs/make_options.py"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("2GiB", IdleMemory(bytes=2 * 2**30)),
        ("1500 MB", IdleMemory(bytes=1_500_000_000)),
        ("0.5g", IdleMemory(bytes=2**29)),
        ("512m", IdleMemory(bytes=2**29)),
        ("5%", IdleMemory(share=0.05)),
        ("0%", IdleMemory(share=0.0)),
        *((wrong, None) for wrong in ("2", "two GiB", "-1GiB", "100%", "2GiB 3", "nan%")),
    ],
)
def test_an_amount_of_idle_memory_has_its_unit(given: str, found: IdleMemory | None) -> None:
    root = cast("pytest.Config", SimpleNamespace(rootpath=Path()))
    if found is None:
        with pytest.raises(ValueError, match=r"^gpu idle must be "):
            Options.gpu_idle.parse(given, "gpu idle", root)
        return
    assert Options.gpu_idle.parse(given, "gpu idle", root) == found
