"""The hooks by which other plugins extend this one; ``docs/hooks.md`` shows them at work.

The first three are asked once, when pytest has been configured. Implement them in a plugin (an entry point
``pytest11``, ``-p`` or ``pytest_plugins``) or in a ``conftest.py`` that pytest loads at its start. An answer of the
wrong type, or a name that is taken, ends the session with one line that names the plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every pytest run imports this file
    from pytest_gpucap.engines.protocol import Engine
    from pytest_gpucap.gpu.classes import GpuClass
    from pytest_gpucap.results.result import Result, ResultFile


@pytest.hookspec
def pytest_gpucap_engines(config: pytest.Config) -> Sequence[type[Engine]]:
    """Add engines: subclasses of `pytest_gpucap.Engine`, which tests choose with ``@pytest.mark.engine("NAME")``.

    An engine starts a server and waits until it is ready, says what that server can (`Capabilities`), and names the
    metrics that telemetry reads (`MetricNames`).
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gpucap_workload_presets(config: pytest.Config) -> Mapping[str, Mapping[str, Any]]:
    """Add workload presets: names, for ``gpucap(workload="NAME")``, to the keywords that they stand for.

    A preset has the form of a table of ``--gpucap-workload-file``: keywords of the ``gpucap`` marker, and ``extends``,
    ``about`` and ``sources``. The user's own file goes before it.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gpucap_gpu_classes(config: pytest.Config) -> Sequence[GpuClass]:
    """Add GPU classes, for ``--gpu-class NAME``. The user's own file (``--gpucap-gpu-file``) goes before them."""
    raise NotImplementedError


@pytest.hookspec
def pytest_gpucap_result(config: pytest.Config, result: Result) -> None:
    """Report one finished result, an entry of ``results`` in the result file.

    Called in the process that talks to the user, also under pytest-xdist, as tests finish. An exception is reported
    at the end of the session and has no other effect.
    """


@pytest.hookspec
def pytest_gpucap_results(config: pytest.Config, results: ResultFile) -> None:
    """Report the whole result file once, when the session ends. Not called for a session without results.

    An exception is treated as above.
    """
