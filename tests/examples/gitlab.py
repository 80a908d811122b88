"""A stand-in for GitLab: a repository over HTTP, its issues, and two kinds of tokens.

git talks to the real `git http-backend`. The API takes what GitLab's manual says of it and nothing else. A job's own
token reads the repository; the project access token also pushes, and writes issues.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import parse_qs

PROJECT: Final = "team/service"
JOB_TOKEN: Final = "of-the-job"
ACCESS_TOKEN: Final = "of-the-project"


class GitLab(ThreadingHTTPServer):
    """A running stand-in, of one project.

    Attributes:
        root: folder with the bare repository ``team/service.git``.
        issues: as the API shows them.
        posted: what the path ``/hook`` was sent.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.issues: list[dict[str, Any]] = []
        self.posted: list[Any] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self) -> dict[str, str]:
        """What GitLab sets in every job."""
        return {
            "CI_PROJECT_URL": f"{self.url}/{PROJECT}",
            "CI_API_V4_URL": f"{self.url}/api/v4",
            "CI_PROJECT_ID": "42",
            "CI_PIPELINE_ID": "7",
            "CI_PIPELINE_URL": f"{self.url}/{PROJECT}/-/pipelines/7",
        }

    @property
    def clone_url(self) -> str:
        """The address that a runner clones from."""
        return f"http://gitlab-ci-token:{JOB_TOKEN}@127.0.0.1:{self.server_port}/{PROJECT}.git"


@contextmanager
def serving(root: Path) -> Iterator[GitLab]:
    """A GitLab that is served until the end."""
    server = GitLab(root)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: GitLab

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None: ...

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/hook":
            self.server.posted.append(json.loads(body))
            self._send(204)
        elif path.startswith("/api/v4/"):
            self._api(path, parse_qs(query), body)
        elif path.startswith(f"/{PROJECT}.git/"):
            self._git(path, query, body)
        else:
            self._send(404)

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        status, content = 404, {"message": "404 Not found"}
        if self.headers.get("PRIVATE-TOKEN") != ACCESS_TOKEN:
            status, content = 401, {"message": "401 Unauthorized"}
        elif path.startswith("/api/v4/projects/42/issues"):
            sent = json.loads(body) if body else {}
            assert set(sent) <= {"title", "labels", "description"}, sent
            status, content = self._issues(path.removeprefix("/api/v4/projects/42/issues"), query, sent)
        self._send(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _issues(self, which: str, query: dict[str, list[str]], sent: dict[str, str]) -> tuple[int, Any]:
        issues = self.server.issues
        there = [each for each in issues if which == f"/{each['iid']}"]
        match self.command:
            case "GET" if not which:
                assert set(query) <= {"labels", "state", "per_page"}, query
                wanted, state = set(query["labels"][0].split(",")), query["state"][0]
                found = [each for each in issues if wanted <= set(each["labels"]) and each["state"] == state]
                return 200, found[: int(query["per_page"][0])]
            case "POST" if not which:
                where = f"{self.server.url}/{PROJECT}/-/issues/{len(issues) + 1}"
                own = {"labels": sent["labels"].split(","), "iid": len(issues) + 1, "state": "opened", "web_url": where}
                issues.append({**sent, **own})
                return 201, issues[-1]
            case "PUT" if there:
                there[0].update(sent)
                return 200, there[0]
        return 404, {"message": "404 Not found"}

    def _git(self, path: str, query: str, body: bytes) -> None:
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        _, _, password = base64.b64decode(given).decode().partition(":") if scheme == "Basic" else ("", "", "")
        if password not in {JOB_TOKEN, ACCESS_TOKEN}:
            self._send(401, {"WWW-Authenticate": 'Basic realm="GitLab"'})
            return
        if "git-receive-pack" in path + query and password != ACCESS_TOKEN:
            self._send(403)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": "somebody",
            "REMOTE_ADDR": "127.0.0.1",
        }
        ran = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = ran.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self._send(int(headers.pop("Status", "200").split()[0]), headers, content)

    def _send(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
