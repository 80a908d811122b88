from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.gpu.classes import (
    GpuClass,
    GpuClassError,
    UnknownGpuClass,
    _product_key,
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
        *("h200", "b200", "gh200", "cpu", "a100-40gb-1g.5gb", "h200-3g.71gb", "l40", "l20", "a40", "rtx-a6000", "a30"),
        *("h20", "h20-141gb", "h800-sxm", "h800-pcie", "v100-sxm-16gb", "v100-sxm-32gb", "v100-pcie-16gb", "v100s"),
        *("rtx5090", "rtx-pro-6000", "rtx-pro-6000-max-q", "rtx-pro-6000-server", "gb200", "b300", "gb300"),
    ],
)
def test_every_class_that_is_promised_is_there(name: str) -> None:
    assert find_class(name).name == name


def test_no_spelling_names_two_classes() -> None:
    for brands in (True, False):
        meant: dict[object, str] = {}
        for each in known_classes():
            names = {(name, None) for name in (each.name, *each.aliases)}
            for name, profile in names | {(name, each.mig_profile) for name in each.nvml_names}:
                if not brands and name.startswith("tesla-"):
                    continue  # an alias with a brand is found with it
                other = meant.setdefault(_product_key(name, profile, brands=brands), each.name)
                assert other == each.name, name


@pytest.mark.parametrize("gpu_class", [c for c in known_classes() if not c.is_cpu], ids=lambda c: c.name)
def test_figures_agree_with_each_other(gpu_class: GpuClass) -> None:
    assert gpu_class.memory_bytes is not None
    assert gpu_class.fp16_flops is not None
    assert gpu_class.compute_capability is not None
    # Tensor cores know bfloat16 from Ampere (8.0) and FP8 from Ada (8.9) on.
    assert (gpu_class.bf16_flops is not None) == (gpu_class.compute_capability >= (8, 0))
    assert (gpu_class.fp8_flops is not None) == (gpu_class.compute_capability >= (8, 9))
    # Volta's tensor cores have no int8; of Blackwell Ultra the published figures contradict each other.
    assert (gpu_class.int8_ops is None) == (gpu_class.compute_capability in {(7, 0), (10, 3)})
    # A dense 8-bit rate is twice the dense 16-bit one: a sparse figure that slipped in would show.
    for rate in filter(None, (gpu_class.int8_ops, gpu_class.fp8_flops)):
        assert rate / gpu_class.fp16_flops == pytest.approx(2, rel=0.03)
    # All of the memory is read in 10 to 100 ms on every GPU there is.
    if gpu_class.name != "h20-141gb":  # no public figure
        assert gpu_class.bandwidth_bytes_per_s is not None
        assert 0.01 < gpu_class.memory_bytes / gpu_class.bandwidth_bytes_per_s < 0.1
    for figure in FIGURES:
        assert gpu_class.source(figure)


def test_the_documented_table_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpus.md").read_text()
    section = page.partition("\n## Classes\n")[2].partition("\n## ")[0]
    sliced = {c.parent for c in known_classes()}
    rows = [
        f"| `{c.name}` | {c.nvml_names[0]} | {c.figures()} |{' yes' if c.name in sliced else ''} |"
        for c in known_classes()
        if not c.mig_profile and not c.is_cpu
    ]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows


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


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100", "h100-sxm"),
        (" A10G ", "a10g"),
        ("A100 80GB", "a100-80gb"),
        # as nvidia-smi names them
        ("NVIDIA L40", "l40"),
        ("nvidia l40s", "l40s"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("NVIDIA H20-3e", "h20-141gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("A100-SXM4-40GB", "a100-40gb"),  # an older driver
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100-40gb-1g.5gb"),
        # as Kubernetes' GPU feature discovery labels nodes
        ("nvidia.com/gpu.product=Tesla-T4", "t4"),
        ("nvidia.com/gpu.product: NVIDIA-L40S", "l40s"),
        ("NVIDIA-L40S-SHARED", "l40s"),
        ("NVIDIA-A10G-SHARED", "a10g"),
        ("NVIDIA-GeForce-RTX-4090", "rtx4090"),
        ("NVIDIA-H100-80GB-HBM3", "h100-sxm"),
        ("NVIDIA-A100-80GB-PCIe", "a100-80gb-pcie"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "a100-80gb-1g.10gb"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb.me", "a100-80gb-1g.10gb"),
        ("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb-SHARED", "a100-40gb-3g.20gb"),
        ("NVIDIA-H200-MIG-1g.18gb", "h200-1g.18gb"),
        # as clouds name them
        ("nvidia-tesla-t4", "t4"),
        ("nvidia-tesla-a100", "a100-40gb"),
        ("nvidia-a100-80gb", "a100-80gb"),
        ("nvidia-h100-mega-80gb", "h100-sxm"),
        ("nvidia-h200-141gb", "h200"),
        # as people write them
        ("RTX 4090", "rtx4090"),
        ("rtx_4090", "rtx4090"),
        ("GeForce RTX 5090", "rtx5090"),
        ("H100PCIe", "h100-pcie"),
        ("A6000", "rtx-a6000"),
    ],
)
def test_names_are_found_in_any_case_and_by_alias(spelling: str, name: str) -> None:
    assert find_class(spelling).name == name


@pytest.mark.parametrize(("wrong", "offered"), [("a10gg", "a10g"), ("h1000", "h100"), ("rtx409", "rtx4090")])
def test_an_unknown_class_is_answered_with_what_comes_near(wrong: str, offered: str) -> None:
    with pytest.raises(UnknownGpuClass, match=offered) as caught:
        find_class(wrong)
    assert "\n" not in str(caught.value)


def test_a_class_like_no_other_is_answered_with_the_list() -> None:
    with pytest.raises(UnknownGpuClass, match=r"known are t4, l4, .*cpu \(a card of another class"):
        find_class("zzz")


@pytest.mark.parametrize(
    "other",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",  # a smaller chip than the RTX 4090
        *("NVIDIA GeForce RTX 4090 D", "NVIDIA L40S-48Q", "NVIDIA L4 D", "NVIDIA RTX 6000", "NVIDIA A100-SXM-64GB"),
        *("NVIDIA-A100-SXM4-40GB-MIG-1g.7gb", "NVIDIA-L40S-MIG-1g.5gb", "NVIDIA", "", "-shared"),
    ],
)
def test_a_product_that_only_looks_like_another_is_not_known(other: str) -> None:
    with pytest.raises(UnknownGpuClass, match="--gpucap-gpu-file"):
        find_class(other)
    assert class_named_by_nvml(other) is None


@pytest.mark.parametrize(
    "other", ["mi300x", "MI-250", "AMD Instinct MI325X", "amd-mi355x", "gfx942", "gaudi3", "tpu-v5e"]
)
def test_other_makers_are_told_apart(other: str) -> None:
    with pytest.raises(UnknownGpuClass, match=r"is not supported, .* measured by --gpucap-url") as caught:
        find_class(other)
    assert "did you mean" not in str(caught.value)


def test_the_line_for_a_new_class_makes_it_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownGpuClass) as caught:
        find_class("NVIDIA X9000 Ultra")
    line = str(caught.value).partition("such as: ")[2].removesuffix(")")
    path = tmp_path / "mine.toml"
    path.write_text(line)
    own = read_classes(path)
    assert find_class("x9000-ultra", own).nvml_names == ("NVIDIA X9000 Ultra",)
    assert find_class("NVIDIA X9000 Ultra", own).name == "x9000-ultra"


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
        '[[gpu]]\nname = "A41"\nfamily = "a41"\nnvml_names = ["NVIDIA A41"]\nmemory_gb = 48\nbandwidth_gb_s = 696\n'
        'bf16_tflops = 149.7\ncompute_capability = "8.6"\n'
        '[[gpu]]\nname = "a10g"\nnvml_names = ["NVIDIA A10G"]\nbandwidth_gb_s = 500\n'
    )
    own = read_classes(path)
    assert find_class("a41", own).memory_bytes == 48 * 2**30
    assert find_class("a10g", own).bandwidth_bytes_per_s == 500e9, "their own figures come before the built-in ones"
    assert find_class("h200", own).name == "h200"
    with pytest.raises(UnknownGpuClass):
        find_class("a41")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", r"one \[\[gpu\]\] table per class"),
        ("[[gpu]]\nnvml_names = []", r'needs a name = "..."'),
        ('[[gpu]]\nname = "x"', "nvml_names must name the product"),
        ('[[gpu]]\nname = "x"\nnvml_names = "X"', "nvml_names must be a list"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory_gb = "24"', "memory_gb must be a number above 0"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory_gb = 1e-12', "memory_gb must be a number above 0"),
        (f'[[gpu]]\nname = "x"\nnvml_names = ["X"]\nmemory_gb = 1{"0" * 400}', "memory_gb must be a number above 0"),
        ('[[gpu]]\nname = "x"\nnvml_names = ["X"]\nfamily = 3', "family must be a name, not 3"),
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
