"""How the package is installed: the one place that says so. Messages, documents and examples follow it.

Change `PUBLISHED` with the first release on the Python Package Index, and run ``python docs/make_installing.py``.
"""

from __future__ import annotations

from typing import Final

NAME: Final = "pytest-gpucap"
PUBLISHED: Final = False
"""Whether the package index has it. Until then a name without a path would install whatever somebody puts there."""
CHECKOUT: Final = f"./{NAME}"
"""A checkout of the project, as documents name it."""


def source(*, published: bool = PUBLISHED) -> str:
    """What pip is told to install."""
    return NAME if published else CHECKOUT


def pip_install(extra: str) -> str:
    """The command that installs the package with an extra."""
    return f'pip install "{source()}[{extra}]"'
