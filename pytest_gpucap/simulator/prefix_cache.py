"""What the simulated server over HTTP has in its prefix cache: full blocks of prompts, found by what they hold.

As in vLLM, a block is known by its tokens and all tokens before it. What was released first is evicted first, and of
one prompt its end before its beginning. So a released block stays until as many further tokens have been written as
were free when it was released, and as its prompt has behind it: the rule of `engine.MARK`, for each block. What a
server answered is not kept, as in virtual time (`turns`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytest_gpucap.simulator.engine import CACHED_FOR_EVER

BLOCK: Final = 16
"""Tokens of a block."""
LEAST_KEPT: Final = 4096
"""Blocks that are remembered at least before those that were evicted are forgotten."""


def blocks_of(tokens: Sequence[Hashable]) -> list[int]:
    """The full blocks of a prompt, each as a hash of its tokens and of all before it.

    Args:
        tokens: of the prompt.
    """
    found: list[int] = []
    before = 0
    for start in range(0, len(tokens) - len(tokens) % BLOCK, BLOCK):
        before = hash((before, *tokens[start : start + BLOCK]))
        found.append(before)
    return found


@dataclass(slots=True)
class PrefixCache:
    """The blocks of one server.

    Attributes:
        kv_tokens: room of the KV cache.
    """

    kv_tokens: int
    _held: dict[int, int] = field(default_factory=dict)
    """Requests that hold each block."""
    _until: dict[int, int] = field(default_factory=dict)
    """Tokens written in all up to which each released block stays."""

    def found(self, blocks: Sequence[int], prompt_tokens: int, written: int) -> tuple[int, int]:
        """What the cache has of a prompt: tokens at its start, and for how long.

        At least its last token is computed, as in vLLM.

        Args:
            blocks: of the prompt.
            prompt_tokens: its length.
            written: tokens written in all by now.

        Returns:
            For `engine.SHARED` and `engine.MARK`.
        """
        tokens, mark = 0, 0
        for block in blocks[: (prompt_tokens - 1) // BLOCK]:
            until = CACHED_FOR_EVER if block in self._held else self._until.get(block, -1)
            if until < written:
                break
            tokens, mark = tokens + BLOCK, until
        return tokens, mark

    def hold(self, blocks: Sequence[int]) -> None:
        """A request has computed these blocks, and holds them until it releases them."""
        for block in blocks:
            self._held[block] = self._held.get(block, 0) + 1

    def release(self, blocks: Sequence[int], prompt_tokens: int, written: int, free: int) -> None:
        """A request lets go of what it held.

        Args:
            blocks: of its prompt.
            prompt_tokens: its length.
            written: tokens written in all by now.
            free: tokens of the KV cache that no request holds, with those that are released now.
        """
        last = written + free
        for place, block in enumerate(blocks, 1):
            users = self._held.pop(block) - 1
            if users:
                self._held[block] = users
            self._until[block] = max(self._until.get(block, 0), last + prompt_tokens - place * BLOCK)
        if len(self._until) > max(LEAST_KEPT, 4 * self.kv_tokens // BLOCK):
            self._until = {block: until for block, until in self._until.items() if until >= written}

    def reset(self) -> None:
        """Forget what no request holds."""
        self._until.clear()
