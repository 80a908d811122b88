"""Writes into every document and example what pip installs, as `pytest_gpucap.installing` says it.

Run ``python docs/make_installing.py``.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).parents[1]
# Of this checkout, by its path: an import would find the wheel that is installed, which may say otherwise.
_setting = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "pytest_gpucap" / "installing.py")))
PUBLISHED: bool = _setting.PUBLISHED
FROM_INDEX = """\
```console
$ pip install "pytest-gpucap[vllm]"
```

Each release has an attestation of where it was built ([releasing.md](releasing.md#check-a-release)).
"""
FROM_CHECKOUT = """\
The package is not on the Python Package Index yet. Install it from a checkout:

```console
$ git clone URL pytest-gpucap                     # the project's own URL, or your mirror of it
$ pip install "./pytest-gpucap[vllm]"
```

The documents name that folder as `./pytest-gpucap`; write your own path. Do not install `pytest-gpucap` by its name
alone: until the first release the index may have anything under it.

In CI the checkout must be there too: a git submodule named `pytest-gpucap` (with `submodules: true` in the step that
checks out), a second checkout step, or a wheel that you have built (`make install` leaves one in `dist/`) and keep in
an index of your own. Where the checkout lies inside your project, `pytest` without a path would look for tests in it
too: name your own folders with `testpaths` in `pyproject.toml`.
"""
_COMMAND = re.compile(rf"(pip install (?:--[a-z]+ )*\"?)(?:\./)?{_setting.NAME}(?![\w-])")


def pages() -> Iterator[Path]:
    """Every text that tells people, or machines, to install the package."""
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "examples/**/*.yml", "examples/**/*.yaml"):
        yield from sorted(path for path in REPOSITORY.glob(pattern) if path.name != "CHANGELOG.md")


def written(text: str, *, published: bool = PUBLISHED) -> str:
    """A text with the commands as they should be; and with the page's beginning, if it is that of ``installing.md``."""
    text = _COMMAND.sub(lambda match: match[1] + _setting.source(published=published), text)
    head, table, rest = text.partition("\n| extra |")
    if head.startswith("# Installing\n"):
        return f"# Installing\n\n{FROM_INDEX if published else FROM_CHECKOUT}{table}{rest}"
    return text


if __name__ == "__main__":
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := written(before)) != before:
            page.write_text(after, encoding="utf-8")
