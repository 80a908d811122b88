"""Commands in Linux namespaces of their own: with other mounts, or as another user, and gone afterwards."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

NOT_HERE: Final = 77
"""Exit status of a command that could not set up what it needs."""


def unshared(flags: str, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command under ``unshare``, and return how it ended; skip the test where that is not allowed."""
    words = ["unshare", *flags.split(), *command]
    try:
        ran = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if ran.returncode == NOT_HERE or ran.stderr.startswith(("unshare: ", "mount: ")):
        pytest.skip(f"no such namespace can be had here: {ran.stderr.strip()}")
    return ran
