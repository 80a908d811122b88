"""XID errors on the pages of a DCGM exporter.

``DCGM_FI_DEV_XID_ERRORS`` (``..._ERROR`` since exporter 4.9) is a gauge with the number of the last error, which stays
there. So only a number that was not there before is new. Where the exporter is told to show
``DCGM_EXP_XID_ERRORS_COUNT`` (of a sliding window) or ``DCGM_EXP_XID_ERRORS_TOTAL``, these have a line for each number:
what rises has come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pytest_gpucap.results.problems import Problem
from pytest_gpucap.telemetry.xid import Reported, problems_of

LAST: Final = ("DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR")
"""Exporter 4.9 renamed it."""
COUNTS: Final = ("DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL")
MOST_KEPT: Final = 1000
"""Reports on one GPU that are kept: an exporter may show a new number at every look."""


@dataclass(slots=True)
class XidsShown:
    """What a page shows of one GPU's XID errors.

    Attributes:
        last: the number of the last one, 0 for none; None where it does not show that.
        counts: by field and number.
    """

    last: int | None = None
    counts: dict[tuple[str, int], float] = field(default_factory=dict)

    def new_since(self, before: XidsShown) -> list[int]:
        """Numbers of the errors that have come since an earlier page, each once."""
        risen = [key[1] for key, count in self.counts.items() if count > before.counts.get(key, 0.0)]
        changed = [self.last] if self.last and self.last != before.last else []
        return list(dict.fromkeys([*risen, *changed]))


@dataclass(slots=True)
class XidsOfExporter:
    """The XID errors of the GPUs that are watched on one exporter's page, by their UUIDs."""

    _shown: dict[str, XidsShown] = field(default_factory=dict)
    _reports: dict[str, list[Reported]] = field(default_factory=dict)

    def begin(self, shown: Mapping[str, XidsShown]) -> None:
        """Remember what stands on the page before anything is measured: that is of earlier times."""
        self._shown = dict(shown)

    def look(self, shown: Mapping[str, XidsShown], after_s: float, by_s: float) -> None:
        """Compare a new page with the one before.

        Args:
            shown: of each watched GPU.
            after_s: when the page before was collected.
            by_s: when this one was.
        """
        for uuid, each in shown.items():
            kept = self._reports.setdefault(uuid, [])
            new = each.new_since(self._shown.get(uuid, XidsShown()))
            kept += [Reported(number, after_s, by_s) for number in new][: MOST_KEPT - len(kept)]
            self._shown[uuid] = each

    def problems(self, uuid: str, label: str, start_s: float, end_s: float) -> list[Problem]:
        """What the errors of one GPU make of a window."""
        return problems_of(label, self._reports.get(uuid, []).copy(), start_s, end_s)

    def unshown(self) -> list[str]:
        """UUIDs of the GPUs whose errors the page never showed."""
        return [uuid for uuid, each in self._shown.items() if each.last is None and not each.counts]
