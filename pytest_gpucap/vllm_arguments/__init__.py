"""vLLM's arguments: every spelling that its own parser takes, read once, and what they say of a server.

A marker's keywords, the words of a command line and a result file all become `VllmArguments`. Names are kept in one
form, the long name with underscores; ``-tp 2``, ``tp=2``, ``tensor-parallel-size=2`` and ``--tensor-parallel-size=2``
are the same.
"""

from __future__ import annotations

from pytest_gpucap.vllm_arguments.arguments import VllmArguments
from pytest_gpucap.vllm_arguments.recorded import recorded, recorded_command

__all__ = ["VllmArguments", "recorded", "recorded_command"]
