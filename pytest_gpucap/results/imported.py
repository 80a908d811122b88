"""Where a point that another tool measured comes from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import msgspec


class ImportedFrom(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an imported result comes from.

    Attributes:
        tool: such as ``vllm bench serve``.
        file: its name, without its folder.
        sha256: of the file.
        load: what the tool offered, for people: ``20 req/s``, ``8 in flight``.
        version: of the tool; None where its file does not tell.
        started: when the tool ran; None where its file does not tell.
        observed_lengths: the workload's lengths are means of what was seen, because the file does not say what was
            asked for.
        parameters: what a sweep varied, by name.
        labels: what the user had the tool write down, by name.
    """

    tool: str
    file: str
    sha256: str
    load: str
    version: str | None = None
    started: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    observed_lengths: bool = False
    parameters: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def described(self) -> str:
        """``vllm bench serve 0.32.0``."""
        return f"{self.tool} {self.version}" if self.version else self.tool
