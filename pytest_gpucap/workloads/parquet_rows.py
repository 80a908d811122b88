"""Rows of a Parquet file of prompts. Its columns have the names of the keys in JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.installing import pip_install
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.user_files import MIB, MOST_LINES, opened, shown_path

PARQUET: Final = b"PAR1"
"""A Parquet file begins so."""
_AT_A_TIME: Final = 256
"""Rows that are read together."""


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and values of each row, without values that are null.

    Args:
        path: of the file.
        columns: that are read, where the file has them; others are ignored.

    Raises:
        RequirementError: if pyarrow is not installed, or the file is damaged, or larger than files of lines may be.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise RequirementError(
            f"{shown_path(path)}: a Parquet file needs pyarrow: {pip_install('parquet')}, or write its rows as JSON "
            "Lines"
        ) from None
    number = 0
    with opened(path, MOST_LINES) as file:
        try:
            found = parquet.ParquetFile(file)
            groups = [found.metadata.row_group(group) for group in range(found.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > MOST_LINES:
                raise RequirementError(f"{shown_path(path)}: holds more than {MOST_LINES // MIB} MiB")
            known = [name for name in columns if name in found.schema_arrow.names]
            for batch in found.iter_batches(batch_size=_AT_A_TIME, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{shown_path(path)}: row {number}", _without_nulls(row)
        except (arrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, RequirementError):
                raise
            # What it says of a damaged file may quote it.
            raise RequirementError(f"{shown_path(path)}: the Parquet file is damaged after row {number}") from None


def _without_nulls(value: Any) -> Any:
    """A value without what it has no value for: in Parquet, every object of a list has the same keys."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
