"""What comes in as bytes that somebody else wrote: files, answers of servers, their logs and pages, numbers as text.

Each reader is a door like those of `doors.py`, with bytes to begin from.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

from pytest_gpucap.access import header_sources, page_url, server_root
from pytest_gpucap.accuracy import grading
from pytest_gpucap.cli import servers
from pytest_gpucap.cli._sending import receiver
from pytest_gpucap.engines.errors import ServerError, ServerStartError
from pytest_gpucap.engines.known_engines import engine_on
from pytest_gpucap.engines.pages import Page
from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.engines.start_phases import start_phases
from pytest_gpucap.engines.startup_diagnosis import diagnose
from pytest_gpucap.engines.url import ExternalServer, attach
from pytest_gpucap.engines.vllm import METRICS
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu import kept
from pytest_gpucap.load import plain_request
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import calibrate
from pytest_gpucap.load.connection import AnswerForm, RequestTemplate
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError, Status
from pytest_gpucap.load.server_words import one_line, words_in
from pytest_gpucap.load.shared_memory import PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.options.values import idle_memory, labels
from pytest_gpucap.requirement import (
    ApiKind,
    LatencyLimit,
    Length,
    Workload,
    duration_s,
    exact,
    headroom,
    positive,
    proper_share,
    share,
    starts,
    tokens,
    whole,
)
from pytest_gpucap.telemetry.dcgm import DcgmExporter, found_devices
from pytest_gpucap.telemetry.probes import read_metrics
from pytest_gpucap.telemetry.sampler import Telemetry
from pytest_gpucap.user_files import read_toml
from pytest_gpucap.vllm_arguments import VllmArguments
from tests.fuzz import inputs
from tests.fuzz.doors import Format, Place, formats
from tests.load import rawserver
from tests.planted import PLANTED

KIB = 2**10


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: for reports.
        seeds: inputs to begin from.
        enter: gives it an input, and returns why it refused it, or None.
        largest: to which an input may be made to swell, in bytes.
    """

    name: str
    seeds: tuple[bytes, ...]
    enter: Callable[[bytes], str | None]
    largest: int = 128 * KIB


def readers(place: Place) -> tuple[Reader, ...]:
    """Every reader."""
    toml = Format("TOML", ((inputs.REPOSITORY / "pyproject.toml").read_bytes()[:KIB],), read_toml, ".toml")
    files = (*formats(place), toml)
    logs = sorted((inputs.REPOSITORY / "tests" / "engines").glob("*logs/*.txt"))
    exporters = sorted((inputs.REPOSITORY / "tests" / "telemetry" / "dcgm").glob("*.txt"))
    secrets = "\n".join(each.argument for each in PLANTED.values()).encode()
    return (
        *(Reader(each.name, each.contents, partial(each.enter, place)) for each in files),
        Reader("numbers", tuple(each.encode() for each in NUMBERS), _numbers),
        Reader("addresses", (b"http://[::1]:8000/v1/chat/completions", b"X-Key=HOME", b"pod=a,gpu=0"), _addresses),
        Reader("arguments", (b"--max-num-seqs 64 -tp=2 --a.b '{\"c\": [1]}' --no-x -O3",), _arguments),
        Reader("grades", (b"so the answer is $1,024$.", b"<think>7</think>\\boxed{\\frac{3}{4}}", b"25\\%"), _grades),
        Reader("logs", (secrets, *(each.read_bytes()[-2 * KIB :] for each in logs)), partial(_log, place), 64 * KIB),
        Reader("metrics", METRICS_PAGES, _metrics),
        Reader("exporters", tuple(each.read_bytes()[-4 * KIB :] for each in exporters), _exporter, 16 * KIB),
        Reader("kept servers", (_kept_server(),), partial(_kept, place)),
        Reader("words", WORDS, _words),
        Reader("answers", ANSWERS, _answers, 64 * KIB),
        Reader("calibration", (CALIBRATION,), _calibration, 16 * KIB),
        Reader("streams", STREAMS, _Streams().enter, 64 * KIB),
        Reader("responses", RESPONSES, _Streams(AnswerForm.RESPONSES).enter, 64 * KIB),
        Reader("whole answers", WHOLE, _Streams(AnswerForm.WHOLE).enter, 64 * KIB),
        Reader("pooled answers", WHOLE, _Streams(AnswerForm.POOLED).enter, 64 * KIB),
    )


def _refusals(*questions: Callable[[], object], of: type[Exception] = GpuCapError) -> str | None:
    """Why any of the questions were refused; None if none was."""
    said = []
    for ask in questions:
        try:
            ask()
        except ValueError as error:
            if not isinstance(error, of):
                raise
            said.append(str(error))
        except of as error:
            said.append(str(error))
    return "; ".join(said) if said else None


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


# Notes of kept servers


def _kept_server() -> bytes:
    """A note that is believed: its keeper is this process."""
    pid = os.getpid()
    texts = dict.fromkeys(("engine", "model", "gpu_class", "spec", "plugin", "key_digest"), "x")
    counts = {"keeper": pid, "keeper_began": kept.began(pid), "pid": pid, "port": 1}
    lists = {"devices": ["GPU 0"], "locks": ["GPU-1"]}
    return json.dumps({**texts, **counts, **lists, "started_at": 1.5e9, "until_s": 9.9e9}).encode()


def _kept(place: Place, content: bytes) -> str | None:
    leases = place.work / "leases"
    leases.mkdir(exist_ok=True)
    path = leases / f"kept-{os.getuid()}" / "fuzz.json"
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_bytes(content)
    for each in kept.holders_of("GPU-1", leases):
        servers._table([each])
        json.dumps(servers._fields(each))
        assert len(each.describe().splitlines()) == 1
    return None


# Numbers and other short texts


NUMBERS = ("1.5", "-2e3", "5%", "500ms", "uniform:1-9", "lognormal:mean=256,cv=0.8,low=1,high=2048", "2GiB", "1_0", "²")


def _numbers(content: bytes) -> str | None:
    text = _text(content)
    kinds: tuple[Callable[[str, str], object], ...] = (
        *(exact, positive, whole, starts, tokens, headroom, share, proper_share, duration_s, Length.parse),
        lambda value, _: LatencyLimit.parse("ttft_p95", value),
        lambda value, _: LatencyLimit.parse(value, "1s"),
    )
    nothing: Any = None  # the configuration is not looked at
    memory = partial(idle_memory, text, "it", nothing)
    return _refusals(memory, *(partial(kind, text, "it") for kind in kinds), of=ValueError)


def _addresses(content: bytes) -> str | None:
    text = _text(content)
    nothing: Any = None  # the configuration is not looked at
    reads = (
        partial(server_root, text),
        partial(page_url, text),
        partial(labels, text, "it", nothing),
        partial(header_sources, text.split("\n")),
        partial(receiver, text, "--otlp"),
    )
    return _refusals(*reads, of=ValueError)


def _arguments(content: bytes) -> str | None:
    def read() -> None:
        found = VllmArguments.parse(_text(content))
        for each in ("max_model_len", "max_num_seqs", "gpu_memory_utilization", "gpus_per_replica", "dtype"):
            getattr(found, each)
        found.flags()

    return _refusals(read, of=ValueError)


def _grades(content: bytes) -> str | None:
    said = grading.final_text(content.decode("utf-8", "replace"))
    grading.has_reasoning(said)
    for expected in ("42", "3/4", "\\frac{1}{2}"):
        grading._by_number(said, expected)
    grading.exact_number(said)
    return None


# Logs and pages


_logs = cycle(range(4))


def _log(place: Place, content: bytes) -> str | None:
    log = ServerLog(place.put(f"log{next(_logs)}", content))
    error = ServerStartError(diagnose(log.text(), 1), log.tail(), log.path)
    start_phases(log.text(), 0.0, 3600.0)
    log.mask()
    return str(error).partition("\n")[0].replace("\t", " ")


METRICS_PAGES = (
    b"""# HELP vllm:num_requests_running a
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m\\"x"} 3.0 1700000000
vllm:kv_cache_usage_perc{engine="0"} NaN
vllm:generation_tokens_total 1e9 # {trace_id="a"} 1 2
""",
    b'# TYPE a histogram\na_bucket{le="0.5"} 1\na_bucket{le="+Inf"} 2\na_sum 3\na_count 2\n# EOF\n',
)


class _Pages(ExternalServer):
    """A server whose pages all have this text."""

    page = ""

    def request(self, path: str, **_: Any) -> str:
        return self.page


def _exporter(content: bytes) -> str | None:
    class Fed(Page):
        __slots__ = ()

        def read(self, timeout_s: float = 0.0, most_bytes: int = 0) -> str:
            del timeout_s, most_bytes
            return content.decode("utf-8", "replace")

    def watched() -> None:
        exporter = DcgmExporter(Fed("http://node:9400/metrics"), (("gpu", "0"),))
        found_devices([exporter], exporter._match)
        telemetry = Telemetry((), tuple, exporters=[exporter])
        exporter._lines = []
        telemetry.sample_exporter(exporter)
        telemetry.summary(0.0, 1e9)
        telemetry.problems(0.0, 1e9)

    engine_on(content.decode("utf-8", "replace"))
    return _refusals(watched, of=ServerError)


def _metrics(content: bytes) -> str | None:
    server = _Pages("http://127.0.0.1:1/v1", "m")
    server.page = content.decode("utf-8", "replace")
    read_metrics(server.page, METRICS)
    return _refusals(server.metrics, of=ServerError)


# Answers to plain requests


WORDS = (
    b'{"error": {"message": "no", "code": 429, "type": "rate_limit"}}',
    b'{"detail": [{"msg": "x"}], "status": "500"}',
    b"<html><title>502 Bad Gateway</title><script>x</script><!-- y --><h1>z</h1></html>",
    *(b'{"error": "%b"}' % each.argument.encode() for each in PLANTED.values()),
)


def _words(content: bytes) -> str | None:
    said, _ = words_in(content)
    return one_line(said, ["hunter2"]) or None


BETWEEN = b"\n--\n"
"""Between two answers of a server. It gives them in turn."""


def _page(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n") -> bytes:
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


_MODELS = _page(b'{"data": [{"id": "m", "root": "org/m", "max_model_len": 4096}]}')
_CHAT = _page(b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}')
ANSWERS = (
    BETWEEN.join([_MODELS, _CHAT, _page(b'{"version": "0.32.0"}'), _page(b"vllm:num_requests_running 1\n")]),
    BETWEEN.join(
        [
            _MODELS,
            _CHAT,
            _page(
                b'{"vllm_config": {"model_config": {"dtype": "half"}, "parallel_config": {"tensor_parallel_size": 2},'
                b' "speculative_config": {"num_speculative_tokens": 3}}}'
            ),
        ]
    ),
    _page(b'{"error": {"message": "no key"}}', b"HTTP/1.1 401 Unauthorized\r\n"),
    b"HTTP/1.1 302 Found\r\nLocation: http://u:p@h/v1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\n{}\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.0 503 Loading\r\nContent-Encoding: gzip\r\n\r\nwait",
)


@contextlib.contextmanager
def _answered(content: bytes) -> Iterator[None]:
    """Every connection of a plain request gets the next answer, and then its end."""
    answers, ends = cycle(content.split(BETWEEN)), []

    def connected(*_: object) -> socket.socket:
        ours, theirs = socket.socketpair()
        ends.append(theirs)  # until the answer is read
        theirs.sendall(next(answers))
        theirs.shutdown(socket.SHUT_WR)
        return ours

    before = plain_request._Exchange._connected
    plain_request._Exchange._connected = connected  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        plain_request._Exchange._connected = before  # type: ignore[method-assign]
        for each in ends:
            each.close()


def _answers(content: bytes) -> str | None:
    """Attach to a server, and ask whatever is asked of one."""

    def use(server: ExternalServer) -> None:
        with server:
            server.capabilities()
            server.facts()
            server.reset_caches()
            server.ended(1.0)
            server.metrics()

    with _answered(content):
        return _refusals(
            lambda: use(attach("http://127.0.0.1:1/v1")),
            lambda: use(ExternalServer("http://127.0.0.1:1/v1", "m")),
            of=ServerError,
        )


CALIBRATION = _page(b'{"count": 8, "tokens": [1], "choices": [{"text": "x"}], "usage": {"prompt_tokens": 8}}')


def _calibration(content: bytes) -> str | None:
    workload = Workload(Length.fixed(32), Length.fixed(4))
    with _answered(content):
        return _refusals(
            lambda: calibrate(ServerAddress.parse("http://127.0.0.1:1/v1", None), "m", workload, 1, 2), of=LoadError
        )


# Answers to load


def _stream(events: list[bytes]) -> bytes:
    return b"\x80" + rawserver.HEAD + b"".join(rawserver.chunk(b"data: %b\n\n" % each) for each in events)


_LAST = b"0\r\n\r\n"
STREAMS = (
    b"\x00" + b"".join(rawserver.good()),
    _stream([*rawserver.events(), rawserver.usage(completion=9)]) + _LAST,
    _stream([b'{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}', b"[DONE]"]),
    _stream([rawserver.token(), b'{"error":{"message":"died","code":500}}']) + _LAST,
    b"\x40HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: ping\n\nevent: error\ndata: {}\r\n\r\nid: 3\n",
    b"\xffHTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}",
)


_DELTA = b'{"type":"response.output_text.delta","delta":"a b"}'
RESPONSES = (
    _stream(
        [
            b'{"type":"response.created","response":{"usage":null}}',
            *[_DELTA] * 4,
            b'{"type":"response.completed","response":{"usage":{"input_tokens":32,"output_tokens":4}}}',
        ]
    )
    + _LAST,
    _stream([_DELTA, b'{"type":"response.failed","response":{"error":{"message":"died","code":"500"}}}']) + _LAST,
    _stream([b'{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}']),
)
WHOLE = (
    b"\x00" + _page(b'{"choices":[{"finish_reason":"length"}],"usage":{"prompt_tokens":32,"completion_tokens":4}}'),
    b"\x60" + _page(b'{"data":[{"embedding":"' + b"A" * 9000 + b'"}],"usage":{"prompt_tokens":32,"total_tokens":32}}'),
    b"\x80" + _page(b'{"results":[{"index":0,"relevance_score":0.5}],"usage":{"total_tokens":32}}'),
    b"\x20HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b'{"error":{"message":"died"}}',
    b"\xffHTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}",
)


class _Streams:
    """The load client in this process, and the server that it asks.

    The first byte of an input says where its answer is divided: the rest comes after the client has read the beginning.
    """

    def __init__(self, form: AnswerForm = AnswerForm.STREAM) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=8)
        address = (socket.AF_INET, self._listener.getsockname())
        run_table_fd = anonymous_memory(RunTable.size(1))
        self._table, fd = PhaseTable.create(1, 1)
        self._loop = EventLoop(
            RequestTemplate(address, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: ", True, form=form),
            RequestComposer(PromptRecipe("m", ApiKind.COMPLETIONS.value, ("a", "b"))),
            RunTable.attach(run_table_fd, 1),
            0,
            bins_start_s=time.monotonic(),
            request_timeout_s=1e6,
        )
        os.close(run_table_fd)
        os.close(fd)
        self._table.prompt_tokens[:], self._table.output_tokens[:] = 32, 4
        self._loop.recorder.begin(self._table)

    def enter(self, content: bytes) -> str | None:
        """Ask, be answered so, and say what the client makes of it."""
        loop, table = self._loop, self._table
        loop._errors.clear()
        table.status[0] = Status.IN_FLIGHT
        cut = 1 + len(content) * content[0] // 256 if content else 0
        (template,) = loop._templates
        loop._send(loop._answer(table, 0, loop.recorder), template.request(b"{}"), template, fresh=True)
        sock, _ = self._listener.accept()
        with sock:
            for piece in (content[1:cut], content[cut:]):
                with contextlib.suppress(OSError):  # the client may have closed the connection
                    sock.sendall(piece)
                loop._turn(0)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            while loop._busy:
                loop._turn(100)
        for idle in list(loop._idle[0]):
            idle.close()
        loop.recorder.flush()
        status = Status(int(table.status[0]))
        if status is Status.OK:
            return None
        return next((each.text for each in loop.error_texts if each.text), status.name)
