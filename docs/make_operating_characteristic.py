"""Draws the operating characteristic curves of statistics.md from the raw results of the study, as they are.

Run ``PYTHONPATH=. python docs/make_operating_characteristic.py``. It needs the extra ``study``.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.verdict.tables import CURVES, curves

RESULTS = Path(__file__).parents[1] / "benchmarks" / "verdict" / "results"


def page() -> str:
    """The picture, as SVG."""
    return curves(RESULTS)


if __name__ == "__main__":
    CURVES.write_text(page(), encoding="utf-8")
