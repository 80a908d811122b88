"""The doors through which a user's input comes in: options and ini keys, markers, commands, and every format of file.

A door takes one input. It returns None if the input is accepted, and the message if it is refused. Any other end, an
exception of another kind above all, is a fault.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from pytest_gpucap import access
from pytest_gpucap.__main__ import main
from pytest_gpucap.accuracy.questions import read_questions
from pytest_gpucap.engines.program import OWN_KEYWORDS, ProgramEngine
from pytest_gpucap.engines.protocol import ServerRequest, ServingIdentity
from pytest_gpucap.engines.shipped import SHIPPED, commanded, shipped
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import read_classes
from pytest_gpucap.history import store
from pytest_gpucap.history.compare import compare_result
from pytest_gpucap.load.trace import read_trace
from pytest_gpucap.markers.declare import declare
from pytest_gpucap.markers.keywords import KEYWORDS, LIMITING, read_keywords
from pytest_gpucap.markers.marks import same_declaration
from pytest_gpucap.options import values
from pytest_gpucap.options.reading import json_file, parse_options
from pytest_gpucap.options.table import Options, all_options
from pytest_gpucap.other_tools.reading import read_points
from pytest_gpucap.other_tools.results import Told, imported_file
from pytest_gpucap.planning.prices import read_prices
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.encoding import encoded
from pytest_gpucap.results.requests import read_requests
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.served import config_of
from pytest_gpucap.session.base_checkout import read_collected
from pytest_gpucap.session.baselines import _BASELINE, check_files
from pytest_gpucap.session.earlier import earlier_of
from pytest_gpucap.session.placement import check_names
from pytest_gpucap.simulator import profile
from pytest_gpucap.user_files import is_file
from pytest_gpucap.workloads.presets import find_preset
from pytest_gpucap.workloads.prompt_file import read_prompts
from pytest_gpucap.workloads.sessions import file_of_sessions, with_sessions_of_file
from tests.fuzz import inputs


@dataclass(frozen=True)
class Door:
    """One door.

    Attributes:
        name: for reports.
        values: the inputs that it is given.
        enter: gives it one.
        weight: how many inputs it gets of every 100, about.
    """

    name: str
    values: st.SearchStrategy[Any]
    enter: Callable[[Any], str | None]
    weight: int


@dataclass
class Place:
    """Where a fuzzing run happens.

    Attributes:
        config: pytest's own, of an empty run.
        item: a real test.
        kept: no file in this folder may change.
        work: inputs are written here, and reports go here.
        paths: hostile ones; those that exist are in `kept`.
        base: a result file that is whole, in `kept`.
    """

    config: pytest.Config
    item: pytest.Item
    kept: Path
    work: Path
    paths: tuple[str, ...] = ()
    base: Path = field(default=Path())

    def __post_init__(self) -> None:
        self.paths = inputs.make_paths(self.kept)
        self.base = self.kept / "base.json"
        self.base.write_text(json.dumps(inputs.result_documents()[0]))
        self.work.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, content: bytes) -> Path:
        """A file in the work folder."""
        path = self.work / name
        path.write_bytes(content)
        return path


def doors(place: Place) -> tuple[Door, ...]:
    """Every door."""
    paths = st.sampled_from(place.paths)
    known = formats(place)
    return (
        Door("options and ini keys", _options(paths), lambda given: _parse_options(place, given), 20),
        Door("markers", _markers(paths), lambda given: _declare(place, given), 20),
        Door("other engines", _engines(paths), _engine, 5),
        Door(
            "result files, damaged",
            _command(inputs.damaged(inputs.result_documents())),
            lambda given: _reports(place, given),
            15,
        ),
        Door("result files, spoilt", _command(inputs.spoilt(_results())), lambda given: _reports(place, given), 5),
        Door("baselines", inputs.damaged(inputs.result_documents()), lambda given: _baseline(place, given), 5),
        Door("arguments of commands", _arguments(place, paths), lambda given: _run(place, given), 10),
        *(
            Door(
                each.name,
                inputs.spoilt(each.contents) | _with_values(each.contents),
                partial(each.enter, place),
                3,
            )
            for each in known
        ),
        Door(
            "paths",
            st.tuples(st.sampled_from(known), paths),
            lambda given: _read(given[0].read, Path(given[1])),
            5,
        ),
    )


def _refusal(error: BaseException) -> str:
    return str(error) or type(error).__name__


# Options and ini keys


def _options(paths: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    rows = st.sampled_from(list(all_options()))
    values = inputs.numbers | inputs.texts | paths | st.sampled_from(EXAMPLES)
    return st.tuples(st.lists(st.tuples(rows, values), min_size=1, max_size=3), st.booleans())


EXAMPLES = (
    *(
        "sim:fast",
        "sim:/dev/zero.toml",
        "sim:x.toml",
        "h200",
        "cpu",
        "a10q",
        "http://127.0.0.1:1/v1",
        "http://[::1",
        "https://u:p@h/v1",
    ),
    *(
        "http://h:99999999999999999999/v1",
        "latest",
        "main",
        "X=HOME",
        "X=NOPE",
        "error",
        "warn",
        "chat",
        "HOME",
        "--a b",
        "--a 'b",
    ),
)


def _parse_options(place: Place, given: Any) -> str | None:
    rows, as_ini = given
    config = place.config
    unset = {row.ini: config.getoption(row.ini) for row in all_options()}
    cached = dict(config._inicache)
    config.stash._storage.pop(_BASELINE, None)
    try:
        for row, value in rows:
            # On the command line everything is text. An ini file in TOML has numbers and lists too.
            raw = value if as_ini or row.parse is values.flag else _text(value)
            raw = [_text(value)] if row.repeatable else raw
            if as_ini:
                config._inicache[row.ini] = raw
            else:
                setattr(config.option, row.ini, raw)
        found = parse_options(config)
        check_names(found)
        check_files(found, config)
        json_file(config)
    except pytest.UsageError as error:
        return _refusal(error)
    finally:
        config._inicache.clear()
        config._inicache.update(cached)
        for name, value in unset.items():
            setattr(config.option, name, value)
    return None


def _text(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # an int of thousands of digits
        return "9" * 5000


# Markers


def _markers(paths: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    values = inputs.numbers | inputs.texts | paths | inputs.json_values | st.sampled_from(EXAMPLES)
    limits = [*LIMITING, "ttft_p95", "e2e_p99_9", "itl_p50", "e2e_p99_" + "9" * 5000, "tpot_p0"]
    ours = st.sampled_from([*KEYWORDS, *limits])
    names = st.sampled_from(
        ["max_model_len", "tp", "gpu_memory_utilization", "max_num_seqs", "speculative_config", "a.b", "a", "-q"]
    )
    return st.tuples(
        st.dictionaries(ours | inputs.texts, values, max_size=4),
        st.dictionaries(names | inputs.texts, values, max_size=3),
        st.lists(values, max_size=1),
    )


def _declare(place: Place, given: Any) -> str | None:
    own, server, unnamed = given
    # pytest's own parameter has this name.
    own, server = ({name: value for name, value in each.items() if name != "self"} for each in (own, server))
    place.item.own_markers[:] = [
        pytest.mark.gpucap.with_args(**own).mark,
        pytest.mark.vllm.with_args(
            *unnamed, **{name: value for name, value in server.items() if not unnamed or name != "model"}
        ).mark,
    ]
    try:
        same_declaration(place.item)
        found = declare(place.item, Options())
        for each in ("max_model_len", "max_num_seqs", "gpu_memory_utilization", "gpus_per_replica"):
            getattr(found.vllm_args, each)
        found.vllm_args.flags()
    except ValueError as error:
        if not isinstance(error, GpuCapError):
            raise
        return _refusal(error)
    return None


def _engines(paths: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A name, what the marker says beside it, and the arguments of a base."""
    values = inputs.numbers | inputs.texts | paths | inputs.json_values | st.sampled_from(EXAMPLES)
    own = st.sampled_from([*OWN_KEYWORDS, "gpus_per_replica", "model", "tp_size", "ctx-size", "dtype"])
    pieces = ["{port}", "{model}", "sh ", "'", '"', "\\", "\n", "\x00", "--a", " "]
    commands = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
    return st.tuples(
        st.sampled_from([*SHIPPED, "mine"]) | inputs.texts,
        st.dictionaries(own | inputs.texts, values | commands, max_size=4),
        inputs.texts | commands,
    )


def _engine(given: Any) -> str | None:
    name, arguments, line = given
    try:
        kind = shipped(name) or commanded(name)
        kind.gpus_per_replica(arguments)
        engine = kind(ServerRequest(model="m", arguments=arguments, python=sys.executable))
        assert isinstance(engine, ProgramEngine)
        words = engine.command("m", ServingIdentity.new("m"), 1)
        assert all(isinstance(word, str) and "\x00" not in word for word in words)
        engine.with_base(line, None).changes()
    except ValueError as error:
        if "\n" in str(error):
            raise
        return _refusal(error)
    return None


# Files


@cache
def _results() -> tuple[bytes, ...]:
    return tuple(json.dumps(document).encode() for document in inputs.result_documents())


COMMANDS = (
    *("report", "text", "markdown", "junit", "code-quality", "metrics", "html", "show", "compare", "compared"),
    *("report", "text", "markdown", "show", "compare", "compared", "html", "plan", "history", "export", "frame"),
)


def _command(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.sampled_from(COMMANDS), values)


def _reports(place: Place, given: Any) -> str | None:
    command, content = given
    path = place.put("result.json", content if isinstance(content, bytes) else _json(content))
    match command:
        case "report" | "show":
            words = [command, str(path)]
        case "frame":
            words = [
                "frame",
                str(path),
                "--out",
                str(place.work / f"table.{'parquet' if len(str(content)) % 2 else 'csv'}"),
                "--rows",
                ("windows", "phases", "results", "requests")[len(str(content)) % 4],
            ]
        case "export":
            words = ["export", str(path), "--openmetrics", str(place.work / "metrics")]
        case "compare":
            words = ["compare", str(place.base), str(path), "--format", "markdown"]
        case "compared":
            words = ["compare", str(path), str(place.base), "--format", "json"]
        case "plan":
            words = ["plan", "--result", str(path), "--qps", "100"]
        case "history":
            nights = place.work / "nights"
            nights.mkdir(exist_ok=True)
            (nights / "a.json").write_bytes(path.read_bytes())
            (nights / "b.json").write_bytes(place.base.read_bytes())
            words = ["history", str(nights)]
        case _:
            words = ["report", str(path), f"--{command}", str(place.work / "report")]
    return _main(words)


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _main(words: list[str]) -> str | None:
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            status = main(words)
        except SystemExit as end:  # argparse: the usage, and one line
            status = 2
            if end.code != 2:
                raise AssertionError(f"exit {end.code}") from None
            said = io.StringIO(said.getvalue().strip().rpartition("\n")[2])
    if status == 2:
        return (
            said.getvalue().strip().splitlines()[-1]
            if "skipped" in said.getvalue()
            else said.getvalue().removesuffix("\n")
        )
    return None


def _baseline(place: Place, document: Any) -> str | None:
    path = place.put("baseline.json", _json(document))
    ours = result_file.read(place.base)
    try:
        store.check_writable(path)
        baseline = store.open_baseline(str(path), place.work, place.work)
    except result_file.ResultFileError as error:
        return _refusal(error)
    for result in ours.results:
        compare_result(result, baseline, 0.05)
    place.item.own_markers[:] = []
    declared, earlier = declare(place.item, Options()), earlier_of(baseline.runs)
    for result in baseline.runs[0].results:
        earlier.spent(result.test, declared, "h200", simulated=result.simulated)
        compare_result(result, store.Baseline("base", (store.Run(place.base, ours),)), 0.05)
    store.saved_form(baseline.runs[0].content, simulated=False, forced=True)
    return None


_numbers = itertools.cycle(range(32))
"""Files are read at most so often under one name, since readers may know a file by its name, size and time."""


@dataclass(frozen=True)
class Format:
    """A format of file.

    Attributes:
        name: for reports.
        contents: of files that are whole.
        read: reads a file.
        suffix: of its name.
    """

    name: str
    contents: tuple[bytes, ...]
    read: Callable[[Path], object]
    suffix: str = ".json"

    def enter(self, place: Place, content: bytes) -> str | None:
        """Read a file of this content: a door."""
        return _read(self.read, place.put(f"file{next(_numbers)}{self.suffix}", content))


COLLECTED_BASE = (
    b'{"tests": {"a.py::b": {"place": "a.py:1", "engine": "vllm", "model": "m", "arguments": {"tp": 2}, "mistake": ""}}'
    b', "others": ["a.py::c"], "broken": {"d.py": "SyntaxError"}}'
)


def _sessions() -> tuple[bytes, ...]:
    """Files of recorded sessions, one of each format."""
    talk = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}] * 2
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    turns = [{"role": "system", "text": "a"}, {"text": "b", "output_length": 3}, {"texts": ["c"], "delay": 5}]
    times = {"start_time": "2026-02-25T10:00:00", "end_time": "2026-02-25T10:00:01Z"}
    span = {**times, "attributes": {"gen_ai.input.messages": json.dumps(chat), "gen_ai.output.text": "2"}}
    mooncake = {"timestamp": 27, "input_length": 700, "output_length": 3, "hash_ids": [1, 2]}
    bailian = {"chat_id": 2, "parent_chat_id": 1, "timestamp": 2.5, "input_length": 30, "output_length": 3}
    rows = (
        [{"conversations": talk}],
        [{"messages": chat, "max_tokens": 3}],
        [{"session_id": "a", "turns": turns}] * 2,
        [{"session_id": "a", "text": "b", "timestamp": 3}] * 2,
        [{"spans": [span, span]}],
        [mooncake, {**mooncake, "session_id": "a", "delay": 4}],
        [{**bailian, "chat_id": 1, "parent_chat_id": -1, "hash_ids": [1, 2]}, {**bailian, "hash_ids": [1, 2, 3]}],
    )
    return tuple("".join(json.dumps(row) + "\n" for row in each).encode() for each in rows)


def _of_sessions(path: Path) -> object:
    """The sessions of a file with their lengths, as a marker takes them."""
    return with_sessions_of_file(Workload(), file_of_sessions(path, path.parent), None)


def formats(place: Place) -> tuple[Format, ...]:
    """Every format of file that a user names."""
    package, tests = inputs.REPOSITORY / "pytest_gpucap", inputs.REPOSITORY / "tests"
    trace = b"arrival_s,input_tokens,output_tokens\n0,7,3\n1.5,8,2\n2,9,100\n"
    jsonl = (
        b'{"timestamp": 0, "input_length": 7, "output_length": 3}\n' * 2
        + b'{"timestamp": 27, "input_length": 8, "output_length": 2}\n'
    )
    kept = (
        b'{"scheduled_s": 1.5, "first_token_s": 2, "prompt_tokens": 7, "asked_output_tokens": 3, "status": "ok"}\n' * 2
    )
    prices = b'currency = "USD"\n[per_hour]\na10g = 1.006\nh200 = 4\n'
    preset = b'[mine]\nabout = "a"\nextends = "chat"\ninput_tokens = "lognormal:mean=256,cv=0.8,high=2048"\nqps = 3\n'
    questions = b'{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "answer": 4}\n'
    chat = b'{"messages": [{"role": "user", "content": "1+1?"}], "max_tokens": 3, "n": 1}\n'
    batch = b'{"custom_id": "a", "body": {"prompt": "Once", "max_tokens": 3}}\n{"prompt": "a", "output_tokens": 2}\n'
    shared = (
        b'[{"conversations": [{"from": "human", "value": "1+1?"},\n{"from": "gpt", "value": "2"}]},\n{"prompt": "a"}]'
    )
    prompts = (chat * 2, batch, shared, gzip.compress(chat, mtime=0))
    return (
        Format("collected base", (COLLECTED_BASE,), read_collected),
        Format(
            "GPU classes",
            ((package / "gpu" / "gpus.toml").read_bytes()[:4000].rpartition(b"\n[[gpu]]")[0], GPU),
            read_classes,
            ".toml",
        ),
        Format("prices", (prices,), read_prices, ".toml"),
        Format(
            "workload presets",
            (preset, (package / "workloads" / "presets.toml").read_bytes()),
            lambda path: _preset(place, path),
            ".toml",
        ),
        Format("traces", (trace, jsonl), read_trace),
        Format("questions", (questions,), read_questions),
        Format("requests", (kept, gzip.compress(kept, mtime=0)), lambda path: list(read_requests(path))),
        Format("prompts", prompts, read_prompts),
        Format("sessions", _sessions(), _of_sessions),
        Format(
            "simulator profiles",
            ((package / "simulator" / "profiles" / "h200.toml").read_bytes(),),
            _profile,
            ".toml",
        ),
        Format("model configs", _configs(), _shape),
        Format("certificates", ((tests / "load" / "tls" / "cert.pem").read_bytes(),), _certificates),
        Format("result files", _results(), result_file.read),
        *(Format(f"results of {name}", contents, _imported) for name, contents in _recorded().items()),
        Format(
            "results of a sweep, as CSV",
            ((RECORDED / "vllm-sweep-0.32.0" / "summary.csv").read_bytes(),),
            _imported,
            ".csv",
        ),
    )


RECORDED = inputs.REPOSITORY / "tests" / "other_tools" / "recorded"


@cache
def _recorded() -> dict[str, tuple[bytes, ...]]:
    """What other load generators wrote, by the tool."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(RECORDED.rglob("*.json*")):
        tool = path.relative_to(RECORDED).parts[0].rpartition("-")[0]
        content = path.read_bytes()
        # What is nested is put into lines, whose values are replaced one by one.
        text = json.dumps(inputs.trimmed(json.loads(content)), indent=1).encode() if path.suffix == ".json" else content
        found.setdefault(tool, []).append(text)
    return {tool: tuple(contents) for tool, contents in found.items()}


def _imported(path: Path) -> object:
    """Import a result of another tool, and read what was made of it."""
    if str(path) in _ALL_FILES:
        return None
    found, _ = read_points(path)
    content = imported_file(found, Told())
    return result_file.from_document(json.loads(encoded(content)))


GPU = b"""[[gpu]]
name = "mine"
nvml_names = ["NVIDIA Mine"]
memory_gb = 24
bandwidth_gb_s = 600.5
bf16_tflops = 70
compute_capability = "8.6"
sms = 7
mig_profiles = ["1g.5gb"]
mig_sms = [1]
"""


@st.composite
def _with_values(draw: st.DrawFn, contents: tuple[bytes, ...]) -> bytes:
    """A file with one of its values replaced: what stands behind ``=`` or ``:``, or between commas."""
    lines = draw(st.sampled_from(contents)).splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    line = lines[number]
    marks = [at for at, letter in enumerate(line) if letter in b"=:,["]
    start = draw(st.sampled_from(marks)) + 1 if marks else 0
    end = next((at for at in marks if at >= start), len(line))
    value = draw(
        st.sampled_from(inputs.WRITTEN_NUMBERS)
        | st.sampled_from(("[]", "{}", '""', "true", "null", '"x"', "[1]", "1e9"))
        | inputs.texts
    )
    lines[number] = line[:start] + value.encode("utf-8", errors="surrogatepass") + line[end:]
    return b"\n".join(lines) + b"\n"


def _read(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except ValueError as error:
        if not isinstance(error, GpuCapError) and read is not _certificates:
            raise
        return _refusal(error)
    return None


def _preset(place: Place, path: Path) -> object:
    preset = find_preset("mine", path)
    return read_keywords(preset.keywords, place.item.path.parent)


def _profile(path: Path) -> object:
    return profile.load(str(path) if str(path).endswith(".toml") else f"{path}.toml")


def _configs() -> tuple[bytes, ...]:
    return tuple(
        json.dumps(config_of(f"synthetic:{name}")).encode()
        for name in ("tiny", "qwen2-1.5b", "llama3-8b")
        if _has(name)
    )


def _has(name: str) -> bool:
    try:
        return config_of(f"synthetic:{name}") is not None
    except ValueError:
        return False


def _shape(path: Path) -> object:
    config = config_of(str(path))
    return None if config is None else model_of(config)


def _certificates(path: Path) -> object:
    return access.tls_context(str(path))


# Commands


def _arguments(place: Place, paths: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    # A report replaces the file that it names, unless it is made from that file.
    outputs = st.sampled_from([str(place.base), *(path for path in place.paths if not is_file(path))])
    values = inputs.numbers.map(_text) | inputs.texts | paths
    plan = st.sampled_from(
        [
            "--qps",
            "--headroom",
            "--qps-table",
            "--gpus",
            "--slo",
            "--input-tokens",
            "--output-tokens",
            "--shared-prefix-tokens",
        ]
        + [
            "--tensor-parallel-size",
            "--max-num-seqs",
            "--gpu-memory-utilization",
            "--prices",
            "--gpu-file",
            "--model",
            "--result",
        ]
        + ["--baseline", "--gpu-class", "--name", "--baselines", "--dtype", "--data-parallel-size", "--rate"]
    )
    given = st.lists(st.tuples(plan, values), min_size=1, max_size=2)
    report = st.sampled_from(["--text", "--markdown", "--html", "--junit", "--metrics", "--code-quality", "--history"])
    imports = st.sampled_from(["--out", "--gpu-class", "--model", "--server-arg", "--slo", "--name", "FILE"])
    return (
        st.tuples(st.just("plan"), given)
        | st.tuples(st.just("import"), st.lists(st.tuples(imports, values), min_size=1, max_size=2))
        | st.tuples(st.just("report"), st.lists(st.tuples(report, outputs), min_size=1, max_size=2))
        | st.tuples(
            st.sampled_from(["report-of", "show", "history", "--since", "--plot", "compare", "--max-regression"]),
            values,
        )
    )


_ALL_FILES = frozenset({"/", "//", "~", ".", "..", "../.."})
"""Folders with all files of the machine, which take as long as they take."""


def _plan(given: Any) -> list[str]:
    flags = {flag for flag, _ in given}
    words = ["plan", "--gpu-class=h200", *([] if "--rate" in flags else ["--model=synthetic:tiny"])]
    words += [] if "--qps" in flags else ["--qps=10"]
    return words + [f"{flag}={each}" for flag, each in given]


def _run(place: Place, given: Any) -> str | None:
    command, value = given
    flags = value if isinstance(value, list) else [(command, value)]
    if any(flag in _SEARCHED and each in _ALL_FILES for flag, each in flags):
        return None
    base = str(place.base)
    match command:
        case "plan":
            words = _plan(value)
        case "import":
            words = ["import", f"--out={place.work / 'imported.json'}"]
            words += [f"{flag}={each}" for flag, each in value if flag != "FILE"]
            words += ["--", str(RECORDED / "sglang-0.5.23"), *(each for flag, each in value if flag == "FILE")]
        case "report" if any(flag == "--history" and each in _ALL_FILES for flag, each in value):
            return None
        case "report":
            words = ["report", base, *(f"{flag}={each}" for flag, each in value)]
        case "report-of":
            words = ["report", "--", value]
        case "show" | "history":
            words = [command, "--", value]
        case "--since" | "--plot":
            words = ["history", str(place.kept / "folder.json"), f"{command}={value}"]
        case "compare":
            words = ["compare", "--", base, value]
        case _:
            words = ["compare", base, base, f"--max-regression={value}"]
    return _main(words)


_SEARCHED = frozenset({"--history", "history", "FILE"})
"""What searches the folder that it is given."""
