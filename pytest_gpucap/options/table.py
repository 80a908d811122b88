"""The plugin's options. Each is defined once, as a row of `Options`.

The command-line parser, the ini keys, the attributes of the session's settings with their types, and the table in
``docs/options.md`` all come from these rows.

Every option is also an ini key, and the key is the option's name: ``gpucap_`` and the flag without ``--`` and
``gpucap-``, with underscores. ``--gpucap-max-time`` is ``gpucap_max_time``, and ``--gpu-class`` is
``gpucap_gpu_class``. The most specific source wins: marker, command line, ini, default (``markers/`` lays the markers
over these values). No option has a command-line default other than None, or its ini key would have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar, overload

import pytest

from pytest_gpucap import extensions
from pytest_gpucap.options import values

if TYPE_CHECKING:
    from fractions import Fraction

    from pytest_gpucap.access import HeaderSource


_MEASURE: Final[str | Fraction | Path] = "measure"
_NO_HEADERS: Final[tuple[HeaderSource, ...]] = ()
_NO_URLS: Final[tuple[str, ...]] = ()
_NO_LABELS: Final[tuple[tuple[str, str], ...]] = ()
T = TypeVar("T")


class Option(Generic[T]):
    """One option. As an attribute of an `Options` object it is the option's value, of type `T`.

    Args:
        flag: on the command line.
        parse: from the value as given to the value of the attribute; see `pytest_gpucap.options.values`.
        about: what it does, for the help and the documentation.
        metavar: stands for the value in the help.
        default: the attribute's value if the option is not given; None: nothing is set.
        otherwise: what applies if the option is not given, as a user would write it or in a few words.
        choices: all values that it takes; empty: any that `parse` takes.
        repeatable: it may be given several times (an ini key takes a line for each); `parse` takes the list.
    """

    __slots__ = ("about", "choices", "default", "flag", "ini", "metavar", "name", "otherwise", "parse", "repeatable")

    def __init__(
        self,
        flag: str,
        parse: Callable[[Any, str, pytest.Config], T],
        about: str,
        metavar: str | None = None,
        *,
        default: T,
        otherwise: str = "",
        choices: tuple[str, ...] = (),
        repeatable: bool = False,
    ) -> None:
        self.flag, self.parse, self.about, self.metavar = flag, parse, about, metavar
        self.default, self.otherwise, self.choices, self.repeatable = default, otherwise, choices, repeatable
        self.ini = "gpucap_" + flag.removeprefix("--").removeprefix("gpucap-").replace("-", "_")

    def __set_name__(self, owner: type[Options], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type[Options]) -> Self: ...
    @overload
    def __get__(self, instance: Options, owner: type[Options]) -> T: ...
    def __get__(self, instance: Options | None, owner: type[Options]) -> Self | T:
        # Reached only if the object itself holds no value of that name, because this is no data descriptor.
        return self if instance is None else self.default


class Options:
    """The session's settings, frozen. Every pytest run makes one, so this must be cheap."""

    # The requirement.
    gpu_class = Option(
        "--gpu-class",
        values.text,
        'GPU class to measure on, such as "a10g", "h200", "cpu" or "sim:PROFILE"; checked before anything starts',
        "CLASS",
        default=None,
        otherwise="the class of the GPUs that are here",
    )
    target_qps = Option(
        "--target-qps",
        values.positive_value,
        "requests per second that the budget must carry, all GPUs together",
        "QPS",
        default=None,
    )
    gpus = Option(
        "--gpus",
        values.count,
        "the budget: how many GPUs may serve the target",
        "N",
        default=None,
        otherwise="one replica",
    )
    headroom = Option(
        "--gpucap-headroom",
        values.headroom_value,
        "factor on the target rate for peaks and failures",
        "R",
        default=None,
        otherwise="1.3",
    )
    model = Option(
        "--gpucap-model",
        values.model,
        'model of tests whose vllm marker names none ("synthetic:tiny" needs no hub)',
        "MODEL",
        default=None,
    )
    workload = Option(
        "--gpucap-workload",
        values.text,
        "workload preset of tests that name none (chat, rag, code, summarise, reasoning, deepseek-r1)",
        "NAME",
        default=None,
    )
    workload_file = Option(
        "--gpucap-workload-file", values.path, "TOML file with workload presets of your own", "FILE", default=None
    )
    # The measurement.
    max_time_s = Option(
        "--gpucap-max-time",
        values.duration,
        "server time that one verdict may take",
        "TIME",
        default=600.0,
        otherwise="10m",
    )
    repeat = Option(
        "--gpucap-repeat",
        values.starts,
        "measure check() and measure() on this many starts of the server, 1 to 20, and give one result of all; each "
        "start may take the max time",
        "N",
        default=1,
        otherwise="1",
    )
    max_total_s = Option(
        "--gpucap-max-total",
        values.duration,
        "server time that the whole session may take, starts included (with xdist each worker); tests that do not fit "
        "are not measured",
        "TIME",
        default=None,
    )
    inconclusive = Option(
        "--gpucap-inconclusive",
        values.text,
        "what an INCONCLUSIVE verdict does to its test, and a test that --gpucap-max-total left no time for (which is "
        "skipped under pass too)",
        default="fail",
        otherwise="fail",
        choices=("fail", "skip", "pass"),
    )
    require = Option(
        "--gpucap-require",
        values.flag,
        "fail tests that are skipped on this machine, such as one without a GPU, and those that declare a capacity and "
        "measure none",
        default=False,
    )
    seed = Option("--gpucap-seed", values.seed, "seed of arrivals, lengths and prompts", "N", default=0, otherwise="0")
    workers = Option(
        "--gpucap-workers",
        values.count,
        "load generator processes",
        "N",
        default=None,
        otherwise="as many as the load and the cores call for",
    )
    host_check = Option(
        "--gpucap-host-check",
        values.text,
        "what a disturbed host (cores taken by other processes, steal, a used-up CPU quota, heat, too little memory) "
        "does to a measurement: INVALID, a remark, or nothing, unwatched",
        default="error",
        otherwise="error",
        choices=("error", "warn", "off"),
    )
    # The server and its GPU.
    vllm_python = Option(
        "--gpucap-vllm-python",
        values.interpreter,
        "Python interpreter that has vLLM; a missing one in an ini file stops only runs that need it",
        "PATH",
        default=None,
        otherwise="the one that runs pytest",
    )
    startup_timeout_s = Option(
        "--gpucap-startup-timeout",
        values.duration,
        "time that a server may take to become ready",
        "TIME",
        default=1800.0,
        otherwise="30m",
    )
    reuse_s = Option(
        "--gpucap-reuse",
        values.kept_for,
        "keep the last vLLM server for so long after the run, at most 24h: the next run with the same server takes it "
        "over, without a start; gpucap servers lists and ends it",
        "TIME",
        default=None,
        otherwise="end it with the run",
    )
    reuse_in_ci = Option(
        "--gpucap-reuse-in-ci",
        values.flag,
        "let --gpucap-reuse count in CI too (where CI is set), where it is ignored otherwise",
        default=False,
    )
    url = Option(
        "--gpucap-url",
        values.url,
        "measure the OpenAI-compatible server at this base URL, once it has loaded; never stops it; --gpu-class says "
        "what it runs on, which cannot be checked",
        "URL",
        default=None,
    )
    api_key_env = Option(
        "--gpucap-api-key-env",
        values.text,
        "environment variable that holds the key of --gpucap-url",
        "NAME",
        default="OPENAI_API_KEY",
        otherwise="OPENAI_API_KEY",
    )
    header = Option(
        "--gpucap-header",
        values.headers,
        "header of every request to --gpucap-url; its value comes from the environment variable ENV; repeatable",
        "NAME=ENV",
        default=_NO_HEADERS,
        repeatable=True,
    )
    ca_file = Option(
        "--gpucap-ca-file",
        values.path,
        "PEM file with the CA certificates that --gpucap-url is checked with, instead of the system's",
        "FILE",
        default=None,
    )
    metrics_url = Option(
        "--gpucap-metrics-url",
        values.page_urls,
        "metrics page of the engine behind --gpucap-url, such as http://10.0.0.5:8000/metrics, where a gateway stands "
        "before it; repeatable, once for each engine",
        "URL",
        default=_NO_URLS,
        repeatable=True,
    )
    dcgm_url = Option(
        "--gpucap-dcgm-url",
        values.page_urls,
        "page of the DCGM exporter that shows the GPUs behind --gpucap-url, such as http://node:9400/metrics; "
        "repeatable, once for each node",
        "URL",
        default=_NO_URLS,
        repeatable=True,
    )
    dcgm_match = Option(
        "--gpucap-dcgm-match",
        values.labels,
        "which GPUs of --gpucap-dcgm-url are the server's, by their labels, such as pod=vllm-0,namespace=prod",
        "LABEL=VALUE,...",
        default=_NO_LABELS,
    )
    metrics_header = Option(
        "--gpucap-metrics-header",
        values.headers,
        "header of every request to --gpucap-metrics-url and --gpucap-dcgm-url, which get neither the key nor the "
        "headers of --gpucap-url; its value comes from the environment variable ENV; repeatable",
        "NAME=ENV",
        default=_NO_HEADERS,
        repeatable=True,
    )
    router = Option(
        "--gpucap-router",
        values.routing,
        "what spreads requests over the replicas of a fleet, and its policy: client (round_robin, least_outstanding), "
        "vllm (vLLM's router: cache_aware, round_robin, random, power_of_two, consistent_hash) or nginx (round_robin, "
        "least_conn, random)",
        "ROUTER[:POLICY]",
        default=None,
        otherwise="client:round_robin",
    )
    launcher = Option(
        "--gpucap-launcher",
        values.text,
        "where servers start: on this machine, or on the nodes of a Ray cluster (pytest-gpucap[ray])",
        default="local",
        otherwise="local",
        choices=("local", "ray"),
    )
    ray_address = Option(
        "--gpucap-ray-address",
        values.text,
        "the Ray cluster: auto, for the one that this machine is a node of, or HOST:PORT of its head",
        "ADDRESS",
        default="auto",
        otherwise="auto",
    )
    load_from = Option(
        "--gpucap-load-from",
        values.load_from,
        "with Ray, where load comes from: here, replicas (the nodes that have one), or so many nodes without a replica",
        "here|replicas|N",
        default="here",
        otherwise="here",
    )
    efficiency = Option(
        "--gpucap-efficiency",
        values.efficiency,
        "how well replicas add up: measure (with a fleet, one replica alone as well), skip, or, where one replica is "
        "measured, a share such as 86% or the result file of a fleet to take it from",
        "measure|skip|SHARE|FILE",
        default=_MEASURE,
        otherwise="measure",
    )
    gpu_wait_s = Option(
        "--gpucap-gpu-wait",
        values.duration,
        "time to wait for a GPU, or for the server of --gpucap-url, that another process has leased",
        "TIME",
        default=1800.0,
        otherwise="30m",
    )
    gpu_idle = Option(
        "--gpucap-gpu-idle",
        values.idle_memory,
        "memory that a GPU may have in use and still count as free, for a desktop or WSL (2GiB, 5%)",
        "MEMORY",
        default=None,
        otherwise="512MiB or 2%, and no process",
    )
    gpu_file = Option("--gpucap-gpu-file", values.path, "TOML file with GPU classes of your own", "FILE", default=None)
    # The cost.
    estimate = Option(
        "--gpucap-estimate",
        values.flag,
        "show the servers that the collected tests start, and what they will cost; with --collect-only nothing starts",
        default=False,
    )
    estimate_json = Option(
        "--gpucap-estimate-json",
        values.output_file,
        "write that estimate here as JSON",
        "FILE",
        default=None,
    )
    prices = Option(
        "--gpucap-prices",
        values.path,
        "TOML file for the estimate and usd_per_1m_tokens: [per_hour] with CLASS = PRICE of one GPU, as of gpucap plan",
        "FILE",
        default=None,
    )
    # The results.
    dir = Option(
        "--gpucap-dir",
        values.output_folder,
        "folder for server logs and the last result",
        "DIR",
        default=Path(".gpucap"),
        otherwise=".gpucap",
    )
    json = Option(
        "--gpucap-json",
        values.output_file,
        "write the result file here as well: from the session's start on, whole at every moment",
        "FILE",
        default=None,
    )
    markdown = Option(
        "--gpucap-markdown",
        values.output_file,
        "write the report for a pull request here; GitHub and Buildkite show it without this option",
        "FILE",
        default=None,
    )
    html = Option(
        "--gpucap-html",
        values.html_path,
        "write the report as one HTML file here (pytest-gpucap[html])",
        "FILE",
        default=None,
    )
    keep_requests = Option(
        "--gpucap-keep-requests",
        values.output_folder,
        "keep the single requests of every measurement in a file in this folder, without any text: gpucap frame --rows "
        "requests makes a table of them",
        "DIR",
        default=None,
    )
    # The comparison with other results.
    save = Option("--gpucap-save", values.text, "save the results as a baseline of this name", "NAME", default=None)
    force_save = Option(
        "--gpucap-force-save",
        values.flag,
        "let --gpucap-save save results other than PASS too, and regressions",
        default=False,
    )
    compare = Option(
        "--gpucap-compare",
        values.baseline,
        'compare with a baseline: its name, a result file, "latest", or a folder (the median of its last runs)',
        "NAME|PATH|latest",
        default=None,
    )
    baselines = Option(
        "--gpucap-baselines",
        values.baselines_folder,
        "folder of the baselines",
        "DIR",
        default=Path("gpucap-baselines"),
        otherwise="gpucap-baselines",
    )
    max_regression = Option(
        "--gpucap-max-regression",
        values.share_value,
        "share of the sustainable rate that may be lost against the baseline",
        "SHARE",
        default=0.05,
        otherwise="5%",
    )
    any_prefix_hits = Option(
        "--gpucap-any-prefix-hits",
        values.flag,
        "compare sessions whose prefix hit rates differ clearly, too: the cache is what is being tested",
        default=False,
    )
    base_python = Option(
        "--gpucap-base-python",
        values.interpreter,
        "interpreter with the vLLM of a pull request's base: measured in alternation with the head",
        "PATH",
        default=None,
    )
    base_dir = Option(
        "--gpucap-base-dir",
        values.base_folder,
        "checkout of a pull request's base, the folder that is pytest's root folder here: the same test's markers "
        "there name the base's server",
        "DIR",
        default=None,
    )
    base_args = Option(
        "--gpucap-base-args",
        values.server_arguments,
        'server arguments of the base, laid over the test\'s own, such as "--max-num-seqs 64"',
        "ARGS",
        default=None,
    )

    extensions: extensions.Extensions = extensions.NONE
    """What other plugins add. This setting is no option."""

    @property
    def names_base(self) -> bool:
        """Whether the session compares its tests with the base of a pull request."""
        return (self.base_python, self.base_dir, self.base_args) != (None, None, None)

    def __init__(self, **given: Any) -> None:
        if unknown := given.keys() - vars(Options).keys():
            raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the session's settings do not change: {name}")


def all_options() -> Iterator[Option[Any]]:
    """Every option, in the order of the documentation."""
    return (row for row in vars(Options).values() if isinstance(row, Option))
