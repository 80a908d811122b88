"""Reads the files that a user names: results, TOML, traces, questions, certificates.

A name can stand for anything: a device without an end, a pipe that nobody writes to, a folder, a file that is far too
large. So every such file is read here. Only a regular file of a bounded size is read, opening it never waits, and
whatever goes wrong is a `UserFileError`, whose message is one line.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any, Final, Self

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import on_one_line

MIB: Final = 2**20
MOST_RESULTS: Final = 64 * MIB
"""Of a result file: a thousand results take a good half of it."""
MOST_FOREIGN: Final = 256 * MIB
"""Of another tool's result, which may hold every request and every token's time."""
MOST_TOML: Final = MIB
MOST_CONFIG: Final = 16 * MIB
"""Of a model's ``config.json``."""
MOST_CERTIFICATES: Final = 16 * MIB
MOST_LINES: Final = 1024 * MIB
"""Of a file that is read line by line."""
MOST_LINE: Final = MIB
"""Of one such line: a published trace lists the hashes of a prompt's blocks in it."""
_GZIP: Final = b"\x1f\x8b"
"""A gzip file begins so (RFC 1952), whatever its name is."""

_MOST_KEY_PARTS: Final = 50
_LONG_KEY: Final = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){{{_MOST_KEY_PARTS}}}")
_LONGEST_SHOWN: Final = 300


class UserFileError(GpuCapError, ValueError):
    """A file that cannot be used. The message is one line: its path, and what is wrong with it.

    Attributes:
        path: of the file, as the message shows it.
        why: the rest of the message.
    """

    needs_traceback = False

    def __init__(self, path: Path | str, why: str) -> None:
        self.path, self.why = shown_path(path), on_one_line(why)
        super().__init__(f"{self.path}: {self.why}")

    @classmethod
    def of(cls, path: Path | str, error: OSError | ValueError) -> Self:
        """The same for what the system, or Python, said of the file."""
        return cls(path, getattr(error, "strerror", None) or str(error))


def shown_path(path: Path | str) -> str:
    """A path for a message: on one line, and shortened if it is very long."""
    text = on_one_line(str(path))
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"


def exists(path: Path | str) -> bool:
    """Whether something has this path. `Path.exists` fails for a name that is too long, and where one may not look."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path | str) -> bool:
    """Whether this is a regular file; see `exists`."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path | str) -> bool:
    """Whether this is a folder; see `exists`."""
    return os.path.isdir(path)  # noqa: PTH112


def real_path(path: Path | str) -> str:
    """The path without links, to tell whether two paths are of one file; the path itself where there is no such."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # the working directory is gone, or no file can have this name
        return str(path)


def home_folder() -> Path:
    """The user's home folder.

    Raises:
        UserFileError: if the user has none.
    """
    return home_expanded("~")


def status(path: Path | str) -> os.stat_result:
    """Size and times of a file.

    Raises:
        UserFileError: if there is none, or one may not look.
    """
    try:
        return os.stat(path)  # noqa: PTH116 - a path may be text here
    except OSError as error:
        raise UserFileError.of(path, error) from None
    except ValueError:  # a character that no file's name can have
        raise UserFileError(path, "no file can have this name") from None


def home_expanded(path: Path | str) -> Path:
    """The path with ``~`` and ``~USER`` replaced by the home folder.

    Raises:
        UserFileError: if there is no such user or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserFileError(path, "there is no such home folder: write the whole path, or set HOME") from None


def read_bytes(path: Path | str, most: int) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most: the largest size in bytes.

    Raises:
        UserFileError: if it cannot be read, is no regular file, or is larger.
    """
    with opened(path, most) as file:
        # A file of /proc has no size before it is read.
        content = _now(file.read(most + 1), path)
        if len(content) > most:
            raise _too_large(path, most)
        return content


def _now(content: bytes | None, path: Path | str) -> bytes:
    """What was read without waiting. A log of the kernel may hold nothing for now."""
    if content is None:
        raise UserFileError(path, "holds nothing that can be read now")
    return content


def read_text(path: Path | str, most: int) -> str:
    """The content of a file as text.

    Raises:
        UserFileError: as `read_bytes`, and if it is no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserFileError(path, f"not UTF-8: {error.reason} at byte {error.start}") from None


def json_memory(data: bytes) -> int:
    """Bytes of memory that a JSON document takes while it is read, at most, from what stands in it how often.

    A file of ``[],[],[]...`` takes 25 times its size. The figures per value were measured, with what is made of a
    result file on the way to the present version and to the types. Text between quotation marks may count too.
    """
    keys = data.count(b'":')
    texts = max(data.count(b'"') // 2 - keys, 0)
    return 48 * data.count(b",") + 100 * data.count(b"[") + 200 * data.count(b"{") + 120 * keys + 300 * texts


def read_toml(path: Path | str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: of the file.
        parse_float: makes a value of the text of a number with a fraction or an exponent.

    Raises:
        UserFileError: as `read_text`, and if it is no TOML.
    """
    import tomllib

    text = read_text(path, MOST_TOML)
    # The parser's time grows with the square of a key's parts.
    if _LONG_KEY.search(text):
        raise UserFileError(path, f"a key has more than {_MOST_KEY_PARTS} parts")
    try:
        return tomllib.loads(text, parse_float=parse_float)
    except RecursionError:
        raise UserFileError(path, "not TOML that can be read: too deeply nested") from None
    except ValueError as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise UserFileError(path, f"not TOML: {error}") from None


@contextmanager
def lines_of(path: Path | str) -> Iterator[Iterator[str]]:
    """The lines of a text file with their ends, read as they are asked for.

    Raises:
        UserFileError: as `read_text`, also while the lines are read, and for a line that is far too long.
    """
    with opened(path, MOST_LINES) as file:
        yield _lines(path, file)


def _lines(path: Path | str, file: IO[bytes]) -> Iterator[str]:
    number = left = 0
    while True:
        number += 1
        try:
            line = file.readline(MOST_LINE + 1)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            text = line.decode("utf-8")
        except OSError as error:
            raise UserFileError.of(path, error) from None
        except UnicodeDecodeError:
            raise UserFileError(f"{path}:{number}", "not UTF-8") from None
        if not line:
            return
        left += len(line)
        if len(line) > MOST_LINE or left > MOST_LINES:
            raise UserFileError(f"{path}:{number}", f"the line is longer than {MOST_LINE // MIB} MiB")
        yield text


@contextmanager
def unpacked(path: Path | str, most: int) -> Iterator[Callable[[int], bytes]]:
    """Reads the content of a file piece by piece: of a gzip file, what was compressed.

    Args:
        path: of the file.
        most: bytes of the content, and of the file. A few kilobytes can hold gigabytes of zeros.

    Yields:
        A function from a number of bytes to at most so many next ones; no byte at the end. It may raise as well.

    Raises:
        UserFileError: as `read_bytes`, and if a gzip file is damaged or cut off.
    """
    with opened(path, most) as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        content: gzip.GzipFile | IO[bytes] = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
        given = 0

        def read(size: int) -> bytes:
            nonlocal given
            try:
                piece = _now(content.read(size), path)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserFileError(path, f"the gzip file is damaged or cut off: {error}") from None
            given += len(piece)
            if given > most:
                raise UserFileError(path, f"holds more than {most // MIB} MiB")
            return piece

        yield read


def pieced_lines(
    read: Callable[[int], bytes], most: int, too_long: Callable[[int], Exception], head: bytes = b""
) -> Iterator[tuple[int, bytes]]:
    """The lines of a content that is read piece by piece, without their ends, with their numbers.

    Args:
        read: gives the next bytes, as `unpacked` yields it.
        most: bytes of a line.
        too_long: the error for a longer line, by its number. It is raised before more of the line is read.
        head: what was read already.
    """
    number, rest = 0, head or read(MIB)
    more = rest
    while more:
        *whole, rest = rest.split(b"\n")
        for line in whole:
            number += 1
            if len(line) > most:
                raise too_long(number)
            yield number, line
        if len(rest) > most:
            raise too_long(number + 1)
        more = read(MIB)
        rest += more
    yield number + 1, rest


def open_to_write(path: Path | str, *, append: bool = False) -> FileIO:
    """A file or a pipe that a user names as an output. A pipe that nobody reads is an `OSError`: nothing waits."""
    file = FileIO(path, "ab" if append else "wb", opener=_without_waiting)
    os.set_blocking(file.fileno(), True)
    return file


@contextmanager
def opened(path: Path | str, most: int) -> Iterator[IO[bytes]]:
    """A regular file, open for reading.

    Raises:
        UserFileError: if it cannot be read, is no regular file, or is larger than `most` bytes.
    """
    try:
        # A device may do something when it is opened, and opening a pipe waits for someone who writes to it.
        _check_regular(path, status(path).st_mode)
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise UserFileError.of(path, error) from None
    except UserFileError:
        raise
    except ValueError:  # a character that no file's name can have
        raise UserFileError(path, "no file can have this name") from None
    with file:
        found = os.fstat(file.fileno())
        _check_regular(path, found.st_mode)
        if found.st_size > most:
            raise _too_large(path, most)
        try:
            yield file
        except OSError as error:
            raise UserFileError.of(path, error) from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _check_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UserFileError(path, f"is {_kind(mode)}, not a file")


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_one, name in kinds.items() if is_one(mode)), "a device")


def _too_large(path: Path | str, most: int) -> UserFileError:
    return UserFileError(path, f"is larger than {most // MIB} MiB")
