"""Writes result files as a table: CSV, or Parquet with the extra parquet. A row is a measuring window, or a result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import STDOUT, add_folder, find_run, write_out
from pytest_gpucap.installing import pip_install

HELP: Final = "write result files as a table: CSV or Parquet"
_CSV, _PARQUET = ".csv", ".parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the rows, and where the table goes."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files, or names of baselines")
    parser.add_argument(
        "-o", "--out", default=STDOUT, metavar="OUT", help="a .csv or .parquet file; CSV on standard output (default)"
    )
    parser.add_argument("--rows", choices=("windows", "results"), default="windows", help="what a row is of (windows)")
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
    found = table([(shown(run.path), run.content) for run in runs], RowKind(options.rows))
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
