"""GPU classes: what ``--gpu-class`` may name, and what each can do at most.

The figures stand in ``gpus.toml`` next to their sources. They are upper bounds: dense rates at boost clock and full
memory bandwidth. They tell that a number is impossible; they forecast nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pytest_gpucap.errors import GpuCapError, shortened, told
from pytest_gpucap.user_files import UserFileError, read_toml

GIB = 2**30


class GpuClassError(GpuCapError, ValueError):
    """A GPU class that cannot be used as declared; the message names the place and the fix in one line."""


class UnknownGpuClass(GpuClassError):  # noqa: N818 - reads as what is wrong
    """No class has that name; the message offers similar names."""


@dataclass(frozen=True, slots=True)
class GpuClass:
    """A kind of GPU. None where a figure does not apply or is not known.

    Attributes:
        name: what ``--gpu-class`` takes, lower case.
        aliases: other spellings.
        family: shared by classes that are easily confused.
        nvml_names: product names that NVML reports for it; for a MIG slice, its parent's.
        memory_bytes: memory of one device.
        bandwidth_bytes_per_s: memory bandwidth.
        bf16_flops, fp16_flops, fp8_flops, int8_ops: dense tensor-core operations a second.
        compute_capability: (major, minor).
        mig_profile: such as ``1g.5gb`` for a MIG slice; None for a whole GPU.
        parent: name of the whole GPU's class, for a MIG slice.
        sources: where the figures come from, by field name of the data file; ``default`` for the others.
    """

    name: str
    aliases: tuple[str, ...] = ()
    family: str = ""
    nvml_names: tuple[str, ...] = ()
    memory_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    bf16_flops: float | None = None
    fp16_flops: float | None = None
    fp8_flops: float | None = None
    int8_ops: float | None = None
    compute_capability: tuple[int, int] | None = None
    mig_profile: str | None = None
    parent: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_cpu(self) -> bool:
        """True for the class that needs no GPU."""
        return self.name == CPU

    def source(self, figure: str) -> str:
        """Where a figure of the data file comes from: ``source("bandwidth_gb_s")``; empty if nothing is known."""
        return self.sources.get(figure, self.sources.get("default", ""))

    def figures(self) -> str:
        """Memory, bandwidth and bf16 rate in a few words, for messages."""
        parts = []
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / GIB:.0f} GB")
        if self.bandwidth_bytes_per_s is not None:
            parts.append(f"{self.bandwidth_bytes_per_s / 1e9:.0f} GB/s")
        rate = self.bf16_flops or self.fp16_flops
        if rate is not None:
            parts.append(f"{rate / 1e12:.0f} TFLOPS")
        return ", ".join(parts)


CPU = "cpu"


def find_class(name: str, extra: Iterable[GpuClass] = ()) -> GpuClass:
    """The class of that name; classes in `extra` come before the built-in ones.

    A name is the class's own, an alias, or a product name as NVML, ``nvidia-smi`` and the Kubernetes label
    ``nvidia.com/gpu.product`` give it, in any case and with any separators: ``a10g``, ``NVIDIA L40S-SHARED``,
    ``NVIDIA-A100-SXM4-80GB-MIG-1g.10gb``.

    Raises:
        UnknownGpuClass: if there is none; the message offers similar names, and the lines that describe a new class.
    """
    known = known_classes(extra)
    for brands in (True, False):  # "tesla-a100" is a name of its own, "geforce-rtx-4090" is not
        wanted = _product_key(name, brands=brands)
        for gpu_class in known:
            spellings = (gpu_class.name, *gpu_class.aliases)
            if wanted in {_product_key(each, brands=brands) for each in spellings} or wanted in {
                _product_key(each, gpu_class.mig_profile, brands=brands) for each in gpu_class.nvml_names
            }:
                return gpu_class
    raise UnknownGpuClass(f"GPU class {told(name)} is not known: {_offer(name, known)}")


def known_classes(extra: Iterable[GpuClass] = ()) -> tuple[GpuClass, ...]:
    """Every class: first those in `extra`, then the built-in ones with other names."""
    own = tuple(extra)
    replaced = {gpu_class.name for gpu_class in own}
    return own + tuple(gpu_class for gpu_class in _built_in() if gpu_class.name not in replaced)


def read_classes(path: Path) -> tuple[GpuClass, ...]:
    """The classes of a TOML file in the form of ``gpus.toml``, and their MIG slices.

    Raises:
        GpuClassError: if the file cannot be read, or a value in it is invalid.
    """
    return _parse(path, str(path))


def class_named_by_nvml(
    nvml_name: str, mig_profile: str | None = None, extra: Iterable[GpuClass] = ()
) -> GpuClass | None:
    """The class of a device, by its name in NVML and its MIG profile; None where there is none."""
    return next((each for each in known_classes(extra) if is_named_by_nvml(each, nvml_name, mig_profile)), None)


def is_named_by_nvml(gpu_class: GpuClass, nvml_name: str, mig_profile: str | None) -> bool:
    """Whether a device of that name in NVML and of that MIG profile is of the class."""
    if gpu_class.mig_profile != mig_profile:
        return False
    wanted = _product_key(nvml_name, mig_profile)
    return any(_product_key(known, mig_profile) == wanted for known in gpu_class.nvml_names)


def file_entry(gpu_class: GpuClass) -> str:
    """The line of a file for ``--gpucap-gpu-file`` that makes this class known, with the figures that it has."""
    fields = {"name": json.dumps(gpu_class.name), "nvml_names": json.dumps(list(gpu_class.nvml_names))}
    if gpu_class.mig_profile:
        fields["name"] = json.dumps(gpu_class.name.removesuffix(f"-{gpu_class.mig_profile}"))
        fields |= {"mig_profiles": json.dumps([gpu_class.mig_profile]), "memory_gb": "GB_OF_THE_WHOLE_GPU"}
    else:
        given = {key: getattr(gpu_class, attribute) for key, (attribute, _) in _NUMBERS.items()}
        fields |= {key: f"{given[key] / factor:.4g}" for key, (_, factor) in _NUMBERS.items() if given[key]}
    if gpu_class.compute_capability:
        fields["compute_capability"] = '"{}.{}"'.format(*gpu_class.compute_capability)
    return f"gpu = [{{{', '.join(f'{key} = {value}' for key, value in fields.items())}}}]"


def _offer(name: str, known: Sequence[GpuClass]) -> str:
    """What to write instead of a name that no class has."""
    for pattern, maker in _FOREIGN.items():
        if re.search(pattern, _normal(name)):
            return (
                f"{maker} is not supported, since devices are read through NVIDIA's NVML; a server that runs there is "
                "measured by --gpucap-url, without --gpu-class"
            )
    if _normal(name).startswith("sim"):
        return "a simulated server is sim:PROFILE, such as sim:fast"
    from difflib import get_close_matches

    wanted = _normal(name).removeprefix("nvidia-")
    spellings = {spelling: c.name for c in known for spelling in (c.name, *c.aliases)}
    near = list(dict.fromkeys(spellings[match] for match in get_close_matches(wanted, spellings, n=6, cutoff=0.6)))
    near += [c.name for c in known if wanted and c.name.startswith(wanted) and c.name not in near]
    whole = [c.name for c in known if c.mig_profile is None]
    offer = f"did you mean {' or '.join(near[:3])}?" if near else f"known are {', '.join(whole)}"
    product = " ".join(name.split()) if "nvidia" in name.casefold() else "NAME THAT nvidia-smi -L SHOWS"
    entry = file_entry(GpuClass(wanted, nvml_names=(product,)))
    return f"{offer} (a card of another class is described in a file for --gpucap-gpu-file, such as: {entry})"


# Data file key -> field and the factor to its unit.
_NUMBERS: Mapping[str, tuple[str, float]] = {
    "memory_gb": ("memory_bytes", GIB),
    "bandwidth_gb_s": ("bandwidth_bytes_per_s", 1e9),
    "bf16_tflops": ("bf16_flops", 1e12),
    "fp16_tflops": ("fp16_flops", 1e12),
    "fp8_tflops": ("fp8_flops", 1e12),
    "int8_tops": ("int8_ops", 1e12),
}
_NAMES = ("aliases", "nvml_names", "mig_profiles")
_KEYS = {"name", "family", "compute_capability", "sms", "mig_sms", "sources", *_NUMBERS, *_NAMES}
_LEAST, _MOST = 1e-6, 1e9
_PROFILE = re.compile(r"(?P<compute>[1-7])g\.(?P<memory>[0-9]{1,6})gb")
_MIG_COMPUTE_SLICES, _MIG_MEMORY_SLICES = 7, 8


_MIG_SUFFIX = re.compile(r"(?<![-\s_])[-\s_]*+(?:mig[-\s_]*+)?((?:[1-7]c\.)?[1-7]g\.[0-9]+gb)(?:[.+-]me[a-z.]*)?$")
"""A slice at the end of a name; ``+me`` is a slice with the media engines, written ``.me`` in a label."""
_LABEL = re.compile(r"^(?:nvidia\.com/)?gpu\.product\s*[:=]\s*")
_SHARED = re.compile(r"[-\s_]shared$")
"""The label's mark for a GPU that Kubernetes shares by time."""
_BRANDS = frozenset({"tesla", "geforce", "quadro"})
_FOREIGN: Mapping[str, str] = {
    r"^(?:amd|radeon|instinct|rx)\b|^mi-?[0-9]{2,3}[a-z]?\b|^gfx[0-9]": "an AMD GPU",
    r"^(?:intel|gaudi|habana|hpu|xpu|arc)": "an Intel accelerator",
    r"^(?:google-)?tpu|^(?:aws-)?(?:trainium|inferentia|trn[0-9]|inf[0-9])|^(?:huawei-)?ascend": "this accelerator",
}


def _normal(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().casefold())


@cache
def _product_key(name: str, mig_profile: str | None = None, *, brands: bool = True) -> tuple[str, str | None]:
    """What a name says, free of spelling: letters and digits without the maker (and the brand), and the MIG slice."""
    plain = _SHARED.sub("", _LABEL.sub("", name.strip().casefold()))
    if match := _MIG_SUFFIX.search(plain):
        plain, mig_profile = plain[: match.start()], match[1]
    words = re.findall(r"[a-z0-9]+", plain)
    return "".join(w for w in words if w != "nvidia" and (brands or w not in _BRANDS)), mig_profile


@cache
def _built_in() -> tuple[GpuClass, ...]:
    return _parse(Path(__file__).with_name("gpus.toml"), "gpus.toml")


def _parse(path: Path, where: str) -> tuple[GpuClass, ...]:
    try:
        tables = read_toml(path)
    except UserFileError as error:
        raise GpuClassError(f"GPU class file {error}") from None
    gpus = tables.get("gpu")
    if set(tables) != {"gpu"} or not isinstance(gpus, list) or not all(isinstance(table, dict) for table in gpus):
        raise GpuClassError(f"GPU class file {where}: write one [[gpu]] table per class, and nothing else")
    return tuple(gpu_class for table in gpus for gpu_class in _from_table(table, where))


def _from_table(table: Mapping[str, Any], where: str) -> tuple[GpuClass, ...]:
    """The class of one table, followed by its MIG slices."""
    name = table.get("name")
    if not isinstance(name, str) or not name.strip():
        raise GpuClassError(f'{where}: every GPU class needs a name = "..."')
    place = f"{where}: GPU class {shortened(name)}"
    if unknown := sorted(set(table) - _KEYS):
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], sorted(_KEYS), n=1)
        raise GpuClassError(
            f"{place}: no such key: {shortened(unknown[0])}" + (f" (did you mean {near[0]}?)" if near else "")
        )
    names: dict[str, tuple[str, ...]] = {}
    for key in _NAMES:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise GpuClassError(f"{place}: {key} must be a list of names, not {told(value)}")
        names[key] = tuple(value)
    whole = GpuClass(
        name=_normal(name),
        aliases=names["aliases"],
        family=_family(table.get("family", _normal(name)), place),
        nvml_names=names["nvml_names"],
        compute_capability=_capability(table.get("compute_capability"), place),
        sources=_sources(table.get("sources", {}), place),
        **_figures(table, place),
    )
    if not whole.nvml_names and not whole.is_cpu:
        raise GpuClassError(f"{place}: nvml_names must name the product as `nvidia-smi -L` does, or nothing matches it")
    return (whole, *_slices(whole, table, names["mig_profiles"], place))


def _family(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise GpuClassError(f"{place}: family must be a name, not {told(value)}")
    return value


def _sources(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise GpuClassError(f"{place}: sources must be a table, not {told(value)}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _figures(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for key, (attribute, factor) in _NUMBERS.items():
        value = table.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST <= value <= _MOST:
            raise GpuClassError(
                f"{place}: {key} must be a number above 0 (from {_LEAST:g} to {_MOST:g}), not {told(value)}"
            )
        figures[attribute] = int(value * factor) if attribute == "memory_bytes" else value * factor
    return figures


def _capability(value: Any, place: str) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", value if isinstance(value, str) else told(value))
    if match is None:
        raise GpuClassError(f'{place}: compute_capability must be "major.minor" such as "8.6", not {told(value)}')
    return int(match[1]), int(match[2])


def _slices(whole: GpuClass, table: Mapping[str, Any], profiles: tuple[str, ...], place: str) -> list[GpuClass]:
    """A slice has whole eighths of the memory and its bandwidth, and its own share of the SMs (MIG user guide)."""
    counted = table.get("mig_sms")
    numbers = [table.get("sms"), *counted] if isinstance(counted, list) else []
    if counted is not None and (len(numbers) != len(profiles) + 1 or not all(map(_is_count, numbers))):
        raise GpuClassError(f"{place}: mig_sms needs one number for each of mig_profiles, and sms")
    slices = []
    for position, profile in enumerate(profiles):
        match = _PROFILE.fullmatch(profile)
        if match is None or whole.memory_bytes is None:
            raise GpuClassError(
                f'{place}: mig_profiles must look like "1g.5gb" and need memory_gb, not {told(profile)}'
            )
        share_sm = counted[position] / table["sms"] if counted else int(match["compute"]) / _MIG_COMPUTE_SLICES
        eighths = round(_MIG_MEMORY_SLICES * int(match["memory"]) * GIB / whole.memory_bytes)
        share_memory = max(1, eighths) / _MIG_MEMORY_SLICES
        slices.append(
            replace(
                whole,
                name=f"{whole.name}-{profile}",
                aliases=tuple(f"{alias}-{profile}" for alias in whole.aliases),
                memory_bytes=int(match["memory"]) * GIB,
                bandwidth_bytes_per_s=_part(whole.bandwidth_bytes_per_s, share_memory),
                bf16_flops=_part(whole.bf16_flops, share_sm),
                fp16_flops=_part(whole.fp16_flops, share_sm),
                fp8_flops=_part(whole.fp8_flops, share_sm),
                int8_ops=_part(whole.int8_ops, share_sm),
                mig_profile=profile,
                parent=whole.name,
            )
        )
    return slices


def _part(figure: float | None, share: float) -> float | None:
    return None if figure is None else figure * share
