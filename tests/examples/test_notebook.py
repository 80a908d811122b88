"""examples/explore.ipynb: run to its end on a real result file and a folder of nights, and kept without outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import pytest_gpucap
from tests.history.nightly import rates, write_nights

NOTEBOOK = Path(__file__).parents[2] / "examples" / "explore.ipynb"
SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(qps=40, gpus=1, input_tokens=256, output_tokens=256, e2e_p95="4s")

    def test_budget(gpucap):
        gpucap.check()

    def test_curve(gpucap):
        gpucap.sweep()
"""


def test_it_is_kept_without_outputs() -> None:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own libraries
def test_it_runs_to_its_end(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytester.makepyfile(SUITE)
    pytester.runpytest("--gpu-class=sim:fast").assert_outcomes(passed=2)
    (pytester.path / "results").mkdir()
    write_nights(pytester.path / "results", rates(25, drop=0.08, at=15))
    package = str(Path(pytest_gpucap.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]))
    # The kernel is this Python, whatever kernels the machine has, and keeps its files to itself.
    kernels = tmp_path_factory.mktemp("jupyter")
    own = kernels / "kernels" / "python3"
    own.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (own / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(kernels))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(pytester.path)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    said = "\n".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    assert "test_budget, check, SIMULATED: PASS " in said
    assert "test_curve, sweep, SIMULATED: " in said
    assert "offered_rps" in said
    assert ": -8." in said or ": -7." in said
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
