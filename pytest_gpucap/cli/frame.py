"""Writes result files as a table: CSV, or Parquet with the extra parquet. A row is of what ``--rows`` says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import STDOUT, add_folder, find_run, write_out
from pytest_gpucap.installing import pip_install

if TYPE_CHECKING:
    from pytest_gpucap.results.requests import RequestRow, RequestsFile

HELP: Final = "write result files as a table: CSV or Parquet"
_CSV, _PARQUET = ".csv", ".parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the rows, and where the table goes."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files, or names of baselines")
    parser.add_argument(
        "-o", "--out", default=STDOUT, metavar="OUT", help="a .csv or .parquet file; CSV on standard output (default)"
    )
    parser.add_argument(
        "--rows",
        choices=("windows", "phases", "results", "requests"),
        default="windows",
        help="what a row is of (windows)",
    )
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="DIR",
        help="folder of --gpucap-keep-requests, for rows of requests (that of the result file, or requests in it)",
    )
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Write the table.

    Raises:
        CommandError: if a file cannot be read or written, or pyarrow is not installed.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.report.formatting import shown
    from pytest_gpucap.report.frame import NoParquet, RowKind, csv_text, parquet_bytes, table
    from pytest_gpucap.results.whole_file import write_whole
    from pytest_gpucap.user_files import UserFileError, real_path, shown_path

    target: str = options.out
    suffix = _CSV if target == STDOUT else Path(target).suffix
    if suffix not in {_CSV, _PARQUET}:
        raise CommandError(f"-o {shown_path(target)}: must end in {_CSV} or {_PARQUET}")
    runs = [find_run(given, options.baselines) for given in options.files]
    if target != STDOUT and "\0" not in target and real_path(Path(target)) in {real_path(run.path) for run in runs}:
        raise CommandError(f"-o {shown_path(target)}: is one of the result files, and would be replaced")
    kind = RowKind(options.rows)
    if options.requests is not None and kind is not RowKind.REQUESTS:
        raise CommandError("--requests is the folder for --rows requests: give both")
    folders = {shown(run.path): run.path.parent for run in runs}
    if kind is RowKind.REQUESTS and not any(result.requests for run in runs for result in run.results):
        raise CommandError(f"{', '.join(folders)}: no requests were kept: measure with --gpucap-keep-requests=DIR")

    def requests(file: str, kept: RequestsFile) -> Iterator[RequestRow]:
        return _requests([options.requests] if options.requests else [folders[file], folders[file] / "requests"], kept)

    try:
        found = table([(shown(run.path), run.content) for run in runs], kind, requests)
    except UserFileError as error:
        raise CommandError(str(error)) from None
    if suffix == _CSV:
        write_out(target, csv_text(found))
        return 0
    try:
        write_whole(Path(target), [parquet_bytes(found)])
    except NoParquet:
        raise CommandError(f"-o {shown_path(target)}: needs pyarrow: {pip_install('parquet')}") from None
    except (OSError, ValueError) as error:
        raise CommandError(str(UserFileError.of(target, error))) from None
    return 0


def _requests(folders: Sequence[Path], kept: RequestsFile) -> Iterator[RequestRow]:
    """The requests of a file that a result file names.

    Raises:
        UserFileError: as `read_requests`.
        CommandError: if the file is in none of the folders, or its name is none.
    """
    from pytest_gpucap.results.requests import read_requests
    from pytest_gpucap.user_files import exists, shown_path

    if kept.missing:
        return iter(())
    if not kept.file or Path(kept.file).name != kept.file or "\0" in kept.file:
        raise CommandError(f"{shown_path(kept.file)}: is no name of a file with requests")
    found = next((folder / kept.file for folder in folders if exists(folder / kept.file)), None)
    if found is None:
        raise CommandError(
            f"{shown_path(kept.file)}: is not in {' or '.join(map(shown_path, folders))}: give the folder of "
            "--gpucap-keep-requests with --requests DIR"
        )
    return read_requests(found)
