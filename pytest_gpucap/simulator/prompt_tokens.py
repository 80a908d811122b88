"""The tokens of a prompt, as the simulated server over HTTP sees them: words, token ids, parts of images, audio."""

from __future__ import annotations

import base64
import io
import math
import struct
import wave
from collections.abc import Hashable, Mapping
from typing import Any, Final

CHAT_OVERHEAD: Final = 8
"""Tokens that the simulated chat template puts before a conversation."""
PATCH: Final = 28
"""Side in pixels of the part of an image that is a token."""
AUDIO_TOKENS: Final = 25
"""Of a second of audio."""


class BadRequest(ValueError):  # noqa: N818 - an answer, not a failure
    """The client's request is invalid; it is answered with 400."""


def count_tokens(text: str) -> int:
    """Number of tokens in a text. The simulated tokenizer splits at spaces."""
    return len(text.split())


def tokens_of(body: Mapping[str, Any], *, chat: bool) -> list[Hashable]:
    """The prompt's tokens of a request body. Equal ones are the same token; what they are otherwise says nothing.

    Raises:
        BadRequest: if it holds no prompt.
    """
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list that is not empty")
        found: list[Hashable] = [None] * CHAT_OVERHEAD
        for message in messages:
            if isinstance(message, dict):
                found += _of_content(message.get("content", ""))
        return found
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [*prompt.split()] or [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return prompt
    raise BadRequest("prompt must be a text or a list of token ids")


def prompt_tokens(body: Mapping[str, Any], *, chat: bool) -> int:
    """Number of prompt tokens of a request body.

    Raises:
        BadRequest: if it holds no prompt.
    """
    return len(tokens_of(body, chat=chat))


def _of_content(content: Any) -> list[Hashable]:
    """The tokens of a message's content: of images as Qwen2-VL counts, of audio as Qwen2-Audio does."""
    if not isinstance(content, list):
        return [*str(content).split()]
    parts = [each for each in content if isinstance(each, dict)]
    texts = [str(each.get("text", "")) for each in parts if each.get("type") == "text"]
    urls = [str(each["image_url"].get("url")) for each in parts if isinstance(each.get("image_url"), dict)]
    found: list[Hashable] = [word for text in texts for word in text.split()]
    for url in urls:
        found += [("image", hash(url))] * _image_tokens(url)
    clips = [str(each["input_audio"].get("data")) for each in parts if isinstance(each.get("input_audio"), dict)]
    for clip in clips:
        found += [("audio", hash(clip))] * _audio_tokens(clip)
    return found


def _image_tokens(url: str) -> int:
    kind, _, data = url.partition(";base64,")
    try:
        file = base64.b64decode(data, validate=True)
        sides: tuple[int, int] = struct.unpack_from(">II", file, 16)
    except (ValueError, struct.error):
        raise BadRequest("an image must be a PNG file in a data URL") from None
    if kind != "data:image/png" or not file.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BadRequest("an image must be a PNG file in a data URL")
    return math.prod(math.ceil(side / PATCH) for side in sides)


def _audio_tokens(clip: str) -> int:
    try:
        with wave.open(io.BytesIO(base64.b64decode(clip, validate=True)), "rb") as file:
            return math.ceil(file.getnframes() * AUDIO_TOKENS / file.getframerate())
    except (ValueError, EOFError, wave.Error, ZeroDivisionError):
        raise BadRequest("audio must be a WAV file in base64") from None
