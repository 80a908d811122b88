"""What a GPU costs per hour, by GPU class, from the user's own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import GpuClass, UnknownGpuClass, find_class
from pytest_gpucap.requirement import RequirementError, positive
from pytest_gpucap.simulated import is_simulated
from pytest_gpucap.user_files import UserFileError, read_toml


class PricesError(GpuCapError, ValueError):
    """A file of prices that cannot be used. The message is one line: the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one GPU for one hour.

    Attributes:
        currency: as the user writes it; empty if the file names none.
        per_hour: exact prices by the name of the GPU class.
    """

    currency: str = ""
    per_hour: Mapping[str, Fraction] = field(default_factory=dict)


def read_prices(path: Path, own_classes: Sequence[GpuClass] = ()) -> Prices:
    """Prices from a TOML file: ``currency = "USD"``, and a table ``[per_hour]`` with entries such as ``a10g = 1.006``.

    Args:
        path: of the file.
        own_classes: GPU classes that the user defined; prices may name them too.

    Raises:
        PricesError: if the file cannot be read, names an unknown class, or holds a price that is no number above 0.
    """
    try:
        content = read_toml(path, parse_float=str)
    except UserFileError as error:
        raise PricesError(str(error)) from None
    table = content.get("per_hour")
    if not isinstance(table, dict) or set(content) - {"currency", "per_hour"}:
        raise PricesError(f'{path}: write currency = "USD" and a table [per_hour] with CLASS = PRICE')
    per_hour = {}
    for name, price in table.items():
        try:
            known = name if is_simulated(name) else find_class(name, own_classes).name
            per_hour[known] = positive(price, f"the price of {name}")
        except (UnknownGpuClass, RequirementError) as error:
            raise PricesError(f"{path}: {error}") from None
    return Prices(str(content.get("currency", "")), per_hour)
