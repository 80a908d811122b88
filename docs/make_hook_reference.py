"""Writes ``hook-reference.md`` from the hook specifications: ``python docs/make_hook_reference.py``."""

from __future__ import annotations

import inspect
from pathlib import Path

from docs.docstrings import docstring, signature
from pytest_gpucap import hookspecs

HEAD = """\
# Hooks

What another plugin may implement, made from the hook specifications. [Extend the plugin](hooks.md) has a complete
engine.
"""


def page() -> str:
    """The whole page."""
    about = "\n\n".join(docstring(hookspecs).about.split("\n\n")[1:])
    parts = [HEAD, f"\n{about}\n"]
    for name, hook in vars(hookspecs).items():
        if name.startswith("pytest_gpucap_") and inspect.isfunction(hook):
            parts.append(f"\n## {name}\n\n```text\n{name}{signature(hook)}\n```\n\n{docstring(hook).about}\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("hook-reference.md").write_text(page(), encoding="utf-8")
