from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.gpu.classes import (
    GpuClass,
    GpuClassError,
    UnknownGpuClass,
    class_named_by_nvml,
    find_class,
    known_classes,
    read_classes,
)

FIGURES = ("memory_gb", "bandwidth_gb_s", "bf16_tflops", "fp16_tflops", "fp8_tflops", "int8_tops", "compute_capability")


@pytest.mark.parametrize(
    "name",
    [
        *("t4", "l4", "a10", "a10g", "l40s", "rtx4090", "a100-40gb", "a100-80gb", "h100-pcie", "h100-sxm", "h100-nvl"),
        *("h200", "b200", "gh200", "cpu", "a100-40gb-1g.5gb", "h200-3g.71gb"),
    ],
)
def test_every_class_that_is_promised_is_there(name: str) -> None:
    assert find_class(name).name == name


def test_names_and_aliases_are_never_ambiguous() -> None:
    spellings = [spelling for c in known_classes() for spelling in {c.name, *c.aliases}]
    assert len(spellings) == len(set(spellings))


def test_products_that_nvml_names_belong_to_one_class_each() -> None:
    claims = [(name.casefold(), c.mig_profile) for c in known_classes() for name in c.nvml_names]
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("gpu_class", [c for c in known_classes() if not c.is_cpu], ids=lambda c: c.name)
def test_figures_agree_with_each_other(gpu_class: GpuClass) -> None:
    assert gpu_class.memory_bytes is not None
    assert gpu_class.bandwidth_bytes_per_s is not None
    assert gpu_class.fp16_flops is not None
    assert gpu_class.int8_ops is not None
    assert gpu_class.compute_capability is not None
    # Tensor cores know bfloat16 from Ampere (8.0) and FP8 from Ada (8.9) on.
    assert (gpu_class.bf16_flops is not None) == (gpu_class.compute_capability >= (8, 0))
    assert (gpu_class.fp8_flops is not None) == (gpu_class.compute_capability >= (8, 9))
    # A dense int8 rate is twice the dense 16-bit one: a sparse figure that slipped in would show.
    assert gpu_class.int8_ops / gpu_class.fp16_flops == pytest.approx(2, rel=0.02)
    # All of the memory is read in 10 to 100 ms on every GPU there is.
    assert 0.01 < gpu_class.memory_bytes / gpu_class.bandwidth_bytes_per_s < 0.1
    for figure in FIGURES:
        assert gpu_class.source(figure)


def test_dense_rates_of_the_datasheets() -> None:
    assert find_class("h100-sxm").bf16_flops == pytest.approx(1979e12 / 2)
    assert find_class("l4").fp8_flops == pytest.approx(485e12 / 2)
    assert find_class("a10g").bf16_flops == 70e12
    assert find_class("a10").bf16_flops == 125e12
    assert find_class("t4").bandwidth_bytes_per_s == 320e9


def test_a_slice_has_its_share_of_the_gpu() -> None:
    whole, piece = find_class("a100-40gb"), find_class("a100-40gb-3g.20gb")
    assert whole.bandwidth_bytes_per_s is not None
    assert whole.bf16_flops is not None
    assert piece.bandwidth_bytes_per_s == whole.bandwidth_bytes_per_s / 2
    assert piece.bf16_flops == pytest.approx(whole.bf16_flops * 42 / 108)
    assert piece.parent == "a100-40gb"


@pytest.mark.parametrize(("spelling", "name"), [("H100", "h100-sxm"), (" A10G ", "a10g"), ("A100 80GB", "a100-80gb")])
def test_names_are_found_in_any_case_and_by_alias(spelling: str, name: str) -> None:
    assert find_class(spelling).name == name


@pytest.mark.parametrize(("wrong", "offered"), [("a10gg", "a10g"), ("h1000", "h100"), ("rtx409", "rtx4090")])
def test_an_unknown_class_is_answered_with_what_comes_near(wrong: str, offered: str) -> None:
    with pytest.raises(UnknownGpuClass, match=offered) as caught:
        find_class(wrong)
    assert "\n" not in str(caught.value)


def test_a_class_like_no_other_is_answered_with_the_list() -> None:
    with pytest.raises(UnknownGpuClass, match=r"known are t4, l4, .*cpu$"):
        find_class("zzz")


@pytest.mark.parametrize(
    ("nvml_name", "profile", "name"),
    [
        ("NVIDIA H200", None, "h200"),
        ("nvidia a10g", None, "a10g"),
        ("NVIDIA H100 80GB HBM3", None, "h100-sxm"),
        ("NVIDIA H100 PCIe", None, "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "1g.5gb", "a100-40gb-1g.5gb"),
        ("NVIDIA A100-SXM4-80GB", "1g.10gb", "a100-80gb-1g.10gb"),
    ],
)
def test_a_product_name_leads_to_its_class(nvml_name: str, profile: str | None, name: str) -> None:
    found = class_named_by_nvml(nvml_name, profile)
    assert found is not None
    assert found.name == name


def test_an_unknown_product_has_no_class() -> None:
    assert class_named_by_nvml("NVIDIA H200 MIG") is None
    assert class_named_by_nvml("NVIDIA A100-SXM4-40GB", "1c.3g.20gb") is None


def test_users_add_classes_by_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[gpu]]\nname = "A40"\nfamily = "a40"\nnvml_names = ["NVIDIA A40"]\nmemory_gb = 48\nbandwidth_gb_s = 696\n'
        'bf16_tflops = 149.7\ncompute_capability = "8.6"\n'
        '[[gpu]]\nname = "a10g"\nnvml_names = ["NVIDIA A10G"]\nbandwidth_gb_s = 500\n'
    )
    own = read_classes(path)
    assert find_class("a40", own).memory_bytes == 48 * 2**30
    assert find_class("a10g", own).bandwidth_bytes_per_s == 500e9, "their own figures come before the built-in ones"
    assert find_class("h200", own).name == "h200"
    with pytest.raises(UnknownGpuClass):
        find_class("a40")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", r"one \[\[gpu\]\] table per class"),
        ("[[gpu]]\nnvml_names = []", r'needs a name = "..."'),
        ('[[gpu]]\nname = "x"', "nvml_names must name the product"),
        ('[[gpu]]\nname = "x"\nnvml_names = "X"', "nvml_names must be a list"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory_gb = "24"', "memory_gb must be a number above 0"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory = 24', r"no such key: memory \(did you mean memory_gb\?\)"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\ncompute_capability = "new"', "major.minor"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory_gb = 24\nmig_profiles = ["big"]', '"1g.5gb"'),
        ("[[gpu", "GPU class file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(GpuClassError, match=complaint) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(GpuClassError, match=r"/nowhere/gpus\.toml: No such file"):
        read_classes(Path("/nowhere/gpus.toml"))
