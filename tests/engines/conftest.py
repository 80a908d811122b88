"""A light stand-in for a server, for tests of how servers end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.vllm_arguments import VllmArguments
from tests.engines.server_family import Family, new_family

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(scope="session")
def stand_in_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An "interpreter" that runs the stand-in whatever module it is told to run."""
    script = tmp_path_factory.mktemp("stand-in") / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n')
    script.chmod(0o755)
    return str(script)


family = pytest.fixture(new_family, name="family")
shared_family = pytest.fixture(new_family, name="shared_family", scope="module")


@pytest.fixture
def stand_in(stand_in_python: str, tmp_path: Path, family: Family) -> Callable[..., ServerSpec]:
    """Makes the spec of a stand-in server: ``stand_in("serve", max_model_len=128)``."""

    def make(
        mode: str = "serve", *, env: dict[str, str] | None = None, startup_timeout_s: float = 3600.0, **args: Any
    ) -> ServerSpec:
        return ServerSpec(
            "/models/stand-in",
            args=VllmArguments(args),
            python=stand_in_python,
            env={"STAND_IN": mode, **family.env, **(env or {})},
            startup_timeout_s=startup_timeout_s,
            log_dir=tmp_path / "logs",
        )

    return make
