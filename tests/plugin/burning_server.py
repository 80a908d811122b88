"""A server whose tokens take CPU time and nothing else, so it is as fast as its cores. It ends with its input."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN_S = 0.002


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.send_error(404)
            return
        self._whole({"object": "list", "data": [{"id": "burning", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path != "/v1/completions":
            self.send_error(404)
            return
        tokens = int(asked["max_tokens"])
        prompt = len(asked["prompt"])  # of token ids
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        if not asked.get("stream"):
            self._whole({"choices": [{"index": 0, "text": "t" * tokens, "finish_reason": "length"}], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have enough
            for number in range(1, tokens + 1):
                until = time.thread_time() + TOKEN_S
                while time.thread_time() < until:
                    pass
                finish = "length" if number == tokens else None
                self._event({"choices": [{"index": 0, "text": "t", "finish_reason": finish}]})
            self._event({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _event(self, event: dict[str, object]) -> None:
        self._chunk(b"data: %b\n\n" % json.dumps({"id": "1", "object": "text_completion", **event}).encode())

    def _chunk(self, body: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        self.wfile.flush()

    def _whole(self, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
