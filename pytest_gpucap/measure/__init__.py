"""The measuring procedure: what it drives, when it stops, and what it concludes.

It is written against `pytest_gpucap.load.protocol` alone, so the same code drives a real HTTP server in real time and a
simulated one in virtual time. Import the four entry points from ``pytest_gpucap.measure.procedure``::

    check(runner, requirement, settings, observer) -> Verdict
    measure(runner, requirement, settings, observer) -> Measurement
    sweep(runner, requirement, settings, observer) -> Curve
    sample(runner, requirement, settings, observer, *, rate_rps=None, concurrency=None, duration_s) -> Sample

with `Settings`, `Observer` and `SilentObserver` from ``pytest_gpucap.measure.settings``.
"""
