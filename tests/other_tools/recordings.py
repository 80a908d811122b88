"""What real runs of other tools wrote: the folder, and a file of each tool in it."""

from __future__ import annotations

from pathlib import Path

RECORDED = Path(__file__).with_name("recorded")
VLLM = "vllm-0.32.0/open.json"
SGLANG = "sglang-0.5.23/runs.jsonl"
AIPERF = "aiperf-0.13.0/open/profile_export_aiperf.json"
GUIDELLM = "guidellm-0.8.1/open.json"
STAGE = "inference-perf-0.7.0/open/stage_0_lifecycle_metrics.json"
