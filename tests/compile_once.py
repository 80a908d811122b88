"""Compile the package's inner loops, before parts of the tests run side by side and each compiles them for itself."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_gpucap.load.schedule import closed_loop
from pytest_gpucap.session.compiling import marker_path
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.runner import SimRunner


def main() -> None:
    marker = marker_path()
    if marker is None:
        return
    words = ["-P", "-m", "pytest_gpucap.session.compile_ahead", str(marker), str(os.getpid())]
    subprocess.run([sys.executable, *words], check=True)
    fast = profile.load("fast")
    SimRunner(fast.engine, seed=1).run(closed_loop(fast.workload, 4, 1.0, 20.0, 1, 0))


if __name__ == "__main__":
    main()
