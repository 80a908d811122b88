"""What the tests of the load engine share: the real CPU build of vLLM, once a session."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.server.conftest import vllm_cpu_server, vllm_python  # noqa: F401  (the path has to be set first)
