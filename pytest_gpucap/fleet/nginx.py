"""nginx as a process of ours: it needs no root, and keeps all its files in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path
from typing import Final

_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""Kinds of temporary files, each with a folder of its own."""


def nginx_program() -> str | None:
    """Its program; None if it is not installed. Distributions keep it where only root's PATH leads."""
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(("/usr/sbin", "/usr/local/sbin")))


def nginx_command(program: str, folder: Path, http: str, *, workers: int = 1, connections: int = 1024) -> list[str]:
    """Write a configuration; the command that runs it, in the foreground, with its errors on standard error.

    Args:
        program: see `nginx_program`.
        folder: for the configuration and everything that it writes.
        http: what the block of that name says.
        workers: processes.
        connections: of each worker, at most, both to clients and to servers behind it.
    """
    # As root, its workers would run as another user, who cannot enter the folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    temporary = "\n".join(f"  {kind}_temp_path {folder / kind};" for kind in _TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(
        f"""{user}
daemon off;
pid {folder / "nginx.pid"};
error_log stderr warn;
worker_processes {workers};
worker_rlimit_nofile {2 * connections};
events {{ worker_connections {connections}; }}
http {{
  access_log off;
{temporary}
{http}
}}
""",
        encoding="utf-8",
    )
    return [program, "-p", str(folder), "-c", str(config)]
