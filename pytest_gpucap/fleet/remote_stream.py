"""A stream of bytes that carries messages: four bytes with the length (big-endian), then the message.

Whatever can start a process and carry a stream of bytes can carry a load generator: SSH, Ray, Slurm, a socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from typing import Final, Protocol, TypeVar

import msgspec

from pytest_gpucap.fleet.remote_messages import (
    Answer,
    Order,
    StreamError,
    encoded,
)

MOST_BYTES: Final = 2**30
"""Of one message: the journal of ten million requests takes less."""
M = TypeVar("M")
_LENGTH: Final = struct.Struct(">I")


class ByteStream(Protocol):
    """Bytes in both directions."""

    def read(self, size: int) -> bytes:
        """The next bytes, at least one and at most `size`; none at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Send all of the bytes."""
        ...

    def close(self) -> None:
        """Close it; the other side sees its end. Safe to call twice."""
        ...


class PipeStream:
    """The descriptors of two pipes as a `ByteStream`; it closes them.

    Args:
        reader, writer: descriptors.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._closed = threading.Event()

    def read(self, size: int) -> bytes:
        """See `ByteStream.read`."""
        return os.read(self._reader, min(size, 2**20))

    def write(self, data: bytes) -> None:
        """See `ByteStream.write`."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._writer, left) :]

    def close(self) -> None:
        """See `ByteStream.close`. What another thread still reads goes on until the other side has closed its end."""
        if not self._closed.is_set():
            self._closed.set()
            os.close(self._writer)

    def close_reader(self) -> None:
        """Close the other descriptor too, when no thread reads it any more."""
        os.close(self._reader)


class SocketStream:
    """A connected socket as a `ByteStream`; it closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, size: int) -> bytes:
        """See `ByteStream.read`."""
        return self._sock.recv(min(size, 2**20))

    def write(self, data: bytes) -> None:
        """See `ByteStream.write`."""
        self._sock.sendall(data)

    def close(self) -> None:
        """See `ByteStream.close`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Channel:
    """Messages over a stream. Any thread may send; one receives."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._sending = threading.Lock()

    def send(self, message: Order | Answer) -> None:
        """Send one message.

        Raises:
            StreamError: if the stream is closed.
        """
        data = encoded(message)
        if len(data) > MOST_BYTES:
            raise StreamError(f"a message of {len(data)} bytes is too long")
        try:
            with self._sending:
                self._stream.write(_LENGTH.pack(len(data)) + data)
        except (OSError, ValueError) as error:
            raise StreamError(f"the stream is closed: {error}") from error

    def receive(self, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
        """The next message; None at the end of the stream.

        Raises:
            StreamError: if the stream ends in a message, or carries another thing.
        """
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        (size,) = _LENGTH.unpack(head)
        if size > MOST_BYTES:
            raise StreamError(f"a message of {size} bytes is too long")
        body = self._exactly(size)
        if body is None:
            raise StreamError("the stream ended in the middle of a message")
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError too
            raise StreamError(f"no message: {error}") from error

    def _exactly(self, size: int) -> bytes | None:
        """So many bytes; None if the stream ends before the first."""
        found = bytearray()
        while len(found) < size:
            try:
                more = self._stream.read(size - len(found))
            except (OSError, ValueError):
                more = b""
            if not more:
                if found:
                    raise StreamError("the stream ended in the middle of a message")
                return None
            found += more
        return bytes(found)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()
