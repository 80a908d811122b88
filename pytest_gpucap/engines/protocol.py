"""Engines and servers as this plugin sees them: an engine starts a server, and a server is what is measured.

A plugin adds an engine with the hook ``pytest_gpucap_engines`` (see `pytest_gpucap.hookspecs`): a subclass of `Engine`
with a name and a `start`. Everything else has a default that suits an OpenAI-compatible server over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

from pytest_gpucap.access import LOOPBACK, OPEN, Access
from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.foreign_text import harmless
from pytest_gpucap.masking import Secret, masked
from pytest_gpucap.routing import RouterKind, Routing
from pytest_gpucap.vllm_arguments import VllmArguments

if TYPE_CHECKING:  # not imported: every collection of our tests imports this file
    import openai

    from pytest_gpucap.engines.prometheus import Metrics
    from pytest_gpucap.load.address import ServerAddress
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.requirement import Workload

RESERVED: Final = frozenset({"vllm", "url", "simulator"})
"""Names of the engines that come with the plugin."""

_NOISE = re.compile(r"^nanobind: |^ - leaked |^ - \.\.\. skipped|^See https://nanobind")

_BEGINNING_BYTES: Final = 1 << 20
_END_BYTES: Final = 3 << 20
"""Read of a log. The settings stand at its beginning, and what went wrong at its end."""
_TAIL_BYTES: Final = 1 << 18
_LONGEST_LINE: Final = 2_000

Names = tuple[str, ...]


def _lines_of(data: bytes) -> str:
    """A log's text, with a progress bar's carriage returns as line breaks."""
    return data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True, slots=True)
class ServerLog:
    """The log file of one server.

    Attributes:
        path: of the file; secrets in it are not masked.
    """

    path: Path

    def text(self) -> str:
        """The log so far, secrets masked; empty if nothing was written. The middle of a very long one is left out."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                beginning = file.read(_BEGINNING_BYTES)
                left_out = size - len(beginning) - _END_BYTES
                if left_out > 0:
                    file.seek(-_END_BYTES, os.SEEK_END)
                end = file.read(_END_BYTES)
        except FileNotFoundError:
            return ""
        gap = f"\n... {left_out} bytes are left out ...\n".encode() if left_out > 0 else b""
        return masked(_lines_of(beginning + gap + end))

    def tail(self, lines: int = 30) -> str:
        """The last lines, harmless and without secrets.

        The leak reports that C++ bindings write at the end of every failed start are left out. Only the log's end is
        read, and only the beginning of a very long line is shown.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _TAIL_BYTES))
                end = _lines_of(file.read(_TAIL_BYTES))
        except FileNotFoundError:
            return ""
        found = [line for line in end.splitlines() if not _NOISE.search(line)]
        if size > _TAIL_BYTES and len(found) > 1:
            del found[0]  # its beginning was not read
        # Masked before lines are cut: the beginning of a secret is one too.
        shown = masked("\n".join(found[-lines:])).splitlines()
        cut = (line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in shown)
        return harmless("\n".join(cut))

    def mask(self) -> None:
        """Mask the secrets in the file itself, once its server has ended; not in one that is too long to be read.

        Masking a gigabyte would take minutes. Only its owner can read the file.
        """
        with contextlib.suppress(FileNotFoundError), self.path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size > _BEGINNING_BYTES + _END_BYTES:
                return
            raw = file.read()
            kept = masked(raw.decode("utf-8", "replace")).encode()
            if kept != raw:
                file.seek(0)
                file.write(kept)
                file.truncate()


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Prometheus names of the figures that telemetry reads from an engine's ``/metrics``.

    Each figure has one name per version of the engine, newest first. The first name found on the page is used. A figure
    without names is not read. Counters are named as on the page, with ``_total``.

    Attributes:
        running, waiting: gauges, requests being decoded and requests queued.
        kv_use: gauge, share of the KV cache in use, 0 to 1.
        preemptions, prompt_tokens, output_tokens: counters.
        prefix_queries, prefix_hits: counters, in tokens.
        draft_tokens, accepted_tokens: counters, of speculative decoding.
    """

    running: Names = ()
    waiting: Names = ()
    kv_use: Names = ()
    preemptions: Names = ()
    prompt_tokens: Names = ()
    output_tokens: Names = ()
    prefix_queries: Names = ()
    prefix_hits: Names = ()
    draft_tokens: Names = ()
    accepted_tokens: Names = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What is known of a server's abilities. Everything has a default, so an engine may leave anything out.

    Attributes:
        max_num_seqs: requests that it decodes at once, over all its engines; None if it does not tell.
        kv_tokens: tokens that its KV cache holds, over all its engines; None if it does not tell.
        max_num_batched_tokens: tokens of one step, prompt and generated, over all its engines; None: it does not tell.
        max_model_len: tokens that prompt and answer of one request may have together; None if it does not tell.
        metrics: names of its figures on ``/metrics``.
        simulated: it is a simulation; every report says so.
        loopback: it runs on the client's machine, with no network in between.
        started: the plugin started it, so its model and arguments are known; otherwise they are as the test declares.
        models: folders or hub names whose ``config.json`` describes its model, the most certain first. Empty: unknown,
            and so are its physical limits.
        arguments: what its physical limits depend on, by vLLM's names: ``tensor_parallel_size``, ``quantization``, ...
        replicas: servers of this kind that share the requests.
        dialect: how its requests say what the OpenAI API has no field for.
        resets: it can empty the caches that prompts could hit.
    """

    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    metrics: MetricNames = field(default_factory=MetricNames)
    simulated: bool = False
    loopback: bool = False
    started: bool = True
    models: tuple[str, ...] = ()
    arguments: VllmArguments = field(default_factory=VllmArguments)
    replicas: int = 1
    dialect: ApiDialect = field(default_factory=ApiDialect)
    resets: bool = True


class Server(Protocol):
    """A server that is ready. `pytest_gpucap.engines.server.HttpServer` implements it over HTTP."""

    @property
    def base_url(self) -> str:
        """Where requests go; ends in ``/v1``."""
        ...

    @property
    def model(self) -> str:
        """The name that requests must carry."""
        ...

    @property
    def api_key(self) -> str:
        """The bearer token that requests must carry; masked in every repr."""
        ...

    @property
    def log(self) -> ServerLog | None:
        """The server's log; None if it cannot be read."""
        ...

    @property
    def version(self) -> str | None:
        """The version of its software; None if it does not tell."""
        ...

    @property
    def client(self) -> openai.OpenAI:
        """An OpenAI client for this server, without retries."""
        ...

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        """The same, asynchronous."""
        ...

    def capabilities(self) -> Capabilities:
        """The server's capabilities."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What a report names of it, the most important first: ``server``, ``model``, ``command``, and so on."""
        ...

    def metrics(self) -> Metrics:
        """The server's Prometheus samples, read now.

        Raises:
            MetricsUnavailable: if the server has no ``/metrics``.
        """
        ...

    def request(self, path: str, *, method: str = "GET", timeout_s: float | None = None) -> str:
        """The body of the answer to one plain request under the server's root.

        Raises:
            EndpointError: if the request fails.
        """
        ...

    def reset_caches(self) -> bool:
        """Empty the caches that prompts could hit. Returns False if the server cannot."""
        ...

    def pids(self) -> set[int]:
        """Its living processes; empty if they are not on this machine."""
        ...

    def close(self) -> None:
        """Close the connections to the server, and end it if we started it. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingIdentity:
    """What clients know a server by. The replicas of a fleet share name and key, so that any may answer any request.

    Attributes:
        name: under which it serves the model.
        api_key: that it requires; masked in every repr.
        host: address of this machine that it listens on.
        open_health: whether it answers a health check without the key, as vLLM's router sends them.
    """

    name: str
    api_key: Secret
    host: str = LOOPBACK
    open_health: bool = False

    @classmethod
    def new(cls, model: str, host: str = LOOPBACK, *, open_health: bool = False) -> ServingIdentity:
        """A name and a key that no other server has; `model` may be a path."""
        import re
        import secrets

        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", model.rpartition(":")[2].rstrip("/").rpartition("/")[2])[:40]
        name, key = f"gpucap-{slug}-{secrets.token_hex(6)}", Secret(secrets.token_urlsafe(24))
        return cls(name=name, api_key=key, host=host, open_health=open_health)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRequest:
    """What a test and the session require of an engine; known at collection.

    Attributes:
        model: from the marker, or ``--gpucap-model``; None if neither names one.
        arguments: every other keyword of the marker.
        python: the interpreter of ``--gpucap-vllm-python``, or the one that runs pytest.
        startup_timeout_s: seconds from start to ready.
        log_dir: folder for the server's log.
        identity: name, key and address that the server must have; None: the engine chooses.
        adapters: LoRA adapters that requests name, and that the engine makes for a synthetic model.
        adapter_rank: of these.
    """

    model: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    python: str = ""
    startup_timeout_s: float = 1800.0
    log_dir: Path = Path(".gpucap/logs")
    identity: ServingIdentity | None = None
    adapters: tuple[str, ...] = ()
    adapter_rank: int = 16

    def new_log(self, name: str) -> Path:
        """A log file for one start, in the log folder; `name` may be a model's name."""
        import secrets

        slug = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in name)
        return self.log_dir / f"{slug}-{secrets.token_hex(4)}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """The load that a server is to be driven with.

    Attributes:
        workload: of every request.
        seed: of arrivals, lengths and prompts.
        workers: load generator processes; None: as many as the load needs.
        smallest_limit_s: the smallest latency limit that is to be judged; None: there is none.
    """

    workload: Workload
    seed: int
    workers: int | None = None
    smallest_limit_s: float | None = None


def access_of(server: Server) -> Access:
    """What requests to a server need beside URL and key. Servers of other plugins may need no more, and have none."""
    return getattr(server, "access", None) or OPEN


def address_of(server: Server) -> ServerAddress:
    """Where requests to a server go, and what they must carry."""
    from pytest_gpucap.load.address import ServerAddress

    return ServerAddress.parse(server.base_url, server.api_key, access=access_of(server))


def over_http(server: Server, load: LoadRequest) -> LoadRunner:
    """A runner that sends real requests to a server. It empties the server's caches first."""
    from pytest_gpucap.load.runner import HttpLoadRunner

    server.reset_caches()
    return HttpLoadRunner(
        server.base_url,
        server.model,
        server.api_key,
        load.workload,
        load.seed,
        workers=load.workers,
        simulated=server.capabilities().simulated,
        access=access_of(server),
    )


def fleet_over_http(
    servers: Sequence[Server], load: LoadRequest, routing: Routing, router_url: str | None
) -> LoadRunner:
    """A runner that sends real requests to the replicas of a fleet, or to their router."""
    from pytest_gpucap.load.runner import HttpLoadRunner
    from pytest_gpucap.load.spread import Spread

    first, *others = servers
    by_client = routing.kind is RouterKind.CLIENT
    return HttpLoadRunner(
        router_url or first.base_url,
        first.model,
        first.api_key,
        load.workload,
        load.seed,
        workers=load.workers,
        simulated=first.capabilities().simulated,
        access=access_of(first),
        beside=[each.base_url for each in others] if router_url is None else [],
        spread=Spread(routing.policy) if by_client else Spread.ROUND_ROBIN,
    )


class Engine(ABC):
    """Starts a server for one test. It is made at collection and starts nothing before `start`.

    Attributes:
        name: its name in ``@pytest.mark.engine(name)``.
        title: its name in messages and reports; `name` if it has none.
        leases_devices: GPUs of the test's class (or the CPU) are leased for its server, and telemetry watches them.
            False for an engine whose server runs elsewhere, or on nothing.
        restarts: `start` begins a new server, so that a second measurement is independent of the first server.
        request: what the test asks for.
    """

    name: ClassVar[str]
    title: str = ""
    leases_devices: bool = True
    restarts: bool = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.title = cls.__dict__.get("title", getattr(cls, "name", cls.__name__))

    def __init__(self, request: ServerRequest) -> None:
        """Take the test's request.

        Raises:
            ValueError: one line, if the model or an argument is invalid. The test's place is put before it.
        """
        self.request = request

    @classmethod
    def gpus_per_replica(cls, arguments: Mapping[str, object]) -> int:
        """GPUs that one server occupies under the marker's arguments.

        Raises:
            ValueError: one line, if an argument is invalid.
        """
        del arguments
        return 1

    @property
    def gpus(self) -> int:
        """GPUs that this engine's server occupies."""
        return self.gpus_per_replica(self.request.arguments)

    @property
    def max_model_len(self) -> int | None:
        """Tokens that prompt and answer of one request may have together, as far as the arguments tell; else None."""
        return None

    @property
    def key(self) -> Hashable:
        """Equal for tests that can share one server; engines of different names never do."""
        return self.request.model, json.dumps(dict(self.request.arguments), sort_keys=True, default=repr)

    @property
    def running_server(self) -> str | None:
        """The server that runs already, under one name for every way to write its address; None if `start` begins one.

        One session of a machine measures it at a time.
        """
        return None

    def with_request(self, request: ServerRequest) -> Engine:
        """The same engine for another request, such as that of a replica, whose name and key are given."""
        return type(self)(request)

    @abstractmethod
    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:
        """Start the server and wait until it answers.

        Args:
            devices: UUIDs of the leased GPUs, for ``CUDA_VISIBLE_DEVICES``; empty on a CPU and without a lease.
            on_wait: called now and then with a line on what the start is waiting for.

        Raises:
            ServerStartError: if it does not become ready. None of its processes is left running.
        """

    def runner(self, server: Server, load: LoadRequest) -> LoadRunner:
        """The runner that sends the load to the server: real requests over HTTP, unless an engine overrides this."""
        return over_http(server, load)

    def counted(self, server: Server, workload: Workload) -> Workload:
        """A workload with prompts of the user's own, with their lengths as the server counts them.

        It is asked before the load: over HTTP, unless an engine overrides this.

        Raises:
            LoadError: if they cannot be counted.
        """
        from pytest_gpucap.load.prompt_counts import counted

        return counted(address_of(server), server.model, workload)

    def fleet_runner(
        self, servers: Sequence[Server], load: LoadRequest, routing: Routing, router_url: str | None
    ) -> LoadRunner:
        """The runner that sends one load to replicas of this engine: over HTTP, unless an engine overrides this.

        Args:
            servers: the replicas that are to share the load; they have the same name and key.
            load: all of it.
            routing: how requests reach the replicas.
            router_url: of the router in front of them; None: the load generator spreads requests.
        """
        return fleet_over_http(servers, load, routing, router_url)

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:
        """This engine as the head, and a pull request's base, to be measured in alternation.

        Args:
            base_args: ``--gpucap-base-args``, as on a command line; they override the arguments of the test.
            base_python: ``--gpucap-base-python``.

        Raises:
            ValueError: one line, if there is no such base.
        """
        del base_args, base_python
        raise ValueError(f"--gpucap-base-...: engine {self.name} cannot start a base")


EngineT_co = TypeVar("EngineT_co", bound=Engine, covariant=True)


class EnginePair(Generic[EngineT_co]):
    """A pull request's base and head, measured in alternation.

    Args:
        base, head: their engines.
    """

    def __init__(self, base: EngineT_co, head: EngineT_co) -> None:
        self.base, self.head = base, head

    def model_change(self) -> list[str]:
        """A line on the models, where base and head have not the same one."""
        base, head = self.base.request.model, self.head.request.model
        return [] if base == head else [f"model: {base} -> {head}"]

    def fitted(self) -> EnginePair[EngineT_co]:
        """A pair whose servers fit on the same GPUs together: this pair if they fit, else one with less memory each."""
        return self

    def runners(self, base: Server, head: Server, load: LoadRequest) -> tuple[LoadRunner, LoadRunner]:
        """The runners that send the load to the started servers."""
        return self.base.runner(base, load), self.head.runner(head, load)

    def changes(self) -> list[str]:
        """The differences between base and head, a line each. What `fitted` changed comes last."""
        return []

    def remark(self) -> str:
        """What may explain why a server of the pair does not start; empty if nothing does."""
        return ""
