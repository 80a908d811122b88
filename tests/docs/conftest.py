"""The browser of the tests of the HTML report, for the site as well."""

from __future__ import annotations

from tests.report.conftest import chromium as chromium  # noqa: PLC0414 - pytest finds it under this name
