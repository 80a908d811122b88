"""A DCGM exporter's page over HTTP, which changes when a test says so."""

from __future__ import annotations

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAGES = Path(__file__).parent / "dcgm"


class Exporter:
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
            def log_message(self, *_: object) -> None:
                pass

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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/metrics"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def collect(self, pod: str = "vllm-0", **fields: Any) -> None:
        """Collect again: these fields of a pod's GPU have these values, named without ``DCGM_FI_DEV_``."""
        for name, value in fields.items():
            line = re.compile(rf'(?m)^(DCGM_FI_DEV_{name}\{{[^\n]*pod="{pod}"[^\n]*\}}) \S+$')
            self.page, count = line.subn(rf"\g<1> {value}", self.page)
            assert count == 1, name
