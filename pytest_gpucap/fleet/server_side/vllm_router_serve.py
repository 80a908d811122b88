"""Becomes vLLM's router, of the package ``vllm-router``: ``vllm_router_serve.py PORT METRICS_PORT POLICY URL...``.

Its own command retries failed requests and asks each worker only every 30 s whether it is ready. A measurement wants to
see failures, and does not want to wait.
"""

from __future__ import annotations

import sys

CHECK_S = 1
LOOPBACK = "127.0.0.1"


def main(port: str, metrics_port: str, policy: str, *urls: str) -> None:
    """Become the router."""
    from vllm_router.router import Router  # type: ignore[import-untyped]
    from vllm_router.router_args import RouterArgs  # type: ignore[import-untyped]

    arguments = RouterArgs(
        worker_urls=list(urls),
        host=LOOPBACK,
        port=int(port),
        policy=policy,
        worker_startup_check_interval=CHECK_S,
        health_check_interval_secs=CHECK_S,
        prometheus_host=LOOPBACK,
        prometheus_port=int(metrics_port),
        disable_retries=True,
        log_level="warn",
    )
    Router.from_args(arguments).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
