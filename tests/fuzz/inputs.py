"""Hostile inputs: numbers, texts, paths, JSON and TOML values, and damage to documents that are whole."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[2]

WRITTEN_NUMBERS = (
    *("1e9999999", "-1e9999999", "1e-9999999", "9" * 400, "9" * 20_000, "0." + "0" * 20_000 + "1", "1e400", "1e308"),
    *(
        "5e-324",
        "nan",
        "-nan",
        "inf",
        "-Infinity",
        "-0",
        "0",
        "1_000",
        "\uff11\uff12",
        "\u00b2",
        "0x10",
        "1e",
        "+1",
        ".5",
        "5.",
    ),
    *("2147483647", "2147483648", "4294967296", "9223372036854775808", "18446744073709551616", "-1", "1.5", "1,5"),
    *("", " ", "1%", "%", "1e9999999%", "99.9999%", "100%", "1e9999999s", "1e300h", "0.0000001us", "9" * 400 + "ms"),
    *("500ms", "20s", "10m", "1e-9s", "uniform:1-2147483648", "uniform:2-1", "uniform:" + "9" * 5000 + "-1"),
    *("lognormal:mean=1e9999999,cv=1,high=9", "lognormal:mean=nan,cv=1,high=9", "lognormal:mean=8,cv=1e300,high=9"),
    *(
        "turns=4 think=5s",
        "turns=1000 think=1h context=1",
        "turns=uniform:1-9 think=lognormal:mean=1us,cv=1e9",
        "turns==",
    ),
    *(
        "2GiB",
        "1e3GiB",
        "9" * 400 + "GiB",
        "5%",
        "\u0663GiB",
        "20\u017f",
        "1\u212a",
        "5M\u0130B",
        "1k",
        "9" * 400 + "k",
        "auto",
        "many",
    ),
)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 10**5000, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308),
    *(True, None, Decimal("NaN"), Decimal("sNaN"), Decimal("1e999999"), Fraction(1, 10**400), Fraction(10**400), 1.5),
    *([], {}, (), b"1", object, complex(1, 1)),
)
TEXTS = ("", " ", "x", "\n", "a\nb", "\x00", "\x1b[31m", "é", "\udcff", "x" * 20_000, "a\u2028b", "%s%n{0}", "../..")

texts = st.sampled_from(TEXTS) | st.text(max_size=20)
numbers = st.sampled_from(WRITTEN_NUMBERS) | st.sampled_from(NUMBERS) | st.integers() | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
DAMAGE: tuple[Any, ...] = (
    *(None, True, False, "", "x", "a\nb\x1b[31m\x00", -1, 0, 1, -1.5, 1e308, -1e308, 5e-324, 2**31, 2**63, 2**64),
    *(10**30, 10**400, [], {}, [None], [[]], {"x": 1}, {"": None}, [1, 2], "1e9999", "9999-12-31T23:59:59+00:00"),
    *(
        "0001-01-01T00:00:00",
        "x" * 20_000,
        {"x": {"x": 1.0}},
        [0.0] * 3,
        [-1, -1],
        [0] * 5000,
        {str(n): n for n in range(500)},
    ),
)
damage = st.sampled_from(DAMAGE) | json_values


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value of a document stands."""
    if place:
        yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*place, key))


def damaged(documents: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """One of the documents, with one to three of its values replaced, or taken away."""
    # Every kind of place is as likely, however often a document has it.
    known = []
    for document in documents:
        kinds: dict[tuple[str, ...], list[Place]] = {}
        for place in places(document):
            kinds.setdefault(tuple("*" if isinstance(key, int) else key for key in place), []).append(place)
        known.append((json.dumps(document), list(kinds.values())))

    @st.composite
    def made(draw: st.DrawFn) -> Any:
        text, kinds = draw(st.sampled_from(known))
        document = json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            _damage(draw, document, draw(st.sampled_from(draw(st.sampled_from(kinds))[:8])))
        return document

    return made()


Place = tuple[str | int, ...]


def _damage(draw: st.DrawFn, document: Any, place: Place) -> None:
    *way, last = place
    try:
        for key in way:
            document = document[key]
        if draw(st.integers(0, 4)) == 0:
            del document[last]
        else:
            document[last] = deepcopy(draw(damage))  # a later damage may be put into it
    except (LookupError, TypeError):
        return  # what stood there was damaged before


@st.composite
def spoilt(draw: st.DrawFn, contents: tuple[bytes, ...]) -> bytes:
    """Bytes of a file that were cut off, changed, repeated or replaced."""
    content = draw(st.sampled_from(contents))
    at = draw(st.integers(0, 1000)) * len(content) // 1000
    match draw(st.sampled_from(("cut", "change", "put in", "twice", "other"))):
        case "cut":
            return content[:at]
        case "change":
            return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
        case "put in":
            return content[:at] + draw(st.sampled_from(PIECES)) + content[at:]
        case "twice":
            return content + content
    return draw(st.sampled_from(PIECES) | st.binary(max_size=50))


PIECES = (
    *(b"[" * 100_000, b'{"a":' * 50_000, b"9" * 20_000, b"NaN", b"-Infinity", b"1e999", b"\xff\xfe", b"\x00", b'"'),
    *(b"a=" + b"[" * 50_000, b".".join([b"a"] * 50_000) + b"=1", b"a=0x" + b"f" * 50_000, b"[[a]]\n" * 5_000, b"\n,\n"),
    *(b'"\\ud800"', b"[" + b"{}," * 50_000 + b"{}]", b"'''", b"#" * 200_000, b"\r", b'{"a":1,"a":2}', b"x" * 2_000_000),
)


def trimmed(value: Any) -> Any:
    """A document with the first few entries of every list: every kind of value is in it, and it is read quickly."""
    if isinstance(value, dict) and set(value) == {"edges_s", "counts"}:
        return {"edges_s": value["edges_s"][:6], "counts": [1, *value["counts"][1:5]]}
    if isinstance(value, dict):
        return {key: trimmed(each) for key, each in value.items()}
    if isinstance(value, list):
        few = value[:6] if value and not isinstance(value[0], dict | list) else value[:2]
        return list(map(trimmed, few))
    return value


@cache
def result_documents() -> tuple[Any, ...]:
    """Real result files of every kind of measurement."""
    names = ("cpu/examples", "h200-x2/curve", "h200-x2/prefix", "h200/suite", "h200/front-ends-check")
    files = (REPOSITORY / "benchmarks" / "results" / f"{name}.json" for name in names)
    first, *others = (trimmed(json.loads(file.read_bytes())) for file in files)
    return with_limits(first), *others


def with_limits(document: Any) -> Any:
    """A result file with limits beside the rate in every result, and a goodput in every window."""
    interval = {"value": 351.2, "low": 340.1, "high": 362.4, "confidence": 0.95}
    energy = {
        "name": "joules_per_1k_tokens",
        "unit": "J per 1,000 output tokens",
        "bound": "at most",
        "limit": 300.0,
        "measured": interval,
        "outcome": "FAIL",
        "arithmetic": "48,210 J / 137,271 output tokens x 1,000",
        "beside": "",
        "reason": "",
        "decided": True,
    }
    start = {
        "name": "startup",
        "unit": "s",
        "bound": "at most",
        "limit": 90.0,
        "measured": None,
        "outcome": "INVALID",
        "arithmetic": "",
        "beside": "",
        "reason": "the server does not tell",
        "decided": False,
    }
    for result in document["results"]:
        result["secondary"] = [energy, start]
        for sample in result["samples"]:
            sample["goodput"] = 0.97
    return document


def make_paths(folder: Path) -> tuple[str, ...]:
    """Paths that are no usable file, made in a folder as far as they have to exist."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(folder / "socket"))
    (folder / "folder.json").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("missing/file")
    (folder / "zeros").symlink_to("/dev/zero")
    contents = {
        "deep.toml": b"a = " + b"[" * 100_000,
        "dotted.toml": b".".join([b"a"] * 100_000) + b" = 1",
        "digits.toml": b"a = " + b"9" * 20_000,
        "deep.json": b"[" * 100_000,
        "line.csv": b"x" * 3_000_000,
        "latin.txt": "é".encode("latin-1"),
        "empty": b"",
        "nul": b"\x00" * 1000,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with (folder / "sparse.json").open("wb") as sparse:
        sparse.truncate(20 * 2**30)
    made = (
        folder / name
        for name in ("pipe", "socket", "folder.json", "loop", "nowhere", "zeros", "sparse.json", *contents)
    )
    return (
        *map(str, made),
        *("/dev/zero", "/dev/full", "/dev/null", "/dev/random", "/proc/self/mem", "/proc/self/pagemap", "/proc/kmsg"),
        *(
            "~nosuchuser/x",
            "~nosuchuser",
            "~",
            "x" * 300,
            "/".join(["x" * 200] * 30),
            "a\x00b",
            "a\nb",
            "\udcff",
            "\x1b[31m",
        ),
        *("", ".", "..", "/", "//", "no/such/file", f"{folder}/empty/below", f"{folder}/folder.json/"),
    )
