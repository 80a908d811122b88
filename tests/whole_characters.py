"""What the tiny model is asked, so that its answers have text."""

from __future__ import annotations

from typing import Final

WHOLE_CHARACTERS: Final = {"allowed_token_ids": list(range(94))}
"""Fields of a request. The first tokens of the tiny model are the printable characters of ASCII. An answer of special
tokens or of parts of characters alone would have no text, and an answer without a token is an error."""
