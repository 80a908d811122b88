"""A DCGM exporter's page over HTTP, which changes when a test says so."""

from __future__ import annotations

import contextlib
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.serving import ThreadedServer

PAGES = Path(__file__).parent / "dcgm"


class Exporter(ThreadedServer):
    """Serves one page."""

    def __init__(self, name: str = "h100-pods") -> None:
        self.page = (PAGES / f"{name}.txt").read_text()
        self.status = 200
        self.collects = False
        """Whether every look finds another page, as of an exporter that collects all the time."""
        self.seen: list[dict[str, str]] = []
        """Headers of the requests."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append({name.lower(): value for name, value in self.headers.items()})
                if outer.collects:
                    outer.collect(TOTAL_ENERGY_CONSUMPTION=184467412903 + 500_000 * len(outer.seen))
                body = outer.page.encode()
                self.send_response(outer.status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a page that is too long is not read to its end
                    self.wfile.write(body)

        super().__init__(Handler)

    @property
    def url(self) -> str:
        return f"{self.root}/metrics"

    def collect(self, pod: str = "vllm-0", **fields: Any) -> None:
        """Collect again: these fields of a pod's GPU have these values, named without ``DCGM_FI_DEV_``."""
        for name, value in fields.items():
            line = re.compile(rf'(?m)^(DCGM_FI_DEV_{name}\{{[^\n]*pod="{pod}"[^\n]*\}}) \S+$')
            self.page, count = line.subn(rf"\g<1> {value}", self.page)
            assert count == 1, name
