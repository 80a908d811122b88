"""What options may not say together."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pytest_gpucap.options import values
from pytest_gpucap.options.sources import as_given, is_given
from pytest_gpucap.options.table import Options
from pytest_gpucap.simulated import is_simulated
from pytest_gpucap.user_files import real_path, shown_path


def check_url(given: dict[str, Any]) -> None:
    """Check what goes with a server that already runs.

    Raises:
        pytest.UsageError: one line on what does not.
    """
    if is_simulated(given.get("gpu_class")):
        raise pytest.UsageError("--gpucap-url and --gpu-class=sim:PROFILE exclude each other: give one of the two")
    if given.get("launcher") == "ray":
        raise pytest.UsageError("--gpucap-url and --gpucap-launcher=ray exclude each other: give one of the two")
    if given.get("dcgm_match") and not given.get("dcgm_url"):
        raise pytest.UsageError("--gpucap-dcgm-match: names no exporter: give its page with --gpucap-dcgm-url")
    if given.get("metrics_header") and not (given.get("dcgm_url") or given.get("metrics_url")):
        raise pytest.UsageError("--gpucap-metrics-header: is for --gpucap-metrics-url or --gpucap-dcgm-url: give one")
    if given.get("repeat", 1) > 1:
        raise pytest.UsageError(
            f"--gpucap-repeat={given['repeat']}: a server behind --gpucap-url cannot be started afresh: give "
            "--gpucap-repeat=1, and run the suite again after each start of your own"
        )
    _check_access(given)


def check_no_url(config: pytest.Config) -> None:
    """Refuse options on the command line that need a server that already runs. An ini file may serve other runs too.

    Raises:
        pytest.UsageError: one line on the first of them.
    """
    for row in (Options.metrics_url, Options.dcgm_url, Options.dcgm_match, Options.metrics_header):
        if is_given(config.getoption(row.ini)):
            raise pytest.UsageError(
                f"{row.flag}: is about a server of --gpucap-url, and none is given: servers that the plugin starts, "
                "and their GPUs, are watched without it"
            )


def _check_access(given: dict[str, Any]) -> None:
    """Check the key, the headers and the CA file that requests to the URL need, before anything starts.

    An ini file that all runs share may name them, so runs without a URL do not ask for them.

    Raises:
        pytest.UsageError: one line on what cannot be used.
    """
    from pytest_gpucap import access

    key = given.get("api_key_env")
    usual_key = Options.api_key_env.default
    steps: dict[str, Callable[[], object]] = {
        row.flag: partial(access.read_headers, given.get(row.name, ()))
        for row in (Options.header, Options.metrics_header)
    }
    if key is not None:
        steps["--gpucap-api-key-env"] = lambda: access.read_secret(key)
    elif os.environ.get(usual_key):
        steps["--gpucap-url"] = lambda: access.read_secret(usual_key)
    if "ca_file" in given:
        steps["--gpucap-ca-file"] = lambda: access.tls_context(str(given["ca_file"]))
    for place, read in steps.items():
        try:
            read()
        except ValueError as error:
            raise pytest.UsageError(f"{place}: {error}") from None
    if key is not None and any(name.lower() == access.AUTHORIZATION.lower() for name, _ in given.get("header", ())):
        raise pytest.UsageError(
            "--gpucap-api-key-env and the header Authorization exclude each other: give one of them"
        )


def written_twice(given: dict[str, Any], config: pytest.Config) -> str:
    """One line on a file that two reports would write, or that a report would replace; empty if there is none."""
    files = input_files(config)
    seen: dict[str, str] = {}
    if junit := config.getoption("xmlpath", None):
        named = os.path.expanduser(os.path.expandvars(junit))  # noqa: PTH111 - as pytest reads it
        seen[real_path(config.invocation_params.dir / named)] = "--junit-xml"
    for row in (Options.json, Options.markdown, Options.html, Options.estimate_json):
        path = given.get(row.name)
        if path is None:
            continue
        if (name := files.get(real_path(path))) is not None:
            return f"{row.flag}: {shown_path(path)} is the file of {name}, and would be replaced: name another one"
        if (other := seen.setdefault(real_path(path), row.flag)) != row.flag:
            return f"{other} and {row.flag} name the same file, {shown_path(path)}: give each its own"
    return ""


def input_files(config: pytest.Config) -> dict[str, str]:
    """The files that the session reads, without links, and what names each; however wrong the options are."""
    found = {} if config.inipath is None else {real_path(config.inipath): "the ini file"}
    for row in (Options.gpu_file, Options.workload_file, Options.ca_file, Options.prices, Options.compare):
        try:
            raw, _, folder = as_given(config, row)
            if is_given(raw):
                found[real_path(config.rootpath / values.PATHS[row.parse](raw, folder))] = row.flag
        except (ValueError, pytest.UsageError):
            continue
    return found
