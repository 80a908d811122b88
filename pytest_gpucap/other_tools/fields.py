"""The values of a document that another tool wrote, each checked where it is read.

A value that is missing, null or not finite is None. A value of a wrong kind is a `UserFileError` that names its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pytest_gpucap.errors import shortened, told
from pytest_gpucap.requirement import LARGEST
from pytest_gpucap.user_files import UserFileError

LONGEST_TEXT: Final = 4_000
"""Characters that are kept of a text, which may be a command line."""
MOST_COUNTED: Final = 2**53
"""Whole numbers up to here are the same as floats."""


class Fields:
    """One object of a document.

    Args:
        values: by name.
        file: the file's path, for messages.
        place: of the object in the file, for messages; empty for the whole document.
    """

    def __init__(self, values: Mapping[str, Any], file: str, place: str = "") -> None:
        self.values, self.file, self.place = values, file, place

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def wrong(self, name: str, why: str) -> UserFileError:
        """The error for one of the values."""
        return UserFileError(self.file, f"{self._place(name)} {why}")

    def part(self, *names: str) -> Fields:
        """The object inside; without any value where there is none."""
        found = self
        for name in names:
            value = found.values.get(name)
            if value is not None and not isinstance(value, Mapping):
                raise found.wrong(name, f"must be an object, not {told(value)}")
            found = Fields(value or {}, self.file, found._place(name))
        return found

    def parts(self, name: str) -> list[Fields]:
        """The objects of a list; none where there is no list."""
        return [each for _, each in self._objects(name)]

    def _objects(self, name: str) -> Iterator[tuple[int, Fields]]:
        for number, value in enumerate(self.entries(name)):
            place = f"{self._place(name)}[{number}]"
            if not isinstance(value, Mapping):
                raise UserFileError(self.file, f"{place} must be an object, not {told(value)}")
            yield number, Fields(value, self.file, place)

    def entries(self, name: str) -> Sequence[Any]:
        """A list; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.wrong(name, f"must be a list, not {told(value)}")
        return value

    def numbers(self, name: str) -> list[float]:
        """The numbers of a list; none where there is no list."""
        return [
            number
            for place, value in enumerate(self.entries(name))
            if (number := self._number(f"{name}[{place}]", value)) is not None
        ]

    def filled(self, name: str) -> int | None:
        """How many entries of a list are not empty, as the texts of errors are; None where there is no list."""
        return None if self.values.get(name) is None else sum(map(bool, self.entries(name)))

    def number(self, name: str) -> float | None:
        """A number of at least 0."""
        return self._number(name, self.values.get(name))

    def needed(self, name: str) -> float:
        """A number of at least 0 that must be there.

        Raises:
            UserFileError: if it is not.
        """
        found = self.number(name)
        if found is None:
            raise self.wrong(name, "is missing")
        return found

    def count(self, name: str) -> int | None:
        """A whole number of at least 0."""
        found = self.number(name)
        if found is None:
            return None
        if not found.is_integer() or found > MOST_COUNTED:
            raise self.wrong(name, f"must be a whole number, not {told(self.values[name])}")
        return int(found)

    def needed_count(self, name: str) -> int:
        """A whole number of at least 0 that must be there.

        Raises:
            UserFileError: if it is not.
        """
        found = self.count(name)
        if found is None:
            raise self.wrong(name, "is missing")
        return found

    def text(self, name: str) -> str | None:
        """A text; None where it is empty."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"must be a text, not {told(value)}")
        return value[:LONGEST_TEXT] if value else None

    def when(self, name: str, form: str | None = None) -> datetime | None:
        """A time as text; in UTC where it names no time zone.

        Args:
            name: of the value.
            form: as `datetime.strptime` has it; ISO 8601 (default).
        """
        text = self.text(name)
        if text is None:
            return None
        try:
            found = datetime.fromisoformat(text) if form is None else datetime.strptime(text, form)  # noqa: DTZ007
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self.wrong(name, f"must be a time, not {told(text)}") from None

    def seconds_since_epoch(self, name: str) -> datetime | None:
        """A time as seconds since 1970."""
        found = self.number(name)
        try:
            return None if not found else datetime.fromtimestamp(found, UTC)
        except (ValueError, OverflowError, OSError):
            raise self.wrong(name, f"must be seconds since 1970, not {told(found)}") from None

    def _number(self, name: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"must be a number, not {told(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if not 0 <= value <= LARGEST:
            raise self.wrong(name, f"must lie between 0 and {float(LARGEST):g}, not {told(value)}")
        return float(value)

    def _place(self, name: str) -> str:
        return f"{self.place}.{shortened(name)}" if self.place else shortened(name)
