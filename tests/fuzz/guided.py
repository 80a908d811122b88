"""Inputs that coverage guides: Atheris changes what came before, and keeps what reaches new code of a reader.

It is a program of its own. Atheris has to see the package's code while it is loaded, and never returns from its loop:

    python -P tests/fuzz/guided.py --folder NEW --runs 1000
    python -P tests/fuzz/guided.py --folder NEW --input FILE

The second line gives the readers one input again, such as one that ended a run before. An input's first byte says which
reader gets the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings
import zlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import pytest

    from tests.fuzz.readers import Reader

PACKAGES = ("pytest_gpucap", "prometheus_client", "tomllib")
"""Whose branches are counted: ours, and the readers in Python that we call."""
FAULT = 70
"""Exit status of a run that found an input which breaks what must hold."""
ONE_IN = 32
"""One input of so many swells: a part of it is repeated until it is as large as its reader allows."""
LONGEST_WORD = 60
"""Of the dictionary."""
LOOK_EVERY = 100
"""Inputs between two looks at the files that none may change."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of what the run needs and leaves")
    parser.add_argument("--runs", type=int, default=0, help="inputs; 0: no limit")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="the only input")
    parser.add_argument("--planted", action="store_true", help="only the reader with a fault, to see that it is found")
    return parser.parse_args()


def planted(content: bytes) -> str | None:
    """A reader with a fault that one input in sixteen millions meets."""
    if content[:1] == b"g" and content[1:2] == b"p" and content[2:3] == b"u":
        raise KeyError("planted")
    return None


def swollen(content: bytes, largest: int) -> bytes:
    """The content as it is, or, for some contents, with a few bytes of it repeated very often."""
    mixed = zlib.crc32(content)
    if not content or mixed % ONE_IN:
        return content
    start = (mixed >> 8) % len(content)
    part = content[start : start + 1 + (mixed >> 24) % 24]
    return content[:start] + part * ((largest - len(content)) // len(part)) + content[start:]


class Fuzzing:
    """A plugin of the pytest run that gives the readers what they need: the fuzzing is all that the run does."""

    def __init__(self, given: argparse.Namespace, atheris: Any) -> None:
        self._given, self._atheris = given, atheris

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fuzz, and end this process."""
        try:
            self._fuzz(session)
        except BaseException:  # noqa: BLE001 - nothing above this may go on
            traceback.print_exc()
        end(1)

    def _fuzz(self, session: pytest.Session) -> None:
        from tests.fuzz.doors import Place
        from tests.fuzz.readers import Reader, readers

        given, folder, atheris = self._given, self._given.folder.absolute(), self._atheris
        place = Place(session.config, session.items[0], folder / "kept", folder / "work")
        os.chdir(place.work)
        known = readers(place)
        if given.planted:
            known = (Reader("planted", (b"x",), atheris.instrument_func(planted)),)
        for reader in known:
            for seed in reader.seeds:  # once, so that everything is loaded, and takes its memory, before it counts
                reader.enter(seed)
        target = Target(known, place.kept, folder, given)
        if given.input is not None:
            target(given.input.read_bytes())
            target.finish()
        atheris.Setup([sys.argv[0], str(corpus(folder, known)), *flags(folder, given.seed)], target)
        atheris.Fuzz()


class Target:
    """Gives inputs to their readers, and ends the run."""

    def __init__(self, known: tuple[Reader, ...], kept: Path, folder: Path, given: argparse.Namespace) -> None:
        from tests.fuzz.guard import Guard

        self._known, self._folder, self._given = known, folder, given
        self._guard, self._began = Guard(kept), time.monotonic()

    def __call__(self, data: bytes) -> None:
        """One input, of a reader's number and what it reads."""
        from tests.fuzz.guard import BrokenError

        if not data:
            return
        reader, guard, given = self._known[data[0] % len(self._known)], self._guard, self._given
        try:
            guard.run(reader.enter, swollen(data[1:], reader.largest))
            if guard.inputs % LOOK_EVERY == 0:
                guard.check_files()
        except BrokenError as error:
            kept = self._folder / "fault"
            kept.write_bytes(data)
            end(FAULT, f"fault: {error}", f"reader: {reader.name}", f"input ({kept}): {data[1:3000]!r}")
        if guard.inputs == given.runs or 0 < given.seconds < time.monotonic() - self._began:
            self.finish()

    def finish(self) -> NoReturn:
        """End a run that found nothing."""
        self._guard.check_files()
        end(0, str(self._guard.figures(time.monotonic() - self._began)))


def end(status: int, *lines: str) -> NoReturn:
    """Say this, and end the process as nothing that Atheris has set up can stop."""
    print("", *lines, sep="\n", flush=True)
    sys.stderr.flush()
    os._exit(status)


def corpus(folder: Path, known: tuple[Reader, ...]) -> Path:
    """A folder with the seeds of every reader."""
    made = folder / "corpus"
    made.mkdir()
    for number, reader in enumerate(known):
        for count, seed in enumerate(reader.seeds):
            (made / f"{number}-{count}").write_bytes(bytes([number]) + seed)
    return made


def flags(folder: Path, seed: int) -> list[str]:
    """Of libFuzzer. Time and memory of an input are the guard's matter."""
    from tests.fuzz import inputs

    words = map(str, (*inputs.WRITTEN_NUMBERS, *inputs.TEXTS, *inputs.DAMAGE, "null", "true", "[[", "]]", '"""', "eyJ"))
    coded = {word.encode("utf-8", "surrogatepass") for word in words if 0 < len(word) <= LONGEST_WORD}
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in sorted(coded))
    (folder / "dictionary").write_text("".join(f'"{line}"\n' for line in lines))
    return [
        f"-seed={seed}",
        f"-dict={folder / 'dictionary'}",
        f"-artifact_prefix={folder}/",
        "-timeout=0",
        "-rss_limit_mb=0",
    ]


def main() -> None:
    """Load everything in Atheris's sight, and fuzz within a pytest run."""
    given = arguments()
    os.environ["GPUCAP_NO_NUMBA"] = "1"  # compiled code would hide its branches
    sys.path.append(str(Path(__file__).parents[2]))
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "pytest.ini").write_text("[pytest]\n")
    (given.folder / "test_it.py").write_text("def test_it(): ...\n")
    warnings.simplefilter("ignore")  # of libraries
    atheris = import_module("atheris")  # by name, since it is not for every Python
    with atheris.instrument_imports(include=list(PACKAGES)):
        import pytest

        plugins = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "benchmark", "hypothesispytest", "timeout")]
        words = [
            "-q",
            "-s",
            "--assert=plain",
            *plugins,
            f"--rootdir={given.folder}",
            "-c",
            str(given.folder / "pytest.ini"),
        ]
        sys.exit(pytest.main([*words, str(given.folder / "test_it.py")], plugins=[Fuzzing(given, atheris)]))


if __name__ == "__main__":
    main()
