"""``python -m pytest_gpucap.simulator --profile NAME --port 0``: a simulated vLLM over HTTP, on loopback."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from dataclasses import replace

from pytest_gpucap.jit import spare_linear_algebra
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.web import serve

LOOPBACK = "127.0.0.1"
LIMITS = ("max_num_seqs", "max_num_batched_tokens", "kv_tokens")


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted, or until standard input ends with ``--with-parent``."""
    parser = argparse.ArgumentParser(prog="python -m pytest_gpucap.simulator", description=__doc__)
    parser.add_argument("--profile", required=True, help=f"one of {', '.join(profiles.names())}, or a .toml file")
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, drift and stalls")
    parser.add_argument("--time-scale", type=float, default=1.0, help="below 1: a faster engine, for tests")
    parser.add_argument(
        "--accuracy", type=float, metavar="SHARE", help="right answers to the plugin's own questions (the profile's: 1)"
    )
    for limit in LIMITS:
        parser.add_argument(
            "--" + limit.replace("_", "-"), type=int, metavar="N", help="the scheduler's (the profile's)"
        )
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME", help="a LoRA adapter to list, without a cost"
    )
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    try:
        profile = profiles.load(options.profile)
    except profiles.ProfileError as error:
        parser.error(str(error))
    if not options.time_scale > 0:
        parser.error("--time-scale must be above 0")
    accuracy = profile.accuracy if options.accuracy is None else options.accuracy
    if not 0 <= accuracy <= 1:
        parser.error("--accuracy must lie between 0 and 1")
    limits = {limit: given for limit in LIMITS if (given := getattr(options, limit)) is not None}
    if wrong := [limit for limit, given in limits.items() if given < 1]:
        parser.error(f"--{wrong[0].replace('_', '-')} must be at least 1")
    profile = replace(profile, engine=replace(profile.engine.scaled(options.time_scale), **limits))

    def started(port: int) -> None:
        print(f"SIMULATED {profile.name} serves at http://{LOOPBACK}:{port}/v1", flush=True)  # noqa: T201 - a command

    async def parent_gone() -> None:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as runner:
        until = parent_gone if options.with_parent else None
        listed = tuple(options.adapter)
        runner.run(
            serve(profile, LOOPBACK, options.port, options.seed, started, until, accuracy=accuracy, adapters=listed)
        )
    return 0


if __name__ == "__main__":
    spare_linear_algebra()
    raise SystemExit(main())
