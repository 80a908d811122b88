"""The GPUs of a server elsewhere, as NVIDIA's DCGM exporter shows them on its page for Prometheus.

The exporter collects every so often (``--collect-interval``, 30 s by default) and shows the same values until it
collects again. So a page that has not changed is no new reading, and a changed one was collected between this look and
the one before: that is its time, to half a second.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Final

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.pages import Page
from pytest_gpucap.foreign_text import printable
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.telemetry import dcgm_fields, dcgm_xid
from pytest_gpucap.telemetry.dcgm_xid import XidsOfExporter, XidsShown
from pytest_gpucap.telemetry.probes import DEVICE_FIELDS, labels_of, values_named

LOOK_S: Final = 1.0
"""Between two looks at the page. The exporter collects no more often by any usual setting."""
LONG_S: Final = 5.0
"""An exporter that collects less often than this misses slowdowns that a verdict should know of."""
MOST_BYTES: Final = 1 << 21
"""Of a page: 16 GPUs with every field that there is take a tenth of it."""
MOST_DEVICES: Final = 256
_ANSWER_S: Final = 5.0
_NAMED: Final = 5

Labels = tuple[tuple[str, str], ...]
"""What the labels of the wanted GPUs must be; no label twice."""

_EVENTS: Final = "DCGM_EXP_CLOCK_EVENTS_COUNT"
_EVENT_BITS: Final[Mapping[str, int]] = {
    "gpu_idle": 0x1,
    "clocks_setting": 0x2,
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
    "display_clocks": 0x100,
}
_MOST_XID: Final = 1e4
"""Numbers of XID errors have three digits; those above are values that DCGM does not know."""
_LONGEST_EVENTS_MS: Final = 10_000.0
"""Events are counted over a window before the page, five minutes by default: those of a longer one may be of earlier
load."""
_LINES: Final = re.compile(r"(?m)^DCGM_[^\n]*+")
_LINK_FIELDS: Final = ("pcie_sent_bytes_per_s", "pcie_received_bytes_per_s", "ecc_errors")


@dataclass(slots=True)
class Shown:
    """One GPU or MIG slice on a page.

    Attributes:
        labels: of its first line.
        figures: by the names of `dcgm_fields.GAUGES`, in our units; NaN where it shows none.
        pods: that its lines name, as ``NAMESPACE/POD``.
        told: every label and its value on any of its lines, names in lower case: a GPU that several share has a line
            for each of them.
        xids: its XID errors; those of a slice stand at its GPU.
    """

    labels: Mapping[str, str]
    figures: dict[str, float] = field(default_factory=dict)
    pods: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    xids: XidsShown = field(default_factory=XidsShown)

    def row(self, names: Iterable[str]) -> list[float]:
        """Its figures in that order."""
        return [self.figures.get(name, nan) for name in names]


class DcgmExporter:
    """A page of an exporter, and the GPUs on it that a server has.

    Args:
        page: of the exporter.
        match: what the labels of the server's GPUs are; empty: all that it shows.
        clock: seconds, monotonic.

    Attributes:
        devices: the GPUs, as they were when `find` was called.
        driver: the version of the driver, where the page tells.
        interval_s: how often it has shown new figures; NaN before it did so twice.
        fault: why the page could not be read the last time; empty if it could.
    """

    def __init__(self, page: Page, match: Labels = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.page, self._match, self._clock = page, match, clock
        self.devices: tuple[Device, ...] = ()
        self.driver: str | None = None
        self.interval_s, self.fault = nan, ""
        self._lines: list[str] = []
        self._looked_s = self._changed_s = nan
        self._xids = XidsOfExporter()
        self._gone: dict[str, tuple[float, float]] = {}
        """Device -> when it was first and last missing."""
        self._pods: frozenset[str] = frozenset()
        self._neighbours: dict[tuple[str, str], float] = {}
        """(device, pod) -> when it was seen last."""

    def find(self) -> dict[str, Shown]:
        """Read the page, and remember the GPUs that match.

        Returns:
            Everything that the page shows, by UUID.

        Raises:
            EndpointError: one line, if the page cannot be read or is none of a DCGM exporter.
        """
        text = self.page.read(_ANSWER_S, MOST_BYTES)
        shown = read_page(text)
        if not shown:
            raise EndpointError(f"{self.page.url} shows no GPU (DCGM_FI_DEV_GPU_UTIL and others)")
        found = self._matching(shown)
        self._lines, self._looked_s = _LINES.findall(text), self._clock()
        self.devices = tuple(_device(uuid, each) for uuid, each in found.items())
        self.driver = next(
            filter(None, (dcgm_fields.label(each.labels, dcgm_fields.DRIVER) for each in found.values())), None
        )
        self._pods = frozenset(pod for each in found.values() for pod in each.pods if self._is_ours(pod))
        self._xids.begin(self._xids_on(shown))
        return shown

    def sample(self) -> dict[str, tuple[float, list[float], list[float]]]:
        """Look at the page now.

        Returns:
            The time of its figures, and what stands there in the order of `DEVICE_FIELDS` and of the link's fields,
            by UUID; empty if it shows nothing new.
        """
        before_s, now_s = self._looked_s, self._clock()
        try:
            text = self.page.read(_ANSWER_S, MOST_BYTES)
        except EndpointError as error:
            self.fault = str(error)
            return {}
        self.fault, self._looked_s = "", self._clock()
        lines = _LINES.findall(text)
        if lines == self._lines:
            return {}
        # After a failed look it changed at any time since the last good one.
        self._lines, time_s = lines, max((before_s + now_s) / 2, now_s - LOOK_S)
        after_s = before_s if math.isnan(self._changed_s) else self._changed_s
        if not math.isnan(self._changed_s):
            gap_s = time_s - self._changed_s
            self.interval_s = gap_s if math.isnan(self.interval_s) else min(self.interval_s, gap_s)
        self._changed_s = time_s
        shown = read_page(text)
        self._xids.look(self._xids_on(shown), after_s, time_s)
        found = self._matching(shown)
        for device in self.devices:
            if device.uuid not in found:
                self._gone[device.uuid] = self._gone.get(device.uuid, (time_s, time_s))[0], time_s
                continue
            for pod in found[device.uuid].pods - self._pods:
                if self._pods:
                    self._neighbours[device.uuid, pod] = time_s
        return {
            device.uuid: (
                time_s,
                found[device.uuid].row(DEVICE_FIELDS),
                found[device.uuid].row(_LINK_FIELDS),
            )
            for device in self.devices
            if device.uuid in found
        }

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """Why a measurement in that window cannot be trusted, as far as only the exporter can tell."""
        labels = {device.uuid: device.label for device in self.devices}
        found = []
        for uuid, (first_s, last_s) in self._gone.copy().items():
            if first_s <= end_s and last_s >= start_s:
                text = f"{labels[uuid]} left the page of its DCGM exporter{self._where()}: was the pod moved?"
                found.append(Problem(ProblemSource.GPU, ProblemKind.LOST, text))
        for (uuid, pod), seen_s in self._neighbours.copy().items():
            if start_s <= seen_s <= end_s:
                text = f"a neighbour was on {labels[uuid]}: the pod {pod}"
                found.append(Problem(ProblemSource.HOST, ProblemKind.SHARED, text))
        for uuid, label in labels.items():
            found += self._xids.problems(uuid, label, start_s, end_s)
        return found

    def remarks(self) -> list[str]:
        """What weakens the evidence of its figures, a sentence each."""
        said = []
        if self.fault:
            said.append(f"the GPUs could not be watched to the end: {self.fault}")
        if math.isnan(self._changed_s):
            said.append(
                f"the DCGM exporter at {self.page.url} showed nothing new while it was watched, so no figure of the "
                "GPUs is known: let it collect every second (--collect-interval=1000)"
            )
        elif self.interval_s > LONG_S:
            said.append(
                f"the DCGM exporter shows new figures of the GPUs every {self.interval_s:.0f} s, so shorter slowdowns "
                "were not seen: let it collect every second (--collect-interval=1000)"
            )
        if self._xids.unshown():
            said.append(
                f"the DCGM exporter at {self.page.url} shows no {' or '.join(dcgm_xid.LAST)}, so XID errors of the "
                "GPUs could not be seen: add that line to its counters"
            )
        return said

    def _xids_on(self, shown: Mapping[str, Shown]) -> dict[str, XidsShown]:
        """What a page shows of the watched devices; of a slice its own lines, or else those of its GPU."""
        found: dict[str, XidsShown] = {}
        for device in self.devices:
            places = [shown[uuid].xids for uuid in (device.uuid, device.parent_uuid) if uuid and uuid in shown]
            if places:
                found[device.uuid] = next((each for each in places if each.last is not None or each.counts), places[0])
        return found

    def _matching(self, shown: Mapping[str, Shown]) -> dict[str, Shown]:
        wanted = {name.lower(): value for name, value in self._match}
        return {uuid: each for uuid, each in shown.items() if _matches(each, wanted)}

    def _is_ours(self, pod: str) -> bool:
        """Whether a pod is one of those that the match means; without one, every pod is."""
        wanted = {name.lower(): value for name, value in self._match}
        namespace, _, name = pod.partition("/")
        return wanted.get("pod", name) == name and wanted.get("namespace", namespace) == namespace

    def _where(self) -> str:
        return f" with {', '.join(f'{name}={value}' for name, value in self._match)}" if self._match else ""


def read_page(text: str) -> dict[str, Shown]:
    """What a page shows of each GPU or slice, by its UUID; malformed lines are ignored."""
    text = "\n" + text
    shown: dict[str, Shown] = {}
    for figure, fields in dcgm_fields.GAUGES.items():
        for name, factor, most in fields:
            for labels, value in _lines_of(text, name, shown):
                figures = shown[_uuid_of(labels)].figures
                if 0 <= value <= most:
                    figures.setdefault(figure, value * factor)
    _read_xids(text, shown)
    events: dict[str, int] = {}
    for labels, count in _lines_of(text, _EVENTS, shown):
        bit = _EVENT_BITS.get(labels.get("clock_event", ""))
        if bit is not None and _is_short(labels.get("window_size_in_ms", "")):
            uuid = _uuid_of(labels)
            events[uuid] = events.get(uuid, 0) | (bit if count > 0 else 0)
    for uuid, bits in events.items():
        shown[uuid].figures.setdefault("reasons", float(bits))
    return shown


def _read_xids(text: str, shown: dict[str, Shown]) -> None:
    """Add what a page shows of XID errors; the text begins with a line break."""
    for name in dcgm_xid.LAST:
        for labels, number in _lines_of(text, name, shown):
            if 0 <= number <= _MOST_XID:
                shown[_uuid_of(labels)].xids.last = int(number)
    for name in dcgm_xid.COUNTS:
        for labels, count in _lines_of(text, name, shown):
            # Looks without an error may be counted as number 0.
            if re.fullmatch(r"[1-9][0-9]{0,3}", labels.get("xid", "")):
                shown[_uuid_of(labels)].xids.counts[name, int(labels["xid"])] = count


def _lines_of(text: str, name: str, shown: dict[str, Shown]) -> list[tuple[dict[str, str], float]]:
    """The lines of a field that are about GPUs, with their labels; each GPU has its place in `shown` then."""
    found = []
    for written, value in values_named(text, name):
        labels = labels_of(written)
        uuid = _uuid_of(labels)
        if not uuid or (uuid not in shown and len(shown) >= MOST_DEVICES):
            continue
        seen = shown.setdefault(uuid, Shown(labels))
        seen.told.update((name.lower(), value) for name, value in labels.items())
        if labels.get("pod"):
            seen.pods.add(f"{labels.get('namespace', '')}/{labels['pod']}")
        found.append((labels, value))
    return found


def _uuid_of(labels: Mapping[str, str]) -> str:
    """Of a GPU, or of a slice: that of its GPU and the slice's number."""
    uuid = _short(dcgm_fields.label(labels, dcgm_fields.UUID))
    instance = _short(labels.get("GPU_I_ID") or "")
    return f"{uuid}/{instance}" if uuid and instance else uuid


def _matches(shown: Shown, wanted: Mapping[str, str]) -> bool:
    if any(pair not in shown.told for pair in wanted.items() if pair[0] not in {"pod", "namespace"}):
        return False
    if not wanted.keys() & {"pod", "namespace"}:
        return True
    pods = (pod.partition("/")[::2] for pod in shown.pods)
    return any(wanted.get("namespace", space) == space and wanted.get("pod", name) == name for space, name in pods)


def _is_short(window_ms: str) -> bool:
    try:
        return float(window_ms) <= _LONGEST_EVENTS_MS
    except ValueError:
        return False


def _device(uuid: str, shown: Shown) -> Device:
    labels, figures = shown.labels, shown.figures
    memory = [figures.get(f"memory_{part}bytes", nan) for part in ("", "free_", "reserved_", "total_")]
    total = memory[0] + memory[1] + (0.0 if math.isnan(memory[2]) else memory[2])
    total = memory[3] if math.isnan(total) else total
    index = labels.get("gpu", "")
    profile = labels.get("GPU_I_PROFILE") or None
    return Device(
        index=int(index) if re.fullmatch(r"[0-9]{1,4}", index) else 0,
        uuid=uuid,
        name=_short(dcgm_fields.label(labels, dcgm_fields.MODEL) or "GPU of an unknown model"),
        memory_bytes=None if math.isnan(total) else int(total),
        memory_used_bytes=_whole(memory[0]),
        pci_bus_id=_short(labels["pci_bus_id"]) if labels.get("pci_bus_id") else None,
        mig_mode=True if profile else None,
        mig_profile=profile and _short(profile),
        parent_uuid=_short(dcgm_fields.label(labels, dcgm_fields.UUID)) if profile else None,
        sm_clock_mhz=_whole(figures.get("sm_clock_mhz", nan)),
        memory_clock_mhz=_whole(figures.get("memory_clock_mhz", nan)),
        max_sm_clock_mhz=_whole(figures.get("max_sm_clock_mhz", nan)),
        max_memory_clock_mhz=_whole(figures.get("max_memory_clock_mhz", nan)),
        power_limit_w=figures.get("power_limit_w"),
        default_power_limit_w=figures.get("default_power_limit_w"),
        temperature_c=_whole(figures.get("temperature_c", nan)),
        ecc_errors=_whole(figures.get("ecc_errors", nan)),
    )


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _short(text: str) -> str:
    return printable(text)[:100]


def found_devices(exporters: Iterable[DcgmExporter], match: Labels) -> None:
    """Find the server's GPUs on the pages of all exporters.

    Raises:
        EndpointError: one line, if a page cannot be read, no GPU matches, or it is not clear which are meant.
    """
    shown: list[Shown] = []
    exporters = tuple(exporters)
    for exporter in exporters:
        try:
            shown += exporter.find().values()
        except EndpointError as error:
            raise EndpointError(f"--gpucap-dcgm-url: {error}", status=error.status) from None
    found = [device for exporter in exporters for device in exporter.devices]
    if not found:
        named = ",".join(f"{name}={value}" for name, value in match)
        raise EndpointError(f"--gpucap-dcgm-match={named}: no GPU has these labels; {_offer(shown)}")
    pods = {frozenset(each.pods) for each in shown}
    if not match and len(found) > 1 and (len(pods) > 1 or pods == {frozenset()}):
        raise EndpointError(
            f"--gpucap-dcgm-url: the page shows {len(found)} GPUs: say which are the server's with "
            f"--gpucap-dcgm-match, such as pod=NAME or gpu=0; {_offer(shown)}"
        )


def _offer(shown: Iterable[Shown]) -> str:
    """What the labels of the GPUs are that are there."""
    shown = tuple(shown)
    seen = {"pod": {pod.partition("/")[2] for each in shown for pod in each.pods}}
    for names in (dcgm_fields.HOST, ("gpu",), dcgm_fields.MODEL):
        seen[names[0]] = {dcgm_fields.label(each.labels, names) for each in shown}
    parts = []
    for name, values in seen.items():
        if known := sorted(filter(None, values)):
            parts.append(f"{name} {', '.join(map(_short, known[:_NAMED]))}{', ...' if len(known) > _NAMED else ''}")
    return f"there are {'; '.join(parts)}" if parts else "its lines have no labels"
