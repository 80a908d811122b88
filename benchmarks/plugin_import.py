"""What loading the plugin adds to a pytest run that measures nothing.

Two commands are timed in alternation, so that a drifting machine touches both alike: pytest on one empty test with
``-p no:gpucap``, and with the plugin loaded. Every other plugin is off in both. Prints the medians and the median of
the differences, pair by pair::

    python benchmarks/plugin_import.py [--pairs 40]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    pairs = parser.parse_args().pairs
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_empty.py"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_empty.py").write_text("def test_empty(): ...\n")
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        # As for everybody: compiled once, not in every run.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(*extra: str) -> float:
            start = time.perf_counter()
            subprocess.run([*command, *extra], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            return (time.perf_counter() - start) * 1000

        for _ in range(3):
            run(), run("-p", "pytest_gpucap.plugin")
        bare, loaded = [], []
        for _ in range(pairs):
            bare.append(run())
            loaded.append(run("-p", "pytest_gpucap.plugin"))
    added = [after - before for before, after in zip(bare, loaded, strict=True)]
    print(f"bare pytest    {statistics.median(bare):7.1f} ms (median of {pairs})")
    print(f"with pytest-gpucap {statistics.median(loaded):7.1f} ms")
    print(f"added          {statistics.median(added):7.1f} ms (median of the differences)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
