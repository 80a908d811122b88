"""What conftests of runs in processes of their own begin with."""

from __future__ import annotations

OWN_LEASE = """
from pathlib import Path

from pytest_gpucap.gpu import lease

lease.MACHINE_DIRECTORY = Path(__file__).with_name("locks")
"""
"""Stand-ins for servers measure nothing real, so they need not wait for those that have the processor."""
