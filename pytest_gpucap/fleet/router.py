"""The router in front of a fleet: vLLM's own, or nginx, as a process of ours."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pytest_gpucap.access import LOOPBACK
from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.launch import Launched, LaunchedServer, free_port, launch
from pytest_gpucap.engines.protocol import ServingIdentity
from pytest_gpucap.fleet.nginx import nginx_command, nginx_program
from pytest_gpucap.installing import pip_install
from pytest_gpucap.routing import RouterKind, Routing

_VLLM_ROUTER: Final = Path(__file__).parent / "server_side" / "vllm_router_serve.py"
_TITLES: Final = {RouterKind.VLLM: "vLLM's router", RouterKind.NGINX: "nginx"}
_BALANCING: Final = {"round_robin": "", "least_conn": "least_conn;", "random": "random;"}
_KEPT: Final = 256
"""Connections to each replica that a worker of nginx keeps open."""
_CONNECTIONS: Final = 16_384
_ANSWER_S: Final = 3600
"""nginx gives a request up when nothing came for so long. Its default of 60 s would be a limit of its own."""


def missing_router(routing: Routing) -> str:
    """Why the router cannot be started on this machine, and what to install; empty if it can."""
    if routing.kind is RouterKind.VLLM and importlib.util.find_spec("vllm_router") is None:
        return f"the router vllm needs its package: {pip_install('router')}"
    if routing.kind is RouterKind.NGINX and nginx_program() is None:
        return "the router nginx is not installed, or is not on PATH"
    return ""


class Router(LaunchedServer):
    """A router that we started. `close` ends it, and removes its files."""

    def __init__(self, launched: Launched, routing: Routing, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        super().__init__(launched)
        self.routing, self._folder = routing, folder

    @property
    def title(self) -> str:
        """Its name in messages."""
        return _TITLES[self.routing.kind]

    def _why_ended(self) -> str:
        why = super()._why_ended()
        return why.replace("the server", self.title, 1) if why else ""

    def close(self) -> None:
        """See `LaunchedServer.close`."""
        super().close()
        if self._folder is not None:
            self._folder.cleanup()


def start_router(
    routing: Routing,
    urls: Sequence[str],
    identity: ServingIdentity,
    *,
    log_dir: Path,
    timeout_s: float,
    on_wait: Callable[[str], None] | None = None,
) -> Router:
    """Start a router in front of replicas that are ready, and wait until it answers with the model.

    Args:
        routing: which router, with which policy.
        urls: base URLs of the replicas.
        identity: name and key that all replicas share.
        log_dir: folder for its log.
        timeout_s: longest wait.
        on_wait: called about once a second with what the start is doing.

    Raises:
        ServerStartError: if it does not become ready. It is not left running.
    """
    roots = [url.removesuffix("/v1") for url in urls]
    folder = None
    env: Mapping[str, str] = {"SPT_NOENV": "1"}  # otherwise setproctitle overwrites what its processes are found by
    if routing.kind is RouterKind.VLLM:
        command = [sys.executable, str(_VLLM_ROUTER), str(free_port()), str(free_port()), routing.policy, *roots]
    else:
        folder = tempfile.TemporaryDirectory(prefix="gpucap-nginx-")
        command = _nginx_command(Path(folder.name), routing.policy, roots)
    try:
        launched = launch(
            command,
            model=identity.name,
            log_path=log_dir / f"router-{routing.kind}-{secrets.token_hex(4)}.log",
            timeout_s=timeout_s,
            env=env,
            api_key=identity.api_key,
            title=_TITLES[routing.kind],
            on_wait=on_wait,
        )
    except BaseException:
        if folder is not None:
            folder.cleanup()
        raise
    return Router(launched, routing, folder)


def _nginx_command(folder: Path, policy: str, roots: Sequence[str]) -> list[str]:
    program = nginx_program()
    if program is None:
        raise ServerStartError(missing_router(Routing(RouterKind.NGINX, policy)), title=_TITLES[RouterKind.NGINX])
    servers = "\n".join(f"    server {urlsplit(root).netloc} max_fails=0;" for root in roots)
    http = f"""
  client_max_body_size 0;
  upstream replicas {{
    {_BALANCING[policy]}
{servers}
    keepalive {_KEPT};
  }}
  server {{
    listen {LOOPBACK}:{free_port()};
    location / {{
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $proxy_host;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_next_upstream off;
      proxy_read_timeout {_ANSWER_S}s;
    }}
  }}
"""
    workers = max(1, len(os.sched_getaffinity(0)) // 4)
    return nginx_command(program, folder, http, workers=workers, connections=_CONNECTIONS)
