"""What telemetry costs: processor time of its threads, as a share of one core.

    python benchmarks/telemetry.py [--seconds 30] [--page FILE] [--fake [RECORDING]]

Measures this machine's own GPUs, or, where there are none (or with --fake), the fake NVML library of the tests, which
leaves out the driver's part of every call. A page of a real vLLM server is fetched over HTTP from a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import multiprocessing
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pytest_gpucap.engines.vllm import METRICS  # noqa: E402
from pytest_gpucap.gpu.device import Device  # noqa: E402
from pytest_gpucap.gpu.inventory import take_inventory  # noqa: E402
from pytest_gpucap.telemetry.host_watch import HostWatch  # noqa: E402
from pytest_gpucap.telemetry.probes import read_metrics  # noqa: E402
from pytest_gpucap.telemetry.sampler import Telemetry  # noqa: E402

PAGE = ROOT / "tests" / "gpu" / "recordings" / "vllm_0_32_metrics.txt"


def serve(page: bytes, pipe: multiprocessing.connection.Connection) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def served(page: bytes) -> Iterator[str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(page, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/metrics"
    finally:
        process.terminate()
        process.join()


def per_call_us(call: Callable[[], object], calls: int) -> float:
    """Processor time of this thread, microseconds a call."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e6


def devices(*, fake: str | None, stack: contextlib.ExitStack) -> tuple[tuple[Device, ...], str]:
    if not fake and (found := take_inventory().devices):
        return found, f"{len(found)}x {found[0].name}"
    from tests.gpu import fake_nvml

    stack.enter_context(fake_nvml.answers(fake or "h200"))
    return take_inventory({}).devices, f"fake NVML: {fake or 'h200'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--fake", nargs="?", const="h200", help="a recording under tests/gpu/recordings, such as h200-x4"
    )
    arguments = parser.parse_args()
    page = arguments.page.read_text()
    result: dict[str, object] = {
        "seconds": arguments.seconds,
        "page_bytes": len(page),
        "python": sys.version.split()[0],
    }

    result["parse_us"] = round(per_call_us(lambda: read_metrics(page, METRICS), 2000), 1)
    result["parse_prometheus_client_us"] = round(per_call_us(lambda: list(text_string_to_metric_families(page)), 20), 1)
    with contextlib.ExitStack() as stack:
        found, what = devices(fake=arguments.fake, stack=stack)
        result["devices"] = what
        url = stack.enter_context(served(page.encode()))

        def fetch() -> str:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
            return body.decode()

        pids = {os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)}
        for name, watched, page_of, host in (
            ("whole", found, fetch, HostWatch()),
            ("devices_only", found, None, None),
            ("server_only", (), fetch, None),
            ("host_only", (), None, HostWatch()),
        ):
            telemetry = Telemetry(watched, lambda: pids, page_of, names=METRICS, host=host)
            telemetry.attach()  # opening NVML takes as much as many readings, once
            before = time.process_time()
            start = time.monotonic()
            with telemetry:
                time.sleep(arguments.seconds)
            elapsed = time.monotonic() - start
            share = (time.process_time() - before) / elapsed
            result[f"{name}_share_of_a_core"] = round(share, 5)
            result[f"{name}_device_hz"] = [round(len(d.series.all()["time_s"]) / elapsed, 2) for d in telemetry.devices]
            result[f"{name}_server_hz"] = round(len(telemetry.server.all()["time_s"]) / elapsed, 2)
            if host is not None:
                result[f"{name}_host_hz"] = round(len(host.series.all()["time_s"]) / elapsed, 2)
            result[f"{name}_faults"] = telemetry.faults
        watch = HostWatch()
        result["processes"] = len(psutil.pids())
        result["read_host_us"] = round(per_call_us(watch.sample, 50), 1)
        if found:
            probe_telemetry = Telemetry(found, lambda: pids)
            with probe_telemetry:
                result["read_device_us"] = round(per_call_us(probe_telemetry.sample_devices, 500) / len(found), 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
