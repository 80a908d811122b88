"""A whole run on a GPU whose driver reports an XID error: INVALID, and what the user reads of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file
from pytest_gpucap.results.problems import ProblemKind
from tests.gpu import fake_nvml
from tests.plugin.test_broken_measurements import SHORT

SERVER = Path(__file__).with_name("fast_vllm.py")
SUITE = """
    import os
    from pathlib import Path

    import pytest

    @pytest.mark.vllm(model="/models/m")
    @pytest.mark.gpucap(name="chat", qps=1, gpus=1, input_tokens=32, output_tokens=16, e2e_p95="20s", max_time="20s")
    def test_it(gpucap, vllm_server):
        # The server is ready and watched. What the driver reports now, it reports in the measurement.
        answers = Path(os.environ["FAKE_NVML_ANSWERS"])
        fresh = answers.with_suffix(".fresh")
        fresh.write_text(answers.read_text() + "devices.0.xids.count=1\\ndevices.0.xids.0.xid=63\\n")
        fresh.replace(answers)
        gpucap.{call}
"""
TEXT = (
    "the driver reported an error of GPU 0 (NVIDIA H200): XID 63, ECC page retirement or row remapping recorded "
    "(an error of the hardware: reset the GPU, and replace it if that comes again)"
)


@pytest.mark.usefixtures("lateness_forgiven")
def test_an_xid_error_makes_a_measurement_invalid(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHORT.items():
        monkeypatch.setattr(f"pytest_gpucap.{name}", value)
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    pytester.makepyfile(test_suite=SUITE.format(call="check()"))
    with fake_nvml.answers("h200"):
        ran = pytester.runpytest("--gpu-class=h200", f"--gpucap-vllm-python={python}", "--gpucap-host-check=off")
    ran.assert_outcomes(failed=1)
    said = " ".join(ran.stdout.str().split())
    assert f"INVALID: chat was not measured: {TEXT}" in said
    assert "explained: docs/when-it-fails.md#problem-xid" in said
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert [(each.kind, each.text) for each in found.problems] == [(ProblemKind.XID, TEXT)]
    assert found.gpus_required is None
    capsys.readouterr()
    assert main(["report", ".gpucap/result.json", "--html", "page.html", "--markdown", "page.md"]) == 0
    for name in ("page.html", "page.md"):
        assert "XID 63, ECC page retirement" in (pytester.path / name).read_text()
