"""The tests that need no server, on every Python that this machine has and on the oldest and newest pytest."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PURE = "not vllm_cpu and not slow"


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
@nox.parametrize("pytest", ["8.4.2", "9.0.2", "9.2.0"])
def pure(session: nox.Session, pytest: str) -> None:
    """Install the built wheel with one pytest and run the pure tests."""
    wheels = [str(wheel) for wheel in Path("dist").glob("*.whl")]
    if not wheels:
        session.error("there is no wheel in dist: make install")
    session.install(
        "-q",
        *wheels,
        f"pytest=={pytest}",
        "hypothesis",
        "pytest-benchmark",
        "pytest-timeout",
        "pytest-xdist",
        "aiohttp",
        "cmarkgfm",
        "h2",
        "hatchling",
        "hypercorn",
        "jsonschema",
        "jinja2",
        "matplotlib",
        "zensical",
    )
    # A wheel of the same version as the one that an environment has is another build of it.
    session.install("-q", "--force-reinstall", "--no-deps", *wheels)
    session.run("pytest", "-q", "-m", PURE, *session.posargs, env={"GPUCAP_TEST_INSTALLED": "1"})
