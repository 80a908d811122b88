"""The vLLM servers that runs of pytest have kept on this machine with --gpucap-reuse, and their end.

Exit code 0, also if none is kept; 2 for an ID that no server has, or a server that cannot be ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import put
from pytest_gpucap.foreign_text import visible

if TYPE_CHECKING:
    from pytest_gpucap.gpu.kept import KeptServer

HELP = "the vLLM servers that --gpucap-reuse keeps, and their end"

ALL = "all"
_COLUMNS: tuple[str, ...] = ("id", "model", "class", "device", "engine", "port", "pid", "user", "age", "time left")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do with which servers."""
    parser.add_argument(
        "--end",
        nargs="?",
        const=ALL,
        metavar="ID",
        help="end the server of this ID (its beginning is enough), or all of yours that no run uses: all",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """List kept servers, or end some.

    Raises:
        CommandError: if the ID is unknown, or a server cannot be ended.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.gpu import kept, lease
    from pytest_gpucap.report.escape import json_text

    found = kept.kept_servers(lease.MACHINE_DIRECTORY)
    if options.end is None:
        put(json_text([_fields(each) for each in found]) if options.json else _table(found))
        return 0
    ended = []
    for each in _named(options.end, found):
        try:
            kept.end(each)
        except kept.KeptError as error:
            raise CommandError(f"--end {visible(options.end)}: {error}") from None
        ended.append(each)
    if options.json:
        put(json_text([_fields(each) for each in ended]))
    else:
        put("\n".join(visible(f"ended {each.id}: {each.model} on {each.place}") for each in ended) or "none is kept")
    return 0


def _named(given: str, found: Sequence[KeptServer]) -> list[KeptServer]:
    """The servers of an ID, of its beginning, or of ``all``.

    Raises:
        CommandError: if there is none of that ID, or more than one.
    """
    if given == ALL:
        return [each for each in found if each.is_mine and each.used_by is None]
    chosen = [each for each in found if given and each.id.startswith(given)]
    if len(chosen) == 1:
        return chosen
    known = ", ".join(each.id for each in chosen or found) or "none is kept"
    raise CommandError(f"--end {visible(given)}: {'several have' if chosen else 'no kept server has'} this ID: {known}")


def _fields(server: KeptServer) -> dict[str, Any]:
    """What is told of a server; times in seconds."""
    return {
        "id": server.id,
        "model": server.model,
        "gpu_class": server.gpu_class,
        "devices": list(server.devices),
        "engine": server.engine,
        "port": server.port,
        "pid": server.pid,
        "keeper_pid": server.keeper,
        "user": _user(server),
        "key_sha256": server.key_digest,
        "age_s": round(server.age_s, 1),
        "left_s": None if server.left_s is None else round(server.left_s, 1),
        "used_by": server.used_by,
    }


def _user(server: KeptServer) -> str:
    from pytest_gpucap.gpu.occupancy import user_of

    return user_of(server.keeper) or f"uid {server.user}"


def _table(found: Sequence[KeptServer]) -> str:
    from pytest_gpucap.report.columns import display_width
    from pytest_gpucap.report.formatting import seconds

    if not found:
        return "no server is kept"
    rows = [_COLUMNS]
    for each in found:
        left = f"used by pid {each.used_by}" if each.left_s is None else seconds(each.left_s)
        place = (each.gpu_class, each.place, each.engine)
        cells = (each.id, each.model, *place, str(each.port), str(each.pid), _user(each), seconds(each.age_s), left)
        rows.append(tuple(map(visible, cells)))
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
