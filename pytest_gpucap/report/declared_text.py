"""What a test declares, each part in one line: requirement, workload, limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from pytest_gpucap.errors import shortened
from pytest_gpucap.report.formatting import gpus, limit_texts, percent, rate, seconds
from pytest_gpucap.results.result import DeclaredSlo, DeclaredWorkload, Result


def requirement(result: Result) -> str:
    """``10 req/s on 4 GPUs, headroom 1.3 -> 3.25 req/s per replica``."""
    declared = result.requirement
    budget = f"{declared.qps:g} req/s on {gpus(declared.gpus)}, headroom {declared.headroom:g}"
    kept = "" if declared.efficiency == 1 else f", {percent(declared.efficiency)} efficiency"
    return f"{budget}{kept} -> {rate(result.design_rate_rps)} per replica"


def workload(declared: DeclaredWorkload) -> str:
    """Lengths, arrivals and endpoint in one line."""
    shared = f", {declared.shared_prefix_tokens} shared" if declared.shared_prefix_tokens else ""
    preset = f"{declared.preset}: " if declared.preset else ""
    own = f"{own_prompts(declared)}, " if declared.prompts else ""
    extra = f", extra_body {shortened(declared.extra_body)}" if declared.extra_body else ""
    extra += f", adapters {adapter_mix(declared)}" if declared.adapters else ""
    extra += f", sessions {told_sessions(declared)}" if declared.sessions else ""
    return (
        f"{preset}{own}{declared.input_tokens} tokens in{media(declared)}{shared}, {declared.tokens_out} out, "
        f"{declared.arrivals} arrivals, {declared.endpoint}{_how(declared)}{extra}"
    )


def told_sessions(declared: DeclaredWorkload) -> str:
    """As they are declared; of a file ``96 of chat.jsonl think=2s (sha256 0123456789ab)``; empty without sessions."""
    if declared.sessions_sha256 is None:
        return declared.sessions or ""
    count = "" if declared.session_count is None else f"{declared.session_count} of "
    return f"{count}{declared.sessions} (sha256 {declared.sessions_sha256[:12]})"


def media(declared: DeclaredWorkload) -> str:
    """`` (images 2 x 512x512, 640x480; audio 10 s)``, each as it first comes; empty where prompts are text alone."""
    kinds = {"images": declared.images, "audio": [seconds(length_s) for length_s in declared.audio_s]}
    found = [f"{kind} {_counted(items)}" for kind, items in kinds.items() if items]
    return f" ({'; '.join(found)})" if found else ""


def _counted(items: Sequence[str]) -> str:
    counts = Counter(items)
    return ", ".join(f"{count} x {item}" if count > 1 else item for item, count in counts.items())


def _how(declared: DeclaredWorkload) -> str:
    """What is unusual in what a request asks for."""
    documents = f" of {declared.documents} documents" if declared.documents is not None else ""
    return documents + (" (not streamed)" if declared.endpoint.generates and not declared.stream else "")


def own_prompts(declared: DeclaredWorkload) -> str:
    """``96 prompts of chat.jsonl (sha256 0123456789ab)``, of a workload that has prompts of the user's own."""
    digest = f" (sha256 {declared.prompts_sha256[:12]})" if declared.prompts_sha256 else ""
    return f"{declared.prompt_count or 'the'} prompts of {declared.prompts}{digest}"


def limits(slo: DeclaredSlo) -> str:
    """``p95 E2E 20 s, p95 TTFT 500 ms, errors 1.0%``."""
    latencies = limit_texts(slo.limits, slo.goodput, slo.thresholds)
    return ", ".join([*latencies, f"errors {percent(slo.max_error_rate)}"])


def adapter_mix(declared: DeclaredWorkload) -> str:
    """``support 70.0%, legal 30.0%``; empty without a mix of LoRA adapters."""
    mix = ", ".join(f"{shortened(each.name)} {percent(each.share)}" for each in declared.adapters[:_MOST_ADAPTERS])
    return f"{mix}, ... ({len(declared.adapters)} adapters)" if len(declared.adapters) > _MOST_ADAPTERS else mix


_MOST_ADAPTERS: Final = 4
"""Named in the line of a workload."""
_MOST_ROWS: Final = 20
"""Of adapters in one report."""
