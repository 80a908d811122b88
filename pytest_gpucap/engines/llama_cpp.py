"""llama.cpp as an engine: its own server, and that of its Python bindings.

Facts of ``llama-server``: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. The server of
``llama_cpp`` (https://llama-cpp-python.readthedocs.io/en/latest/server/) answers one request at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Final

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.engines import synthetic, synthetic_weights
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.program import ProgramEngine, ProgramServer
from pytest_gpucap.engines.program_arguments import FlagStyle
from pytest_gpucap.engines.protocol import MetricNames
from pytest_gpucap.load.server_words import json_object, one_line

_SLOTS: Final = re.compile(
    r"n_slots = (?P<slots>\d{1,9}), n_ctx_slot = (?P<tokens>\d{1,12})(?:, kv_unified = '(?P<shared>true|false)')?"
)
"""How it logs its slots, and whether they share one cache. Before it could share, each slot had a part of its own."""
_NEVER: Final = 2**20
"""Tokens before an end of text counts: more than any answer has."""
_LONGEST_VERSION: Final = 100


class LlamaServer(ProgramServer):
    """A server of ``llama-server``."""

    @cached_property
    def version(self) -> str | None:
        """Its build, as ``/props`` tells it."""
        try:
            told = json_object(self.request("/props")).get("build_info")
        except EndpointError:
            return None
        return one_line(told)[:_LONGEST_VERSION] or None if isinstance(told, str) else None

    @cached_property
    def _slots(self) -> re.Match[str] | None:
        """How it logs its slots; None if it does not."""
        return _SLOTS.search(self.log.text())

    @property
    def max_num_seqs(self) -> int | None:
        """Its slots."""
        return super().max_num_seqs if self._slots is None else int(self._slots["slots"])

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of all its slots."""
        if self._slots is None:
            return super().kv_tokens
        return int(self._slots["tokens"]) * (1 if self._slots["shared"] == "true" else int(self._slots["slots"]))

    @property
    def max_model_len(self) -> int | None:
        """Tokens of one slot."""
        return None if self._slots is None else int(self._slots["tokens"])


class LlamaEngine(ProgramEngine):
    """Starts ``llama-server``."""

    name = "llama.cpp"
    call = ("llama-server",)
    name_flag = "--alias"
    fixed = ("--metrics",)
    owned: ClassVar = {
        "alias": "every server gets a unique model name",
        "metrics": "the plugin reads them",
        "api_key": "every server gets a random key",
        "api_key_file": "every server gets a random key",
        "api_prefix": "the server stands at the root",
    }
    context = ("ctx_size",)
    sequences = ("parallel",)
    cache = ("ctx_size",)
    metrics = MetricNames(
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        prompt_tokens=("llamacpp:prompt_tokens_total",),
        output_tokens=("llamacpp:tokens_predicted_total",),
        draft_tokens=("llamacpp:spec_decode_num_draft_tokens_total",),
        accepted_tokens=("llamacpp:spec_decode_num_accepted_tokens_total",),
    )
    dialect = ApiDialect(tokenizes=False)
    key_variable = "LLAMA_API_KEY"
    server_type = LlamaServer

    @property
    def max_model_len(self) -> int | None:
        """Unknown before the start: slots may share the context or divide it."""
        return None

    def model_at(self, on_wait: Callable[[str], None]) -> str:
        """See `ProgramEngine.model_at`."""
        return _gguf(self, on_wait)

    def _check(self) -> None:
        _check_gguf(self)


class PythonLlamaServer(ProgramServer):
    """A server of the Python bindings of llama.cpp."""

    @property
    def max_num_seqs(self) -> int | None:
        """It answers one request at a time."""
        return 1


class PythonLlamaEngine(ProgramEngine):
    """Starts ``python -m llama_cpp.server``."""

    name = "llama-cpp-python"
    call = ("python", "-m", "llama_cpp.server")
    name_flag = "--model_alias"
    style = FlagStyle(dashes=False, switch_values=True)
    # By default a new request ends the one that is being answered.
    fixed = ("--interrupt_requests", "false")
    owned: ClassVar = {
        "model_alias": "every server gets a unique model name",
        "interrupt_requests": "requests that end each other cannot be measured",
        "api_key": "every server gets a random key",
        "root_path": "the server stands at the root",
        "config_file": "its arguments are those of the marker",
        "ssl_keyfile": "the loopback connection is plain HTTP",
        "ssl_certfile": "the loopback connection is plain HTTP",
    }
    context = ("n_ctx",)
    cache = ("n_ctx",)
    dialect = ApiDialect(exact_length={"min_tokens": _NEVER}, tokenizes=False)
    key_variable = "API_KEY"
    package = "llama_cpp_python"
    server_type = PythonLlamaServer

    def model_at(self, on_wait: Callable[[str], None]) -> str:
        """See `ProgramEngine.model_at`."""
        return _gguf(self, on_wait)

    def _check(self) -> None:
        _check_gguf(self)


def _gguf(engine: ProgramEngine, on_wait: Callable[[str], None]) -> str:
    """The file that is loaded: as it was named, or that of a synthetic model, which is made if need be."""
    model = str(engine.request.model)
    if not synthetic.is_synthetic(model):
        return model
    return str(engine.made(synthetic_weights.as_gguf, on_wait))


def _check_gguf(engine: ProgramEngine) -> None:
    if synthetic.is_synthetic(model := str(engine.request.model)):
        synthetic_weights.check(model)
