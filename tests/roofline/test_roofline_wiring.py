"""Where a server's model, arguments and class become limits, and where nothing is said because something is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_gpucap.engines.launch import Launched
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.engines.url import ExternalServer
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.gpu.classes import GpuClass, find_class
from pytest_gpucap.load.prompt_lengths import with_estimates
from pytest_gpucap.load.trace import with_trace_lengths
from pytest_gpucap.requirement import ArrivalKind, Arrivals, OwnPrompts, Workload
from pytest_gpucap.roofline.limits import NoLimit, Roofline
from pytest_gpucap.roofline.served import config_of, hardware_of, roofline_of
from pytest_gpucap.routing import Routing
from pytest_gpucap.vllm_arguments import VllmArguments
from pytest_gpucap.workloads.prompt_file import read_prompts

Limits = Callable[..., Roofline | NoLimit]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The limits of a server that is not started: only what it was asked to be counts."""
    monkeypatch.setattr(VllmServer, "max_num_seqs", 256)
    monkeypatch.setattr(VllmServer, "kv_tokens", 100_000)
    monkeypatch.setattr(VllmServer, "max_num_batched_tokens", 8192)

    def of(
        model: str = "synthetic:qwen2-1.5b",
        gpu_class: str | GpuClass | None = "h200",
        workload: Workload | None = None,
        fleet: int = 1,
        **arguments: Any,
    ) -> Roofline | NoLimit:
        launched = Launched(
            process=cast("Any", SimpleNamespace(pids=list)),
            log=cast("Any", None),
            command=(),
            model="m",
            api_key="k",
            base_url="http://127.0.0.1:1/v1",
            started_at=0.0,
            startup_s=0.0,
        )
        servers = [VllmServer(launched, ServerSpec(model, VllmArguments(arguments))) for _ in range(fleet)]
        server = servers[0] if fleet == 1 else FleetServer(servers, None, Routing())
        found = find_class(gpu_class) if isinstance(gpu_class, str) else gpu_class
        return roofline_of(server, found, workload or Workload())

    return of


def test_a_server_of_ours_on_a_known_class_has_limits(limits: Limits) -> None:
    found = limits(tensor_parallel_size=2, quantization="fp8", kv_cache_dtype="fp8")
    assert isinstance(found, Roofline)
    assert (found.hardware.name, found.hardware.gpus) == ("h200", 2)
    assert (found.precision.weight_bits, found.precision.kv_bits) == (8, 8)
    assert (found.deployment.max_num_seqs, found.deployment.kv_tokens) == (256, 100_000)
    assert found.model.parameters == 1777088000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpu_class": "cpu"}, "no bandwidth is known of class cpu: --gpucap-gpu-file can give it one"),
        ({"gpu_class": None}, "the GPU class behind the URL is not known: name it with --gpu-class"),
        ({"model": "nobody/nothing"}, "no config.json of nobody/nothing is at hand"),
        ({"quantization": "magic"}, "quantization 'magic' is not understood"),
        ({"cpu_offload_gb": 4}, "what cpu_offload_gb does to speed is not known"),
        ({"speculative_config": {"method": "ngram"}}, "speculative_config names no num_speculative_tokens"),
    ],
)
def test_where_something_is_not_known_the_reason_is_said(limits: Limits, arguments: dict[str, Any], said: str) -> None:
    assert limits(**arguments) == NoLimit(said)


def test_engines_side_by_side_share_the_requests(limits: Limits) -> None:
    one, four = limits(), limits(data_parallel_size=4, **{"tensor-parallel-size": 1})
    assert isinstance(one, Roofline)
    assert isinstance(four, Roofline)
    assert four.hardware.gpus == 4
    assert four.at(256).rate_rps == pytest.approx(4 * one.at(64).rate_rps)
    assert four.at(256).tpot_s == one.at(64).tpot_s
    assert four.at(1).rate_rps == one.at(1).rate_rps  # a lone request has one engine to itself
    assert four.most_tokens_per_s(256) == pytest.approx(4 * one.most_tokens_per_s(64))
    assert four.weight_bytes == 4 * one.weight_bytes


def test_replicas_of_a_fleet_share_the_requests_as_engines_do(limits: Limits) -> None:
    fleet, engines = limits(fleet=4, tensor_parallel_size=2), limits(data_parallel_size=4, tensor_parallel_size=2)
    assert isinstance(fleet, Roofline)
    assert isinstance(engines, Roofline)
    assert fleet.hardware == engines.hardware
    assert fleet.deployment.max_num_seqs == 4 * 256
    assert fleet.at(256).rate_rps == engines.at(256).rate_rps


def test_the_limit_of_a_fleet_of_mixtures_is_not_known(limits: Limits) -> None:
    said = "the limit of a fleet of a mixture of experts is not known"
    assert limits(model="synthetic:qwen3-30b-a3b", fleet=2) == NoLimit(said)
    assert isinstance(limits(model="synthetic:qwen3-30b-a3b"), Roofline)


def test_a_trace_has_limits_by_its_own_token_counts(limits: Limits, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"  # long answers follow short prompts
    path.write_text("arrival_s,input_tokens,output_tokens\n0,4000,10\n1,100,990\n")
    workload = with_trace_lengths(Workload(arrivals=Arrivals(ArrivalKind.TRACE, trace=path)))
    found = limits(workload=workload)
    assert isinstance(found, Roofline)
    assert found.workload.output_tokens.mean == 500
    steps_of = {4000 + 10 / 2: 10, 100 + 990 / 2: 990}
    assert found.context == pytest.approx(sum(at * steps for at, steps in steps_of.items()) / 1000)  # 629, not 2300
    assert "x 629 tokens" in found.at(8).formula
    assert found.certain().context == 100 + 10 / 2


def test_prompts_of_a_file_may_be_in_the_cache_as_a_whole(limits: Limits, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = ({"prompt": "a" * 16_000, "max_tokens": 10}, {"prompt": "b" * 400, "max_tokens": 990})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = read_prompts(path)
    own = with_estimates(Workload(prompts=OwnPrompts(path, file.sha256, 2)), file)
    found, made = limits(workload=own), limits(workload=replace(own, prompts=None))
    assert isinstance(found, Roofline)
    assert isinstance(made, Roofline)
    steps_of = {4000 + 10 / 2: 10, 100 + 990 / 2: 990}
    assert found.context == pytest.approx(sum(at * steps for at, steps in steps_of.items()) / 1000)
    assert found.computed_rps() > made.computed_rps(), "their prompts may cost nothing"
    assert found.ttft_s() < made.ttft_s()


def test_a_cpu_with_figures_of_its_own_has_limits(limits: Limits) -> None:
    found = limits(gpu_class=replace(find_class("cpu"), bandwidth_bytes_per_s=50e9))
    assert isinstance(found, Roofline)
    assert found.at(1).bound == "bandwidth"


def test_speculation_allows_so_many_tokens_a_pass(limits: Limits) -> None:
    found = limits(speculative_config={"method": "ngram", "num_speculative_tokens": 4})
    assert isinstance(found, Roofline)
    assert found.deployment.tokens_per_pass == 5


def behind(
    served: str,
    gpu_class: str | None = "h200",
    origin: str | None = None,
    told: Any = None,
    model: str | None = None,
    **arguments: Any,
) -> Roofline | NoLimit:
    """The limits of a server behind a URL that serves `served` and tells `origin` and `told` of itself."""
    server = ExternalServer("http://127.0.0.1:1/v1", served, "k")
    server.origin = origin
    server.__dict__ |= {"config": told or {}, "version": "0.26.0"}
    found = None if gpu_class is None else find_class(gpu_class)
    return roofline_of(server, found, Workload(), model=model, arguments=VllmArguments(arguments))


def test_the_server_of_a_url_has_limits_where_class_and_model_are_known() -> None:
    by_name = behind("synthetic:qwen2-1.5b")
    assert isinstance(by_name, Roofline)
    assert by_name.declared == "GPU class"
    by_origin = behind("chat", origin="synthetic:qwen2-1.5b", model="synthetic:tiny")
    assert isinstance(by_origin, Roofline)
    assert (by_origin.model, by_origin.declared) == (by_name.model, "GPU class")  # the server knows best
    by_marker = behind("chat", model="synthetic:qwen2-1.5b", data_parallel_size=2, dtype="float16")
    assert isinstance(by_marker, Roofline)
    assert (by_marker.hardware.gpus, by_marker.declared) == (2, "GPU class and model")


def test_what_the_server_of_a_url_tells_of_itself_counts_before_what_is_declared() -> None:
    told = {
        "model_config": {"dtype": "torch.bfloat16", "quantization": "fp8"},
        "parallel_config": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "data_parallel_size": 1},
        "cache_config": {"cache_dtype": "auto", "cpu_offload_gb": 0},
        "speculative_config": {"num_speculative_tokens": 3, "method": "eagle"},
    }
    found = behind("synthetic:qwen2-1.5b", told=told, tensor_parallel_size=1, kv_cache_dtype="fp8")
    assert isinstance(found, Roofline)
    assert (found.hardware.tensor, found.precision.weight_bits, found.precision.kv_bits) == (2, 8, 16)
    assert found.deployment.tokens_per_pass == 4


def test_the_server_of_a_url_has_no_limits_where_nothing_is_known() -> None:
    assert behind("synthetic:tiny", gpu_class=None) == NoLimit(
        "the GPU class behind the URL is not known: name it with --gpu-class"
    )
    assert behind("chat", origin="/nowhere/chat") == NoLimit(
        "no config.json of /nowhere/chat or chat is at hand: name its folder with vllm(model=...)"
    )
    assert isinstance(behind("x" * 5000), NoLimit)
    misspelt = behind("chat", model="synthetic:tinny")
    assert isinstance(misspelt, NoLimit)
    assert "did you mean synthetic:tiny" in misspelt.reason
    server = ExternalServer("http://127.0.0.1:1/v1", "synthetic:tiny", "k")
    server.__dict__["version"] = "SIMULATED 1.0 fast"
    h200 = find_class("h200")
    assert roofline_of(server, h200, Workload()) == NoLimit("a SIMULATED server has no hardware")


def test_no_path_is_made_of_what_a_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    folder.joinpath("config.json").write_text(json.dumps(dict(architecture("synthetic:tiny").config)))
    beside = tmp_path / "hub" / "models--other" / "snapshots" / "abc"
    beside.mkdir(parents=True)
    beside.joinpath("config.json").write_text(folder.joinpath("config.json").read_text())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    said = (str(folder), str(folder / "config.json"), "model", "./model", "/proc/kmsg", "*", "**", "oth*", "a/../other")
    for name in said:
        assert isinstance(behind("chat", origin=name), NoLimit), name
        assert isinstance(behind(name), NoLimit), name
        assert isinstance(behind(name, origin=name), NoLimit), name
    # The test itself may name the folder, and a server may name a model of the hub's cache.
    assert isinstance(behind("chat", origin=str(folder), model=str(folder)), Roofline)
    assert isinstance(behind("other"), Roofline)


def test_only_files_that_can_be_a_config_are_opened(tmp_path: Path) -> None:
    named = tmp_path / "kmsg"
    named.write_text(json.dumps(dict(architecture("synthetic:tiny").config)))
    assert config_of(str(named)) is None
    assert config_of("/proc/kmsg") is None
    os.mkfifo(tmp_path / "config.json")
    assert config_of(str(tmp_path)) is None


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
