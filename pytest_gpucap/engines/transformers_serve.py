"""Hugging Face's ``transformers serve`` as an engine.

Without ``continuous_batching`` it answers one request at a time. It tells no metrics, refuses fields that it does not
know (``ignore_eos``, ``stream_options``), and takes a whole generation configuration instead: an end of text that no
token is makes answers exactly as long as asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import ClassVar, Final

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.engines import synthetic, synthetic_weights
from pytest_gpucap.engines.program import ProgramEngine, ProgramServer

_NO_END: Final = json.dumps({"eos_token_id": -1, "pad_token_id": 0})
BATCHING: Final = "continuous_batching"


class TransformersServer(ProgramServer):
    """A server of ``transformers serve``."""

    @property
    def max_num_seqs(self) -> int | None:
        """One without continuous batching; with it, it does not tell."""
        return None if self.engine.arguments.get(BATCHING) is True else 1

    @property
    def kv_tokens(self) -> int | None:
        """Its blocks of the paged cache, where both their number and their size were given."""
        blocks, size = (self.engine.count([name]) for name in ("cb_num_blocks", "cb_block_size"))
        return None if blocks is None or size is None else blocks * size


class TransformersEngine(ProgramEngine):
    """Starts ``transformers serve``, pinned to the test's model."""

    name = "transformers"
    title = "transformers serve"
    call = ("python", "-m", "transformers.cli.transformers", "serve")
    model_flag = ""
    vllm_names: ClassVar = {"dtype": "dtype"}
    owned: ClassVar = {"force_model": "it is given by model=", "non_blocking": "the server is a process of its own"}
    dialect = ApiDialect(exact_length={"generation_config": _NO_END}, streamed={}, tokenizes=False)
    listed = False  # it lists what the hub's cache holds
    variables: ClassVar = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    package = "transformers"
    server_type = TransformersServer

    def model_at(self, on_wait: Callable[[str], None]) -> str:
        """See `ProgramEngine.model_at`."""
        model = str(self.request.model)
        return str(self.made(synthetic_weights.with_weights, on_wait)) if synthetic.is_synthetic(model) else model

    def _check(self) -> None:
        if synthetic.is_synthetic(model := str(self.request.model)):
            synthetic_weights.check(model)
