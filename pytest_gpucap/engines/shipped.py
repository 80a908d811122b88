"""The engines beside vLLM that come with the plugin, by the names that markers give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final

from pytest_gpucap.engines.protocol import Engine
from pytest_gpucap.errors import told
from pytest_gpucap.requirement import RequirementError

SHIPPED: Final[Mapping[str, tuple[str, str]]] = {
    "sglang": ("sglang", "SglangEngine"),
    "tensorrt-llm": ("tensorrt_llm", "TensorRtEngine"),
    "llama.cpp": ("llama_cpp", "LlamaEngine"),
    "llama-cpp-python": ("llama_cpp", "PythonLlamaEngine"),
    "transformers": ("transformers_serve", "TransformersEngine"),
}
"""Name -> module of this folder and its class, loaded when a test names it."""
COMMAND: Final = "command"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,49}")


def shipped(name: str) -> type[Engine] | None:
    """The engine of a name; None if none comes with the plugin."""
    if name not in SHIPPED:
        return None
    module, kind = SHIPPED[name]
    found: type[Engine] = getattr(import_module(f"{__package__}.{module}"), kind)
    return found


@cache
def commanded(name: str) -> type[Engine]:
    """The engine of a server that only its ``command=`` describes, under the name that the marker gives it.

    Raises:
        RequirementError: one line, if reports could not show the name.
    """
    if _NAME.fullmatch(name) is None:
        raise RequirementError(
            f"engine({told(name)}): the name of an engine has letters, digits and . _ + -, at most 50 of them"
        )
    from pytest_gpucap.engines.program import ProgramEngine

    attributes: dict[str, Any] = {"name": name, "title": name, "__module__": __name__, "__doc__": f"Starts {name}."}
    return type("CommandEngine", (ProgramEngine,), attributes)
