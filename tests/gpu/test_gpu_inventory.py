from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_gpucap
from pytest_gpucap.gpu import inventory as inventory_module
from pytest_gpucap.gpu.classes import GpuClass, find_class, read_classes
from pytest_gpucap.gpu.inventory import (
    Inventory,
    NoGpu,
    WrongGpuClass,
    class_of,
    detect_class,
    devices_of_class,
    take_inventory,
)
from pytest_gpucap.gpu.nvml import REQUIRED
from pytest_gpucap.session.environment import device_state
from tests.gpu import fake_nvml


def inventory(name: str, **environment: str) -> Inventory:
    with fake_nvml.answers(name):
        return take_inventory(environment)


def test_an_h200_is_read_through_the_real_binding() -> None:
    found = inventory("h200")
    (device,) = found.devices
    assert found.driver == "570.124.06"
    assert found.cuda == "12.8"
    assert device.name == "NVIDIA H200"
    assert device.uuid.startswith("GPU-")
    assert device.memory_bytes == 143771 * 2**20
    assert device.compute_capability == (9, 0)
    assert device.pci_bus_id == "00000000:18:00.0"
    assert (device.max_sm_clock_mhz, device.max_memory_clock_mhz) == (1980, 3201)
    assert (device.power_limit_w, device.default_power_limit_w) == (700, 700)
    assert (device.mig_mode, device.ecc_mode, device.ecc_errors, device.persistence) == (False, True, 0, True)
    assert not device.unreadable
    assert devices_of_class(found, find_class("h200")) == (device,)
    assert detect_class(found).name == "h200"


def test_memory_that_the_driver_keeps_is_not_in_use() -> None:
    (device,) = inventory("h200").devices
    assert device.memory_used_bytes == 0, "628 MiB are reserved, which only the second version of the call tells"


def test_an_old_driver_without_the_second_version_still_tells() -> None:
    with fake_nvml.answers("h200") as nvml:
        nvml.device()["memory"]["reserved"] = {"error": 13}  # function not found
        nvml.write()
        (device,) = take_inventory({}).devices
    assert device.memory_used_bytes == 0
    assert device.memory_bytes == 143771 * 2**20


def test_fields_that_cannot_be_read_cost_only_themselves() -> None:
    found = inventory("broken")
    assert [device.index for device in found.devices] == [0, 2]
    assert found.problems == ("GPU 1 cannot be used: GPU is lost",)
    guarded = found.devices[1]
    assert guarded.temperature_c == 31
    assert guarded.power_limit_w is None
    assert guarded.unreadable["power_limit_w"] == "Insufficient Permissions"
    assert set(guarded.unreadable) == {"power_limit_w", "ecc_mode", "ecc_errors", "persistence"}
    assert [device.index for device in devices_of_class(found, find_class("h100-sxm"))] == [0, 2]


def test_a_driver_that_does_not_fit_its_library_is_no_gpu() -> None:
    found = inventory("mismatch")
    assert not found.devices
    with pytest.raises(NoGpu, match="version mismatch"):
        detect_class(found)


def test_a_machine_of_another_maker_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "AMD_DRIVER", tmp_path)
    with pytest.raises(
        NoGpu, match=r"no GPU here \(NVML: .*mismatch\.; the AMD GPUs that are here are not supported\)"
    ):
        detect_class(inventory("mismatch"))


def test_slices_stand_for_a_gpu_that_is_split() -> None:
    found = inventory("a100-mig")
    assert [device.mig_profile for device in found.devices] == ["3g.20gb", "1g.5gb", "1g.5gb"]
    assert {device.parent_uuid for device in found.devices} == {"GPU-c0ffee11-8c5d-4d1f-9a40-77e8d12b4a05"}
    assert [device.multiprocessors for device in found.devices] == [42, 14, 14]
    assert [device.uuid for device in devices_of_class(found, find_class("a100-40gb-1g.5gb"))] == [
        "MIG-2e7a1c2f-7b66-5d1f-9b1c-1a5a6dac2b02",
        "MIG-3f8b2d30-8c77-5e20-ac2d-2b6b7ebd3c03",
    ]


def test_part_of_the_compute_of_a_slice_is_a_class_of_its_own() -> None:
    with fake_nvml.answers("a100-mig") as nvml:
        nvml.device()["slices"][0]["attributes"]["computeInstanceSliceCount"] = 1
        nvml.write()
        found = take_inventory({})
    assert found.devices[0].mig_profile == "1c.3g.20gb"
    with pytest.raises(WrongGpuClass):
        devices_of_class(found, find_class("a100-40gb-3g.20gb"))


@pytest.mark.parametrize(
    ("machine", "wanted", "said"),
    [
        ("h100-pcie", "h100-sxm", r"1x NVIDIA H100 PCIe; h100-pcie .*2039 GB/s.* is not h100-sxm .*3350 GB/s"),
        ("a10g", "a10", r"a10g \(.*70 TFLOPS\) is not a10 \(.*125 TFLOPS\): say --gpu-class a10g"),
        ("a100-mig", "a100-40gb", r"1x NVIDIA A100-SXM4-40GB MIG 3g.20gb, 2x .* MIG 1g.5gb; .* is a MIG slice"),
        ("a100-mig", "a100-40gb-2g.10gb", r"a100-40gb-3g.20gb .* is not a100-40gb-2g.10gb"),
        ("h200", "h200-1g.18gb", r"h200 is a whole GPU and has no such slice: MIG is off"),
        (
            "h200",
            "t4",
            r"^GPU class t4: this machine has 1x NVIDIA H200; run this where a t4 is, or say --gpu-class h200$",
        ),
        (
            "mismatch",
            "h200",
            r"^GPU class h200: no GPU here \(NVML: .*mismatch.*\); to try .* say --gpu-class sim:fast or cpu$",
        ),
    ],
)
def test_a_machine_without_the_class_says_what_it_has(machine: str, wanted: str, said: str) -> None:
    with pytest.raises(WrongGpuClass, match=said) as caught:
        devices_of_class(inventory(machine), find_class(wanted))
    assert "\n" not in str(caught.value)


def test_the_cpu_needs_no_gpu() -> None:
    assert devices_of_class(Inventory(), find_class("cpu")) == ()
    assert devices_of_class(inventory("h200"), find_class("cpu")) == ()


def test_a_gpu_that_no_class_knows_gets_one() -> None:
    with fake_nvml.answers("h200") as nvml:
        nvml.set(name="NVIDIA X9000 Super")
        found = take_inventory({})
    gpu_class = detect_class(found)
    assert gpu_class.name == "x9000-super"
    assert gpu_class.memory_bytes == 143771 * 2**20
    assert gpu_class.bandwidth_bytes_per_s is None
    assert devices_of_class(found, gpu_class) == found.devices


@pytest.mark.parametrize("wanted", ["l40s", "h200"])
def test_advice_names_no_class_that_is_not_known(wanted: str, tmp_path: Path) -> None:
    with fake_nvml.answers("h200") as nvml:
        nvml.set(name="NVIDIA L40 Ultra")
        found = take_inventory({})
    with pytest.raises(WrongGpuClass) as caught:
        devices_of_class(found, find_class(wanted))
    said = str(caught.value)
    assert "say --gpu-class" not in said
    line = re.search(r"write (gpu = .*\]) to a file", said)
    assert line is not None
    path = tmp_path / "mine.toml"
    path.write_text(line[1])
    own = read_classes(path)
    assert detect_class(found, own).name == "l40-ultra"
    assert devices_of_class(found, find_class("l40-ultra", own), own) == found.devices
    assert own[0].memory_bytes == pytest.approx(143771 * 2**20, rel=1e-3)


def test_of_several_classes_only_known_ones_are_offered() -> None:
    with fake_nvml.answers("mixed") as nvml:
        nvml.set(name="NVIDIA X9000 Super")
        found = take_inventory({})
    with pytest.raises(WrongGpuClass) as caught:
        detect_class(found)
    known, _, new = str(caught.value).partition("; ")
    assert known == "GPUs of several classes here: name one with --gpu-class: rtx4090"
    assert new.startswith('NVIDIA X9000 Super is of no known class: write gpu = [{name = "x9000-super", ')


def test_an_older_drivers_name_is_the_same_product() -> None:
    with fake_nvml.answers("a100-mig") as nvml:
        nvml.set(name="A100-SXM4-40GB")
        found = take_inventory({})
    assert len(devices_of_class(found, find_class("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"))) == 2


def test_a_users_class_names_a_new_product() -> None:
    with fake_nvml.answers("h200") as nvml:
        nvml.set(name="NVIDIA X9000 Super")
        found = take_inventory({})
    own = GpuClass("x9", nvml_names=("nvidia x9000 super",), bandwidth_bytes_per_s=9e12)
    assert detect_class(found, [own]) is own
    assert class_of(found.devices[0], [own]) is own


def test_gpus_of_several_classes_must_be_told_apart() -> None:
    with pytest.raises(WrongGpuClass, match=r"several classes here: name one with --gpu-class: a10, rtx4090$"):
        detect_class(inventory("mixed"))


X4 = [f"GPU-5a1d9f0{i}-0c3e-4b7a-9d55-1f8a7c2e6b0{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0,2", [0, 2]),
        ("2,1", [2, 1]),
        ("0,2,-1,1", [0, 2]),  # the example of the CUDA programming guide
        ("", []),
        (" 3 , 1 ", [3, 1]),
        (f"{X4[3]},{X4[0]}", [3, 0]),
        ("GPU-5a1d9f02", [2]),
        ("GPU-5a1d9f0", []),  # fits several
        ("1,GPU-unknown,0", [1]),
        ("7", []),
        ("0,0", []),  # CUDA shows none if one is named twice
        ("none", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str, shown: list[int]) -> None:
    found = inventory("h200-x4", CUDA_VISIBLE_DEVICES=value)
    assert [device.index for device in found.devices] == shown
    assert {device.index for device in found.hidden} == {0, 1, 2, 3} - set(shown)


def test_without_the_variable_everything_is_visible() -> None:
    assert [device.index for device in inventory("h200-x4").devices] == [0, 1, 2, 3]


def test_a_name_of_nothing_is_told() -> None:
    found = inventory("h200-x4", CUDA_VISIBLE_DEVICES="1,GPU-unknown,0")
    assert found.problems == (
        "CUDA_VISIBLE_DEVICES=1,GPU-unknown,0: 'GPU-unknown' names no device here, and ends the list",
    )


def test_hidden_gpus_are_named_as_the_reason() -> None:
    found = inventory("h200-x4", CUDA_VISIBLE_DEVICES="")
    with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES hides 4x NVIDIA H200"):
        detect_class(found)
    with pytest.raises(WrongGpuClass, match="CUDA_VISIBLE_DEVICES hides 4x NVIDIA H200"):
        devices_of_class(found, find_class("h200"))


def test_indices_of_unlike_gpus_need_an_order() -> None:
    guessed = inventory("mixed", CUDA_VISIBLE_DEVICES="0")
    assert not guessed.devices
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in guessed.problems[0]
    ordered = inventory("mixed", CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert [device.name for device in ordered.devices] == ["NVIDIA GeForce RTX 4090"]
    by_uuid = inventory("mixed", CUDA_VISIBLE_DEVICES="GPU-4090")
    assert [device.name for device in by_uuid.devices] == ["NVIDIA GeForce RTX 4090"]


def test_a_lost_gpu_keeps_its_index() -> None:
    assert [device.index for device in inventory("broken", CUDA_VISIBLE_DEVICES="2").devices] == [2]


@pytest.mark.parametrize(
    ("value", "profiles"),
    [
        ("0", ["3g.20gb"]),  # a GPU that is split, by index: its first slice
        ("GPU-c0ffee11", ["3g.20gb"]),
        ("MIG-3f8b2d30-8c77-5e20-ac2d-2b6b7ebd3c03,MIG-1d6f0b1e", ["1g.5gb", "3g.20gb"]),
    ],
)
def test_slices_are_visible_by_their_names(value: str, profiles: list[str]) -> None:
    found = inventory("a100-mig", CUDA_VISIBLE_DEVICES=value)
    assert [device.mig_profile for device in found.devices] == profiles


def test_a_description_for_the_report() -> None:
    with fake_nvml.answers("t4") as nvml:
        nvml.set(power_limit=50000)
        found = take_inventory({})
    (device,) = map(device_state, found.devices)
    assert device.power_limit_w == 50
    assert device.unreadable == {"mig_mode": "Not Supported"}
    lines = found.describe(found.devices)
    assert lines[0] == "1x Tesla T4, 15 GiB, driver 535.247.01, CUDA 12.2"
    assert lines[1] == "GPU 0 (Tesla T4): power limit 50 W, 70 W as shipped"


def test_a_machine_without_nvml_has_no_gpu() -> None:
    # A process of its own, without the fake library, and with none to be found.
    script = "from pytest_gpucap.gpu.inventory import take_inventory; print(take_inventory().problems)"
    environment = {key: value for key, value in os.environ.items() if key not in {"LD_LIBRARY_PATH", "LD_PRELOAD"}}
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\('NVML: NVML Shared Library Not Found',\)\n", done.stdout)


def test_a_child_process_finds_the_fake_library_by_path() -> None:
    script = "from pytest_gpucap.gpu.inventory import take_inventory; print(take_inventory({}).devices[0].name)"
    with fake_nvml.answers("h200") as nvml:
        environment = {**os.environ, **nvml.environment}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
    assert done.stdout == "NVIDIA H200\n"


@pytest.mark.parametrize("name", ["h200", "a100-mig", "a10g", "t4", "mixed"])
def test_a_machine_recorded_from_the_fake_library_is_the_recording(name: str) -> None:
    """The fake gives the answers it was told to give, and recording a real machine gives the form it takes."""
    with fake_nvml.answers(name) as nvml:
        for device in nvml.content["devices"]:
            if device["energy"] == "~75000":  # a counter that runs
                device["energy"] = 123
            device["processes"] = device["processes"] or [{"pid": 7, "memory": 2**30}, {"pid": 8}]
        nvml.write()
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("record_nvml.py")],
            env={**os.environ, **nvml.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        recorded = json.loads(done.stdout)
        assert recorded["system"] == nvml.content["system"]
        assert recorded["devices"] == nvml.content["devices"]


pynvml = importlib.import_module("pynvml")


def test_what_is_asked_of_the_binding_is_what_it_is_checked_for() -> None:
    package = Path(pytest_gpucap.__file__).parent
    asked = {
        name for path in package.rglob("*.py") for name in re.findall(r"pynvml\.(nvml\w+|NVML\w+)", path.read_text())
    }
    assert asked == set(REQUIRED)
    assert all(hasattr(pynvml, name) for name in REQUIRED)


WHOLE = "from __real__ import *\nfrom __real__ import NVMLError, nvmlMemory_v2\n"
UNTYPED = WHOLE + "def nvmlDeviceGetName(handle): return b'NVIDIA H200'\n"
MISTYPED = WHOLE + "def nvmlDeviceGetCount(): return 'many'\n"
UNPAIRED = WHOLE + "def nvmlDeviceGetMigMode(handle): return None\ndef nvmlSystemGetDriverVersion(): return b'1'\n"
LATE = WHOLE + "def nvmlDeviceGetHandleByIndex(index): raise OSError('no\\nlibrary')\n"


@pytest.mark.parametrize(
    ("source", "package", "said"),
    [
        # pynvml 11.5.3 and 8.0.4 lack functions; their texts are bytes
        (
            "class NVMLError(Exception): pass",
            "pynvml 11.5.3",
            r"lacks nvmlInit and \d+ others: it belongs to the package",
        ),
        ("from ctypes import nothing", "nvidia-ml-py3 7.352.0", "cannot be imported .ImportError: cannot import name"),
        ("import nothing_like_it", "pynvml 8.0.4", "cannot be imported .ModuleNotFoundError: No module named"),
        ("1/0", "pynvml 8.0.4", "cannot be imported .ZeroDivisionError"),
        ("def f(:", "pynvml 8.0.4", "cannot be imported .SyntaxError"),
        (WHOLE + "NVMLError = 3", "other 1", "has an NVMLError that is no exception"),
        (WHOLE + "def nvmlInit(): raise TypeError('x')", "other 1", "fails in nvmlInit .TypeError: x"),
        (UNTYPED, "other 1", "gives GPU 0 no usable answers .TypeError: b'NVIDIA H200' is no text"),
        (LATE, "other 1", "gives GPU 0 no usable answers .OSError: no library"),
    ],
)
def test_a_module_that_hides_the_binding_is_named_with_its_package(
    source: str, package: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version = package.split()
    module = tmp_path / "pynvml" / "__init__.py"
    module.parent.mkdir()
    module.write_text(source)
    about = tmp_path / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text("pynvml/__init__.py,,\n")
    found = hidden_by(tmp_path, monkeypatch)
    assert found.devices == ()
    (problem,) = found.problems
    assert re.search(said, problem), problem
    assert f"belongs to the package {package}, which hides nvidia-ml-py 1" in problem
    assert f"pip uninstall -y {name} && pip install --force-reinstall nvidia-ml-py" in problem
    assert str(module) in problem
    assert "\n" not in problem
    with pytest.raises(NoGpu, match=re.escape(package)):
        detect_class(found)


def hidden_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """The inventory of an H200 while a folder with another ``pynvml`` stands first on the path."""
    monkeypatch.setitem(sys.modules, "__real__", pynvml)
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(str(folder))
    return inventory("h200")


def test_a_file_of_no_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("")
    (problem,) = hidden_by(tmp_path, monkeypatch).problems
    assert f"({tmp_path}/pynvml.py) lacks NVMLError and" in problem
    assert "it belongs to no installed package and hides nvidia-ml-py" in problem
    assert problem.endswith("; rename or remove it")


@pytest.mark.parametrize("source", [UNPAIRED, MISTYPED], ids=["unpaired", "mistyped"])
def test_an_answer_of_a_wrong_type_costs_its_own_field(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(source)
    found = hidden_by(tmp_path, monkeypatch)
    if source == MISTYPED:
        assert found.problems == ("NVML: ValueError: invalid literal for int() with base 10: 'many'",)
        return
    (device,) = found.devices
    assert device.unreadable == {"mig_mode": "TypeError: 'NoneType' object is not subscriptable"}
    assert (device.mig_mode, device.power_limit_w, found.driver) == (None, 700, None)


def test_nothing_here_can_change_a_setting() -> None:
    package = Path(pytest_gpucap.__file__).parent
    calls = {call for path in package.rglob("*.py") for call in re.findall(r"\bnvml[A-Z]\w+", path.read_text())}
    changing = {call for call in calls if re.match(r"nvml(Device|Unit|System)?(Set|Clear|Reset|Create|Destroy)", call)}
    assert "nvmlDeviceGetPowerUsage" in calls
    assert not changing


@pytest.mark.parametrize("module", ["classes", "device", "inventory", "nvml", "cuda_visible_devices"])
def test_what_collection_needs_is_light(module: str) -> None:
    heavy = "{'numpy', 'pynvml', 'psutil', 'scipy'}"
    script = f"import sys, pytest_gpucap.gpu.{module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
