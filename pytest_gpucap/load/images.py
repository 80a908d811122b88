"""Images for prompts: coloured squares, drawn from a number, as PNG in data URLs.

No two numbers give the same image, so a server finds none of them in a cache. Squares compress well: a megapixel takes
some 35 kB, like a drawing and unlike a photograph, so the network is not what is measured. What a server
does with the pixels does not depend on what they show.
"""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pytest_gpucap.requirement import ImageSize

SQUARE: Final = 16
"""Side of a square in pixels: about that of the patches that vision models look at."""
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEAD: Final = struct.Struct(">IIBBBBB")
_DEPTH, _RGB, _UP = 8, 2, 2
"""Bits of a channel; the colour type; the filter by which a row is told as its difference from the one above."""
_FASTEST: Final = 1


def png(size: ImageSize, seed: int) -> bytes:
    """An image as a PNG file (W3C, PNG specification, third edition).

    Args:
        size: in pixels.
        seed: a whole number of 0 or more. The same one gives the same bytes.
    """
    width, height = size
    across, down = -(-width // SQUARE), -(-height // SQUARE)
    raw = np.random.Generator(np.random.Philox(seed)).bit_generator.random_raw(-(-3 * across * down // 8))
    colours = raw.astype("<u8").view(np.uint8)[: 3 * across * down].reshape(down, across, 3)
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP
    rows[::SQUARE, 0] = 0
    rows[::SQUARE, 1:] = np.repeat(colours, SQUARE, axis=1)[:, :width].reshape(down, -1)
    head = _HEAD.pack(width, height, _DEPTH, _RGB, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), _FASTEST)
    return _SIGNATURE + b"".join(_chunk(*each) for each in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_parts(sizes: Sequence[ImageSize], seed: int) -> list[dict[str, Any]]:
    """The parts of a chat message that hold these images, in the form of OpenAI's API."""
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(png(size, seed + at)).decode()}"}}
        for at, size in enumerate(sizes)
    ]


class ImageText:
    """The images of requests as they are written into a body.

    Args:
        sizes: of each request's images.
        key: images are drawn from it and the request's number.
    """

    def __init__(self, sizes: Sequence[ImageSize], key: int) -> None:
        self._sizes, self._key = sizes, key

    def of(self, number: int) -> bytes:
        """The parts of request `number`, without the brackets of their list; empty where there are no images."""
        if not self._sizes:
            return b""
        # As many seeds for each number as it has images, in a range of 128 bits.
        seed = (self._key << 64) + number * len(self._sizes)
        return json.dumps(image_parts(self._sizes, seed), separators=(",", ":"))[1:-1].encode()
