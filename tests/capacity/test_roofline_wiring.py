"""Where a server's model, arguments and class become limits, and where nothing is said because something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_gpucap.capacity.limits import Roofline
from pytest_gpucap.gpu.classes import GpuClass, find_class, parse_class
from pytest_gpucap.requirement import Workload
from pytest_gpucap.server.external import ExternalServer
from pytest_gpucap.server.spec import ServerSpec
from pytest_gpucap.server.synthetic import architecture
from pytest_gpucap.server.vllm import VllmServer
from pytest_gpucap.suite.placement import Placement
from pytest_gpucap.suite.rig import Target
from pytest_gpucap.suite.roofline import config_of, hardware_of, roofline_of

Limits = Callable[..., Roofline | None]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The limits of a server that is not started: only what it was asked to be counts."""
    monkeypatch.setattr(VllmServer, "max_num_seqs", 256)
    monkeypatch.setattr(VllmServer, "kv_tokens", 100_000)

    def of(
        model: str = "synthetic:qwen2-1.5b", gpu_class: str | GpuClass | None = "h200", **arguments: Any
    ) -> Roofline | None:
        server = VllmServer(
            process=cast("Any", SimpleNamespace(poll=lambda: 0, close=lambda: None)),
            log=cast("Any", None),
            spec=ServerSpec(model, arguments),
            devices=(),
            command=(),
            model="m",
            api_key="k",
            base_url="http://127.0.0.1:1/v1",
            startup_s=0.0,
        )
        found = find_class(gpu_class) if isinstance(gpu_class, str) else gpu_class
        return roofline_of(Target(Placement(), gpu_class=found, server=server), Workload())

    return of


def test_a_server_of_ours_on_a_known_class_has_limits(limits: Limits) -> None:
    found = limits(tensor_parallel_size=2, quantization="fp8", kv_cache_dtype="fp8")
    assert found is not None
    assert (found.hardware.name, found.hardware.gpus) == ("h200", 2)
    assert (found.precision.weight_bits, found.precision.kv_bits) == (8, 8)
    assert (found.deployment.max_num_seqs, found.deployment.kv_tokens) == (256, 100_000)
    assert found.model.parameters == 1777088000


@pytest.mark.parametrize(
    "arguments",
    [
        {"gpu_class": "cpu"},  # no bandwidth
        {"gpu_class": None},
        {"model": "nobody/nothing"},
        {"quantization": "magic"},
        {"data_parallel_size": 2},
        {"speculative_config": {"method": "ngram"}},
    ],
)
def test_where_something_is_not_known_nothing_is_said(limits: Limits, arguments: dict[str, Any]) -> None:
    assert limits(**arguments) is None


def test_a_cpu_with_figures_of_its_own_has_limits(limits: Limits) -> None:
    found = limits(gpu_class=parse_class("cpu: bandwidth_gb_s=50", "here"))
    assert found is not None
    assert found.at(1).bound == "bandwidth"


def test_speculation_allows_so_many_tokens_a_pass(limits: Limits) -> None:
    found = limits(speculative_config={"method": "ngram", "num_speculative_tokens": 4})
    assert found is not None
    assert found.deployment.tokens_per_pass == 5


def test_the_server_of_a_url_has_none() -> None:
    server = ExternalServer("http://127.0.0.1:1/v1", "m", "k")
    target = Target(Placement(url=server.base_url), gpu_class=find_class("h200"), server=server)
    assert roofline_of(target, Workload()) is None


def test_configs_are_found_in_folders_files_and_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dict(architecture("synthetic:tiny").config)
    folder = tmp_path / "model"
    folder.mkdir()
    folder.joinpath("config.json").write_text(json.dumps(config))
    assert config_of(str(folder)) == config
    assert config_of(str(folder / "config.json")) == config
    snapshot = tmp_path / "hub" / "models--maker--thing" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    snapshot.joinpath("config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert config_of("maker/thing") == config
    assert config_of("maker/other") is None
    folder.joinpath("config.json").write_text("[")
    assert config_of(str(folder)) is None


def test_fp4_is_computed_at_twice_the_rate_of_fp8_where_there_is_such_a_path() -> None:
    blackwell, hopper = hardware_of(find_class("b200")), hardware_of(find_class("h200"))
    assert blackwell is not None
    assert hopper is not None
    assert blackwell.operations("fp4") == 2 * blackwell.operations("fp8") == 9e15
    assert hopper.operations("fp4") == hopper.operations("bf16")


def test_every_class_with_a_bandwidth_makes_hardware() -> None:
    assert hardware_of(find_class("cpu")) is None
    slice_of = hardware_of(find_class("h200-1g.18gb"))
    whole = hardware_of(find_class("h200"))
    assert slice_of is not None
    assert whole is not None
    assert slice_of.bandwidth_bytes_per_s == whole.bandwidth_bytes_per_s / 8
