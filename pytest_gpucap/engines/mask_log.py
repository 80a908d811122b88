"""Mask the secrets in the log of a kept server that has ended by itself.

The watchdog runs it as a script (`keeping.py` says how), since no pytest run is there to do it. Its input is JSON: the
log, the server's key, and the folders to import from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Mask the log that standard input names."""
    log, key, folders = json.load(sys.stdin)
    sys.path[:0] = folders
    from pytest_gpucap.engines.protocol import ServerLog
    from pytest_gpucap.masking import Secret

    Secret(key)  # from now on it is masked
    ServerLog(Path(log)).mask()


if __name__ == "__main__":
    main()
