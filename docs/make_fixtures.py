"""Writes ``fixtures.md`` from the docstrings of the fixtures and what they give: ``python docs/make_fixtures.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from docs.docstrings import docstring, methods
from pytest_gpucap import GpuCap, fixtures

HEAD = """\
# Fixtures

A test asks for a fixture by naming it as an argument. All three share the test's server: it starts at the first use,
serves all tests that declare the same one, and ends when the next test needs another. What each object has is in
[Python API](api.md).

```python
import pytest


@pytest.mark.gpucap(qps=2, gpus=1, e2e_p95="20s")
def test_capacity_and_answers(gpucap, vllm_server, gpu):
    reply = vllm_server.client.completions.create(model=vllm_server.model, prompt="Hello", max_tokens=8)
    assert reply.usage.completion_tokens <= 8
    gpucap.check()
    print(gpu.gpu_class)
```
"""

GIVES: Final[dict[str, tuple[str, str]]] = {
    "gpucap": ("GpuCap", "Its methods are below."),
    "vllm_server": ("Server", "It is for every engine, whatever its name says."),
    "gpu": ("SystemUnderTest", "Without a GPU, as for `--gpu-class cpu`, there are no devices."),
}
"""Fixture -> the class of what it gives, and a remark."""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (kind, remark) in GIVES.items():
        about = docstring(_function(name)).about
        parts.append(f"\n## {name}\n\n{about}\n\nIt is a [`{kind}`](api.md#{kind.lower()}). {remark}\n")
        if name == "gpucap":
            for _, written, said in methods(GpuCap):
                lists = said.lists("Args", "Returns", "Raises").rstrip("\n")
                parts.append(
                    f"\n### gpucap.{written.partition('(')[0]}\n\n```text\ngpucap.{written}\n```\n\n{said.about}\n"
                )
                parts.append(f"\n{lists}\n" if lists else "")
    return "".join(parts)


def _function(name: str) -> Any:
    """The function of a fixture, which pytest has wrapped."""
    found = getattr(fixtures, name)
    return getattr(found, "__wrapped__", found)


if __name__ == "__main__":
    Path(__file__).with_name("fixtures.md").write_text(page(), encoding="utf-8")
