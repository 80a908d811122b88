"""GPUs on the pages of DCGM exporters: found by their labels, read when the page is new, and judged as any others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.pages import Page
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.results.telemetry import BottleneckKind
from pytest_gpucap.session.gpus_elsewhere import checked_class
from pytest_gpucap.telemetry.bottleneck import KnownLimits, find_bottleneck
from pytest_gpucap.telemetry.dcgm import DcgmExporter, Labels, found_devices, read_page
from pytest_gpucap.telemetry.probes import DEVICE_FIELDS
from pytest_gpucap.telemetry.sampler import Telemetry
from tests.telemetry.exporter import PAGES, Exporter
from tests.waiting import refused_url

VLLM_0: Labels = (("pod", "vllm-0"),)


def page(name: str) -> str:
    return (PAGES / f"{name}.txt").read_text()


@dataclass
class Watch:
    """A telemetry that looks at an exporter when a test says so, on a clock that a test moves."""

    exporter: Exporter
    match: Labels = VLLM_0
    now_s: float = 100.0
    dcgm: DcgmExporter = field(init=False)
    telemetry: Telemetry = field(init=False)

    def __post_init__(self) -> None:
        self.dcgm = DcgmExporter(Page(self.exporter.url), self.match, clock=lambda: self.now_s)
        found_devices([self.dcgm], self.match)
        self.telemetry = Telemetry((), tuple, clock=lambda: self.now_s, exporters=[self.dcgm])

    def look(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.telemetry.sample_exporter(self.dcgm)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter() as running:
        yield running


def test_figures_are_in_our_units() -> None:
    shown = read_page(page("h100-pods"))
    assert len(shown) == 3
    first = next(iter(shown.values()))
    row = dict(zip(DEVICE_FIELDS, first.row(DEVICE_FIELDS), strict=True))
    assert row["gpu_use"] == pytest.approx(0.97)
    assert row["memory_use"] == pytest.approx(0.61)
    assert row["power_w"] == 512.337
    assert row["memory_bytes"] == 73582 * 2**20
    assert row["energy_j"] == pytest.approx(184467412.903)
    assert (row["sm_clock_mhz"], row["memory_clock_mhz"], row["temperature_c"]) == (1980, 2619, 49)
    assert np.isnan(row["reasons"]), "the default counters have none"
    assert first.pods == {"prod/vllm-0"}


def test_blank_values_of_dcgm_are_no_figures() -> None:
    (shown,) = read_page(page("t4-early")).values()
    assert shown.figures.keys() >= {"power_w", "gpu_use", "memory_bytes"}
    assert not shown.figures.keys() & {"energy_j", "memory_use"}


def test_slices_have_profiling_fields_and_the_events_of_a_short_window() -> None:
    large, small = read_page(page("a100-mig")).values()
    assert large.figures["gpu_use"] == 0.87
    assert large.figures["memory_use"] == 0.41
    assert large.figures["reasons"] == 0x20, "software thermal slowdown now; the power cap counted 0"
    assert "reasons" not in small.figures, "five minutes are not now"


def test_the_devices_of_a_pod(exporter: Exporter) -> None:
    watch = Watch(exporter)
    (device,) = watch.dcgm.devices
    assert (device.index, device.name) == (0, "NVIDIA H100 80GB HBM3")
    assert device.memory_bytes == (73582 + 7412 + 565) * 2**20
    assert device.pci_bus_id == "00000000:1B:00.0"
    assert watch.dcgm.driver == "570.172.08"


def test_the_slice_of_a_pod() -> None:
    with Exporter("a100-mig") as exporter:
        (device,) = Watch(exporter, (("pod", "vllm-mig"), ("namespace", "prod"))).dcgm.devices
    assert device.mig_profile == "3g.20gb"
    assert device.uuid == f"{device.parent_uuid}/2"


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ((), "shows 3 GPUs: say which are the server's with --gpucap-dcgm-match.*pod vllm-0, vllm-1;"),
        (
            (("pod", "vllm-7"),),
            "--gpucap-dcgm-match=pod=vllm-7: no GPU has these labels; there are pod vllm-0, vllm-1; Hostname gpu",
        ),
        ((("pod", "vllm-0"), ("namespace", "test")), "no GPU has these labels"),
        ((("rack", "7"),), "no GPU has these labels"),
    ],
)
def test_which_gpus_are_meant_must_be_clear(exporter: Exporter, match: Labels, said: str) -> None:
    with pytest.raises(EndpointError, match=said) as caught:
        Watch(exporter, match)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("match", "count"), [((("Hostname", "gpu-node-3"),), 3), ((("hostname", "gpu-node-3"), ("gpu", "2")), 1)]
)
def test_any_label_may_tell(exporter: Exporter, match: Labels, count: int) -> None:
    assert len(Watch(exporter, match).dcgm.devices) == count


def test_a_page_that_is_none_is_one_line(exporter: Exporter) -> None:
    exporter.page = "<html>welcome</html>"
    with pytest.raises(EndpointError, match=r"--gpucap-dcgm-url: http\S+ shows no GPU"):
        Watch(exporter)
    exporter.status = 503
    with pytest.raises(EndpointError, match=r"--gpucap-dcgm-url: GET \S+ answered 503"):
        Watch(exporter)
    with refused_url() as url, pytest.raises(EndpointError, match=r"--gpucap-dcgm-url: .*refused"):
        found_devices([DcgmExporter(Page(f"{url}/metrics"))], ())


def test_a_page_without_an_end_is_given_up(exporter: Exporter) -> None:
    exporter.page += "# " + "x" * (1 << 21)
    with pytest.raises(EndpointError, match="--gpucap-dcgm-url: "):
        Watch(exporter)


def test_the_same_page_is_no_new_reading(exporter: Exporter) -> None:
    """The exporter collects every 30 s; its values are those of the moment at which it did."""
    watch = Watch(exporter)
    for use in (90, 95, 100):
        for _ in range(29):
            watch.look()
        exporter.collect(GPU_UTIL=use)
        watch.look()
    (watched,) = watch.telemetry.devices
    columns = watched.series.all()
    np.testing.assert_allclose(columns["time_s"], [129.5, 159.5, 189.5])
    np.testing.assert_allclose(columns["gpu_use"], [0.9, 0.95, 1.0])
    (remark,) = watch.dcgm.remarks()
    assert "every 30 s" in remark
    assert "--collect-interval=1000" in remark


def test_an_exporter_that_stands_still_is_told(exporter: Exporter) -> None:
    watch = Watch(exporter)
    watch.look()
    watch.look()
    (remark,) = watch.dcgm.remarks()
    assert "showed nothing new" in remark
    exporter.status = 500
    watch.look()
    assert "could not be watched to the end: GET " in watch.dcgm.remarks()[0]
    assert exporter.url in watch.telemetry.faults
    assert watch.telemetry.summary(0.0, watch.now_s).devices[0].readings == 0


def busy(exporter: Exporter, watch: Watch, seconds: int, **fields: Callable[[int], float]) -> tuple[float, float]:
    """A page a second; the window."""
    start_s = watch.now_s
    for second in range(seconds):
        exporter.collect(
            TOTAL_ENERGY_CONSUMPTION=184467412903 + int((watch.now_s - 100 + 0.5) * 500_000),
            **cast("dict[str, Any]", {name: value(second) for name, value in fields.items()}),
        )
        watch.look()
    return start_s, watch.now_s


def test_power_and_energy_of_a_window(exporter: Exporter) -> None:
    watch = Watch(exporter)
    start_s, end_s = busy(exporter, watch, 20)
    summary = watch.telemetry.summary(start_s + 2, end_s - 2)
    assert summary.energy_j == pytest.approx(16 * 500, rel=1e-6)
    assert summary.devices[0].power_w == 512.337
    assert watch.telemetry.problems(start_s, end_s) == []


def test_a_busy_gpu_is_the_bottleneck_of_a_server_elsewhere(exporter: Exporter) -> None:
    watch = Watch(exporter)
    window = busy(exporter, watch, 5)
    found = find_bottleneck(watch.telemetry.summary(*window), KnownLimits(arguments=None))
    assert found.kind is BottleneckKind.GPU_BANDWIDTH
    assert "GPU busy 97% of the time" in found.evidence


def test_heat_and_a_lowered_power_limit_are_problems_as_on_this_machine(exporter: Exporter) -> None:
    labels = (
        next(line for line in exporter.page.splitlines() if 'pod="vllm-0"' in line).partition("{")[2].partition("}")[0]
    )
    exporter.page += f"DCGM_FI_DEV_CLOCKS_EVENT_REASONS{{{labels}}} 0\n"
    exporter.page += f"DCGM_FI_DEV_POWER_MGMT_LIMIT{{{labels}}} 500\nDCGM_FI_DEV_POWER_MGMT_LIMIT_DEF{{{labels}}} 700\n"
    watch = Watch(exporter)
    window = busy(exporter, watch, 6, CLOCKS_EVENT_REASONS=lambda second: 0x20 if second == 3 else 0x4)
    problems = watch.telemetry.problems(*window)
    assert [problem.kind for problem in problems] == [ProblemKind.SLOWED_DOWN, ProblemKind.POWER_LIMIT]
    assert "software thermal slowdown" in problems[0].text
    assert "500 W, lowered from 700 W" in problems[1].text


def test_a_lower_clock_is_no_problem_where_nobody_tells_reasons(exporter: Exporter) -> None:
    """A GPU at its own power limit clocks down; the default counters do not say so."""
    watch = Watch(exporter)
    busy(exporter, watch, 15)
    window = busy(exporter, watch, 15, SM_CLOCK=lambda _: 1200)
    assert watch.telemetry.problems(*window) == []


def test_a_pod_that_is_moved_and_one_that_comes_beside(exporter: Exporter) -> None:
    watch = Watch(exporter)
    exporter.page += exporter.page.replace('pod="vllm-0"', 'pod="batch-9"').replace('pod="vllm-1"', 'pod="x"')
    watch.look()
    (problem,) = watch.telemetry.problems(100.0, watch.now_s)
    assert problem.kind is ProblemKind.SHARED
    assert problem.text.endswith("the pod prod/batch-9")
    exporter.page = page("h100-pods").replace('pod="vllm-0"', 'pod="vllm-0-next"')
    moved_s = watch.now_s
    watch.look()
    (problem,) = watch.telemetry.problems(moved_s, watch.now_s)
    assert problem.kind is ProblemKind.LOST
    assert problem.text.endswith("left the page of its DCGM exporter with pod=vllm-0: was the pod moved?")


def test_the_class_is_that_of_the_devices(exporter: Exporter) -> None:
    devices = list(Watch(exporter).dcgm.devices)
    h100 = checked_class(devices, None, ())
    assert h100.name == checked_class(devices, h100, ()).name == "h100-sxm"
    with pytest.raises(
        EndpointError, match=r"a10g was asked for, and the DCGM exporter shows NVIDIA H100.* say --gpu-class"
    ):
        checked_class(devices, find_class("a10g"), ())
    with Exporter("t4-early") as other, pytest.raises(EndpointError, match="several classes"):
        checked_class([*devices, *Watch(other, ()).dcgm.devices], None, ())


def test_an_xid_error_is_a_problem_when_its_number_is_new(exporter: Exporter) -> None:
    exporter.collect(XID_ERRORS=13)  # of an earlier time
    watch = Watch(exporter)
    window = busy(exporter, watch, 3)
    assert watch.telemetry.problems(*window) == []
    window = busy(exporter, watch, 3, XID_ERRORS=lambda second: 79 if second else 13)
    (problem,) = watch.telemetry.problems(*window)
    assert problem.kind is ProblemKind.XID
    assert problem.text.startswith(
        "the driver reported an error of GPU 0 (NVIDIA H100 80GB HBM3): XID 79, GPU has fallen off the bus (an error of"
    )
    # It stays on the page, and is no new one.
    busy(exporter, watch, 120, XID_ERRORS=lambda _: 79)
    assert watch.telemetry.problems(watch.now_s - 10, watch.now_s) == []
    window = busy(exporter, watch, 2, XID_ERRORS=lambda _: 2**31 - 16)  # what DCGM does not know
    assert watch.telemetry.problems(*window) == []


@pytest.mark.parametrize("name", ["DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL"])
def test_an_xid_error_that_comes_again_is_seen_in_counts(exporter: Exporter, name: str) -> None:
    labels = (
        next(line for line in exporter.page.splitlines() if 'pod="vllm-0"' in line).partition("{")[2].partition("}")[0]
    )
    exporter.collect(XID_ERRORS=31)
    counted = f'{name}{{{labels},xid="31"}} '
    exporter.page += f'{counted}1\n{name}{{{labels},xid="x"}} 9\n'
    watch = Watch(exporter)
    assert watch.telemetry.problems(*busy(exporter, watch, 2)) == []
    exporter.page = exporter.page.replace(f"{counted}1", f"{counted}2")
    (problem,) = watch.telemetry.problems(*busy(exporter, watch, 2))
    assert "XID 31, GPU memory page fault" in problem.text


def test_an_xid_error_of_a_slice_stands_at_its_gpu() -> None:
    with Exporter("a100-mig") as exporter:
        watch = Watch(exporter, (("pod", "vllm-mig"), ("namespace", "prod")))
        (device,) = watch.dcgm.devices
        assert watch.dcgm.remarks()[-1].endswith(
            "shows no DCGM_FI_DEV_XID_ERRORS or DCGM_FI_DEV_XID_ERROR, so XID errors of the GPUs could not be seen: "
            "add that line to its counters"
        )
        for number in (0, 95):
            exporter.page += f'DCGM_FI_DEV_XID_ERRORS{{gpu="0",UUID="{device.parent_uuid}"}} {number}\n'
            watch.look()
        found = {each.kind: each for each in watch.telemetry.problems(100.0, watch.now_s)}
        problem = found[ProblemKind.XID]
        assert "MIG 3g.20gb): XID 95, uncontained ECC error" in problem.text
        assert not any("XID" in remark for remark in watch.dcgm.remarks())
