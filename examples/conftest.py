"""``pytest examples`` is this project's demo: what is to be filled in first is no part of it."""

from __future__ import annotations

collect_ignore = ["ci"]
