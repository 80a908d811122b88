"""A light stand-in for ``vllm serve``: real HTTP, a real tree of processes.

It takes vLLM's command line and answers the few endpoints that a start asks for. Like vLLM it has an engine process of
its own; unlike vLLM, two more processes escape as far as a process can: one in a session of its own, and one orphaned
daemon. Only the end of processes and the start-up protocol are tested with it; STAND_IN chooses how it behaves:

- ``serve``: answer.
- ``stubborn``: answer, and ignore SIGTERM in every process; the file STAND_IN_TOLD says that it came.
- ``hang``: never listen.
- ``die``: write STAND_IN_LOG to the log and exit with 1.
- ``killed``: end by SIGKILL.
- ``eat``: take memory until the kernel ends it.
- ``mute``: list the model, but answer no chat; then die.
- ``completions``: refuse chats as a model without a chat template does.
- ``alone``: answer from the main process, whatever ``--api-server-count`` says, as vLLM's older module does.
- ``open``: answer, and ask for no key but to generate.
- ``useless``: answer, and log STAND_IN_LOG first.

With ``--api-server-count`` above 1 the main process binds the socket and hands it to that many front ends, as vLLM's
does. The last of them starts a moment later if STAND_IN_LATE names a file: when that exists.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import selectors
import signal
import socket
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("STAND_IN", "serve")
METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100",pid="1"} 1.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="None",pid="2"} 1.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100",pid="3"} 1.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{model_name="a"} 3.0
vllm:generation_tokens_total{model_name="b"} 4.0
"""


def say(line: str) -> None:
    """Log a line. As with vLLM, a line that cannot be logged is lost."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def linger() -> None:
    """Be a process that lives until it is ended (or, lest a failing test leave it, ten minutes)."""
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def start_tree() -> None:
    """A child, one in a session of its own, and an orphaned daemon in another one."""
    me = [sys.executable, "-S", __file__]
    subprocess.Popen([*me, "child"])
    subprocess.Popen([*me, "child"], start_new_session=True)
    subprocess.Popen([*me, "daemon"]).wait()


def become_daemon() -> None:
    """Orphan a process in a session of its own. When this one ends, no process between the two is left."""
    if between := os.fork():
        os.waitpid(between, 0)
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    linger()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object, code: int = 200, kind: str = "application/json") -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        scheme, _, key = (self.headers.get("Authorization") or "").partition(" ")
        if scheme == "Bearer" and hashlib.sha256(key.encode()).hexdigest() == os.environ["GPUCAP_KEY_SHA256"]:
            return True
        self.answer({"error": {"message": "Unauthorized"}}, 401)
        return False

    def do_GET(self) -> None:
        if MODE != "open" and not self.allowed():
            return
        if self.path == "/health":
            self.answer("")
        elif self.path == "/version":
            self.answer({"version": "0.0.stand-in"})
        elif self.path == "/metrics":
            self.answer(METRICS, kind="text/plain")
        elif self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": self.model, "object": "model", "created": 0}]})
        else:
            self.answer({"error": {"message": "Not Found"}}, 404)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if not self.allowed():
            return
        if MODE == "mute":
            print("RuntimeError: the engine fell over", flush=True)
            os._exit(3)
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self.answer({"error": {"message": "Not Found"}}, 404)
            return
        if chat and MODE == "completions":
            self.answer({"error": {"message": "default chat template is no longer allowed"}}, 400)
            return
        part = {"delta": {"content": "x"}} if chat else {"text": "x"}
        whole = {"message": {"role": "assistant", "content": "x"}} if chat else {"text": "x"}
        base = {"id": "1", "created": 0, "model": self.model}
        if request.get("stream"):
            chunk = {**base, "object": "chunk", "choices": [{"index": 0, "finish_reason": "length", **part}]}
            self.answer(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", kind="text/event-stream")
        else:
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choice = {"index": 0, "finish_reason": "length", **whole}
            self.answer({**base, "object": "whole", "choices": [choice], "usage": usage})


class Server(ThreadingHTTPServer):
    """One that answers on a socket that is bound already."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.socket.listen()

    def get_request(self) -> tuple[socket.socket, object]:
        """Wait no longer where another front end was faster."""
        self.socket.setblocking(False)
        connection, address = self.socket.accept()
        connection.setblocking(True)
        return connection, address


def serve_front_ends(bound: socket.socket, model: str, count: int) -> None:
    """Start them, each in a process of its own, and end with the first of them."""
    os.set_inheritable(bound.fileno(), True)
    command = [sys.executable, "-S", __file__, str(bound.fileno()), model]
    late = os.environ.get("STAND_IN_LATE", "")
    children = [
        subprocess.Popen([*command, late if number else "", "front-end"], close_fds=False) for number in range(count)
    ]
    children[0].wait()


def front_end() -> None:
    descriptor, Handler.model, late = sys.argv[-4:-1]
    while late and not Path(late).exists():
        time.sleep(0.05)
    Server(socket.socket(fileno=int(descriptor))).serve_forever()


def serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    if MODE == "die":
        say(os.environ.get("STAND_IN_LOG", ""))
        os._exit(1)  # nothing is left to be flushed
    if MODE == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if MODE == "eat":
        eaten = [b"x" * 2**20 for _ in range(1024)]  # no more than 1 GiB, should nothing end it
        sys.exit(f"{len(eaten)} MiB were not too many")
    start_tree()
    if MODE == "hang":
        linger()
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: Path(os.environ["STAND_IN_TOLD"]).touch())
    if MODE == "useless":
        print(os.environ["STAND_IN_LOG"], flush=True)
    bound = socket.create_server((arguments.host, arguments.port), backlog=0, reuse_port=False)
    say("serving")
    if arguments.api_server_count > 1 and MODE != "alone":
        serve_front_ends(bound, arguments.served_model_name, arguments.api_server_count)
    Handler.model = arguments.served_model_name
    Server(bound).serve_forever()


if __name__ == "__main__":
    vars(socketserver)["_ServerSelector"] = selectors.EpollSelector  # as event loops wait
    {"child": linger, "daemon": become_daemon, "front-end": front_end}.get(sys.argv[-1], serve)()
