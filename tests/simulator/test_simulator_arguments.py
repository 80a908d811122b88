"""What the arguments of a vllm marker do to a simulated server: they are applied, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from pytest_gpucap.engines.protocol import ServerRequest
from pytest_gpucap.simulator.profile import load
from pytest_gpucap.simulator.simulator_engine import SimulatorEngine


def engine(**arguments: object) -> SimulatorEngine:
    return SimulatorEngine(ServerRequest(model="m", arguments=arguments), load("fast"))


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({}, {}),
        ({"max_num_seqs": 8}, {"max_num_seqs": 8}),
        ({"max-num-seqs": "8"}, {"max_num_seqs": 8}),
        ({"max_num_batched_tokens": "2K"}, {"max_num_batched_tokens": 2048}),
        ({"num_gpu_blocks_override": 100}, {"kv_tokens": 1600}),
        ({"num_gpu_blocks_override": 100, "block_size": 32}, {"kv_tokens": 3200}),
        ({"block_size": 32}, {}),
        ({"enable_chunked_prefill": True}, {}),
        ({"max_model_len": 4096, "tp": 2, "dtype": None}, {}),
    ],
)
def test_what_a_simulated_server_has_is_applied(arguments: Mapping[str, object], changes: Mapping[str, int]) -> None:
    plain, found = load("fast").engine, engine(**arguments).profile.engine
    names = ("max_num_seqs", "max_num_batched_tokens", "kv_tokens")
    assert {name: getattr(found, name) for name in names} == {name: getattr(plain, name) for name in names} | dict(
        changes
    )
    assert (engine(**arguments).key == engine().key) is (not changes)


@pytest.mark.parametrize(
    "argument",
    [
        "gpu_memory_utilization=0.8", "enable_chunked_prefill=False", "enable_prefix_caching=True", "dtype='half'",
        "quantization='fp8'", "speculative_config={'num_speculative_tokens': 2}", "kv_cache_memory_bytes=1000",
        "unheard_of=1",
    ],
)  # fmt: skip
def test_what_it_does_not_have_is_refused(pytester: pytest.Pytester, argument: str) -> None:
    pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.vllm(model="m", max_num_seqs=8, {argument})
        @pytest.mark.gpucap(qps=1)
        def test_it(gpucap):
            gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = result.stderr.str().strip().splitlines()
    assert line.startswith(f"ERROR: test_it.py:3: vllm({argument.partition('=')[0]}=")
    assert line.endswith("a simulated server does not have this; it has " + HAS)


HAS = "max_num_seqs, max_num_batched_tokens, num_gpu_blocks_override, block_size"


def test_an_engine_of_another_name_is_not_simulated_with_its_arguments(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_gpucap.engines.protocol import Engine

        class Other(Engine):
            name = "other"
            def start(self, devices, on_wait): raise NotImplementedError

        def pytest_gpucap_engines(config): return [Other]
        """
    )
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.engine("other", model="m", threads=2)
        def test_it(gpucap): ...
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_it.py:3: engine('other', threads=2): sim:fast simulates a vLLM*"])


@pytest.mark.parametrize(
    ("base_args", "seqs", "tokens"),
    [("", 8, 2048), ("--max-num-seqs 4", 4, 2048), ("--profile slow", 8, 2048), ("--max-num-seqs=", 0, 2048)],
)
def test_a_base_has_the_arguments_of_the_test_too(base_args: str, seqs: int, tokens: int) -> None:
    head = engine(max_num_seqs=8, max_num_batched_tokens=2048, max_model_len=512)
    base = head.with_base(base_args, None).base.profile.engine
    assert base.max_num_seqs == (seqs or load("fast").engine.max_num_seqs)
    assert base.max_num_batched_tokens == tokens


def test_the_server_over_http_has_them_too() -> None:
    simulated = engine(num_gpu_blocks_override=100, max_num_seqs=8)
    server = simulated.start((), lambda _: None)
    try:
        told = json.loads(server.request("/v1/models"))["data"][0]
        assert told["max_model_len"] == 1600
        assert server.capabilities().max_num_seqs == 8
        assert server.facts()["server_args"] == {"num_gpu_blocks_override": 100, "max_num_seqs": 8}
    finally:
        server.close()
