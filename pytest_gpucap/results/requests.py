"""The single requests of a measurement: a file of their own beside the result file, which names it.

A line of JSON per request (JSON Lines), packed with gzip: pandas, Polars and DuckDB read it as it is. No text of a
prompt or an answer is in it. A file is written whole when its measurement is complete, so a session that is killed
leaves those of the measurements before.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.results.whole_file import write_whole
from pytest_gpucap.user_files import MIB, MOST_LINE, UserFileError, pieced_lines, unpacked

SUFFIX: Final = ".jsonl.gz"
MOST_ROWS: Final = 500_000
"""Of one measurement. They take some 20 MiB, and a measurement of an hour at 100 req/s has fewer."""
MOST_BYTES: Final = 512 * MIB
"""Of one file, unpacked."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are seconds on the clock of the windows' ``start_s``; None where something did not come.

    Attributes:
        scheduled_s: when it was due. TTFT and E2E count from here.
        sent_s: when it was handed to the operating system; None: it never was.
        first_token_s, last_token_s: when its first and its last token arrived.
        end_s: when the answer was whole, had failed, or was cancelled.
        prompt_tokens: as the server counted, or else as asked for.
        output_tokens: as the server counted; None where it did not, as of answers that are not whole.
        asked_output_tokens: that the request asked for.
        status: ``ok``, ``cancelled`` (by us, once the measurement was over), ``in_flight``, or an error's kind such as
            ``http_5xx``.
        phase: the purpose of the window in which it was due, such as ``hold``; None before a window counts.
        window: that window, as results name it.
        first_token_window, end_window: the window in which its first token came, or its answer ended, with its slice:
            ``hold 2 (1/3)``. Latencies belong to these: TTFT to the first, TPOT and E2E to the second.
        mid_life: it began in mid-life, which brings a server to its steady state; it counts in no latency.
        session: number of its session; None without sessions.
        cached_tokens: at the start of its prompt, that its session sent before.
        adapter: that it named, ``base`` for none; None without a mix of adapters.
        replica: that took it, from 0; None where one server, or one router, takes all.
    """

    scheduled_s: Seconds
    sent_s: Seconds | None = None
    first_token_s: Seconds | None = None
    last_token_s: Seconds | None = None
    end_s: Seconds | None = None
    prompt_tokens: Count
    output_tokens: Count | None = None
    asked_output_tokens: Count
    status: str
    phase: str | None = None
    window: str | None = None
    first_token_window: str | None = None
    end_window: str | None = None
    mid_life: bool = False
    session: Count | None = None
    cached_tokens: Count = 0
    adapter: str | None = None
    replica: Count | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from being due."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first of a whole answer; None where there is only one."""
        first, last, tokens = self.first_token_s, self.last_token_s, self.output_tokens
        if not self.whole or first is None or last is None or tokens is None or tokens <= 1:
            return None
        return (last - first) / (tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """From being due to the last token of a whole answer."""
        return None if not self.whole or self.last_token_s is None else self.last_token_s - self.scheduled_s

    @property
    def whole(self) -> bool:
        """Whether its answer came whole."""
        return self.status == "ok"


class RequestsFile(msgspec.Struct, frozen=True):
    """Where the single requests of a measurement are.

    Attributes:
        file: name of the file, in the folder of ``--gpucap-keep-requests``.
        rows: requests in it.
        left_out: requests beyond those that one file may hold; the first ones are kept.
        missing: why there is no such file; empty where there is.
    """

    file: str
    rows: Annotated[int, msgspec.Meta(ge=0)] = 0
    left_out: Annotated[int, msgspec.Meta(ge=0)] = 0
    missing: str = ""


def write_requests(path: Path, rows: Iterable[RequestRow]) -> None:
    """Write a file, whole or not at all. A missing folder is made.

    Raises:
        OSError: if it cannot be written.
    """
    encoder = msgspec.json.Encoder()
    packed = gzip.compress(encoder.encode_lines(list(rows)), compresslevel=6, mtime=0)
    write_whole(path, [packed])


def read_requests(path: Path) -> Iterator[RequestRow]:
    """The requests of a file, in its order.

    Raises:
        UserFileError: one line with the file, the line and what is wrong with it.
    """
    decoder, number = msgspec.json.Decoder(RequestRow), 0
    too_long = UserFileError(path, f"a line is longer than {MOST_LINE // MIB} MiB")
    with unpacked(path, MOST_BYTES) as read:
        for _, line in pieced_lines(read, MOST_LINE, lambda _: too_long):
            if not line:
                continue
            number += 1
            if number > MOST_ROWS:
                raise UserFileError(path, f"holds more than {MOST_ROWS} requests")
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise UserFileError(f"{path}:{number}", f"is no request: {on_one_line(str(error))}") from None
