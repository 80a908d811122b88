"""A history of nights, made of one result file: its rate times a factor, until two nights ago."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec

from pytest_gpucap.results import result_file


def write_nights(folder: Path, night: Path, *, nights: int, factor: float) -> None:
    """Write result files of earlier nights into a folder: the rate times `factor`, and on the last two as it is."""
    content = result_file.read(night)
    for number in range(nights):
        # A little scatter, as nights have.
        times = factor * (1 + 0.01 * (number % 3 - 1)) if number < nights - 2 else 1.0
        results = []
        for result in content.results:
            rate = result.sustainable_rate
            assert rate is not None
            scaled = type(rate)(rate.value * times, rate.low * times, rate.high * times)
            results.append(msgspec.structs.replace(result, sustainable_rate=scaled))
        before = content.started - timedelta(days=nights - number)
        changed = msgspec.structs.replace(content, started=before, results=tuple(results))
        result_file.write(folder / f"earlier-{number:02}.json", changed)
