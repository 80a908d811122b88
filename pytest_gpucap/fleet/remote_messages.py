"""What goes over the stream between a load generator on another node and the runner that talks to it.

A message is a msgpack map with its type under ``type``. Every message and every array is checked against its declared
type; nothing is unpickled. Keys and headers come over the stream, never as arguments. Arrays are the raw bytes of
little-endian items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_gpucap.load.protocol import (
    ErrorText,
    SelfCheck,
)
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.requirement import Workload

_ITEMS: Final = frozenset({"<f8", "<i4", "<i8", "|u1", "|b1"})


class StreamError(Exception):
    """The stream has closed in the middle of something, or carries what is no message."""


class Column(msgspec.Struct, frozen=True):
    """An array of one dimension: NumPy's name of its items' type, little-endian, and their bytes."""

    items: str
    data: bytes


def column(array: npt.NDArray[Any]) -> Column:
    """The message of an array.

    Raises:
        ValueError: for items of a type that is never sent.
    """
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in _ITEMS:
        raise ValueError(f"items of type {array.dtype} are not sent")
    return Column(little.dtype.str, little.tobytes())


def array_of(sent: Column) -> npt.NDArray[Any]:
    """The array of a message; a copy.

    Raises:
        StreamError: if the type is none that is sent, or the bytes are no whole number of items.
    """
    if sent.items not in _ITEMS or len(sent.data) % np.dtype(sent.items).itemsize:
        raise StreamError(f"no array: {len(sent.data)} bytes of {sent.items!r}")
    return np.frombuffer(sent.data, sent.items).copy()


class Setup(msgspec.Struct, tag=True, frozen=True):
    """What an `HttpLoadRunner` needs to know; the first order.

    Attributes:
        ca_pem: the certificates to trust, not their file's name, which would be one of another node.
        clock_shift_s: added to the clock: for tests of what clocks that differ do.
    """

    base_url: str
    model: str
    api_key: str | None
    workload: Workload
    seed: int
    nonce: int
    workers: int | None
    request_timeout_s: float
    http2: bool
    simulated: bool
    headers: tuple[tuple[str, str], ...]
    ca_pem: str | None
    clock_shift_s: float
    beside: tuple[str, ...]
    spread: Spread

    def __repr__(self) -> str:
        """Without keys, which a traceback with its locals would show."""
        return f"Setup({self.base_url!r}, {self.model!r})"


class Tick(msgspec.Struct, tag=True, frozen=True):
    """What does your clock show?"""


class Phase(msgspec.Struct, tag=True, frozen=True):
    """The rows of a phase; `due_s` for an open loop, `concurrency` for a closed one. Get ready for it."""

    duration_s: float
    prompt_tokens: Column
    output_tokens: Column
    first_prompt: int
    due_s: Column | None = None
    concurrency: int = 0
    hot: int = 0


class Begin(msgspec.Struct, tag=True, frozen=True):
    """Begin the phase at this time of your clock."""

    start_s: float


class End(msgspec.Struct, tag=True, frozen=True):
    """End the phase at this time of your clock."""

    end_s: float


class Settle(msgspec.Struct, tag=True, frozen=True):
    """See `LoadRunner.settle`; without a limit: None."""

    timeout_s: float | None
    cancel: bool


class Report(msgspec.Struct, tag=True, frozen=True):
    """Tell the journal from this row on."""

    from_row: int


class Tell(msgspec.Struct, tag=True, frozen=True):
    """Tell the texts of failed requests and the remarks."""


Order = Setup | Tick | Phase | Begin | End | Settle | Report | Tell


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The process is set up."""

    pid: int


class Tock(msgspec.Struct, tag=True, frozen=True):
    """What the clock shows."""

    now_s: float


class Beat(msgspec.Struct, tag=True, frozen=True):
    """The process lives."""


class Prepared(msgspec.Struct, tag=True, frozen=True):
    """The phase can begin."""


class Running(msgspec.Struct, tag=True, frozen=True):
    """See `Progress`."""

    in_flight: int
    completed: int
    failed: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """See `PhaseSpan`; of the histogram only the bins that are not empty."""

    start_s: float
    end_s: float
    first_row: int
    end_row: int
    stopped: bool
    check: SelfCheck
    lowest_s: float
    growth: float
    bins: int
    filled: Column
    counts: Column


class Settled(msgspec.Struct, tag=True, frozen=True):
    """Whether nothing is in flight any more."""

    reached: bool


class Rows(msgspec.Struct, tag=True, frozen=True):
    """The journal from a row on, and all its token bins."""

    from_row: int
    columns: dict[str, Column]
    bin_s: float
    bins_start_s: float
    tokens: Column


class Said(msgspec.Struct, tag=True, frozen=True):
    """Texts of failed requests, and remarks."""

    errors: list[ErrorText]
    remarks: list[str]


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The order could not be carried out.

    Attributes:
        text: why.
        prompts: exact prompts cannot be made for the server.
    """

    text: str
    prompts: bool


Answer = Ready | Tock | Beat | Prepared | Running | Ended | Settled | Rows | Said | Failed


def _to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):  # a figure of NumPy where a plain one is declared
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} is not sent")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is not read")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_to_text)
ORDERS: Final = msgspec.msgpack.Decoder(Order, dec_hook=_from_text)
ANSWERS: Final = msgspec.msgpack.Decoder(Answer, dec_hook=_from_text)


def encoded(message: Order | Answer) -> bytes:
    """The bytes of a message, without its length."""
    return _ENCODER.encode(message)
