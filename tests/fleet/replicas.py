"""Fleets of simulated servers over HTTP: real processes with vLLM's command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_gpucap.engines.protocol import ServerRequest
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.fleet.fleet_engine import FleetEngine
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.routing import Routing

SERVER = Path(__file__).parents[1] / "plugin" / "fast_vllm.py"


def interpreter(folder: Path) -> Path:
    """A program that stands for a Python with vLLM."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    return python


def engine_of(folder: Path, **arguments: object) -> VllmEngine:
    """The engine of one replica."""
    request = ServerRequest(
        model="synthetic:tiny", arguments=arguments, python=str(interpreter(folder)), log_dir=folder / "logs"
    )
    return VllmEngine(request)


@contextmanager
def fleet_of(
    folder: Path, replicas: int, routing: str = "client", heard: list[str] | None = None
) -> Iterator[FleetServer]:
    """A fleet that is ready."""
    engine = FleetEngine(engine_of(folder), replicas, Routing.parse(routing))
    said = [] if heard is None else heard
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        server = engine.start([], said.append)
    assert isinstance(server, FleetServer)
    try:
        yield server
    finally:
        server.close()
