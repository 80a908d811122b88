"""One GPU or MIG slice, as a plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or MIG slice as NVML reports it now. A field that cannot be read is None; `unreadable` has the reason.

    Clocks, limits, temperature, ECC and persistence of a slice are its whole GPU's.

    Attributes:
        index: NVML's index of the GPU (PCI bus order); a slice has its GPU's.
        uuid: ``GPU-...`` or ``MIG-...``.
        name: product name of the GPU.
        memory_bytes: all of its memory.
        memory_used_bytes: what any process holds of it now.
        compute_capability: CUDA's, major and minor, such as (8, 6).
        pci_bus_id: its address on the PCI bus, such as ``00000000:17:00.0``; a slice has its GPU's.
        mig_mode: True if the GPU is split into slices; None if the GPU has no MIG.
        mig_profile: such as ``1g.5gb``, for a slice.
        parent_uuid: of the whole GPU, for a slice.
        multiprocessors: of a slice, its streaming multiprocessors; None for a whole GPU.
        sm_clock_mhz, memory_clock_mhz: now; an idle GPU clocks down.
        max_sm_clock_mhz, max_memory_clock_mhz: the highest possible.
        power_limit_w, default_power_limit_w: as set, and as the board ships.
        temperature_c: of the chip, now.
        ecc_mode: whether ECC is on, which corrects and finds errors of the memory.
        ecc_errors: uncorrected memory errors since the driver was loaded.
        persistence: whether the driver keeps the GPU initialised while nobody uses it.
        unreadable: field name -> reason.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    pci_bus_id: str | None = None
    mig_mode: bool | None = None
    mig_profile: str | None = None
    parent_uuid: str | None = None
    multiprocessors: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    temperature_c: int | None = None
    ecc_mode: bool | None = None
    ecc_errors: int | None = None
    persistence: bool | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name, index and slice in a few words, for messages."""
        return f"GPU {self.index} ({self.name}" + (f" MIG {self.mig_profile})" if self.mig_profile else ")")

    def remarks(self) -> list[str]:
        """What is out of the ordinary about it, one clause each."""
        remarks = []
        limit, own = self.power_limit_w, self.default_power_limit_w
        if limit is not None and own is not None and limit != own:
            remarks.append(f"{self.label}: power limit {limit:.0f} W, {own:.0f} W as shipped")
        if self.ecc_errors:
            remarks.append(f"{self.label}: {self.ecc_errors} uncorrected memory errors since the driver was loaded")
        if self.persistence is False:
            remarks.append(f"{self.label}: persistence mode off, the first use after idling is slow")
        return remarks
