"""The load generator against a C client and other tools: ``python benchmarks/loadgen/run.py PART ...``.

PART is any of: events, requests, peak, scaling, stamps, open, memory (C client, ours, aiohttp, openai), tools, accuracy
(whole tools: ours, vLLM's bench, GuideLLM, AIPerf), or ``report``, which prints the tables of all that was measured.
The server is always ``emitter.c``, on the first of ``--cores``; clients run on the second, and on the further ones
where two workers are compared with one, which takes more than one emitter gives: ``--emitters`` names cores for more.
Figures of one part are taken in turns within one run, so that ratios hold even
where absolute numbers depend on what else the machine does; ``foreign`` in a result is the share of the client's core
that others took during the run. Raw results go to ``--out`` (one JSON line a run),
builds and the rivals' environment to ``--work``.

The rivals' environment (``rivals.txt``) is made on first use; vLLM's bench comes from ``--vllm-python``, and a
tokenizer for those who want one is that of the synthetic model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

HERE = Path(__file__).parent
Run = dict[str, Any]
TOOLS = {"ours": "whole_ours", "vllm bench": "vllm", "GuideLLM": "guidellm", "AIPerf": "aiperf"}


class Bench:
    """Builds what is needed and runs it."""

    def __init__(
        self,
        work: Path,
        out: Path,
        vllm_python: str,
        repeats: int,
        tools: list[str],
        realtime: bool,
        cores: list[str],
        emitters: list[str],
    ) -> None:
        self.on = ["chrt", "-r", "10", "taskset", "-c"] if realtime else ["taskset", "-c"]
        self.cores, self.client_core = cores, cores[1]
        self.apart = ",".join(cores[1:]) if len(cores) > 2 else None
        """The client's core and the further ones, where there are some."""
        self.emitter_cores = [cores[0], *emitters]
        self.work, self.out, self.vllm_python, self.repeats = work, out, vllm_python, repeats
        self.names = tools
        self.foreign: float | None = None
        """Of the client's last run on a core of its own."""
        work.mkdir(parents=True, exist_ok=True)
        self._port = 7900 + os.getpid() % 100 * 20
        for name in ("emitter", "client"):
            source, binary = HERE / f"{name}.c", work / name
            if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
                subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", binary, source, "-lm"], check=True)

    @property
    def rivals(self) -> Path:
        """Where the rivals' commands are."""
        environment = self.work / "rivals"
        if not (environment / "bin" / "aiperf").exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([environment / "bin" / "pip", "install", "-q", "-r", HERE / "rivals.txt"], check=True)
        return environment / "bin"

    @property
    def tokenizer(self) -> Path:
        """A folder with a tokenizer."""
        from pytest_gpucap.engines.synthetic import make_model

        return make_model("synthetic:tiny", self.work / "model")

    @contextlib.contextmanager
    def emitter(self, ttft_us: int, gap_us: int, burst_us: int = 0) -> Iterator[tuple[int, Run]]:
        """A running emitter: its port, and a dict that holds its own report afterwards."""
        with self.emitters(self.emitter_cores[:1], ttft_us, gap_us, burst_us) as (port, (report,)):
            yield port, report

    @contextlib.contextmanager
    def emitters(self, cores: list[str], *times_us: int) -> Iterator[tuple[int, list[Run]]]:
        """One on each of the cores, all behind one port."""
        self._port += 1
        with contextlib.ExitStack() as running:
            reports = [running.enter_context(self._emitting(core, *times_us)) for core in cores]
            yield self._port, reports

    @contextlib.contextmanager
    def _emitting(self, core: str, *times_us: int) -> Iterator[Run]:
        command = [*self.on, core, self.work / "emitter", self._port, 230, *times_us]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        report: Run = {}
        try:
            assert process.stdout.readline() == "ready\n", "the emitter did not start"
            yield report
        finally:
            process.send_signal(signal.SIGTERM)
            text, _ = process.communicate(timeout=10)
            report.update(json.loads(text.strip().splitlines()[-1]))

    def client(self, *command: object, core: str | None = None, env: dict[str, str] | None = None) -> Run:
        """Run a client that prints JSON as its last line."""
        text, _ = self.cpu(*command, core=core, env=env)
        return dict(json.loads(text.strip().splitlines()[-1]))

    def cpu(self, *command: object, core: str | None = None, env: dict[str, str] | None = None) -> tuple[str, float]:
        """Run any command: what it printed, and the CPU seconds of it and all its processes."""
        parts = [*self.on, core or self.client_core, *(str(part) for part in command)]
        log = self.work / "last.log"
        begun_s, busy_s = time.monotonic(), busy_seconds(self.client_core)
        with log.open("w") as errors:
            process = subprocess.Popen(
                parts, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(env or {})}
            )
            assert process.stdout is not None
            text = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(parts)} failed:\n{log.read_text()[-2000:]}")
        cpu_s, wall_s = usage.ru_utime + usage.ru_stime, time.monotonic() - begun_s
        self.foreign = None if core else max(0.0, busy_seconds(self.client_core) - busy_s - cpu_s) / wall_s
        return text, cpu_s

    def note(self, part: str, who: str, result: Run) -> None:
        """Keep one run's result."""
        line = {"part": part, "who": who, "at": time.strftime("%Y-%m-%d %H:%M:%S"), "foreign": self.foreign, **result}
        with self.out.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    # -- clients ------------------------------------------------------------------------------------------------------

    def c(self, port: int, *numbers: object) -> Run:
        """The C client."""
        return self.client(self.work / "client", port, *numbers)

    def ours(self, port: int, *numbers: object) -> Run:
        """Ours, one worker."""
        return self.client(sys.executable, HERE / "ours.py", port, *numbers)

    def rival(self, kind: str, port: int, *numbers: object) -> Run:
        """A plain Python client."""
        return self.client(self.rivals / "python", HERE / "rival_clients.py", kind, port, *numbers)

    # -- parts --------------------------------------------------------------------------------------------------------

    def events(self) -> None:
        """CPU per event: 256 streams, one event each in a burst every 20 ms."""
        for _ in range(self.repeats):
            with self.emitter(20_000, 20_000, 20_000) as (port, _):
                self.note("events", "C", self.c(port, 256, 256, 250))
                self.note("events", "ours", self.ours(port, 256, 256, 250))
                self.note("events", "aiohttp", self.rival("aiohttp", port, 256, 256, 100))
                self.note("events", "openai", self.rival("openai", port, 256, 256, 25))

    def requests(self) -> None:
        """CPU per 8-event request on 64 connections: as fast as it goes, and with 2 ms between events."""
        for name, gap_us in (("requests, full speed", 0), ("requests, 2 ms gaps", 2000)):
            for _ in range(self.repeats):
                with self.emitter(gap_us, gap_us) as (port, _):
                    self.note(name, "C", self.c(port, 64, 12_000, 8))
                    self.note(name, "ours", self.ours(port, 64, 12_000, 8))
                    self.note(name, "aiohttp", self.rival("aiohttp", port, 64, 6_000, 8))

    def peak(self) -> None:
        """2,100 streams, one event each every 20 ms: 105,000 events a second on one core."""
        for _ in range(self.repeats):
            with self.emitter(20_000, 20_000, 20_000) as (port, report):
                result = self.ours(port, 2100, 2100, 250)
            self.note("peak", "ours", {**result, "emitter_gap_us": report["gap_us"]})

    def stamps(self) -> None:
        """Error of the receive times against the emitter's send times, alone and beside a busy loop on the core."""
        for name, busy in (("stamps, alone", False), ("stamps, core 90% busy", True)):
            for _ in range(self.repeats):
                with self.emitter(20_000, 20_000, 20_000) as (port, _), self.hog(busy):
                    self.note(name, "C", self.c(port, 256, 256, 150, "stamps"))
                    self.note(
                        name, "ours", self.client(sys.executable, HERE / "ours.py", port, 256, 256, 150, "stamps")
                    )
                    self.note(name, "aiohttp", self.rival("aiohttp", port, 256, 256, 150))

    def scaling(self) -> None:
        """What two workers do beside one: 512 streams together; and where cores are free, 2,100 and 4,000 for each.

        The workers have the cores that are not the emitters', or all of two. Where cores are free, 8-event requests at
        full speed too, on 64 connections for each: there the workers are the limit, if the emitters are enough.
        """
        theirs = self.apart or ",".join(self.cores)
        for _ in range(self.repeats):
            for workers in (1, 2):
                for streams in (512, 2100 * workers, 4000 * workers) if self.apart else (512,):
                    said = f"{workers} workers, {streams} streams"
                    self._scaled("scaling", said, 20_000, (streams, streams, 300, workers), theirs)
                if self.apart:
                    said = f"{workers} workers"
                    self._scaled("scaling, full speed", said, 0, (64 * workers, 100_000 * workers, 8, workers), theirs)

    def _scaled(self, part: str, who: str, gap_us: int, numbers: tuple[int, ...], cores: str) -> None:
        with self.emitters(self.emitter_cores, gap_us, gap_us, gap_us) as (port, reports):
            result = self.client(sys.executable, HERE / "ours.py", port, *numbers, core=cores)
        emitters = [{"cpu_s": report["cpu_s"], "gap_us": report["gap_us"]} for report in reports]
        self.note(part, who, {**result, "emitters": emitters})

    @contextlib.contextmanager
    def hog(self, busy: bool) -> Iterator[None]:
        """Something else that keeps the client's core busy 90% of the time: 9 ms of every 10."""
        if not busy:
            yield
            return
        script = "import time as t\nwhile True:\n e=t.time()+.009\n while t.time()<e: pass\n t.sleep(.001)"
        process = subprocess.Popen(["taskset", "-c", self.client_core, sys.executable, "-c", script])
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def open(self) -> None:
        """Open-loop lateness at 2,000 requests of 8 events a second; arrivals of 1, 2 and 4 workers.

        All workers have the second core, or the further ones too where there are some.
        """
        for _ in range(self.repeats):
            for rate, workers in ((2000, 1), (2000, 2), (2000, 4), (500, 1), (500, 2), (500, 4)):
                with self.emitter(2_000, 2_000) as (port, _):
                    command = (sys.executable, HERE / "lateness.py", port, rate, 5, workers)
                    self.note("open", f"{rate} req/s, workers: {workers}", self.client(*command, core=self.apart))

    def memory(self) -> None:
        """1,000,000 requests of 512 tokens."""
        self.note("memory", "ours", self.client(sys.executable, HERE / "memory.py"))

    # -- whole tools --------------------------------------------------------------------------------------------------

    def vllm(self, port: int, streams: int, requests: int, tokens: int) -> tuple[Run, float]:
        """`vllm bench serve`: what it said, and its CPU seconds."""
        folder = self.work / "vllm"
        _, cpu_s = self.cpu(
            *(self.vllm_python, HERE / "vllm_bench.py", "--backend", "openai"),
            *("--base-url", f"http://127.0.0.1:{port}", "--model", "bench", "--tokenizer", self.tokenizer),
            *("--dataset-name", "random", "--random-input-len", 16, "--random-output-len", tokens),
            *("--num-prompts", requests, "--max-concurrency", streams, "--ignore-eos"),
            *("--save-result", "--result-dir", folder, "--result-filename", "result.json", "--disable-tqdm"),
        )
        found = json.loads((folder / "result.json").read_text())
        result = {
            f"{ours}_{p}_ms": found[f"{name}_{theirs}_ms"]
            for ours, theirs in (("ttft", "ttft"), ("itl", "itl"))
            for p, name in (("p50", "median"), ("p99", "p99"))
        }
        return {**result, "rps": found["request_throughput"]}, cpu_s

    def guidellm(self, port: int, streams: int, requests: int, tokens: int) -> tuple[Run, float]:
        """GuideLLM."""
        output = self.work / "guidellm.json"
        _, cpu_s = self.cpu(
            *(
                self.rivals / "guidellm",
                "run",
                "--backend",
                f"kind=openai_http,target=http://127.0.0.1:{port},model=bench",
            ),
            *("--profile", f"kind=concurrent,streams={streams}"),
            *("--constraint", f"kind=max_requests,count={requests}"),
            *("--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={tokens}"),
            *("--tokenizer", f"kind=huggingface_auto,model={self.tokenizer}"),
            *("--output", f"kind=json,path={output}", "--disable-console"),
            env={"HF_HUB_OFFLINE": "1"},
        )
        metrics = json.loads(output.read_text())["benchmarks"][0]["metrics"]
        result: Run = {}
        for ours, theirs in (("ttft", "time_to_first_token_ms"), ("itl", "inter_token_latency_ms")):
            found = metrics[theirs]["successful"]
            result |= {f"{ours}_p50_ms": found["median"], f"{ours}_p99_ms": found["percentiles"]["p99"]}
        return {**result, "rps": metrics["requests_per_second"]["successful"]["mean"]}, cpu_s

    def aiperf(self, port: int, streams: int, requests: int, tokens: int) -> tuple[Run, float]:
        """AIPerf."""
        folder = self.work / "aiperf"
        _, cpu_s = self.cpu(
            *(self.rivals / "aiperf", "profile", "--model-names", "bench", "--url", f"http://127.0.0.1:{port}"),
            *("--endpoint-type", "completions", "--streaming", "--concurrency", streams, "--request-count", requests),
            *("--isl", 16, "--osl", tokens, "--extra-inputs", "ignore_eos:true", "--tokenizer", self.tokenizer),
            *("--use-server-token-count", "--no-server-metrics", "--no-gpu-telemetry"),
            *("--artifact-dir", folder, "--ui", "none"),
        )
        found = json.loads((folder / "profile_export_aiperf.json").read_text())
        result: Run = {}
        for ours, theirs in (("ttft", "time_to_first_token"), ("itl", "inter_chunk_latency")):
            result |= {f"{ours}_{p}_ms": found[theirs][p] for p in ("p50", "p99")}
        return {**result, "rps": found["request_throughput"]["avg"]}, cpu_s

    def whole_ours(self, port: int, streams: int, requests: int, tokens: int) -> tuple[Run, float]:
        """Ours with everything that it starts."""
        text, cpu_s = self.cpu(sys.executable, HERE / "ours.py", port, streams, requests, tokens)
        return dict(json.loads(text.strip().splitlines()[-1])), cpu_s

    def tools(self) -> None:
        """CPU per event of whole tools at 256 streams paced 20 ms: the slope between a short and a long run."""
        for name in [*self.names] * self.repeats:
            tool: Callable[..., tuple[Run, float]] = getattr(self, TOOLS[name])
            cpu, events = [], []
            for requests in (256, 1024):
                with self.emitter(20_000, 20_000, 20_000) as (port, report):
                    _, cpu_s = tool(port, 256, requests, 128)
                cpu.append(cpu_s)
                events.append(report["events"])
            per_event = (cpu[1] - cpu[0]) / (events[1] - events[0]) * 1e6
            self.note("tools", name, {"us_per_event": per_event, "cpu_s": cpu, "events": events})

    def accuracy(self) -> None:
        """What each tool reports against what the emitter knows, at light load and near the tools' limits."""
        for load, streams, rounds in (("light", 8, 4), ("heavy", 256, 3)):
            for name in [*self.names] * self.repeats:
                tool: Callable[..., tuple[Run, float]] = getattr(self, TOOLS[name])
                with self.emitter(15_000, 10_000) as (port, truth):
                    result, _ = tool(port, streams, streams * rounds, 100)
                known = {
                    **{f"ttft_{p}_ms": truth["ttft_us"][p] / 1e3 for p in ("p50", "p99")},
                    **{f"itl_{p}_ms": truth["gap_us"][p] / 1e3 for p in ("p50", "p99")},
                }
                self.note(f"accuracy, {load}", name, {"said": result, "true": known})


def busy_seconds(core: str) -> float:
    """CPU seconds that a core has been busy since the machine started."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq = map(int, line.split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def report(path: Path) -> str:
    """All tables, as Markdown."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    parts = list(dict.fromkeys(run["part"] for run in runs))
    text = []
    for part in parts:
        mine = [run for run in runs if run["part"] == part]
        rows = []
        for who in dict.fromkeys(run["who"] for run in mine):
            of = [run for run in mine if run["who"] == who]
            rows.append([who, len(of), *_figures(part, of)])
        text += [f"### {part}", "", tabulate(rows, ["client", "runs", *_HEADS(part)], "github", floatfmt=".3g"), ""]
    return "\n".join(text)


def _median(runs: list[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(figure(run) for run in runs)


def _HEADS(part: str) -> list[str]:  # noqa: N802 - a table of heads, by part
    if part.startswith("accuracy"):
        return [f"{name} said / true" for name in ("TTFT p50", "TTFT p99", "ITL p50", "ITL p99")] + ["req/s"]
    return {
        "events": ["us CPU/event", "events/s"],
        "requests, full speed": ["us CPU/request", "requests/s"],
        "requests, 2 ms gaps": ["us CPU/request", "requests/s"],
        "peak": ["us CPU/event", "events/s"],
        "scaling": ["us CPU/event", "events/s"],
        "scaling, full speed": ["us CPU/request", "requests/s"],
        "stamps, alone": ["error p50 us", "error p99 us"],
        "stamps, core 90% busy": ["error p50 us", "error p99 us"],
        "open": ["late p50 us", "late p99 us", "KS", "KS p", "at us", "schedule's KS p", "CPU share", "others' CPU"],
        "memory": ["peak MiB", "gaps", "error p50", "error p99"],
        "tools": ["us CPU/event"],
    }[part]


def _figures(part: str, runs: list[Run]) -> list[object]:
    last = runs[-1]
    if part.startswith("accuracy"):
        names = ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
        pairs = [tuple(_median(runs, lambda r: r[of][name]) for of in ("said", "true")) for name in names]  # noqa: B023
        return [*(f"{said:.3f} / {true:.3f}" for said, true in pairs), _median(runs, lambda r: r["said"]["rps"])]
    figures: list[Callable[[Run], float]]
    if part in ("events", "peak", "scaling"):
        figures = [lambda r: r["cpu_s"] / r["events"] * 1e6, lambda r: r["events"] / r["wall_s"]]
    elif part.startswith("requests") or part == "scaling, full speed":
        figures = [lambda r: r["cpu_s"] / r["requests"] * 1e6, lambda r: r["requests"] / r["wall_s"]]
    elif part.startswith("stamps"):
        key = "kernel_error_us" if "kernel_error_us" in last else "user_error_us"
        figures = [lambda r: r[key]["p50"], lambda r: r[key]["p99"]]
    elif part == "open":
        figures = [lambda r: r["late_us"]["p50"], lambda r: r["late_us"]["p99"]]
        figures += [lambda r: r["ks"]["statistic"], lambda r: r["ks"]["p"], lambda r: r["ks"]["at_us"]]
        figures += [lambda r: r["ks_schedule"]["p"], lambda r: max(r["cpu"]), lambda r: r["foreign"] or 0.0]
    elif part == "memory":
        figures = [lambda r: r["peak_mib"], lambda r: r["gaps"]]
        figures += [lambda r: r["relative_error"]["p50"], lambda r: r["relative_error"]["p99"]]
    else:
        figures = [lambda r: r["us_per_event"]]
    return [_median(runs, figure) for figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/loadgen"))
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/loadgen/results.jsonl"))
    parser.add_argument("--vllm-python", default=".venv-vllm/bin/python")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="emitter and client at real-time priority, on a machine with other users",
    )
    parser.add_argument(
        "--nice",
        type=int,
        metavar="N",
        help="run everything at this niceness, in the scheduler's group of the session too, where it has one",
    )
    parser.add_argument(
        "--cores", default="0,1", help="of the emitter, of the client, and further ones for its workers"
    )
    parser.add_argument("--emitters", default="", help="cores of further emitters, for scaling")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    arguments = parser.parse_args()
    if arguments.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, arguments.nice)
        group = Path("/proc/self/autogroup")
        if group.exists():  # niceness counts within a session only; between sessions, the session's does
            group.write_text(str(arguments.nice))
    work, out = arguments.work.resolve(), arguments.out.resolve()
    cores = arguments.cores.split(",")
    emitters = [core for core in arguments.emitters.split(",") if core]
    bench = Bench(
        work, out, arguments.vllm_python, arguments.repeats, arguments.tools, arguments.realtime, cores, emitters
    )
    for part in arguments.parts:
        if part == "report":
            print(report(arguments.out))
        else:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
