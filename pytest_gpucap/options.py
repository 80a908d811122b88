"""Command line and ini keys -> `Options`, parsed once.

Every option is also an ini key. The most specific source wins: marker, command line, ini, default (markers are laid
over these values in ``markers.py``). No option has a command-line default other than None, or its ini key would be
dead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

from pytest_gpucap import extensions

if TYPE_CHECKING:  # every pytest run imports this file: exact arithmetic is loaded when there is something to parse
    from fractions import Fraction

UNSET: Final = None

_NUMBER = "a number"
_TEXT = "a text"
_FLAG = "a flag"


class _Option:
    """One setting: its field in `Options`, its flag, its ini key and how its text becomes a value."""

    __slots__ = ("choices", "field", "flag", "help", "ini", "kind", "metavar")

    def __init__(
        self,
        field: str,
        flag: str,
        kind: str,
        help: str,  # noqa: A002 - argparse's word
        metavar: str | None = None,
        choices: tuple[str, ...] | None = None,
    ) -> None:
        self.field, self.flag, self.kind, self.help = field, flag, kind, help
        self.metavar, self.choices = metavar, choices
        self.ini = f"gpucap_{field}"


_OPTIONS: Final = (
    _Option(
        "gpu_class",
        "--gpu-class",
        _TEXT,
        'GPU class to measure on, such as "a10g", "h200", "cpu" or "sim:PROFILE"; checked before anything starts',
        "CLASS",
    ),
    _Option(
        "target_qps", "--target-qps", _NUMBER, "requests a second that the budget must carry, all GPUs together", "QPS"
    ),
    _Option("gpus", "--gpus", _NUMBER, "the budget: how many GPUs may serve the target", "N"),
    _Option("headroom", "--gpucap-headroom", _NUMBER, "factor on the target rate for peaks and failures (1.3)", "R"),
    _Option(
        "model",
        "--gpucap-model",
        _TEXT,
        'model of tests whose vllm marker names none ("synthetic:tiny" needs no hub)',
        "MODEL",
    ),
    _Option(
        "workload",
        "--gpucap-workload",
        _TEXT,
        "workload preset of tests that name none (chat, rag, code, summarise, reasoning, deepseek-r1)",
        "NAME",
    ),
    _Option("workload_file", "--gpucap-workload-file", _TEXT, "TOML file with workload presets of your own", "FILE"),
    _Option(
        "max_time", "--gpucap-max-time", _NUMBER, 'server time that one verdict may take, such as "10m" (10m)', "TIME"
    ),
    _Option(
        "inconclusive",
        "--gpucap-inconclusive",
        _TEXT,
        "what an INCONCLUSIVE verdict does to its test (fail)",
        choices=("fail", "skip", "pass"),
    ),
    _Option("require", "--gpucap-require", _FLAG, "fail tests that would be skipped because there is no GPU"),
    _Option("seed", "--gpucap-seed", _NUMBER, "seed of arrivals, lengths and prompts (0)", "N"),
    _Option(
        "vllm_python",
        "--gpucap-vllm-python",
        _TEXT,
        "Python interpreter that has vLLM (the one that runs pytest)",
        "PATH",
    ),
    _Option(
        "startup_timeout", "--gpucap-startup-timeout", _NUMBER, "time a server may take to become ready (30m)", "TIME"
    ),
    _Option(
        "url",
        "--gpucap-url",
        _TEXT,
        "measure the OpenAI-compatible server at this base URL; never stops it (--gpu-class says what it runs on)",
        "URL",
    ),
    _Option(
        "api_key_env",
        "--gpucap-api-key-env",
        _TEXT,
        "variable that holds the key of --gpucap-url (OPENAI_API_KEY)",
        "NAME",
    ),
    _Option(
        "gpu_wait", "--gpucap-gpu-wait", _NUMBER, "time to wait for a GPU that another process has leased (30m)", "TIME"
    ),
    _Option("gpu_file", "--gpucap-gpu-file", _TEXT, "TOML file with GPU classes of your own", "FILE"),
    _Option(
        "workers",
        "--gpucap-workers",
        _NUMBER,
        "load generator processes (as many as the load and the cores ask for)",
        "N",
    ),
    _Option("dir", "--gpucap-dir", _TEXT, "folder for server logs and the last result (.gpucap)", "DIR"),
    _Option("json", "--gpucap-json", _TEXT, "write the result file here as well", "FILE"),
    _Option("markdown", "--gpucap-markdown", _TEXT, "write the report for a pull request here", "FILE"),
    _Option("html", "--gpucap-html", _TEXT, "write the report as one HTML file here (pytest-gpucap[html])", "FILE"),
    _Option("save", "--gpucap-save", _TEXT, "save the results as a baseline of this name", "NAME"),
    _Option(
        "baseline",
        "--gpucap-compare",
        _TEXT,
        'compare with a baseline: its name, a result file, "latest", or a folder (the median of its last runs)',
        "NAME|PATH|latest",
    ),
    _Option("baselines", "--gpucap-baselines", _TEXT, "folder of the baselines (gpucap-baselines)", "DIR"),
    _Option(
        "max_regression",
        "--gpucap-max-regression",
        _NUMBER,
        "share of the sustainable rate that may be lost against the baseline (5%%)",
        "SHARE",
    ),
    _Option(
        "base_python",
        "--gpucap-base-python",
        _TEXT,
        "interpreter with the vLLM of a pull request's base: measured in alternation with the head",
        "PATH",
    ),
    _Option(
        "base_args",
        "--gpucap-base-args",
        _TEXT,
        'server arguments of the base, laid over the test\'s own, such as "--max-num-seqs 64"',
        "ARGS",
    ),
)


class Options:
    """The session's settings, frozen. None: not given anywhere, and there is no default.

    A plain class, because every pytest run makes it: a named tuple of so many fields takes a millisecond, and a
    dataclass four.
    """

    gpu_class: str | None = None
    target_qps: Fraction | None = None
    gpus: int | None = None
    headroom: Fraction | None = None
    model: str | None = None
    max_time_s: float = 600.0
    inconclusive: str = "fail"
    require: bool = False
    seed: int = 0
    vllm_python: str | None = None
    startup_timeout_s: float = 1800.0
    url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    gpu_wait_s: float = 1800.0
    gpu_file: Path | None = None
    workers: int | None = None
    dir: Path = Path(".gpucap")
    json: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    save: str | None = None
    baseline: str | None = None
    baselines: Path = Path("gpucap-baselines")
    max_regression: float = 0.05
    base_python: str | None = None
    base_args: str | None = None
    workload: str | None = None
    workload_file: Path | None = None
    extensions: extensions.Extensions = extensions.NONE

    def __init__(self, **given: Any) -> None:
        if unknown := given.keys() - self.__annotations__.keys():
            raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the session's settings do not change: {name}")


def add_options(parser: pytest.Parser) -> None:
    """Register every option and its ini key."""
    group = parser.getgroup("gpucap", "GPU capacity")
    number: Any = str | int | float if _takes_union() else "string"
    for option in _OPTIONS:
        if option.kind is _FLAG:
            group.addoption(option.flag, dest=option.ini, action="store_true", default=UNSET, help=option.help)
            parser.addini(option.ini, f"see {option.flag}", type="bool", default=UNSET)
            continue
        group.addoption(
            option.flag,
            dest=option.ini,
            metavar=option.metavar,
            choices=option.choices,
            default=UNSET,
            help=option.help,
        )
        kind: Any = number if option.kind is _NUMBER else "string"
        parser.addini(option.ini, f"see {option.flag}", type=kind, default=UNSET)


def _takes_union() -> bool:
    # Before pytest 9.2 an ini key had one type: numbers in native TOML are then refused, with a line that asks for
    # quotes.
    return tuple(int(part) for part in pytest.__version__.split(".")[:2]) >= (9, 2)


def parse_options(config: pytest.Config) -> Options:
    """The session's options.

    Raises:
        pytest.UsageError: one line that names the option or ini key, what it was given and what it takes.
    """
    given: dict[str, Any] = {}
    for option in _OPTIONS:
        raw, place = _raw(config, option)
        if raw is UNSET or raw == "":
            continue
        name, parse = _PARSERS.get(option.field, (option.field, _text))
        try:
            given[name] = parse(raw, option.field.replace("_", " "), config)
        except ValueError as error:
            raise pytest.UsageError(f"{place}: {error}") from None
        if option.choices is not None and given[name] not in option.choices:
            raise pytest.UsageError(f"{place}: must be one of {', '.join(option.choices)}, not {raw!r}")
    if "url" in given and str(given.get("gpu_class")).startswith("sim:"):
        raise pytest.UsageError("--gpucap-url and --gpu-class=sim:PROFILE exclude each other: one of them is measured")
    if "url" in given and "api_key_env" in given and given["api_key_env"] not in os.environ:
        raise pytest.UsageError(f"--gpucap-api-key-env: the environment variable {given['api_key_env']} is not set")
    folders = {name: config.rootpath / getattr(Options, name) for name in ("dir", "baselines")}
    return Options(**folders | given, extensions=extensions.read_extensions(config))


def _raw(config: pytest.Config, option: _Option) -> tuple[Any, str]:
    """The text or value as given, and where; the command line before the ini file."""
    value = config.getoption(option.ini)
    if value is not UNSET:
        return value, option.flag
    place = f"{config.inipath.name if config.inipath else 'ini'}: {option.ini}"
    try:
        return config.getini(option.ini), place
    except (TypeError, ValueError):
        raise pytest.UsageError(f'{place}: write the value in quotes, such as {option.ini} = "10"') from None


_Parse = Callable[[Any, str, pytest.Config], Any]


def _text(value: Any, _what: str, _config: pytest.Config) -> str:
    return str(value).strip()


def _flag(value: Any, _what: str, _config: pytest.Config) -> bool:
    return bool(value)


def _path(value: Any, _what: str, config: pytest.Config) -> Path:
    # An ini file's relative path means relative to the project, wherever pytest was started from.
    return config.rootpath / Path(str(value)).expanduser()


def _html(value: Any, what: str, config: pytest.Config) -> Path:
    from importlib.util import find_spec

    if find_spec("jinja2") is None:  # said before GPU time is spent, not after
        raise ValueError('needs Jinja2: pip install "pytest-gpucap[html]"')
    return _path(value, what, config)


def _interpreter(value: Any, what: str, config: pytest.Config) -> str:
    text = str(value)
    if "/" not in text:
        return text  # a name on PATH
    path = _path(value, what, config)
    # One in an ini file is missed only by tests that need it: it is the GPU machine's, and other tests run everywhere.
    if config.getoption("gpucap_vllm_python") is not UNSET and not path.exists():
        raise ValueError(f"there is no interpreter at {path}")
    # Not resolved: a virtual environment's python is a link, and is found through the link's own place.
    return str(path)


def _positive(value: Any, what: str, _config: pytest.Config) -> Fraction:
    from pytest_gpucap.requirement import positive

    return positive(value, what)


def _headroom(value: Any, what: str, _config: pytest.Config) -> Fraction:
    from pytest_gpucap.requirement import headroom

    return headroom(value, what)


def _whole(value: Any, what: str, _config: pytest.Config) -> int:
    from pytest_gpucap.requirement import whole

    return whole(value, what)


def _seed(value: Any, what: str, _config: pytest.Config) -> int:
    from pytest_gpucap.requirement import whole

    return whole(value, what, least=0)


def _duration(value: Any, what: str, _config: pytest.Config) -> float:
    from pytest_gpucap.requirement import duration_s

    return duration_s(value, what)


def _url(value: Any, _what: str, _config: pytest.Config) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(str(value))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"must be a base URL such as http://127.0.0.1:8000/v1, not {value!r}")
    if parts.username or parts.password:
        raise ValueError("must not hold a key or password: name the variable that does with --gpucap-api-key-env")
    return str(value).rstrip("/")


def _regression(value: Any, what: str, _config: pytest.Config) -> float:
    from pytest_gpucap.requirement import proper_share

    return proper_share(value, what)


_PARSERS: Final[dict[str, tuple[str, _Parse]]] = {
    "target_qps": ("target_qps", _positive),
    "gpus": ("gpus", _whole),
    "headroom": ("headroom", _headroom),
    "max_time": ("max_time_s", _duration),
    "require": ("require", _flag),
    "seed": ("seed", _seed),
    "vllm_python": ("vllm_python", _interpreter),
    "base_python": ("base_python", _interpreter),
    "startup_timeout": ("startup_timeout_s", _duration),
    "url": ("url", _url),
    "gpu_wait": ("gpu_wait_s", _duration),
    "gpu_file": ("gpu_file", _path),
    "workload_file": ("workload_file", _path),
    "workers": ("workers", _whole),
    "dir": ("dir", _path),
    "json": ("json", _path),
    "markdown": ("markdown", _path),
    "html": ("html", _html),
    "baselines": ("baselines", _path),
    "max_regression": ("max_regression", _regression),
}
