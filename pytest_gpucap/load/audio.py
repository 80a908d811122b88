"""Audio for prompts: noise, drawn from a number, as WAV files (16 kHz, mono, 16 bits) in the form of OpenAI's API.

No two numbers give the same clip, so a server finds none of them in a cache. A clip is 32 kB a second, and a third more
as text: too much to be drawn for every request. So a worker draws one tape of noise before the load, as the text that a
body holds, and a clip is the request's number in its first samples and a piece of the tape: a body costs what copying
it costs. What a server does with a clip does not depend on what is heard.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pytest_gpucap.load.hashing import hash64

RATE_HZ: Final = 16_000
"""What the encoders of most models take, so that no server resamples."""
DECODER: Final = 'to decode audio, vLLM needs the package soundfile beside it ("vllm[audio]")'
"""Why a server may fail at audio that takes other requests."""
_SAMPLE, _BITS, _PCM, _MONO = 2, 16, 1, 1
"""Bytes and bits of a sample; the format and the channels of a WAV file."""
_HEAD: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")
_RIFF: Final = 8
"""Bytes of a RIFF chunk's name and length, which its length does not count."""
_FORMAT: Final = 16
"""Bytes of the format's description."""
_NUMBER: Final = 16
"""Bytes of the number in the first samples. With the head, that is a multiple of three: base64 goes on as it is."""
_STEP, _STEP_TEXT = 6, 8
"""Pieces of the tape begin every so many bytes, at a whole sample, and so many characters of base64."""
_STARTS: Final = 2**16
_GROUP, _GROUP_TEXT = 3, 4
_QUIETER: Final = 2
"""Bits that samples are shifted by: noise at a quarter of full scale."""
_BEFORE: Final = b'{"type":"input_audio","input_audio":{"data":"'
_AFTER: Final = b'","format":"wav"}}'


class AudioText:
    """The audio clips of requests as they are written into a body.

    Args:
        lengths_s: of each request's clips, in seconds.
        key: clips are drawn from it and the request's number.
    """

    def __init__(self, lengths_s: Sequence[float], key: int) -> None:
        self._key = key
        self._bytes = [round(length_s * RATE_HZ) * _SAMPLE for length_s in lengths_s]
        longest = -(-max(self._bytes, default=0) // _STEP) * _STEP
        words = -(-(longest + _STARTS * _STEP) // 8) if self._bytes else 0
        raw = np.random.Generator(np.random.Philox(key)).bit_generator.random_raw(words)
        samples = raw.astype("<u8").view("<i2") >> _QUIETER
        self._tape = b64encode(samples.tobytes())

    def of(self, number: int) -> bytes:
        """The parts of request `number`, without the brackets of their list; empty where there is no audio."""
        first = number * len(self._bytes)
        return b",".join([self._part(size, first + at) for at, size in enumerate(self._bytes)])

    def _part(self, size: int, number: int) -> bytes:
        """One clip of `size` bytes of samples. No other clip has its number."""
        begun = b64encode(_head(size) + ((self._key << 64) + number).to_bytes(_NUMBER, "little"))
        groups, left = divmod(size - _NUMBER, _GROUP)
        at = hash64(number ^ self._key) % _STARTS * _STEP_TEXT
        ended = b64encode(bytes(left))
        return b"".join([_BEFORE, begun, memoryview(self._tape)[at : at + groups * _GROUP_TEXT], ended, _AFTER])


def _head(size: int) -> bytes:
    """The head of a WAV file with so many bytes of samples."""
    riff = _HEAD.size - _RIFF + size
    rates = (RATE_HZ, RATE_HZ * _SAMPLE, _SAMPLE, _BITS)
    return _HEAD.pack(b"RIFF", riff, b"WAVE", b"fmt ", _FORMAT, _PCM, _MONO, *rates, b"data", size)


def audio_parts(lengths_s: Sequence[float], key: int) -> list[dict[str, Any]]:
    """The parts of a chat message that hold clips of these lengths, in the form of OpenAI's API."""
    found: list[dict[str, Any]] = json.loads(b"[%b]" % AudioText(lengths_s, key).of(0))
    return found
