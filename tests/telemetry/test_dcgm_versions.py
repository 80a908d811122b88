"""Pages of DCGM exporters of other versions and in other places: base units, jobs of Slurm, slices, a virtual GPU."""

from __future__ import annotations

import pytest

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.pages import Page
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.session.gpus_elsewhere import checked_class
from pytest_gpucap.telemetry import dcgm_fields
from pytest_gpucap.telemetry.dcgm import DcgmExporter, Labels, found_devices, read_page
from tests.telemetry.exporter import PAGES, Exporter

RENAMED = {
    "DCGM_FI_DEV_SM_CLOCK_HERTZ": ("DCGM_FI_DEV_SM_CLOCK", 1e-6),
    "DCGM_FI_DEV_MEMORY_CLOCK_HERTZ": ("DCGM_FI_DEV_MEM_CLOCK", 1e-6),
    "DCGM_FI_DEV_SM_MAX_CLOCK_HERTZ": ("DCGM_FI_DEV_MAX_SM_CLOCK", 1e-6),
    "DCGM_FI_DEV_GPU_TEMP_CELSIUS": ("DCGM_FI_DEV_GPU_TEMP", 1.0),
    "DCGM_FI_DEV_BOARD_POWER_WATTS": ("DCGM_FI_DEV_POWER_USAGE", 1.0),
    "DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS": ("DCGM_FI_DEV_POWER_MGMT_LIMIT", 1.0),
    "DCGM_FI_DEV_BOARD_POWER_LIMIT_DEFAULT_WATTS": ("DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF", 1.0),
    "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL": ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e3),
    "DCGM_FI_DEV_GPU_UTIL_RATIO": ("DCGM_FI_DEV_GPU_UTIL", 100.0),
    "DCGM_FI_DEV_MEMORY_UTIL_RATIO": ("DCGM_FI_DEV_MEM_COPY_UTIL", 100.0),
    "DCGM_FI_DEV_XID_ERROR": ("DCGM_FI_DEV_XID_ERRORS", 1.0),
    "DCGM_FI_DEV_FB_CAPACITY_BYTES": ("DCGM_FI_DEV_FB_TOTAL", 2.0**-20),
    "DCGM_FI_DEV_FB_FREE_BYTES": ("DCGM_FI_DEV_FB_FREE", 2.0**-20),
    "DCGM_FI_DEV_FB_USED_BYTES": ("DCGM_FI_DEV_FB_USED", 2.0**-20),
    "DCGM_FI_DEV_FB_RESERVED_BYTES": ("DCGM_FI_DEV_FB_RESERVED", 2.0**-20),
    "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO": ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0),
    "DCGM_FI_PROF_DRAM_UTIL_RATIO": ("DCGM_FI_PROF_DRAM_ACTIVE", 1.0),
}
"""Field of exporter 4.9 -> its name up to 4.8, and what one of its unit is in the unit of that."""


def page(name: str) -> str:
    return (PAGES / f"{name}.txt").read_text()


def as_before(text: str) -> str:
    """A page of exporter 4.9 as 4.8 would have shown it."""
    lines = []
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        labels, _, value = rest.rpartition(" ")
        if brace and name in RENAMED:
            earlier, factor = RENAMED[name]
            lines.append(f"{earlier}{{{labels} {float(value) * factor!r}")
        else:
            lines.append(line)
    return "\n".join(lines).replace("DCGM_FI_SYSTEM_DRIVER_VERSION=", "DCGM_FI_DRIVER_VERSION=")


def found(exporter: Exporter, match: Labels) -> DcgmExporter:
    watched = DcgmExporter(Page(exporter.url), match)
    found_devices([watched], match)
    return watched


def test_exporter_4_9_tells_the_same_in_other_names_and_units() -> None:
    now, before = read_page(page("h200-4.9")), read_page(as_before(page("h200-4.9")))
    assert list(now) == list(before)
    for uuid, shown in now.items():
        assert shown.figures == pytest.approx(before[uuid].figures)
        assert shown.xids == before[uuid].xids
        assert set(shown.figures) == set(dcgm_fields.GAUGES) - {"reasons", "ecc_errors", "max_memory_clock_mhz"}
    busy = next(iter(now.values())).figures
    assert (busy["gpu_use"], busy["power_w"]) == (0.98, 543.218)
    assert busy["sm_clock_mhz"] == pytest.approx(1980)
    assert busy["energy_j"] == 184467412


def test_the_devices_of_exporter_4_9() -> None:
    with Exporter("h200-4.9") as exporter:
        watched = found(exporter, (("pod", "vllm-0"),))
        (device,) = watched.devices
        assert checked_class([device], None, ()).name == "h200"
        assert device.memory_bytes == pytest.approx(150754820096, abs=1)
        assert (device.power_limit_w, device.default_power_limit_w, device.max_sm_clock_mhz) == (600, 700, 1980)
        assert watched.driver == "615.71.09"
        with pytest.raises(EndpointError, match=r"there are pod vllm-0; Hostname gpu-node-5; gpu 0, 1; modelName"):
            found(exporter, (("pod", "other"),))
        both = found(exporter, (("Hostname", "gpu-node-5"),))
        assert [each.index for each in both.devices] == [0, 1]


def test_memory_without_its_parts_is_what_the_page_gives_as_all_of_it() -> None:
    text = "".join(line for line in page("h200-4.9").splitlines(keepends=True) if "FB_FREE" not in line)
    with Exporter("h200-4.9") as exporter:
        exporter.page = text
        (device,) = found(exporter, (("gpu", "0"),)).devices
    assert device.memory_bytes == 150754820096


def test_windows_without_an_xid_error_are_counted_as_zero_which_is_none() -> None:
    with Exporter("h200-4.9") as exporter:
        watched = found(exporter, (("gpu", "0"),))
        exporter.page = exporter.page.replace(',xid="0"} 3', ',xid="0"} 4')
        watched.sample()
        assert watched.problems(0.0, 1e12) == []
        exporter.page = exporter.page.replace(',err_code="0",err_msg="No Error"} 0', ',err_code="79",err_msg="x"} 79')
        watched.sample()
        (problem,) = watched.problems(0.0, 1e12)
    assert problem.kind is ProblemKind.XID
    assert "XID 79, GPU has fallen off the bus" in problem.text


def test_a_gpu_of_several_jobs_has_the_labels_of_each() -> None:
    with Exporter("a100-jobs") as exporter:
        for job, index in (("2115078", 0), ("2115116", 0), ("2115107", 1)):
            (device,) = found(exporter, (("hpc_job", job),)).devices
            assert device.index == index
        with pytest.raises(EndpointError, match="no GPU has these labels"):
            found(exporter, (("hpc_job", "2115078"), ("gpu", "1")))


def test_slices_beside_a_whole_gpu_of_another_kind() -> None:
    """The lines of a link name a GPU by other labels; they are about no GPU by itself."""
    with Exporter("a30-mixed-4.8") as exporter:
        (device,) = found(exporter, (("pod", "triton-server-f7cb5d77-95xcf"),)).devices
        assert checked_class([device], None, ()).name == "a30-1g.6gb"
        assert device.parent_uuid == "GPU-52e7b9c4-0f3d-4b7a-8c1e-93d6a5f08b22"
        with pytest.raises(EndpointError, match="the page shows 3 GPUs"):
            found(exporter, ())


def test_a_virtual_gpu_is_of_no_class_of_whole_ones() -> None:
    with Exporter("h100-vgpu") as exporter:
        (device,) = found(exporter, ()).devices
    assert checked_class([device], None, ()).name == "h100-20c"
    (shown,) = read_page(page("h100-vgpu")).values()
    assert not shown.figures.keys() & {"power_w", "energy_j", "temperature_c"}
