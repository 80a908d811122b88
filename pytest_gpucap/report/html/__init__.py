"""The report as one HTML file that opens offline. Importing this needs the extra ``html``."""

from __future__ import annotations

from pytest_gpucap.report.html.page import render

__all__ = ["render"]
