"""Secondary limits that cannot be measured where a test is placed: refused at collection, before a server starts."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from pytest_gpucap.engines.synthetic import is_synthetic
from pytest_gpucap.markers.declaration import VLLM, Declaration
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.secondary import SecondaryName
from pytest_gpucap.session.placement import Placement
from pytest_gpucap.simulated import simulated_class
from pytest_gpucap.vllm_arguments import VllmArguments

if TYPE_CHECKING:
    from pytest_gpucap.simulator.profile import Profile

URL: Final = "url"
_CURRENCY: Final = "USD"
_COUNTED: Final = (SecondaryName.ACCEPTANCE, SecondaryName.PREFIX_HIT_RATE, SecondaryName.PREEMPTIONS)
"""Figures of the server's page of metrics."""
_RANDOM_WEIGHTS: Final = "the weights are random, so what they accept says nothing: measure a model with real weights"


def check_secondary(declared: Declaration, placed: Placement, options: Options) -> None:
    """Check that every secondary limit of a test can be measured, as far as it can be known now.

    Raises:
        RequirementError: one line on the first that cannot.
    """
    if placed.engine is None or placed.skip is not None:
        return
    for limit in declared.secondary:
        if why := _refusal(limit.name, declared, placed, options):
            raise RequirementError(f"{limit.name}: {why}")


def _refusal(name: SecondaryName, declared: Declaration, placed: Placement, options: Options) -> str:
    """Why a limit cannot be measured there; empty if it can, or if only the server can tell."""
    if name is SecondaryName.USD_PER_1M_TOKENS:
        return _without_price(placed, options)
    if placed.one is not None and placed.one.name == URL:
        return _of_another(name, options)
    if placed.simulated is not None:
        return _simulated(name, placed.simulated)
    if name is SecondaryName.JOULES_PER_1K_TOKENS and placed.gpu_class is not None and placed.gpu_class.is_cpu:
        return "the energy of the class cpu is not measured: name a GPU class, or leave it out"
    return _by_arguments(name, declared) if declared.engine == VLLM else ""


def _of_another(name: SecondaryName, options: Options) -> str:
    if name is SecondaryName.STARTUP:
        return "the server behind --gpucap-url was started by somebody else, so nobody knows how long that took"
    if name is SecondaryName.JOULES_PER_1K_TOKENS and not options.dcgm_url:
        return (
            "the devices behind --gpucap-url are not watched, so their energy is not known: name the page of their "
            "DCGM exporter with --gpucap-dcgm-url"
        )
    return ""


def _simulated(name: SecondaryName, profile: Profile) -> str:
    model = profile.engine
    lacks = {
        SecondaryName.STARTUP: "" if profile.startup_s is not None else "does not say startup_s",
        SecondaryName.JOULES_PER_1K_TOKENS: "" if model.idle_w or model.busy_w else "says neither idle_w nor busy_w",
        SecondaryName.ACCEPTANCE: "" if model.spec_tokens else "does not speculate (spec_tokens)",
    }
    why = lacks.get(name, "")
    return f"the profile of {simulated_class(profile.name)} {why}" if why else ""


def _by_arguments(name: SecondaryName, declared: Declaration) -> str:
    """What the arguments of a vLLM server tell."""
    args = declared.vllm_args
    if name in _COUNTED and args.get("disable_log_stats") is True:
        return "vllm(disable_log_stats=True) leaves the server without the metrics that it is read from"
    if name is SecondaryName.PREFIX_HIT_RATE and args.get("enable_prefix_caching") is False:
        return "vllm(enable_prefix_caching=False) switches the prefix cache off"
    if name is not SecondaryName.ACCEPTANCE:
        return ""
    if not _speculates(args):
        return "the server does not speculate: give vllm(speculative_config=...)"
    return _RANDOM_WEIGHTS if random_weights(declared.model, args) else ""


def _speculates(args: VllmArguments) -> bool:
    """Whether it may; what a file of ``config=`` says is not known."""
    try:
        return args.has("config") or args.speculative_tokens > 0
    except RequirementError:  # it does, with as many tokens as its draft model says
        return True


def random_weights(model: str | None, args: VllmArguments) -> bool:
    """Whether a model's weights are known to be random."""
    return args.get("load_format") == "dummy" or is_synthetic(model or "")


def _without_price(placed: Placement, options: Options) -> str:
    if options.prices is None:
        return 'it needs the price of a GPU: --gpucap-prices=FILE, with currency = "USD"'
    name = placed.class_name
    if name is None:
        # The class of the GPUs that are here is known once the session looks at them.
        return "name the GPU class with --gpu-class, since its price counts" if options.url is not None else ""
    return price_per_hour(name, options)[1]


def price_per_hour(gpu_class: str, options: Options) -> tuple[Fraction | None, str]:
    """What one GPU of a class costs an hour in USD, or why that is not known."""
    from pytest_gpucap.session.prices import session_prices

    prices = session_prices(options)
    if prices.currency != _CURRENCY:
        has = f"has {prices.currency!r}" if prices.currency else "names no currency"
        return None, f'--gpucap-prices: {options.prices} {has}, and the limit is in USD: write currency = "USD"'
    found = prices.per_hour.get(gpu_class)
    return found, "" if found is not None else f"--gpucap-prices: {options.prices} has no price of {gpu_class}"
