"""XID errors of the driver: through the real binding, from an exporter's page, and what they make of a measurement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.gpu.inventory import take_inventory
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.telemetry.sampler import Telemetry
from pytest_gpucap.telemetry.xid import AFTERMATH_S, KNOWN, Cause, Reported, described, problems_of
from pytest_gpucap.telemetry.xid_events import MOST_AT_ONCE
from tests.gpu import fake_nvml

H200 = "GPU 0 (NVIDIA H200)"


class Watch:
    """Telemetry of a fake machine on a clock that a test moves."""

    def __init__(self, nvml: fake_nvml.Answers) -> None:
        self.nvml, self.now_s = nvml, 100.0
        self.telemetry = Telemetry(take_inventory({}).devices, tuple, clock=lambda: self.now_s)
        self.telemetry.attach()

    def look(self, now_s: float) -> None:
        self.now_s = now_s
        self.telemetry.sample_devices()

    def report(self, *errors: dict[str, int]) -> None:
        """The driver reports these errors of the first GPU, after those before."""
        self.nvml.set(xids=[*self.nvml.device().get("xids", []), *errors])

    def texts(self, start_s: float, end_s: float) -> list[str]:
        return [each.text for each in self.telemetry.problems(start_s, end_s)]


@contextmanager
def watch(name: str = "h200", **fields: Any) -> Iterator[Watch]:
    with fake_nvml.answers(name) as nvml:
        if fields:
            nvml.set(**fields)
        made = Watch(nvml)
        try:
            yield made
        finally:
            made.telemetry.stop()


def test_an_error_invalidates_with_its_gpu_its_number_and_its_meaning() -> None:
    with watch() as w:
        w.look(101.0)
        w.report({"xid": 31})
        w.look(102.0)
        assert w.telemetry.problems(100.0, 102.0) == [
            Problem(
                ProblemSource.GPU,
                ProblemKind.XID,
                f"the driver reported an error of {H200}: XID 31, GPU memory page fault (usually an error of the "
                "application, here the server: look at its log)",
            )
        ]
        assert w.telemetry.remarks() == []


def test_what_came_before_the_telemetry_is_of_somebody_else() -> None:
    with watch(xids=[{"xid": 79}]) as w:
        w.look(101.0)
        assert w.texts(100.0, 101.0) == []
        w.report({"xid": 48}, {"xid": 48})
        w.look(102.0)
        (text,) = w.texts(101.0, 102.0)
    assert "XID 48, double-bit ECC error (an error of the hardware" in text, "two of one number are one problem"


def test_an_error_at_the_very_end_counts_though_nobody_has_looked_since() -> None:
    with watch() as w:
        w.look(101.0)
        w.report({"xid": 119})
        w.now_s = 110.0
        (text,) = w.texts(101.0, 110.0)
        assert "XID 119, GSP RPC timeout (usually an error of the driver" in text
        w.telemetry.stop()
        assert w.texts(101.0, 110.0) == [text], "what was heard stays"


def test_an_error_spoils_what_it_may_have_touched_and_no_more() -> None:
    with watch() as w:
        w.look(200.0)
        w.report({"xid": 94})
        w.look(201.0)
        assert w.texts(100.0, 199.9) == [], "before it"
        for start_s, end_s in ((100.0, 200.5), (200.2, 200.4), (201.0 + AFTERMATH_S, 400.0)):
            assert len(w.texts(start_s, end_s)) == 1
        assert w.texts(201.1 + AFTERMATH_S, 400.0) == []


def test_a_flood_of_errors_is_heard_in_turns() -> None:
    with watch() as w:
        w.report(*[{"xid": 1000 + number} for number in range(MOST_AT_ONCE + 5)])
        w.look(101.0)
        events = next(iter(w.telemetry._xids.values()))
        assert len(events.reports) == MOST_AT_ONCE
        w.look(102.0)
        assert [each.number for each in events.reports] == [1000 + number for number in range(MOST_AT_ONCE + 5)]


def test_errors_of_another_slice_are_not_ours() -> None:
    """Slices 3g, 1g and 1g have the instances 2, 7 and 8."""
    with watch("a100-mig") as w:
        w.report({"xid": 13, "gpu_instance": 7}, {"xid": 95})
        w.look(101.0)
        seen = [(each.text.partition(": ")[0], each.text.partition(" XID ")[2][:2]) for each in _of(w)]
    label = "the driver reported an error of GPU 0 (NVIDIA A100-SXM4-40GB MIG {})".format
    assert seen == [
        (label("3g.20gb"), "95"),
        (label("1g.5gb"), "13"),
        (label("1g.5gb"), "95"),
        (label("1g.5gb"), "95"),
    ]


def _of(w: Watch) -> list[Problem]:
    return [each for each in w.telemetry.problems(100.0, 101.0) if each.kind is ProblemKind.XID]


def test_a_slice_without_a_known_instance_counts_all_errors_of_its_gpu() -> None:
    with fake_nvml.answers("a100-mig") as nvml:
        for piece in nvml.device()["slices"]:
            del piece["gpu_instance"]
        nvml.write()
        w = Watch(nvml)
        w.report({"xid": 13, "gpu_instance": 7})
        w.look(101.0)
        assert len(_of(w)) == 3
        w.telemetry.stop()


@pytest.mark.parametrize(
    ("types", "why"),
    [({"error": 3}, "Not Supported"), (23, "Not Supported"), ({"error": 4}, "Insufficient Permissions")],
)
def test_a_system_without_events_says_so_and_is_measured(types: Any, why: str) -> None:
    with watch(event_types=types) as w:
        w.report({"xid": 79})
        w.look(101.0)
        assert w.texts(100.0, 101.0) == []
        assert w.telemetry.remarks() == [f"XID errors of {H200} could not be seen: NVML gives no events ({why})"]
        assert w.telemetry.faults == {}


def test_gpus_without_events_are_one_remark() -> None:
    with watch("h200-x4", event_types={"error": 3}) as w:
        for index in (1, 2):
            w.nvml.set(index, event_types={"error": 3})
        again = Watch(w.nvml)
        (remark,) = again.telemetry.remarks()
        again.telemetry.stop()
    assert [f"GPU {index} (" in remark for index in range(4)] == [True, True, True, False]


def test_events_that_fail_later_are_told_and_those_before_count() -> None:
    with watch() as w:
        w.report({"xid": 74})
        w.look(101.0)
        w.nvml.set(xids={"count": {"error": 999}})
        w.look(102.0)
        (text,) = w.texts(100.0, 102.0)
        assert "XID 74, NVLink error (an error of the hardware, here of a link" in text
        (remark,) = w.telemetry.remarks()
    assert remark.startswith(f"XID errors of {H200} could not be seen: ")


def test_a_lost_gpu_may_still_say_why() -> None:
    with watch() as w:
        w.nvml.set(xids={"count": {"error": 15}})
        w.look(101.0)
        assert w.telemetry.remarks() == []
        w.nvml.set(xids=[{"xid": 79}])
        w.look(102.0)
        (text,) = w.texts(100.0, 102.0)
    assert "XID 79, GPU has fallen off the bus (an error of the hardware" in text


def test_telemetry_that_begins_again_remembers() -> None:
    with watch() as w:
        w.report({"xid": 31})
        w.look(101.0)
        w.telemetry.stop()
        w.telemetry.attach()
        w.look(102.0)
        assert len(w.texts(100.0, 102.0)) == 1


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        *((number, Cause.APPLICATION) for number in (13, 31, 43)),
        (45, Cause.FOLLOWS),
        *((number, Cause.HARDWARE) for number in (48, 63, 64, 79, 94, 95)),
        (74, Cause.LINK),
        *((number, Cause.DRIVER) for number in (119, 120)),
    ],
)
def test_whose_error_a_number_usually_is(number: int, cause: Cause) -> None:
    assert KNOWN[number].cause is cause
    assert described(number) == f"XID {number}, {KNOWN[number].name} ({cause})"


def test_a_number_that_nobody_knows_is_still_an_error() -> None:
    (problem,) = problems_of("GPU 3 (X)", [Reported(999, 1.0, 2.0)], 0.0, 5.0)
    assert problem.text == f"the driver reported an error of GPU 3 (X): XID 999 ({Cause.UNKNOWN})"


def test_the_documentation_has_every_number_under_its_cause() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gpus.md").read_text(encoding="utf-8")
    table = text.partition("| whose error it usually is | XID |\n| --- | --- |\n")[2].partition("\n\n")[0]
    told = [cell.split("; ") for cell in re.findall(r"\| ([^|]*) \|$", table, re.MULTILINE)]
    known = [[f"{number} {each.name}" for number, each in KNOWN.items() if each.cause is cause] for cause in Cause]
    assert told == known
