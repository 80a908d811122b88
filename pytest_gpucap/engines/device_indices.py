"""GPUs by the names that vLLM takes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

_QUERY = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
_TIMEOUT_S = 60.0


def indices(devices: Sequence[str]) -> list[str]:
    """The devices with every UUID of a whole GPU replaced by its index (in the order of the PCI bus).

    CUDA takes UUIDs, but up to 0.20 at least, vLLM itself turned every entry of CUDA_VISIBLE_DEVICES into an integer
    (vllm-project/vllm#20939). What has no index, such as a MIG instance, stays as it is.
    """
    if not any(device.startswith("GPU-") for device in devices):
        return list(devices)
    try:
        listed = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return list(devices)
    known = {uuid.strip(): index.strip() for index, _, uuid in (line.partition(",") for line in listed.splitlines())}
    return [known.get(device, device) for device in devices]
