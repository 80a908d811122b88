"""The summary of a window of telemetry: a few figures of each device, of the server and of its processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pytest_gpucap.arrays import Bools
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.results.telemetry import DeviceSummary, HostSummary, ProcessSummary, ServerSummary, TelemetrySummary
from pytest_gpucap.telemetry.health import reason_shares
from pytest_gpucap.telemetry.time_series import TimeSeries, counter_growth, known_max, known_mean

KV_FULL = 0.95


def summarise(
    start_s: float,
    end_s: float,
    *,
    devices: Iterable[tuple[Device, TimeSeries, TimeSeries]],
    server: TimeSeries,
    processes: Iterable[tuple[int, str, TimeSeries]],
    host: HostSummary | None = None,
) -> TelemetrySummary:
    """Summarise the series in a window."""
    seen = tuple(_device(device, series, link, start_s, end_s) for device, series, link in devices)
    figures = server_summary(server, start_s, end_s)
    energies = [device.energy_j for device in seen]
    energy_j = sum(e for e in energies if e is not None) if seen and None not in energies else None
    tokens = figures.output_tokens
    return TelemetrySummary(
        start_s=start_s,
        end_s=end_s,
        devices=seen,
        server=figures,
        processes=_processes(processes, start_s, end_s),
        energy_j=energy_j,
        energy_per_1000_tokens_j=energy_j / tokens * 1000 if energy_j is not None and tokens else None,
        slowdowns=worst_shares(device.slowdowns for device in seen),
        host=host,
    )


def _device(device: Device, series: TimeSeries, link: TimeSeries, start_s: float, end_s: float) -> DeviceSummary:
    columns = series.window(start_s, end_s)
    links = link.window(start_s, end_s)
    clock = columns["sm_clock_mhz"]
    lowest = -(known_max(-clock) or 0.0) if clock.size else None
    return DeviceSummary(
        uuid=device.uuid,
        name=device.name,
        readings=int(columns["time_s"].size),
        gpu_use=known_mean(columns["gpu_use"]),
        memory_use=known_mean(columns["memory_use"]),
        memory_bytes=known_max(columns["memory_bytes"]),
        power_w=known_mean(columns["power_w"]),
        power_max_w=known_max(columns["power_w"]),
        power_limit_w=device.power_limit_w,
        energy_j=None if device.mig_profile else _energy_j(series, start_s, end_s),
        sm_clock_mhz=known_mean(clock),
        sm_clock_min_mhz=lowest or None,
        memory_clock_mhz=known_mean(columns["memory_clock_mhz"]),
        temperature_max_c=known_max(columns["temperature_c"]),
        slowdowns=reason_shares(columns["reasons"]),
        pcie_sent_bytes_per_s=known_mean(links["pcie_sent_bytes_per_s"]),
        pcie_received_bytes_per_s=known_mean(links["pcie_received_bytes_per_s"]),
    )


def _energy_j(series: TimeSeries, start_s: float, end_s: float) -> float | None:
    """Energy over the whole window, extrapolated from the part that was sampled."""
    columns = series.all()
    grown = counter_growth(columns["time_s"], columns["energy_j"], start_s, end_s)
    if grown is None:
        power = columns["power_w"]
        known = ~np.isnan(power)
        time_s, power = columns["time_s"][known], power[known]
        if time_s.size:
            steps = np.diff(time_s) * (power[1:] + power[:-1]) / 2
            grown = counter_growth(time_s, np.concatenate(([0.0], np.cumsum(steps))), start_s, end_s)
    return None if grown is None else grown[0] / grown[1] * (end_s - start_s)


def server_summary(server: TimeSeries, start_s: float, end_s: float) -> ServerSummary:
    """The figures of a server's page of metrics in a window."""
    columns = server.window(start_s, end_s)
    everything = server.all()

    def grown(name: str) -> tuple[float, float] | None:
        return counter_growth(everything["time_s"], everything[name], start_s, end_s)

    def total(name: str) -> float | None:
        pair = grown(name)
        return None if pair is None else pair[0] / pair[1] * (end_s - start_s)

    def rate(name: str) -> float | None:
        pair = grown(name)
        return None if pair is None else pair[0] / pair[1]

    waiting, kv_use = columns["waiting"], columns["kv_use"]
    asked, hit = total("prefix_queries"), total("prefix_hits")
    preempted = grown("preemptions")
    return ServerSummary(
        readings=int(columns["time_s"].size),
        running=known_mean(columns["running"]),
        running_max=known_max(columns["running"]),
        waiting=known_mean(waiting),
        waiting_max=known_max(waiting),
        waiting_share=_share(waiting > 0, ~np.isnan(waiting)),
        kv_use=known_mean(kv_use),
        kv_use_max=known_max(kv_use),
        full_while_waiting=_share((waiting > 0) & (kv_use >= KV_FULL), ~np.isnan(waiting) & ~np.isnan(kv_use)),
        preemptions=None if preempted is None else preempted[0],
        prompt_tokens=total("prompt_tokens"),
        output_tokens=total("output_tokens"),
        prompt_tokens_per_s=rate("prompt_tokens"),
        output_tokens_per_s=rate("output_tokens"),
        prefix_hit_rate=hit / asked if asked and hit is not None else None,
        prefix_queries=asked,
        prefix_hits=hit,
        draft_tokens=total("draft_tokens"),
        accepted_tokens=total("accepted_tokens"),
    )


def _processes(
    processes: Iterable[tuple[int, str, TimeSeries]], start_s: float, end_s: float
) -> tuple[ProcessSummary, ...]:
    """The processes with readings in the window, busiest first."""
    seen = []
    for pid, role, series in processes:
        columns = series.all()
        cpu = counter_growth(columns["time_s"], columns["cpu_s"], start_s, end_s)
        main = counter_growth(columns["time_s"], columns["main_thread_s"], start_s, end_s)
        if cpu is not None:
            seen.append(ProcessSummary(pid, role, cpu[0] / cpu[1], None if main is None else main[0] / main[1]))
    return tuple(sorted(seen, key=lambda process: -process.cores))


def _share(condition: Bools, known: Bools) -> float | None:
    chosen = condition[known]
    return float(chosen.mean()) if chosen.size else None


def worst_shares(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The highest share of any device, by reason."""
    worst: dict[str, float] = {}
    for device in shares:
        for reason, share in device.items():
            worst[reason] = max(share, worst.get(reason, 0.0))
    return worst
