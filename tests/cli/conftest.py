"""What tests of several commands share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_gpucap.__main__ import main


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs ``gpucap plan``; its document, its text, or its one line of error."""

    def run(*arguments: str, fails: bool = False) -> Any:
        code = main(["plan", *arguments])
        captured = capsys.readouterr()
        assert code == (2 if fails else 0), captured.err
        if fails:
            assert captured.err.count("\n") == 1
            return captured.err
        return json.loads(captured.out) if "json" in arguments else captured.out

    return run
